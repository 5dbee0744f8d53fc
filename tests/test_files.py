import builtins
import errno
import json
import os

import pytest

from empathy_jax import files


def test_text_is_kept_as_it_is_and_infinities_are_refused(tmp_path):
    assert files.dumps({"a": "心理…"}) == '{"a": "心理…"}'
    with pytest.raises(ValueError):
        files.dumps({"a": float("nan")})
    files.write_json(tmp_path / "a.json", {"b": ["你好", 1.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": ["你好", 1.5]}


class _Full:
    """A file on a disk that takes `room` bytes more."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._file.write(data[: self._room])
        if len(data) > self._room:
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(data)


@pytest.fixture
def full_disk(monkeypatch):
    """Writing fails after 7 bytes more."""
    real = builtins.open

    def open_(path, mode="r", **options):
        file = real(path, mode, **options)
        return _Full(file, 7) if set(mode) & set("wa") else file

    monkeypatch.setattr(files, "open", open_, raising=False)


def test_a_whole_file_or_what_was_there(tmp_path, full_disk):
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match=r"no space left for .*a\.json.*--workdir"):
        files.write_text(path, "0123456789")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_whole_file_is_written_beside_and_renamed(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    seen = []

    def replace(source, target):
        seen.append((source.read_text(encoding="utf-8"), target.read_text(encoding="utf-8")))

    monkeypatch.setattr(files.os, "replace", replace)
    files.write_text(path, "new")
    assert seen == [("new", "old")]


def test_appended_lines_are_cut_back_where_the_disk_refuses_them(tmp_path, full_disk):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(OSError, match=r"no space left for .*a\.jsonl"):
        files.append_jsonl(path, [{"b": "a long line"}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n'
    new = tmp_path / "new.jsonl"
    with pytest.raises(OSError, match="no space left"):
        files.append_jsonl(new, [{"b": "a long line"}])
    assert not new.exists() or new.read_bytes() == b""


def test_other_write_errors_name_the_path(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*absent.*No such file"):
        files.write_text(tmp_path / "absent" / "a.json", "x")
    with pytest.raises(OSError, match=r"cannot write .*absent"):
        files.append_jsonl(tmp_path / "absent" / "a.jsonl", [{}])


def test_jsonl_round_trip_leaves_out_a_cut_line(tmp_path):
    path = tmp_path / "a.jsonl"
    files.append_jsonl(path, [{"a": "一\u2028二"}])
    files.append_jsonl(path, [{"a": 2}, {"a": 3}])
    with open(path, "ab") as file:
        file.write(b'{"a": 4')
    assert list(files.read_jsonl(path)) == [{"a": "一\u2028二"}, {"a": 2}, {"a": 3}]


def test_keep_jsonl_rewrites_the_kept_records_and_drops_a_cut_line(tmp_path):
    path = tmp_path / "a.jsonl"
    files.keep_jsonl(path, lambda _: True)
    assert not path.exists()
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    files.keep_jsonl(path, lambda record: record["step"] <= 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_space_is_asked_for_before_a_large_write(tmp_path):
    files.require_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"no space for .* MiB in .* are free.*--workdir"):
        files.require_space(tmp_path, 1 << 60)


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
