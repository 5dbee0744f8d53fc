"""The rules are well formed, and each of them is needed by a case."""

import pytest

from empathy_jax.safety import measure, risk, rules
from empathy_jax.safety.normalise import normalise
from empathy_jax.safety.scanning import scan

RULE = {
    "id": "x", "element": "wish", "grade": 1, "language": "zh", "why": "says x", "patterns": ["死"],
}  # fmt: skip


def test_every_rule_has_a_name_of_its_own_and_says_why():
    every = [*rules.rules(), *rules.combinations()]
    assert len({rule.id for rule in every}) == len(every)
    assert all(rule.why.strip() and 0 <= rule.grade <= rules.MAX_GRADE for rule in every)
    assert all(rule.id.startswith(f"{rule.language}-") for rule in rules.rules())
    assert {rule.grade for rule in every} == set(range(rules.MAX_GRADE + 1))


def test_what_counts_in_combinations_only_is_in_one():
    used = frozenset().union(*(need for one in rules.combinations() for need in one.needs))
    assert {rule.element for rule in rules.rules() if rule.grade == 0} <= used


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade": 7}, "grade must be 0 to 6, got 7"),
        ({"language": "fr"}, "language must be zh or en, got 'fr'"),
        ({"extra": 1}, "must have the keys"),
        ({"patterns": ["死+"]}, "rule 'x': repetition must be bounded"),
        ({"patterns": ["<no>"]}, "rule 'x': <no> is not in the lexicon"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(change, message):
    assert rules.parse_rule(RULE, {}).grade == 1
    with pytest.raises(ValueError, match=message):
        rules.parse_rule(RULE | change, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needs": [["wish"], ["none"]]}, r"no rule finds \['none'\]"),
        ({"within": "page"}, "within must be one of"),
    ],
)
def test_a_combination_that_cannot_be_is_refused(change, message):
    entry = {"id": "y", "needs": [["wish"]], "within": "two", "grade": 3, "why": "says y"}
    assert rules.parse_combination(entry, {"wish"}).sentences == 2
    with pytest.raises(ValueError, match=message):
        rules.parse_combination(entry | change, {"wish"})


# The last held-out part is left out: nothing was written for it.
CASES = [case for part in measure.PARTS[:-1] for case in measure.load(part)]


def test_each_rule_has_a_case_that_needs_it(monkeypatch):
    grades = {case.text: risk.grade(case.text, learned=False).grade for case in CASES}
    whole = rules.rule_scanner()
    met = {}
    for case in CASES:
        for index, _, _ in scan(whole, normalise(case.text).text):
            met.setdefault(index, set()).add(case.text)
    idle = []
    for index, rule in enumerate(rules.rules()):
        tried = {
            lead: tuple(entry for entry in entries if entry[0] != index)
            for lead, entries in whole.tried.items()
        }
        less = whole._replace(tried=tried)
        monkeypatch.setattr(risk, "rule_scanner", lambda less=less: less)
        if all(
            risk.grade(text, learned=False).grade == grades[text] for text in met.get(index, ())
        ):
            idle.append(rule.id)
    assert not idle


def test_each_combination_has_a_case_that_needs_it(monkeypatch):
    grades = {case.text: risk.grade(case.text, learned=False).grade for case in CASES}
    every = rules.combinations()
    idle = []
    for one in every:
        less = tuple(other for other in every if other is not one)
        monkeypatch.setattr(risk, "combinations", lambda less=less: less)
        if all(
            risk.grade(text, learned=False).grade == expected for text, expected in grades.items()
        ):
            idle.append(one.id)
    assert not idle
