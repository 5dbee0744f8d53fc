"""The page that reports an evaluation: one self-contained HTML file, no script, nothing fetched.

Everything that a model or a person wrote is escaped, and the page's policy forbids scripts and
requests altogether, so a hostile completion is shown and does nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation import probes

SHOWN_CASES = 10


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is named and read: `percent` shows a share as such, `digits` are decimals."""

    label: str
    meaning: str
    percent: bool = False
    digits: int = 3


MEASURES: Mapping[str, Measure] = {
    "validity": Measure("chain validity", "completions that are a whole chain", percent=True),
    "finished": Measure("finished", "completions that ended by themselves in time", percent=True),
    "tokens": Measure("completion length (tokens)", "chain and answer together", digits=0),
    "characters": Measure("answer length (characters)", "white space not counted", digits=0),
    "rouge_l_max": Measure("ROUGE-L, best reference", "on characters; best of the references"),
    "rouge_l_mean": Measure("ROUGE-L, mean reference", "on characters; mean of the references"),
    "distinct_1": Measure("distinct-1 per answer", "different words over all words of an answer"),
    "distinct_2": Measure("distinct-2 per answer", "the same for pairs of words"),
    "distinct_1_all": Measure("distinct-1 over all", "over one answer of each question"),
    "distinct_2_all": Measure("distinct-2 over all", "the same for pairs of words"),
    "echo_overlap": Measure(
        "echo of the question", "4-grams of the answer that stand in the question", percent=True
    ),
    "similarity": Measure(
        "reward-model similarity", "cosine of question and answer; what RL optimises"
    ),
    "similarity_passes": Measure(
        "passes the reward model", "similarity at or above the calibrated threshold", percent=True
    ),
}

_REWARD_TITLES = {
    "cosine": "The reward model alone: cosine of question and answer",
    "reward": "The whole reward of an answer: what RL pays, without the format's part",
}
_LAYER_NAMES = {
    "L1": "emotions and context",
    "L2": "causes and beliefs",
    "L3": "intent",
    "L4": "response strategy",
}


def choose_cases(rows: Sequence[dict], seed: int, count: int = SHOWN_CASES) -> list[int]:
    """Indices of `count` rows drawn without replacement, in their order; all of fewer."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return sorted(int(index) for index in drawn)


def render(scores: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML text.

    Args:
      scores: what `scores.json` holds: model, questions, completions, `measures` (key of MEASURES
        to value, error, questions, floor, floor_error; None where there is no value) and `chain`
        (valid, rules, layers); and `probes`, a reward's name to what `probes.compare` gives, empty
        where no reward was probed.
      cases: rows of `generations.jsonl`, each with `reference` (a text or None) and `measures` (key
        to number or None) besides.
    """
    table = [
        {
            "measure": MEASURES[name],
            "value": _number(name, entry["value"], entry["error"]),
            "floor": _number(name, entry["floor"], entry["floor_error"]),
            "questions": entry["questions"],
        }
        for name, entry in scores["measures"].items()
    ]
    shown = [
        {
            **case,
            "broken": chain_of_empathy.RULES[case["rule"]] if case["rule"] else None,
            "layers": [(name, _LAYER_NAMES[name], case[name]) for name in chain_of_empathy.LAYERS],
            "figures": [
                (MEASURES[name].label, _number(name, value))
                for name, value in case["measures"].items()
                if value is not None
            ],
        }
        for case in cases
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_PAGE).render(
        scores=scores,
        table=table,
        probed=_probe_tables(scores["probes"]),
        max_beats=f"{100 * probes.MAX_BEATS:g} %",
        cases=shown,
        layer_names=_LAYER_NAMES,
        rules=chain_of_empathy.RULES,
    )


