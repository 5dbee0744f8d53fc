"""Splits: stable, blind to trifles, never empty in silence."""

import hashlib
import random
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax.corpus import duplicates, splits


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


# Letters of two people; the edits make near copies, and chains of near copies.
BASES = [
    "我今年二十六岁，一个人在外地工作三年了，最近总是睡不着，白天也没有精神，不知道该怎么办才好",
    "孩子上初二以后天天把自己关在房间里玩手机，一说他就发火，我和他爸爸为这件事吵了很多次",
]
QUESTIONS = st.builds(
    lambda base, edits: "".join("变" if place in edits else c for place, c in enumerate(base)),
    st.sampled_from(BASES),
    st.frozensets(st.integers(0, 39), max_size=4),
)
CORPORA = st.lists(QUESTIONS, unique_by=splits.split_key, max_size=14)


def _assign(questions, validation=0.3, test=0.3):
    records = [{"question": question} for question in questions]
    groups = duplicates.near_duplicate_groups(questions)
    return splits.assign_splits(records, groups, validation, test), groups


def _members(questions, groups):
    """For each question all questions of its group."""
    return {
        question: {other for other, o in zip(questions, groups, strict=True) if o == group}
        for question, group in zip(questions, groups, strict=True)
    }


@hypothesis.settings(deadline=None)
@hypothesis.given(CORPORA, CORPORA, st.randoms())
def test_what_happens_to_old_questions_when_data_is_added(old, new, rng):
    every = list(dict.fromkeys(old + new))
    rng.shuffle(every)
    before, groups = _assign(old)
    group_before = _members(old, groups)
    sides, groups = _assign(every)
    group_after = _members(every, groups)
    after = dict(zip(every, sides, strict=True))
    for question, side in zip(old, before, strict=True):
        # Never on another side; a test question stays; what was left out stays out.
        assert after[question] in {side, None}
        assert side != "test" or after[question] == "test"
        if side != after[question]:
            # It went because its group gained a member that is held out more strictly.
            gained = group_after[question] - group_before[question]
            stricter = {"train": {"validation", "test"}, "validation": {"test"}}[side]
            assert {splits.split_of(other, 0.3, 0.3) for other in gained} & stricter


@hypothesis.settings(deadline=None)
@hypothesis.given(CORPORA)
def test_no_near_duplicates_on_two_sides_and_no_group_vanishes(questions):
    sides, groups = _assign(questions)
    for first, group, side in zip(questions, groups, sides, strict=True):
        assert any(g == group and s is not None for g, s in zip(groups, sides, strict=True))
        assert side in (None, splits.split_of(first, 0.3, 0.3))
        for second, other in zip(questions, sides, strict=True):
            if duplicates.jaccard(first, second) >= 0.8:
                assert None in (side, other) or side == other


@hypothesis.settings(deadline=None)
@hypothesis.given(CORPORA, st.randoms())
def test_the_order_of_the_records_does_not_matter(questions, rng):
    shuffled = rng.sample(questions, len(questions))
    first = zip(questions, _assign(questions)[0], strict=True)
    assert dict(first) == dict(zip(shuffled, _assign(shuffled)[0], strict=True))


def test_a_bridge_takes_only_what_is_held_out_less_strictly():
    by_side: dict[str, str] = {}
    for number in range(100):
        by_side.setdefault(splits.split_of(f"问题{number}", 0.3, 0.3), f"问题{number}")
    names = ["train", "validation", "test"]
    records = [{"question": by_side[name]} for name in names]
    assign = splits.assign_splits
    assert assign(records, [0, 1, 2], 0.3, 0.3) == names
    assert assign(records, [0, 0, 2], 0.3, 0.3) == [None, "validation", "test"]
    assert assign(records, [0, 0, 0], 0.3, 0.3) == [None, None, "test"]
    assert assign([], [], 0.3, 0.3) == []
    with pytest.raises(ValueError, match="argument"):
        assign(records, [0, 1], 0.3, 0.3)


def test_each_topic_has_its_share_on_each_side_within_chance():
    rng = random.Random(0)
    topics = rng.choices(["睡眠", "职场", "婚姻", None], [1, 5, 10, 2], k=6000)
    records = [{"question": f"第{number}个问题"} for number in range(6000)]
    sides = splits.assign_splits(records, range(6000), 0.2, 0.1)
    assert None not in sides
    counts = Counter(zip(topics, sides, strict=True))
    for topic in ("睡眠", "职场", "婚姻", None):
        total = topics.count(topic)
        for name, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
            deviation = (total * share * (1 - share)) ** 0.5
            assert abs(counts[topic, name] - total * share) < 4 * deviation
