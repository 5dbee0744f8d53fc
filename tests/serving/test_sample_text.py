"""Text of a completion as its tokens come: whole characters, chain and answer apart, stop strings."""

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.serving import chat
from empathy_jax.serving.sample_text import SampleText
from tests.serving.served import CHAIN, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def tell(tokenizer, ids, sizes, stop=()):
    """All deltas of tokens that come in parts of these sizes, round and round."""
    text, deltas, start, turn = SampleText(tokenizer, stop), [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        deltas += text.feed(ids[start : start + size])
        start, turn = start + size, turn + 1
    return text, deltas + text.close()


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@hypothesis.given(SIZES)
def test_a_chain_comes_apart_however_its_tokens_are_cut(tokenizer, sizes):
    ids = tokenizers.completion_ids(tokenizer, chain_of_empathy.render(CHAIN))
    assert len(ids) > 70
    text, deltas = tell(tokenizer, ids, sizes)
    for name in chain_of_empathy.LAYERS:
        told = "".join(d.text for d in deltas if d.layer == name)
        assert told.strip("\n") == getattr(CHAIN, name)
    reasoning = "".join(d.text for d in deltas if d.reasoning)
    assert reasoning == "\n\n".join(getattr(CHAIN, name) for name in chain_of_empathy.LAYERS)
    assert "".join(d.text for d in deltas if not d.reasoning) == CHAIN.answer
    assert all(chr(0xFFFD) not in d.text for d in deltas)
    assert text.verdict().chain == CHAIN and text.tokens == len(ids) and not text.stopped


@hypothesis.given(st.lists(st.integers(3, 399), max_size=60), SIZES)
def test_parts_of_any_tokens_are_together_the_whole_text(tokenizer, ids, sizes):
    detokenizer, told, start = tokenizers.Detokenizer(tokenizer), "", 0
    for turn in range(len(ids)):
        told += detokenizer.feed(ids[start : start + sizes[turn % len(sizes)]])
        start += sizes[turn % len(sizes)]
    assert told + detokenizer.close() == tokenizers.decode(tokenizer, ids)


def test_a_model_that_writes_answers_alone_is_judged_by_its_own_format(tokenizer):
    ids = tokenizers.completion_ids(tokenizer, chain_of_empathy.render(CHAIN, "answer"))
    for form, rule in (("answer", None), ("chain", "missing_think")):
        text = SampleText(tokenizer, form=form)
        deltas = text.feed(ids) + text.close()
        assert "".join(d.text for d in deltas) == CHAIN.answer
        assert text.verdict().rule == rule
        # It has no layers to tell of, not empty ones.
        assert chat._ended(text, None, "stop")[1:3] == (None, rule)


def test_text_without_a_chain_is_an_answer(tokenizer):
    ids = tokenizers.completion_ids(tokenizer, "你好。")
    _, deltas = tell(tokenizer, ids, [1])
    assert "".join(d.text for d in deltas) == "你好。"
    assert not any(d.reasoning or d.layer for d in deltas)


@pytest.mark.parametrize("size", [1, 4, 500])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("我在",), "听起来你很累。\n"),
        (("很累。\n我", "起"), "听"),
        (("听",), ""),
        (("没有",), CHAIN.answer),
        (("难过", "。\n\n"), CHAIN.answer),  # of the chain, and a beginning that comes to nothing
    ],
)
def test_an_answer_ends_before_the_first_stop_string(tokenizer, stop, expected, size):
    ids = tokenizers.completion_ids(tokenizer, chain_of_empathy.render(CHAIN))
    text, deltas = tell(tokenizer, ids, [size], stop)
    assert "".join(d.text for d in deltas if not d.reasoning) == expected
    assert text.stopped == (expected != CHAIN.answer)