def _probe_tables(probed: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each reward its title, its warning (a sentence or None), and a row for each probe."""
    return [
        {
            "title": _REWARD_TITLES[reward],
            "warning": probes.warning(found),
            "rows": [
                {
                    "name": name.replace("_", " "),
                    "meaning": probes.PROBES[name].meaning,
                    "beats": f"{100 * entry['beats']:.1f} ± {100 * entry['error']:.1f} %",
                    "ties": f"{100 * entry['ties']:.1f} %",
                    "gain": f"{entry['mean_gain']:+.3f}",
                    "questions": entry["questions"],
                    "fails": probes.fails(name, entry["beats"]),
                }
                for name, entry in found.items()
            ],
        }
        for reward, found in probed.items()
    ]


def _number(name: str, value: float | None, error: float | None = None) -> str:
    """A value with its standard error in the measure's unit; a dash where there is none."""
    if value is None:
        return "–"
    measure = MEASURES[name]
    scale, digits = (100.0, 1) if measure.percent else (1.0, measure.digits)
    text = f"{value * scale:.{digits}f}"
    if error is not None:
        text += f" ± {error * scale:.{digits}f}"
    return text + (" %" if measure.percent else "")


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evaluation of {{ scores.model }}</title>
<style>
:root { color-scheme: light dark; --line: #d5d9e0; --soft: #f4f6f9; --dim: #5b6472; --bad: #a3341f;
  --ok: #1d6b45; --page: #fff; --ink: #1b1f26; }
@media (prefers-color-scheme: dark) {
  :root { --line: #363d49; --soft: #1e232b; --dim: #a2abba; --bad: #ff9b85; --ok: #7fd6a8;
    --page: #14171c; --ink: #e6e9ef; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
small, .dim { color: var(--dim); font-size: .85rem; }
td small { display: block; }
.ok { color: var(--ok); } .bad { color: var(--bad); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .2rem 1rem 1rem;
  margin: 1rem 0; }
h3 { font-size: 1rem; margin: .8rem 0 .2rem; overflow-wrap: anywhere; }
h4 { font-size: .85rem; margin: .8rem 0 .2rem; color: var(--dim); font-weight: 600; }
.text { background: var(--soft); border-radius: .4rem; padding: .5rem .7rem; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 0 1rem; }
</style>
</head>
<body>
<h1>Evaluation of {{ scores.model }}</h1>
<p>{{ scores.completions }} completions of {{ scores.questions }} test questions.
Numbers are means over questions ± standard error. Measures of the answer cover valid chains only,
since a broken text has no answer; the last column says how many questions have one.
The floor scores what people answered to a different question in the same way: it is what a fluent
answer gets that has nothing to do with the question.</p>

<h2>Scores</h2>
<div class="scroll"><table>
<tr><th>measure</th><th class="n">model</th><th class="n">floor</th>
<th class="n">questions</th></tr>
{% for row in table %}
<tr><td>{{ row.measure.label }}<small>{{ row.measure.meaning }}</small></td>
<td class="n">{{ row.value }}</td><td class="n">{{ row.floor }}</td>
<td class="n">{{ row.questions }}</td></tr>
{% endfor %}
</table></div>

<h2>Where chains break</h2>
<p>{{ scores.chain.valid }} of {{ scores.completions }} completions are valid chains.</p>
<div class="scroll"><table>
<tr><th>first broken rule</th><th class="n">completions</th></tr>
{% for rule, count in scores.chain.rules.items() %}
<tr><td>{{ rule }}<small>{{ rules[rule] }}</small></td><td class="n">{{ count }}</td></tr>
{% else %}
<tr><td>none</td><td class="n">0</td></tr>
{% endfor %}
</table></div>
<div class="scroll"><table>
<tr><th>layer</th><th class="n">completions where it is whole</th></tr>
{% for layer, count in scores.chain.layers.items() %}
<tr><td>{{ layer }}<small>{{ layer_names[layer] }}</small></td><td class="n">{{ count }}</td></tr>
{% endfor %}
</table></div>

{% if probed %}
<h2>Can the reward be cheated?</h2>
<p>Each text below was scored in place of what a person answered to the same test question. A reward
that puts one of them above the person in more than {{ max_beats }} of the questions pays for
cheating, and its row is marked. Only the answer to a similar question may win: it can suit a
question well.</p>
{% for reward in probed %}
<h3>{{ reward.title }}</h3>
{% if reward.warning %}<p class="bad"><strong>{{ reward.warning }}</strong></p>{% endif %}
<div class="scroll"><table>
<tr><th>scored instead of the human answer</th><th class="n">beats it</th><th class="n">equal</th>
<th class="n">mean gain</th><th class="n">questions</th></tr>
{% for row in reward.rows %}
<tr{% if row.fails %} class="bad"{% endif %}><td>{{ row.name }}{% if row.fails %}
 (over {{ max_beats }}){% endif %}<small>{{ row.meaning }}</small></td>
<td class="n">{{ row.beats }}</td><td class="n">{{ row.ties }}</td>
<td class="n">{{ row.gain }}</td><td class="n">{{ row.questions }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
{% endif %}

<h2>{{ cases | length }} cases drawn at random</h2>
{% for case in cases %}
<article>
<h3>{{ case.id }}
{% if case.broken %}<span class="bad">{{ case.rule }}: {{ case.broken }}</span>
{% else %}<span class="ok">valid chain</span>{% endif %}</h3>
<h4>Question</h4><div class="text" dir="auto">{{ case.question }}</div>
{% if case.broken %}
<h4>Completion as generated</h4><div class="text" dir="auto">{{ case.completion }}</div>
{% else %}
{% for name, title, text in case.layers %}
<h4>{{ name }}, {{ title }}</h4><div class="text" dir="auto">{{ text }}</div>
{% endfor %}
{% endif %}
<div class="pair">
{% if not case.broken %}
<div><h4>Answer</h4><div class="text" dir="auto">{{ case.answer }}</div></div>
{% endif %}
<div><h4>Reference answer</h4>
{% if case.reference %}<div class="text" dir="auto">{{ case.reference }}</div>
{% else %}<p class="dim">The question has no reference answer.</p>{% endif %}</div>
</div>
<p class="dim">{% for label, value in case.figures %}
{{ label }} {{ value }}{{ "; " if not loop.last }}
{% endfor %}</p>
</article>
{% endfor %}
</body>
</html>
"""
