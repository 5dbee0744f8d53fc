"""Batches of questions and answers: every text in its slot, every pair in its epoch."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.data import pairs

RECORDS = [
    {
        "question": f"q{i}",
        "topic": "work" if i % 2 else "sleep",
        "answers": [
            {"text": f"a{i}.0"},
            {"text": f"a{i}.1", "score": 3},
            {"text": f"a{i}.2", "score": 2},
        ],
    }
    for i in range(5)
] + [{"question": "alone", "answers": []}]
PAD = 300  # no byte


def _tokenize(prompt, max_tokens=48):
    return lambda text: list((prompt + text).encode())[:max_tokens]


LAYOUT = pairs.Layout(
    tokenize_question=_tokenize("Q:"),
    tokenize_answer=_tokenize("A:"),
    max_tokens=48,
    pad_id=PAD,
    row_multiple=1,
    corrupted=0,
    graded_pairs=0,
    language="zh",
)


def _stream(seed=0, batch_size=4, records=RECORDS, **layout):
    return pairs.PairStream(records, batch_size, dataclasses.replace(LAYOUT, **layout), seed)


def _batch(stream, step, size=4):
    return stream.batch(step, stream.window((step - 1) * size, size))


def _tokens(batch, slot):
    row, segment = divmod(int(slot), pairs.SEGMENTS)
    return batch["tokens"][row][batch["segment_ids"][row] == segment + 1]


def _texts(batch, name):
    slots = batch[name]
    found = [bytes(_tokens(batch, slot).tolist()).decode(errors="ignore") for slot in slots.flat]
    return np.array(found, object).reshape(slots.shape).tolist()


# --- packing ---

texts = st.integers(1, 20).flatmap(
    lambda row: st.tuples(
        st.lists(st.lists(st.integers(1, 99), max_size=row), max_size=60),
        st.just(row),
        st.integers(1, 12),
    )
)


@hypothesis.settings(deadline=None)
@hypothesis.given(texts)
def test_every_text_is_found_in_its_slot(case):
    given_texts, row_length, multiple = case
    rows, slots = pairs.pack_texts(given_texts, row_length, PAD, multiple)
    assert slots.shape == (len(given_texts),) and len(set(slots.tolist())) == len(given_texts)
    assert {array.dtype.name for array in (*rows.values(), slots)} == {"int32"}
    count = rows["tokens"].shape[0]
    assert {array.shape for array in rows.values()} == {(count, row_length)}
    assert count % multiple == 0
    for text, slot in zip(given_texts, slots, strict=True):
        row, segment = divmod(int(slot), pairs.SEGMENTS)
        own = rows["segment_ids"][row] == segment + 1
        assert rows["tokens"][row][own].tolist() == (text or [PAD])
        assert rows["positions"][row][own].tolist() == list(range(max(len(text), 1)))
    # Nothing else is there.
    padding = rows["segment_ids"] == 0
    assert (~padding).sum() == sum(max(len(text), 1) for text in given_texts)
    assert (rows["tokens"][padding] == PAD).all() and not rows["positions"][padding].any()
    assert rows["segment_ids"].max(initial=0) <= pairs.SEGMENTS


def test_a_row_by_hand():
    rows, slots = pairs.pack_texts([[5], [6, 7, 8], [], [9]], 4, pad_id=0)
    assert {name: array.tolist() for name, array in rows.items()} == {
        "tokens": [[6, 7, 8, 5], [0, 9, 0, 0]],
        "segment_ids": [[1, 1, 1, 2], [1, 2, 0, 0]],
        "positions": [[0, 1, 2, 0], [0, 0, 0, 0]],
    }
    assert slots.tolist() == [1, 0, pairs.SEGMENTS, pairs.SEGMENTS + 1]


def test_a_row_holds_no_more_than_its_segments():
    rows, slots = pairs.pack_texts([[1]] * (2 * pairs.SEGMENTS + 1), 100, pad_id=0)
    assert rows["tokens"].shape[0] == 3 and rows["segment_ids"].max() == pairs.SEGMENTS
    assert sorted(slots.tolist()) == list(range(2 * pairs.SEGMENTS + 1))


@hypothesis.given(st.integers(1, 5000), st.integers(1, 64))
def test_the_number_of_rows_wastes_little(needed, multiple):
    count = pairs.row_count(needed, multiple)
    assert count >= needed and count % multiple == 0
    # No more than an eighth beyond what is needed, but for the multiple.
    assert count - needed < needed / 8 + multiple


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_number_of_rows_has_few_values(multiple):
    for octave in (64, 512, 4096):
        found = {pairs.row_count(needed, multiple) for needed in range(octave + 1, 2 * octave + 1)}
        assert len(found) <= 9 and 2 * octave in found


def test_the_number_of_rows_by_hand():
    assert [pairs.row_count(needed, 1) for needed in (0, 1, 8, 9, 17, 33, 100)] == [
        0, 1, 8, 9, 18, 36, 104,
    ]  # fmt: skip
    assert [pairs.row_count(needed, 8) for needed in (1, 9, 100, 129)] == [8, 16, 104, 144]


# --- pairs ---


def test_positives_are_ungraded_or_graded_three_and_more():
    assert pairs.positives(RECORDS[0]) == ["a0.0", "a0.1"]
    assert pairs.positives(RECORDS[5]) == []


def test_graded_pairs_are_of_answers_whose_scores_differ():
    answers = [("a", 5), ("b", 3), ("c", None), ("d", 3), ("e", 0)]
    record = {"answers": [{"text": text, "score": score} for text, score in answers]}
    found = pairs.graded(record)
    assert found == [("a", "b"), ("a", "d"), ("a", "e"), ("b", "e"), ("d", "e")]
    assert pairs.graded(RECORDS[5]) == []


def test_a_batch_holds_questions_with_their_own_answers():
    stream = _stream()
    for step in range(1, 6):
        batch = _batch(stream, step)
        assert batch.keys() == {
            *("tokens", "segment_ids", "positions"),
            *("questions", "documents", "groups", "document_groups"),
        }
        assert batch["groups"].dtype == batch["document_groups"].dtype == np.int32
        assert batch["groups"].tolist() == batch["document_groups"].tolist()
        for group, question, answer in zip(
            batch["groups"], _texts(batch, "questions"), _texts(batch, "documents"), strict=True
        ):
            assert question == f"Q:q{group}" and answer in (f"A:a{group}.0", f"A:a{group}.1")


def test_what_a_stream_tells_of_a_pair():
    stream = _stream(batch_size=10)
    window = stream.window(0, 10)
    assert sorted(window) == list(range(10))
    for pair in window:
        number = stream.group(pair)
        assert stream.question(pair) == f"q{number}"
        assert stream.topic(pair) == ("work" if number % 2 else "sleep")
        assert stream.answer(pair) in pairs.positives(RECORDS[number])
    without = [{"question": "q", "answers": [{"text": "a"}]}]
    assert _stream(records=without, batch_size=1).topic(0) is None


def test_questions_that_hardly_differ_are_one():
    """Their answers are each other's positives then, or at least no negatives."""
    letter = "最近总是睡不着，一躺下就想工作上的事，白天又没有精神，我该怎么办呢？"
    questions = [letter, letter.replace("呢？", "？"), "孩子不肯上学，一说就哭，我很着急。"]
    records = [
        {"question": question, "answers": [{"text": f"a{number}"}]}
        for number, question in enumerate(questions)
    ]
    stream = _stream(records=records, batch_size=3)
    batch = _batch(stream, 1, size=3)
    groups = {_texts(batch, "documents")[i][2:]: g for i, g in enumerate(batch["groups"].tolist())}
    assert groups["a0"] == groups["a1"] != groups["a2"]
    assert batch["document_groups"].tolist() == batch["groups"].tolist()
    assert [stream.group(pair) for pair in range(3)] == [groups[f"a{i}"] for i in range(3)]
    # A pair keeps its own question all the same.
    assert [stream.question(pair) for pair in range(3)] == questions


