import numpy as np
import pytest

from empathy_jax.evaluation.metrics import references, scoring
from empathy_jax.evaluation.metrics.catalogue import GROUPS, MEASURES, number
from empathy_jax.evaluation.metrics.tokens import TOKENIZATIONS

QUESTIONS = ["我很难过，怎么办", "考试没有考好", "我和他分手了"]
KNOWN = [
    ["先睡一觉，慢慢来。", "听起来你很累，要不要先睡一觉？", "难过是正常的。"],
    ["一次考试说明不了什么。", "建议你和老师谈谈。"],
    ["分手很痛，慢慢来。"],
]
ANSWERS = ["先睡一觉，慢慢来。", "一次考试真的说明不了什么。", "我很难过，怎么办"]


@pytest.fixture(scope="module")
def measured():
    sets = references.candidate_sets(KNOWN, ANSWERS, [0, 1, 2], seed=0)
    values = scoring.measure(sets, QUESTIONS, "zh")
    sums = scoring.add_up(values, sets, 3)
    return sets, values, sums, scoring.table(sums, seed=0)


def test_every_measure_of_text_is_in_the_table_with_its_tokens(measured):
    sets, _, _, table = measured
    table = table | scoring.corpus_distinct_entries(sets, 3, seed=0)
    needs_more = {name for name in MEASURES if MEASURES[name].group == "form"} - {
        "characters", "words",
    }  # fmt: skip
    needs_more |= {name for name in MEASURES if MEASURES[name].group == "models"}
    assert set(table) == set(MEASURES) - needs_more
    for name, entry in table.items():
        own = next((t for t in TOKENIZATIONS if f"_{t}" in name), entry["tokens"])
        assert entry["tokens"] == own == MEASURES[name].tokens
        assert MEASURES[name].group in GROUPS


def test_values_floor_and_ceiling_by_hand(measured):
    _, values, _, table = measured
    entry = table["rouge_l_char_max"]
    np.testing.assert_allclose(values["model"]["rouge_l_char_max"][0], 1)
    expected = np.mean(values["model"]["rouge_l_char_max"])
    assert entry["value"] == pytest.approx(expected) and entry["questions"] == 3
    # Two questions have references to compare with each other.
    assert entry["ceiling_questions"] == 2 and entry["floor_questions"] == 3
    assert entry["ceiling"] < entry["value"] and entry["floor"] < entry["value"]
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert entry["over_floor"] == pytest.approx(entry["value"] - entry["floor"])
    assert entry["over_floor_low"] <= entry["over_floor"] <= entry["over_floor_high"]


def test_what_stands_beside_the_ceiling_has_as_many_references(measured):
    _, _, _, table = measured
    sets = references.candidate_sets(KNOWN, ANSWERS, [0, 1, 2], seed=0)
    by_hand = []
    for question in (0, 1):
        left = []
        for place in range(len(KNOWN[question])):
            rest = KNOWN[question][:place] + KNOWN[question][place + 1 :]
            one = references.candidate_sets([rest], [ANSWERS[question]], [0], seed=0)
            left.append(scoring.measure(one, QUESTIONS, "zh")["model"]["rouge_1_char_max"][0])
        by_hand.append(np.mean(left))
    entry = table["rouge_1_char_max"]
    assert entry["beside_ceiling"] == pytest.approx(np.mean(by_hand))
    assert entry["beside_ceiling"] < entry["value"] and len(sets["beside"].texts) == 5
    # The mean over references is the same with one left out in turn, on the same questions.
    mean = table["rouge_1_char_mean"]
    own = scoring.measure(sets, QUESTIONS, "zh")["model"]["rouge_1_char_mean"][:2]
    assert mean["beside_ceiling"] == pytest.approx(own.mean())


def test_an_echo_and_ratios_are_seen(measured):
    _, values, _, table = measured
    # The last answer is the first question, and is given to the third: no echo of its own.
    assert values["model"]["echo_overlap"][2] < 0.1
    assert table["advice_share"]["value"] == 0
    # People: no sentence of one question advises but one in three answers that asks ("要不要"),
    # and one in two of the other. The third question has no ceiling.
    assert table["advice_share"]["ceiling"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    # The model asks nothing: there is no ratio. One reflection of a person asks as well, and counts
    # as what it is at its end.
    assert table["reflections_to_questions"]["value"] is None
    assert table["reflections_to_questions"]["ceiling"] == 0


def test_distinct_of_the_corpus_is_taken_at_one_length(measured):
    sets = measured[0]
    found = scoring.corpus_distinct_entries(sets, 3, seed=0)
    entry = found["distinct_1_char_corpus"]
    texts = {name: [sets[name].texts[i] for i in np.unique(sets[name].owners, return_index=True)[1]]
             for name in ("model", "ceiling")}  # fmt: skip
    assert entry["ngrams"] == min(sum(map(len, own)) for own in texts.values()) // 3
    assert 0 < entry["value"] <= 1 and entry["low"] <= entry["value"] <= entry["high"]


def test_a_system_that_copies_a_reference_beats_floor_and_ceiling(measured):
    sums = measured[2]
    found = scoring.wins(sums, ["model"], seed=0)["rouge_l_char_max"]
    assert found["systems"] == ["model", "floor", "ceiling"]
    matrix = found["matrix"]
    assert matrix[0][0] is None and matrix[0][1]["questions"] == 3
    assert matrix[0][1]["value"] + matrix[1][0]["value"] == pytest.approx(1)
    assert matrix[0][2]["questions"] == 2 and matrix[0][2]["value"] == 1


def test_systems_without_an_answer_have_an_empty_table():
    sets = references.candidate_sets(KNOWN, [], [], seed=0)
    values = scoring.measure(sets, QUESTIONS, "zh")
    table = scoring.table(scoring.add_up(values, sets, 3), seed=0)
    entry = table["bleu_4_char_max"]
    assert entry["value"] is None and entry["questions"] == 0 and entry["floor"] is not None
    assert entry["over_floor"] is None and entry["beside_ceiling"] is None
    assert scoring.corpus_distinct_entries(sets, 3, 0)["distinct_1_char_corpus"]["value"] is None


def test_measures_of_single_texts_are_those_of_the_table():
    assert scoring.single("characters", np.array([3.0, np.nan])) == [3.0, None]
    assert scoring.single("perplexity", np.log([20.0])) == [pytest.approx(20)]
    found = scoring.single("reflections_to_questions", np.array([[2.0, 4.0], [1.0, 0.0]]))
    assert found == [0.5, None]


def test_numbers_are_shown_in_their_unit():
    assert number("validity", 0.5, 0.25, 0.75) == "50.0 [25.0, 75.0] %"
    assert number("rouge_l_char_max", 0.12345) == "0.1235"
    assert number("rouge_l_char_max", None) == "–"
