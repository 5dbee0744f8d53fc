import html.parser
import re

import markupsafe
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation import probes, report, safety_table
from empathy_jax.evaluation.metrics.catalogue import GROUPS, MEASURES

HOSTILE = (
    "</div><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' "
    "{{ 7 * 7 }}{% raw %}&lt;b&gt; \u202e javascript:alert(4) </style><!-- "
)

SVG_TAGS = {"svg", "g", "path", "text", "defs", "clippath", "rect", "use", "tspan", "title"}


class _Page(html.parser.HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)


SIDES = ("", "floor_", "ceiling_")
ENTRY = {f"{side}{key}": None for side in SIDES for key in ("error", "low", "high")} | {
    "value": 0.5, "low": 0.4, "high": 0.6, "questions": 3, "floor": None, "ceiling": None,
    "beside_ceiling": None, "tokens": None,
}  # fmt: skip
SHARE = {"count": 1, "total": 4, "low": 0.05, "high": 0.7}
SETTINGS = {"config": {"seed": 0, "data": {"questions": "sample", "chains": ""}}}
LENGTHS = {"model": [100.0, 120.0], "people": [80.0]}


def _scores(**changes) -> dict:
    columns = ("answered", "names_help", "people_names_help", "speaks_of_danger")
    win = {"value": 0.75, "low": 0.6, "high": 0.9, "questions": 3}
    overlap = {"floor": 0.25, "floor_low": 0.2, "floor_high": 0.3, "beside_ceiling": 0.45}
    return {
        "model": "runs/a/rl",
        "questions": 3,
        "completions": 3,
        "references": 7,
        "measures": {
            "validity": ENTRY,
            "rouge_l_char_max": ENTRY | overlap | {"ceiling": 0.55},
            "similarity": ENTRY | {"value": None, "low": None, "high": None, "questions": 0},
        },
        "chain": {"valid": 1, "rules": {"missing_L2": 2}, "layers": {"L1": 3, "L2": 1}},
        "wins": {
            "rouge_l_char_max": {
                "systems": ["model", "floor"],
                "matrix": [[None, win], [win, None]],
            }
        },
        "safety": {
            band: {"questions": 2, "completions": 2, **dict.fromkeys(columns, SHARE)}
            for band in safety_table.BANDS
        },
        "tokenizations": {"char": "characters", "jieba": "words"},
        "intervals": "95 %",
        "judges": {"perplexity": {"model": "a/b", "most_tokens": 100}},
        "probes": {},
    } | changes


def _render(scores=None, cases=(), curves=None, settings=SETTINGS, lengths=LENGTHS) -> str:
    return report.render(scores or _scores(), list(cases), curves or {}, settings, lengths)


def _case(text: str, rule: str | None = None) -> dict:
    layers = dict.fromkeys(chain_of_empathy.LAYERS, text)
    return {
        "id": "1234",
        "question": text,
        "completion": text,
        "rule": rule,
        **layers,
        "answer": text,
        "references": [text, text],
        "measures": {"rouge_l_char_max": 0.125, "echo_overlap": None},
    }


def test_hostile_text_stays_text():
    hostile = _scores(model=HOSTILE, judges={"perplexity": {"model": HOSTILE}})
    page = _Page(
        _render(
            hostile,
            [_case(HOSTILE), _case(HOSTILE, rule="missing_L1")],
            {"rl": [{"step": 1, "reward": 1.0, f"reward_{HOSTILE}": 1.0}]},
            {HOSTILE: {HOSTILE: HOSTILE}},
            {HOSTILE: [1.0, 2.0]},
        )
    )
    plain = _Page(
        _render(
            _scores(judges={"perplexity": {"model": "x"}}),
            [_case("x"), _case("x", rule="missing_L1")],
            {"rl": [{"step": 1, "reward": 1.0, "reward_x": 1.0}]},
            {"x": {"x": "x"}},
            {"x": [1.0, 2.0]},
        )
    )
    own = [[tag for tag in page_.tags if tag not in SVG_TAGS] for page_ in (page, plain)]
    assert own[0] == own[1]
    names = [{name for name, _ in page_.attributes} for page_ in (page, plain)]
    assert names[0] == names[1]
    # Question, four layers, answer and two references; question, completion and two references.
    assert "".join(page.data).count(HOSTILE) >= 8 + 4 + 2 + 1 + 3


