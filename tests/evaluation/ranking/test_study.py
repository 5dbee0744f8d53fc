import collections
import dataclasses
import itertools
import json
import stat

import numpy as np
import pytest

from empathy_jax import files
from empathy_jax.evaluation.ranking import design, study

SYSTEMS = [f"system-{name}" for name in "abcdef"]
SETTINGS = study.Settings(raters=5, raters_per_item=3, checks=2, repeats=2, seed=7)


def make_questions(count: int, systems: int = 6) -> list[study.Question]:
    return [
        study.Question(f"q{n}", f"问题 {n}", tuple(f"回答 {n}-{s}" for s in range(systems)))
        for n in range(count)
    ]


@pytest.mark.parametrize("systems", [2, 3, 4, 5, 6, 7])
def test_williams_square_balances_positions_and_neighbours(systems):
    square = design.williams_square(systems)
    assert len(set(design.position_counts(square).ravel())) == 1
    pairs = collections.Counter(pair for row in square for pair in itertools.pairwise(row))
    assert len(pairs) == systems * (systems - 1) and len(set(pairs.values())) == 1


@pytest.mark.parametrize(("systems", "most"), [(6, 1), (5, 2)])
def test_display_orders_are_balanced_at_any_count(systems, most):
    for count in (1, 7, 20, 33):
        orders = design.display_orders(np.random.default_rng(count), count, systems)
        assert orders.shape == (count, systems)
        counts = design.position_counts(orders)
        assert counts.max() - counts.min() <= most


def test_assignment_is_even():
    given = design.assign(np.random.default_rng(0), items=31, raters=7, raters_per_item=3)
    assert all(len(set(own)) == len(own) for own in given)
    assert set(collections.Counter(itertools.chain(*given)).values()) == {3}
    assert max(map(len, given)) - min(map(len, given)) <= 1


def test_session_repeats_late_and_never_begins_with_a_check():
    order = design.session(np.random.default_rng(0), list(range(12)), checks=3, repeats=4)
    kinds = collections.Counter(kind for kind, _ in order)
    assert kinds == {"item": 12, "check": 3, "repeat": 4} and order[0][0] == "item"
    for place, (kind, index) in enumerate(order):
        if kind == "repeat":
            assert place - order.index(("item", index)) >= 4


def test_build_gives_every_item_its_raters_and_positions():
    public, key = study.build(SYSTEMS, make_questions(22), SETTINGS)
    items = collections.Counter(
        trial["question"] for trial in key["trials"].values() if trial["kind"] == "item"
    )
    assert set(items.values()) == {3} and len(items) == 20
    assert np.ptp(key["positions"]) <= 1 and np.sum(key["positions"]) == 60 * 6
    for rater, entry in public["raters"].items():
        kinds = collections.Counter(key["trials"][t["trial"]]["kind"] for t in entry["trials"])
        assert kinds == {"item": 12, "check": 2, "repeat": 2}
        assert entry["code_sha256"] == study.hash_code(key["codes"][rater])


def test_the_key_finds_every_text_and_only_foils_are_strange():
    questions = make_questions(22)
    public, key = study.build(SYSTEMS, questions, SETTINGS)
    by_id = {question.id: question for question in questions}
    for entry in public["raters"].values():
        for trial in entry["trials"]:
            secret = key["trials"][trial["trial"]]
            for card, text in trial["cards"]:
                (system,) = secret["cards"][card]
                own = public["texts"][text] == by_id[secret["question"]].answers[system]
                assert own != (card == secret["foil"])


def test_public_study_names_no_system_and_tells_no_kind():
    public, key = study.build(SYSTEMS, make_questions(22), SETTINGS)
    text = json.dumps(public)
    assert not any(word in text for word in [*SYSTEMS, "check", "repeat", "foil", "seed", '"q1"'])
    assert not any(code in text for code in key["codes"].values())
    shapes = {tuple(trial) for entry in public["raters"].values() for trial in entry["trials"]}
    assert shapes == {("trial", "question", "cards")}
    cards = [c for e in public["raters"].values() for t in e["trials"] for c, _ in t["cards"]]
    assert len(set(cards)) == len(cards)  # an id is of one trial, so it links nothing


