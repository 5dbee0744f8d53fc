import numpy as np
import pytest

from empathy_jax.evaluation.metrics import tokens


def test_texts_are_cut_into_characters_and_words():
    assert tokens.characters("我 很\n难过，e\u0301") == "我很难过，é"
    assert tokens.words("我很难过，  想你。\nHello world 2次") == [
        "我", "很", "难过", "，", "想", "你", "。", "Hello", "world", "2", "次",
    ]  # fmt: skip


def test_equal_tokens_have_equal_ids_across_texts():
    found = tokens.tokenize(["难过 难", "", "过"], "char")
    np.testing.assert_array_equal(found.ids, [0, 1, 0, 1])
    np.testing.assert_array_equal(found.starts, [0, 3, 3, 4])
    np.testing.assert_array_equal(found.lengths, [3, 0, 1])
    np.testing.assert_array_equal(found.owners, [0, 0, 0, 2])
    assert found.vocabulary == 2
    words = tokens.tokenize(["难过", "很难过"], "jieba")
    np.testing.assert_array_equal(words.ids, [0, 1, 0])
    assert tokens.tokenize([], "char").ids.shape == (0,)


def test_an_unknown_tokenization_is_refused_and_each_known_one_described():
    with pytest.raises(ValueError, match="'word'; allowed: char, jieba"):
        tokens.tokenize(["x"], "word")
    assert set(tokens.describe()) == set(tokens.TOKENIZATIONS)
