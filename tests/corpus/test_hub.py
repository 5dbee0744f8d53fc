"""Datasets through `datasets` itself: a directory of data files, one that it saved, none."""

import json

import pytest

from empathy_jax.corpus import readers
from empathy_jax.corpus.reading import formats, hub

ROWS = [{"question": f"问{i}", "answer": f"答{i}", "views": i} for i in range(1500)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def _read(path):
    found, rejects = [], []
    for chunk in formats.chunks(path, "config.corpus.sources"):
        parsed = readers.parse(chunk)
        found += parsed.questions
        rejects += parsed.rejects
    return found, rejects


def _directory(path, rows=ROWS):
    path.mkdir(parents=True)
    for name, part in (("train", rows[:1200]), ("test", rows[1200:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (path / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def test_a_dataset_by_id_gives_all_rows_of_all_splits(tmp_path):
    _directory(tmp_path / "owner" / "name")
    found, rejects = _read("hub:owner/name")
    assert rejects == []
    assert [r["question"] for r in found] == [row["question"] for row in ROWS]
    assert [r["answers"][0]["text"] for r in found] == [row["answer"] for row in ROWS]
    assert sorted({r["source"] for r in found}) == ["name/test", "name/train"]
    chunks = list(formats.chunks("hub:owner/name", "f"))
    assert [part.file for chunk in chunks for part in chunk.parts] == [
        "name/train", "name/train", "name/test",
    ]  # fmt: skip
    assert len(readers.read_questions("hub:owner/name")[0]) == 1500


def test_saved_datasets_are_read_as_datasets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "many")
    # A selection that exists as a list of indices only has to be respected.
    rows.select([5, 3]).save_to_disk(tmp_path / "few")
    for name, questions in (("one", 1500), ("many", 1500), ("few", 2)):
        found, rejects = _read(tmp_path / name)
        assert (name, len(found), rejects) == (name, questions, [])
    assert [r["question"] for r in found] == ["问5", "问3"]


def test_a_folder_with_a_state_of_something_else_is_read_as_a_folder(tmp_path):
    _directory(tmp_path / "dump")
    (tmp_path / "dump" / "state.json").write_text('{"question": "问"}', encoding="utf-8")
    found, rejects = _read(tmp_path / "dump")
    assert (len(found), rejects) == (1501, [])


def test_a_dataset_without_questions_is_a_reject(tmp_path):
    _directory(tmp_path / "owner" / "name", [{"text": str(i)} for i in range(1500)])
    found, rejects = _read("hub:owner/name")
    assert found == []
    assert all("no column for a question" in reject["reason"] for reject in rejects)


@pytest.mark.parametrize("name", ["owner/absent", "nonsense id", "", "owner/empty"])
def test_a_dataset_that_is_not_there_is_one_clear_error(tmp_path, name):
    (tmp_path / "owner" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cannot be loaded(.|\n)*config\.corpus\.sources"):
        _read(f"hub:{name}")


def test_the_right_configuration_is_asked_for(tmp_path):
    folder = tmp_path / "owner" / "name"
    _directory(folder)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: train.jsonl\n"
        "- config_name: b\n  data_files: test.jsonl\n---\n",
        encoding="utf-8",
    )
    assert len(_read("hub:owner/name:b")[0]) == 300
    with pytest.raises(ValueError, match=r"\['a', 'b'\](.|\n)*hub:owner/name:configuration"):
        _read("hub:owner/name")


def test_chain_columns_survive(tmp_path):
    chain = {"question": "问", "L1": "a", "L2": "b", "L3": "c", "L4": "d", "answer": "答"}
    _directory(tmp_path / "owner" / "name", [chain | {"views": 1}] * 1300)
    found, rejects = readers.read_chains("hub:owner/name", max_rejected=1.0)
    assert [record["L4"] for record in found] == ["d"]
    assert rejects == []  # equal chains are one


def test_names(tmp_path):
    assert hub.dataset_name("hub:a/b") == "a/b"
    assert hub.dataset_name(tmp_path) is None