def test_seed_decides_all_but_the_codes():
    first, _ = study.build(SYSTEMS, make_questions(22), SETTINGS)
    again, _ = study.build(SYSTEMS, make_questions(22), SETTINGS)
    other, _ = study.build(SYSTEMS, make_questions(22), dataclasses.replace(SETTINGS, seed=8))
    hashes = [entry.pop("code_sha256") for s in (first, again) for entry in s["raters"].values()]
    assert len(set(hashes)) == 10
    assert first == again and first["texts"].keys() != other["texts"].keys()


def test_equal_texts_are_one_card_of_both_systems():
    questions = [
        study.Question(f"q{n}", f"问题 {n}", (f"同 {n}", f" 同 {n}\r\n", f"异 {n}"))
        for n in range(6)
    ]
    settings = study.Settings(raters=2, raters_per_item=2, checks=0, repeats=0)
    _, key = study.build(["a", "b", "c"], questions, settings)
    assert all(sorted(trial["cards"].values()) == [[0, 1], [2]] for trial in key["trials"].values())


def _write_generations(folder, name, rows):
    path = folder / f"{name}.jsonl"
    files.write_jsonl(path, rows)
    return path


def test_read_questions_leaves_out_what_a_system_did_not_answer(tmp_path):
    def row(key, answer, sample=0):
        return {"id": key, "question": f"问 {key}", "answer": answer, "sample": sample}

    paths = {
        "a": _write_generations(tmp_path, "a", [row("1", "x"), row("1", "z", 1), row("2", "y")]),
        "b": _write_generations(tmp_path, "b", [row("1", "w"), row("2", None), row("3", " ")]),
    }
    kept, left_out = study.read_questions(paths)
    assert kept == [study.Question("1", "问 1", ("x", "w"))]
    assert left_out == {"no answer of b": 2, "no answer of a": 1}


def test_read_questions_refuses_two_questions_under_one_id(tmp_path):
    paths = {
        name: _write_generations(tmp_path, name, [{"id": "1", "question": name, "answer": "x"}])
        for name in "ab"
    }
    with pytest.raises(ValueError, match="different questions"):
        study.read_questions(paths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raters_per_item": 6}, "raters_per_item is 6"),
        ({"items": 21}, "22 are usable"),
        ({"repeats": 5}, "lower repeats to 4"),
        ({"checks": -1}, "checks is -1"),
        ({"language": "fr"}, "'fr'"),
    ],
)
def test_settings_that_cannot_be_met_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        study.build(SYSTEMS, make_questions(22), dataclasses.replace(SETTINGS, **changes))


def test_key_is_for_its_owner_and_is_never_overwritten(tmp_path):
    public, key = study.build(SYSTEMS, make_questions(22), SETTINGS)
    study.write(tmp_path / "s", public, key)
    assert stat.S_IMODE((tmp_path / "s" / "key.json").stat().st_mode) == 0o600
    assert study.read(tmp_path / "s" / "study.json") == public
    with pytest.raises(FileExistsError, match="choose another"):
        study.write(tmp_path / "s", public, key)


@pytest.mark.parametrize("seed", range(8))
def test_a_foil_is_never_an_answer_to_its_question(seed):
    questions = [
        study.Question("q0", "甲?", ("同", "一")),
        study.Question("q1", "乙?", ("同", "二")),
    ]
    settings = study.Settings(raters=1, raters_per_item=1, checks=1, repeats=0, seed=seed)
    public, key = study.build(["a", "b"], questions, settings)
    (secret,) = (trial for trial in key["trials"].values() if trial["kind"] == "check")
    cards = [card for trial in public["raters"]["r001"]["trials"] for card in trial["cards"]]
    foil = public["texts"][dict(cards)[secret["foil"]]]
    assert foil == ("二" if secret["question"] == "q0" else "一")


def test_a_study_without_strange_answers_cannot_have_checks():
    questions = [study.Question(f"q{n}", f"{n}?", ("同", "一")) for n in range(4)]
    settings = study.Settings(raters=1, raters_per_item=1, checks=1, repeats=0)
    with pytest.raises(ValueError, match="set checks to 0"):
        study.build(["a", "b"], questions, settings)
