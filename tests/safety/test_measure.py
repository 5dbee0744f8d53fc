"""The written cases are what they should be, and the rules do on them what docs/safety.md says."""

import collections

import pytest

from empathy_jax.safety import measure
from empathy_jax.safety.measure import Share
from empathy_jax.safety.risk import grade

CASES = {part: measure.load(part) for part in measure.PARTS}
EVERY = [case for cases in CASES.values() for case in cases]
CATEGORIES = {
    "explicit", "implicit", "method", "method_request", "intent", "plan", "preparation", "self_harm",
    "third_person", "past_attempt", "negated", "idiom", "game", "grief", "news", "research", "quoted",
    "fiction", "over_refusal", "diagnosis", "medication", "delusion", "sycophancy", "dependence",
    "everyday",
}  # fmt: skip
NOT_ABOUT_RISK = {"diagnosis", "medication", "delusion", "sycophancy", "dependence"}


def test_cases_are_well_formed():
    assert len({case.id for case in EVERY}) == len({case.text for case in EVERY}) == len(EVERY)
    assert {case.category for case in EVERY} == CATEGORIES
    for case in EVERY:
        assert case.language in ("zh", "en") and case.difficulty in ("easy", "medium", "hard")
        assert (case.grade is None) == (case.category in NOT_ABOUT_RISK)
        assert case.grade is None or 0 <= case.grade <= 6
        assert case.text.strip() == case.text != ""
    assert all(case.part == part for part, cases in CASES.items() for case in cases)


def test_there_are_enough_cases():
    languages = collections.Counter(case.language for case in EVERY)
    assert sum(languages.values()) >= 240 and 1.5 < languages["zh"] / languages["en"] < 2.5
    for part in measure.PARTS[1:]:
        assert sum(bool(case.grade) for case in CASES[part]) >= 90
        assert sum(case.grade == 0 for case in CASES[part]) >= 60


@pytest.mark.parametrize("category", sorted(CATEGORIES - NOT_ABOUT_RISK - {"everyday"}))
def test_dev_cases_are_graded_as_they_should_be(category):
    cases = [case for case in CASES["dev"] if case.category == category]
    assert cases
    assert {case.id: grade(case.text, learned=False).grade for case in cases} == {
        case.id: case.grade for case in cases
    }


def test_dev_cases_that_are_not_about_risk_raise_no_alarm():
    cases = [case for case in CASES["dev"] if case.category in NOT_ABOUT_RISK]
    assert not [case.id for case in cases if grade(case.text, False).grade >= measure.URGENT]


@pytest.mark.parametrize(
    ("part", "found", "alarms"),
    [  # docs/safety.md; a change of the rules moves these figures and the document's
        ("held_out_1", Share(63, 63), Share(0, 65)),
        ("held_out_2", Share(62, 69), Share(0, 64)),
        ("held_out_3", Share(42, 65), Share(2, 61)),
    ],
)
def test_parts_that_were_held_out(part, found, alarms):
    assert measure.recall(CASES[part], learned=False) == found
    assert measure.false_alarms(CASES[part], learned=False) == alarms


def test_the_learned_part_only_adds():
    cases = CASES["held_out_3"]
    for share in (measure.recall, measure.noticed, measure.false_alarms, measure.raised):
        assert share(cases).count >= share(cases, learned=False).count
    assert measure.recall(cases).count > measure.recall(cases, learned=False).count


def test_intervals_by_hand():
    # Brown, Cai, DasGupta 2001: p + z²/2n ... by hand for 8 of 10 and for none of 10.
    low, high = Share(8, 10).interval()
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert Share(0, 10).interval() == pytest.approx((0, 0.2775), abs=1e-4)
    assert Share(0, 0).interval() == (0.0, 1.0)
    assert str(Share(8, 10)) == "8/10 = 80.0 % [49.0, 94.3]"


def test_report_counts_what_is_there():
    text = measure.report(CASES["dev"], learned=False)
    urgent = sum(case.grade is not None and case.grade >= measure.URGENT for case in CASES["dev"])
    assert f"{urgent}/{urgent} = 100.0 %" in text.splitlines()[1]
    assert {"language zh", "language en", "category plan"} <= {
        line.split("  ")[0] for line in text.splitlines()
    }


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"the parts of the cases are dev, .*; got 'test'"):
        measure.load("test")


def test_command_prints_the_part_it_is_asked_for(capsys):
    measure.main(["held_out_3"])
    out = capsys.readouterr().out
    assert out.startswith("== held_out_3: 152 cases, rules\n") and "== dev" not in out
    assert "\n== held_out_3: 152 cases, rules and learned part\n" in out
    assert "held_out_3-zh-implicit-04: 4 expected, 0 found" in out


def test_failures_of_an_unread_part_are_not_listed(monkeypatch, capsys):
    assert {"held_out_4", "held_out_5"} == measure.UNREAD
    monkeypatch.setattr(measure, "UNREAD", {"held_out_3"})
    measure.main(["held_out_3"])
    out = capsys.readouterr().out
    assert out.startswith("== held_out_3: 152 cases, rules\n") and " expected, " not in out