def test_page_is_self_contained_and_forbids_scripts():
    page = _render(cases=[_case("x")], curves={"sft": [{"step": 1, "loss": 2.0}]})
    assert page.startswith("<!doctype html>")
    parsed = _Page(page)
    assert not {"script", "link", "img", "iframe", "image", "use"} & set(parsed.tags) - {"use"}
    assert "src" not in {name for name, _ in parsed.attributes}
    links = [value for name, value in parsed.attributes if name in ("href", "xlink:href")]
    assert links and all(value.startswith("#") for value in links)
    targets = [value for name, value in parsed.attributes if name == "id"]
    assert all(value[1:] in targets for value in links)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    policy = next(value for _, value in parsed.attributes if value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert "@media print" in page


def test_scores_are_shown_with_intervals_floor_ceiling_and_units():
    text = " ".join("".join(_Page(_render()).data).split())
    assert "50.0 % [40.0, 60.0]" in text.replace("%[", "% [")
    assert "0.2500" in text and "[0.2000, 0.3000]" in text and "0.5500" in text
    assert "model beside: 0.4500" in text
    assert "1 of 3 completions are valid chains" in text and "75 %" in text
    assert chain_of_empathy.RULES["missing_L2"] in text
    assert "1 of 4" in text and "[5, 70] %" in text
    assert "data.questions" in text and "data.chains" not in text


def test_every_rule_and_every_measure_can_be_shown():
    measures = dict.fromkeys(MEASURES, ENTRY)
    chain = {"valid": 0, "rules": dict.fromkeys(chain_of_empathy.RULES, 1), "layers": {}}
    page = _render(_scores(measures=measures, chain=chain, wins={}))
    for measure in MEASURES.values():
        assert str(markupsafe.escape(measure.label)) in page
    for group in GROUPS.values():
        assert group in page


def test_curves_of_the_phases_are_drawn_and_others_left_out():
    rows = [{"step": s, "loss": 3.0 / s, "validation_loss": None} for s in range(1, 30)]
    rewards = [{"step": 1, "reward": 0.5, "reward_echo": 0.1, "valid": 1.0, "whole_L1": 0.5}]
    drawn = report.training_plots({"sft": rows, "rl": rewards})
    assert list(drawn) == ["Supervised fine-tuning", "Reinforcement learning"]
    assert [len(own) for own in drawn.values()] == [1, 3]
    assert "reward echo" in drawn["Reinforcement learning"][1]
    assert "Training" not in _render() and "Training" in _render(curves={"sft": rows})


def _probed(echo: float, same_topic: float) -> dict:
    entry = {"error": 0.02, "ties": 0.1, "mean_gain": -0.25, "questions": 40}
    beats = dict.fromkeys(probes.PROBES, 0.0) | {"echo": echo, "same_topic_answer": same_topic}
    return {name: {"beats": share, **entry} for name, share in beats.items()}


def test_ways_to_cheat_a_reward_are_shown_and_what_wins_too_often_in_red():
    scores = _scores(probes={"cosine": _probed(0.9, 0.3), "reward": _probed(0.05, 0.3)})
    page = _render(scores)
    rows = [part for part in page.split("<tr")[1:] if "<td" in part]
    red = [row for row in rows if row.startswith(' class="bad"')]
    assert len(red) == 1 and ">echo (over 5 %)<" in " ".join(red[0].split())
    assert "90.0 ± 2.0 %" in red[0] and "10.0 %" in red[0] and "-0.250" in red[0]
    assert page.count("prefers an echo of the question to a real answer in 90.0 % of 40") == 1
    for probe in probes.PROBES.values():
        assert page.count(markupsafe.escape(probe.meaning)) == 2
    assert "cheated" not in _render()


@pytest.mark.parametrize("rows", [0, 3, 50])
def test_cases_are_drawn_without_replacement_and_the_same_each_time(rows):
    chosen = report.choose_cases([{}] * rows, seed=1)
    assert len(set(chosen)) == len(chosen) == min(rows, 10)
    assert chosen == sorted(chosen) == report.choose_cases([{}] * rows, seed=1)