def test_every_pair_once_an_epoch_and_epochs_differ():
    stream = _stream(batch_size=2)
    epochs = [stream.window(start, 10) for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # A window may lie across epochs, and is a part of the one stream.
    assert stream.window(7, 6) == epochs[0][7:] + epochs[1][:3]


def test_a_step_depends_on_seed_and_number_alone():
    fields = {"corrupted": 2, "graded_pairs": 3}
    one, other = _stream(seed=3, **fields), _stream(seed=3, **fields)
    later = {step: _batch(other, step) for step in (7, 2, 7)}  # any order, any number of times
    for step, batch in later.items():
        for name, value in _batch(one, step).items():
            np.testing.assert_array_equal(value, batch[name])
    different = _stream(seed=4, **fields)
    for name in ("documents", "graded"):
        assert any(
            _texts(_batch(one, s), name) != _texts(_batch(different, s), name) for s in (1, 2, 3)
        )


def test_too_few_pairs_name_the_fields():
    with pytest.raises(ValueError, match=r"10 question-answer pairs.*config\.batch_size"):
        _stream(batch_size=11)


# --- corrupted answers and graded pairs ---

LETTERS = [
    {
        "question": f"我和室友为了第{i}件小事吵架，心里很难受，不知道怎么开口和解。",
        "answers": [
            {"text": f"听起来第{i}件事让你很委屈。可以先写下想说的话，再约个时间慢慢谈。" * 15}
        ],
    }
    for i in range(12)
]


@pytest.mark.parametrize("max_tokens", [40, 400])
def test_corrupted_answers_follow_the_own_ones_and_differ_where_it_shows(max_tokens):
    """One token a character here, as in the vocabularies of Chinese encoders."""

    def tokenize(text):
        return [ord(character) for character in text][:max_tokens]

    stream = _stream(
        batch_size=4,
        records=LETTERS,
        corrupted=3,
        tokenize_question=tokenize,
        tokenize_answer=tokenize,
        max_tokens=max_tokens,
    )
    seen, longer = set(), 0
    for step in range(1, 13):
        window = stream.window((step - 1) * 4, 4)
        batch = stream.batch(step, window)
        assert batch["documents"].shape == (16,)
        own, none = batch["document_groups"][:4], batch["document_groups"][4:]
        assert own.tolist() == batch["groups"].tolist()
        assert none.tolist() == [pairs.NO_QUESTION] * 12
        documents = [_tokens(batch, slot).tolist() for slot in batch["documents"]]
        assert documents[:4] == [tokenize(stream.answer(pair)) for pair in window]
        for number, document in enumerate(documents[4:]):
            genuine = documents[number // 3]
            assert document != genuine
            # Within what the model sees and not only at its very end.
            assert document[: int(0.9 * max_tokens)] != genuine[: int(0.9 * max_tokens)]
            longer += len(document) == max_tokens
            seen.add(tuple(document))
    # Every draw is its own, and a bad answer may fill the row as a good one does.
    assert len(seen) > 100 and longer > 20


def test_graded_pairs_are_a_better_and_a_worse_answer_to_one_question():
    graded = [("a", 5), ("b", 3), ("c", 1)]
    records = [
        *LETTERS,
        {"question": "q", "answers": [{"text": t, "score": s} for t, s in graded]},
        {"question": "r", "answers": [{"text": "d", "score": 2}, {"text": "e", "score": 4}]},
    ]
    stream = _stream(records=records, graded_pairs=2)
    seen = []
    for step in range(1, 5):
        batch = _batch(stream, step)
        assert batch["graded"].shape == (2, 3)
        seen += [tuple(triple) for triple in _texts(batch, "graded")]
    everything = {
        *(("Q:q", "A:a", "A:b"), ("Q:q", "A:a", "A:c"), ("Q:q", "A:b", "A:c")),
        ("Q:r", "A:e", "A:d"),
    }
    # Four pairs, two a step: every one in two steps.
    assert set(seen[:4]) == set(seen[4:]) == everything
    # They are no part of the contrast.
    assert batch["questions"].shape == batch["documents"].shape == (4,)


def test_a_head_without_graded_answers_is_refused():
    with pytest.raises(ValueError, match=r"no question .*config\.reward_model\.head_weight to 0"):
        _stream(records=LETTERS, graded_pairs=1)


@pytest.mark.parametrize(("language", "shortest"), [("zh", 460), ("en", 1382)])
def test_corrupted_answers_may_fill_what_the_model_sees(monkeypatch, language, shortest):
    limits = []

    def corrupt(kind, rng, question, answer, other, limit, language):
        limits.append(limit)
        return "x"

    monkeypatch.setattr(pairs.corruptions, "corrupt", corrupt)
    stream = _stream(language=language, max_tokens=512, corrupted=4)
    _batch(stream, 1)
    assert len(limits) == 16 and min(limits) >= shortest
    assert max(limits) <= pairs.OVERLONG * (shortest + 1)
