"""Rewards: hand-computed numbers, and the ways to cheat that they must not pay for."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.corpus import sample
from empathy_jax.rl import rewards

CHAIN = chain_of_empathy.Chain(
    "她很难过", "她觉得自己不够好", "她想被理解", "先倾听", "听起来这很不容易"
)
QUESTION = "我和男朋友分手以后一直睡不着，觉得自己什么都做不好，我该怎么办？"


def test_format_reward_is_one_for_a_whole_chain_only():
    text = chain_of_empathy.render(CHAIN)
    assert rewards.format_reward(chain_of_empathy.verdict(text)) == 1.0
    assert rewards.format_reward(chain_of_empathy.verdict(text[:-1])) == 0.0
    empty_answer = text.replace(CHAIN.answer, " ")
    assert rewards.format_reward(chain_of_empathy.verdict(empty_answer)) == 0.0


def test_binary_answer_by_hand():
    np.testing.assert_array_equal(rewards.binary_answer([0.1, 0.5, 0.9], 0.5), [0, 1, 1])


def test_quantile_scaled_by_hand():
    table = [0.0, 0.2, 0.6]
    actual = rewards.quantile_scaled([[-1.0, 0.0, 0.1], [0.2, 0.4, 0.7]], table)
    np.testing.assert_allclose(actual, [[0, 0, 0.25], [0.5, 0.75, 1.0]], rtol=1e-6)


def test_quantile_scaled_makes_reference_similarities_uniform():
    similarities = np.random.default_rng(0).normal(0.5, 0.1, 20000)
    table = np.quantile(similarities, np.linspace(0, 1, 101))
    scaled = rewards.quantile_scaled(similarities, table)
    np.testing.assert_allclose(np.quantile(scaled, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_quantile_scaled_takes_tables_with_ties():
    actual = rewards.quantile_scaled([0.4, 0.5, 0.6], [0.0, 0.5, 0.5, 1.0])
    assert np.all(np.diff(actual) > 0) and np.all(np.isfinite(actual))


@pytest.mark.parametrize("table", [[0.5], [0.3, 0.2], [0.1, np.nan], [[0.0, 1.0]]])
def test_a_bad_quantile_table_is_refused(table):
    with pytest.raises(ValueError, match="quantiles"):
        rewards.quantile_scaled([0.5], table)


def test_gated_pays_no_answer_without_a_chain():
    np.testing.assert_array_equal(
        rewards.gated([1, 0, 1], [0.7, 0.9, 0.0]), np.float32([0.7, 0, 0])
    )


def test_echo_overlap_by_hand():
    assert rewards.echo_overlap("abcdef", "abcdxyz") == pytest.approx(1 / 4)
    assert rewards.echo_overlap(QUESTION, QUESTION) == 1.0
    assert rewards.echo_overlap(QUESTION, "听起来这段时间你真的很辛苦。") == 0.0
    assert rewards.echo_overlap(QUESTION, "") == 0.0
    assert rewards.echo_overlap("abc", "ab") == 1.0 and rewards.echo_overlap("abc", "ac") == 0.0


def test_echo_overlap_sees_through_disguises():
    assert rewards.echo_overlap("I feel so alone", "i  FEEL\nso a l o n e") == 1.0
    assert rewards.echo_overlap(QUESTION, QUESTION.replace("，", ",")) == 1.0
    copied_twice = QUESTION + "你好" + QUESTION
    assert rewards.echo_overlap(QUESTION, copied_twice) > 0.8


def test_echo_penalty_by_hand():
    actual = rewards.echo_penalty([0.0, 0.2, 0.6, 1.0], free=0.2)
    np.testing.assert_allclose(actual, [0, 0, 0.5, 1.0], atol=1e-6)


def test_template_overlap_by_hand():
    # 3-grams: abcd has abc, bcd; bcdx has bcd, cdx; the third is of question 1 too.
    actual = rewards.template_overlap(
        ["1", "2", "1", "3", "3"], ["abcd", "bcdx", "abcabc", "", "zz"], n=3
    )
    # bcd answers questions 1 and 2; abc answers 1 alone, though two answers have it.
    np.testing.assert_allclose(actual, [1 / 2, 1 / 2, 0, 0, 0])
    assert actual.dtype == np.float32
    same = rewards.template_overlap(["1", "2", "3"], ["嗯", "嗯", "嗯嗯"], n=8)
    np.testing.assert_array_equal(same, [1, 1, 0])
    assert rewards.template_overlap([], [], n=8).shape == (0,)


def test_template_overlap_sees_through_disguises():
    actual = rewards.template_overlap(["1", "2"], ["Be STRONG, dear", "be\u3000strong ，dear"], n=8)
    np.testing.assert_array_equal(actual, [1, 1])


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from("pq"), st.text("ab", max_size=9)), max_size=6),
    st.integers(1, 4),
)
def test_template_overlap_equals_looking_everywhere(pairs, n):
    questions, answers = [q for q, _ in pairs], [a for _, a in pairs]

    def grams(text):
        m = min(n, len(text))
        return [text[i : i + m] for i in range(len(text) - m + 1)] if text else []

    for (question, answer), actual in zip(
        pairs, rewards.template_overlap(questions, answers, n), strict=True
    ):
        others = {g for q, a in pairs if q != question for g in grams(a)}
        own = grams(answer)
        assert actual == pytest.approx(sum(g in others for g in own) / max(len(own), 1))
    # One question's answers are never templates of each other.
    assert not rewards.template_overlap(["p"] * len(answers), answers, n).any()


def test_template_penalty_by_hand():
    actual = rewards.template_penalty([0.0, 0.2, 0.6, 1.0], free=0.2)
    np.testing.assert_allclose(actual, [0, 0, 0.5, 1.0], atol=1e-6)
    # What most people share with others' answers is free.
    assert rewards.template_penalty(0.11) == 0


def test_brevity_penalty_by_hand():
    actual = rewards.brevity_penalty([0, 25, 100, 400], least=100)
    np.testing.assert_allclose(actual, [1, 0.75, 0, 0])
    assert actual.dtype == np.float32


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_letter_that_fits_every_question_is_charged_for_and_people_are_not(language):
    n = rewards.TEMPLATE_NGRAM[language]
    records = sample.sample_questions(language)
    people = [record["answers"][0]["text"] for record in records]
    questions = [record["question"] for record in records]
    template = people[0] + people[1]
    copies = rewards.template_overlap(questions, [template] * len(questions), n)
    np.testing.assert_array_equal(rewards.template_penalty(copies), np.ones(len(questions)))
    overlap = rewards.template_overlap(questions, people, n)
    assert (rewards.template_penalty(overlap) > 0).mean() < 0.05


def test_turns_of_speech_that_all_english_shares_are_free():
    answers = [
        "It sounds like you are tired. You might want to call your sister about the house.",
        "It sounds like your job hurts. Would you tell your manager about the noise?",
        "You might want to tell your doctor, and call your friends about the trip.",
    ]
    overlap = {
        n: rewards.template_overlap(["1", "2", "3"], answers, n).mean()
        for n in rewards.TEMPLATE_NGRAM.values()
    }
    assert overlap[rewards.TEMPLATE_NGRAM["zh"]] > 0.2
    assert overlap[rewards.TEMPLATE_NGRAM["en"]] == 0


def test_total_is_the_weighted_sum():
    terms = {"format": np.array([[1.0, 0.0]]), "answer": np.array([[0.5, 0.25]])}
    actual = rewards.total(terms, {"answer": 2.0, "format": 1.0})
    np.testing.assert_allclose(actual, [[2.0, 0.5]])


def test_total_refuses_unmatched_names_and_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match=r"\['format'\].*config\.rl\.<name>_weight.*\['formatt'\]"):
        rewards.total({"format": np.ones(2)}, {"formatt": 1.0})
    with pytest.raises(ValueError, match="'format' has 1 values"):
        rewards.total({"format": np.array([1.0, np.nan])}, {"format": 1.0})
