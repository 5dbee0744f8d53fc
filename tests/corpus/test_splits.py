"""Splits: stable, blind to trifles, never empty in silence."""

import hashlib

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax.corpus import splits


@hypothesis.given(st.text(), st.floats(0, 0.5), st.floats(0, 0.4))
def test_every_text_has_a_side_and_fractions_only_move_borders(text, validation, test):
    side = splits.split_of(text, validation, test)
    assert side in splits.SPLITS
    assert splits.split_of(text, 0.0, 0.0) == "train"
    if side == "test":
        assert splits.split_of(text, 0.0, test) == "test"


def test_the_side_is_the_hash_of_the_key():
    for text in ("abc", "睡不着", "1"):
        digest = hashlib.sha256(text.encode()).hexdigest()
        share = int(digest[:13], 16) / 16**13
        assert splits.split_of(text, 0.0, min(share + 1e-9, 0.999)) == "test"
        assert splits.split_of(text, 0.0, max(share - 1e-9, 0.0)) == "train"


@pytest.mark.parametrize(
    "variant", ["我ABC，睡不着。", " 我abc睡 不着", "我ＡＢＣ、睡不着……\n", "“我aBc睡不着”！"]
)
def test_trifles_do_not_change_the_side(variant):
    assert splits.split_key(variant) == "我abc睡不着"


def test_compatibility_letters_are_folded_too():
    assert splits.split_key("℡ ㎒") == splits.split_key("tel mhz")


def test_punctuation_alone_is_its_own_key():
    assert splits.split_key("……") == "……"


def test_fractions_are_met_and_sides_stay_when_records_are_added():
    records = [{"question": f"问题{number}"} for number in range(2000)]
    small = splits.split(records[:500], 0.2, 0.1)
    large = splits.split(records, 0.2, 0.1)
    for name, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
        assert abs(len(large[name]) / 2000 - share) < 0.03
        assert [record for record in large[name] if record in records[:500]] == small[name]
    assert sum(map(len, large.values())) == 2000


def test_an_empty_side_is_refused_with_the_number_of_records():
    with pytest.raises(ValueError, match=r"validation: the 1 records.*validation_fraction"):
        splits.split([{"question": "a"}], 1e-9, 0.0)
    with pytest.raises(ValueError, match="the 0 records"):
        splits.split([], 0.1, 0.1)


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0)])
def test_fractions_out_of_range_are_refused(fractions):
    with pytest.raises(ValueError, match=r"config.data.validation_fraction"):
        splits.split_of("a", *fractions)
