import html.parser

import markupsafe
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation import probes, report

HOSTILE = (
    "</div><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' "
    "{{ 7 * 7 }}{% raw %}&lt;b&gt; \u202e javascript:alert(4) </style><!-- "
)


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


def _scores(**changes) -> dict:
    entry = {"value": 0.5, "error": 0.1, "questions": 3, "floor": None, "floor_error": None}
    return {
        "model": "runs/a/rl",
        "questions": 3,
        "completions": 3,
        "measures": {
            "validity": entry,
            "rouge_l_max": {**entry, "floor": 0.25, "floor_error": 0.0123},
            "similarity": {**entry, "value": None, "error": None, "questions": 0},
        },
        "chain": {"valid": 1, "rules": {"missing_L2": 2}, "layers": {"L1": 3, "L2": 1}},
        "probes": {},
    } | changes


def _case(text: str, rule: str | None = None) -> dict:
    layers = dict.fromkeys(chain_of_empathy.LAYERS, text)
    return {
        "id": "1234",
        "question": text,
        "completion": text,
        "rule": rule,
        **layers,
        "answer": text,
        "reference": text,
        "measures": {"rouge_l_max": 0.125, "echo_overlap": None},
    }


def test_hostile_text_stays_text():
    page = _Page(
        report.render(_scores(model=HOSTILE), [_case(HOSTILE), _case(HOSTILE, rule="missing_L1")])
    )
    plain = _Page(report.render(_scores(), [_case("x"), _case("x", rule="missing_L1")]))
    assert page.tags == plain.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in plain.attributes]
    # Question, four layers, answer and reference; question, completion and reference.
    assert "".join(page.data).count(HOSTILE) == 10 + 2


def test_page_is_self_contained_and_forbids_scripts():
    page = report.render(_scores(), [_case("x")])
    parsed = _Page(page)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert not {"src", "href"} & {name for name, _ in parsed.attributes}
    assert "url(" not in page and "@import" not in page
    policy = next(value for _, value in parsed.attributes if value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_scores_are_shown_with_errors_floor_and_units():
    text = " ".join("".join(_Page(report.render(_scores(), [])).data).split())
    assert "50.0 ± 10.0 %" in text
    assert "0.500 ± 0.100" in text and "0.250 ± 0.012" in text
    assert "1 of 3 completions are valid chains" in text
    assert chain_of_empathy.RULES["missing_L2"] in text


def test_every_rule_and_every_measure_can_be_shown():
    measures = {name: _scores()["measures"]["validity"] for name in report.MEASURES}
    chain = {"valid": 0, "rules": dict.fromkeys(chain_of_empathy.RULES, 1), "layers": {}}
    page = report.render(_scores(measures=measures, chain=chain), [])
    for measure in report.MEASURES.values():
        assert measure.label in page


def _probed(echo: float, same_topic: float) -> dict:
    entry = {"error": 0.02, "ties": 0.1, "mean_gain": -0.25, "questions": 40}
    beats = dict.fromkeys(probes.PROBES, 0.0) | {"echo": echo, "same_topic_answer": same_topic}
    return {name: {"beats": share, **entry} for name, share in beats.items()}


def test_ways_to_cheat_a_reward_are_shown_and_what_wins_too_often_in_red():
    scores = _scores(probes={"cosine": _probed(0.9, 0.3), "reward": _probed(0.05, 0.3)})
    page = report.render(scores, [])
    rows = [part for part in page.split("<tr")[1:] if "<td" in part]
    red = [row for row in rows if row.startswith(' class="bad"')]
    assert len(red) == 1 and ">echo (over 5 %)<" in " ".join(red[0].split())
    assert "90.0 ± 2.0 %" in red[0] and "10.0 %" in red[0] and "-0.250" in red[0]
    assert page.count("prefers an echo of the question to a real answer in 90.0 % of 40") == 1
    for probe in probes.PROBES.values():
        assert page.count(markupsafe.escape(probe.meaning)) == 2
    assert not {"script", "link", "img", "iframe"} & set(_Page(page).tags)
    assert "cheated" not in report.render(_scores(), [])


@pytest.mark.parametrize("rows", [0, 3, 50])
def test_cases_are_drawn_without_replacement_and_the_same_each_time(rows):
    chosen = report.choose_cases([{}] * rows, seed=1)
    assert len(set(chosen)) == len(chosen) == min(rows, 10)
    assert chosen == sorted(chosen) == report.choose_cases([{}] * rows, seed=1)
