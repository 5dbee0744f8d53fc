import json
import os
import signal
import threading
import time

import pytest

from configs import common as configs
from empathy_jax import files, resources
from empathy_jax.training import workdir


def _config(**changes):
    config = configs.get_config("tiny")
    config.phase = "sft"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def _begin(folder):
    files.append_jsonl(folder / "metrics.jsonl", [{"step": 0}])


def test_a_folder_says_how_it_was_made(tmp_path):
    folder = workdir.open_phase(tmp_path / "new" / "run", "sft", _config(seed=3))
    assert folder == tmp_path / "new" / "run" / "sft"
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["seed"] == 3 and written["optimizer"]["b2"] == 0.95
    made = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert made["packages"].keys() >= {"jax", "flax"} and len(made["devices"]) == 8


def test_the_same_run_may_go_on_and_free_fields_may_change(tmp_path):
    folder = workdir.open_phase(tmp_path, "sft", _config())
    _begin(folder)
    workdir.open_phase(tmp_path, "sft", _config(log__every=3, checkpoint__every=7))


def test_a_different_run_is_refused_with_every_difference(tmp_path):
    folder = workdir.open_phase(tmp_path, "sft", _config())
    _begin(folder)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError) as error:
        workdir.open_phase(tmp_path, "sft", _config(seed=1, optimizer__b1=0.8))
    text = str(error.value)
    assert f"{folder} holds a different run" in text and "\n" not in text
    assert "config.seed was 0 and is now 1" in text
    assert "config.optimizer.b1 was 0.9 and is now 0.8" in text
    assert "--workdir" in text and (folder / "config.json").read_bytes() == before


def test_a_run_that_never_began_may_be_corrected(tmp_path):
    folder = workdir.open_phase(tmp_path, "sft", _config(data__chains="absnt.jsonl"))
    workdir.open_phase(tmp_path, "sft", _config(data__chains="absent.jsonl"))
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["data"]["chains"] == "absent.jsonl"


def test_someone_elses_folder_is_refused(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not empty and has no config\.json.*--workdir"):
        workdir.open_phase(tmp_path, "sft", _config())
    assert os.listdir(tmp_path / "sft") == ["thesis.txt"]


def test_a_run_killed_while_it_wrote_its_first_file_is_begun_anew(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json.partial").write_text("{", encoding="utf-8")
    folder = workdir.open_phase(tmp_path, "sft", _config())
    assert (folder / "config.json").exists() and not list(folder.glob("*.partial"))


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*file/sft"):
        workdir.open_phase(tmp_path / "file", "sft", _config())


@pytest.mark.parametrize("name", ["steps", "batch_size", "log.every", "reward_model.company"])
def test_counts_must_be_positive(tmp_path, name):
    config = _config()
    config.update_from_flattened_dict({name: 0})
    with pytest.raises(ValueError, match=rf"config\.{name} is 0; it must be 1 or more"):
        workdir.open_phase(tmp_path / "run", "rl", config)
    assert not (tmp_path / "run").exists()


def test_sft_may_take_no_steps(tmp_path):
    workdir.open_phase(tmp_path, "sft", _config(steps=0))
    with pytest.raises(ValueError, match=r"config\.steps is -1; it must be 0 or more"):
        workdir.open_phase(tmp_path / "other", "sft", _config(steps=-1))


def test_figures_are_the_first_and_last_values(tmp_path):
    files.write_jsonl(
        tmp_path / "metrics.jsonl",
        [
            {"step": 0, "a": 1.0, "a_error": 0.1},
            {"step": 1, "b": 5},
            {"step": 2, "a": 3.0, "a_error": 0.3},
        ],
    )
    assert workdir.figure(tmp_path, "A", "a") == {
        "name": "A", "before": 1.0, "after": 3.0, "error_before": 0.1, "error_after": 0.3,
    }  # fmt: skip
    assert workdir.figure(tmp_path, "B", "b") == {"name": "B", "before": 5, "after": 5}


def test_the_summary_marks_the_end(tmp_path):
    assert workdir.finished(tmp_path) is None
    summary = workdir.finish(tmp_path, "sft", 0.0, [{"name": "A"}], gain=2)
    assert workdir.finished(tmp_path) == summary
    assert summary["phase"] == "sft" and summary["gain"] == 2 and summary["seconds"] > 0


def _make_run(folder, step, content):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text("{}", encoding="utf-8")
    files.write_json(folder / "checkpoints" / f"{step}.json", {"d": content})


def _rl(**changes):
    config = _config(**changes)
    config.phase = "rl"
    return config


def test_training_from_models_that_changed_is_refused(tmp_path):
    _make_run(tmp_path / "sft", 40, "a")
    _make_run(tmp_path / "reward_model", 24, "b")
    folder = workdir.open_phase(tmp_path, "rl", _rl())
    found = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    assert {name: (m["place"], m["step"]) for name, m in found.items()} == {
        "model": ("sft", 40), "reward_model": ("reward_model", 24),
    }  # fmt: skip
    _begin(folder)
    workdir.open_phase(tmp_path, "rl", _rl())
    before = {p: p.read_bytes() for p in folder.iterdir()}
    _make_run(tmp_path / "sft", 40, "another")
    for name in (None, "summary.json"):  # resumed; finished
        if name:
            files.write_json(folder / name, {})
            before[folder / name] = (folder / name).read_bytes()
        with pytest.raises(ValueError) as error:
            workdir.open_phase(tmp_path, "rl", _rl())
        text = str(error.value)
        assert f"{folder} was begun from other models: model was sft at step 40" in text
        assert text.count("sft at step 40 (digest ") == 2 and "reward_model was" not in text
        assert f"another --workdir, or delete {folder}" in text and "\n" not in text
        assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_a_model_that_is_gone_does_not_hinder(tmp_path):
    _make_run(tmp_path / "sft", 40, "a")
    _make_run(tmp_path / "reward_model", 24, "b")
    folder = workdir.open_phase(tmp_path, "rl", _rl())
    _begin(folder)
    recorded = (folder / "inputs.json").read_bytes()
    for name in ("model.json", "checkpoints/24.json"):
        (tmp_path / "reward_model" / name).unlink()
    workdir.open_phase(tmp_path, "rl", _rl())
    assert (folder / "inputs.json").read_bytes() == recorded


def test_a_named_model_is_an_input_too(tmp_path):
    _make_run(tmp_path / "other", 3, "a")
    config = _config(model__init=str(tmp_path / "other"))
    folder = workdir.open_phase(tmp_path, "sft", config)
    _begin(folder)
    _make_run(tmp_path / "other", 6, "a")
    with pytest.raises(ValueError, match=r"other at step 3 \(.*is now .*other at step 6 \("):
        workdir.open_phase(tmp_path, "sft", config)
    for path in (tmp_path / "other" / "checkpoints").iterdir():
        path.unlink()
    workdir.open_phase(tmp_path, "sft", config)  # gone, which makes no difference
    config = _config(model__init="owner/name")
    assert workdir.models_taken(tmp_path, "sft", config) == {"model": {"place": "owner/name"}}
    assert workdir.models_taken(tmp_path, "sft", _config()) == {}


def test_seconds_of_all_parts_are_added_up(tmp_path):
    folder = workdir.open_phase(tmp_path, "sft", _config())
    state = resources.note(folder)
    files.write_json(folder / "resources.json", {**state, "seen": state["began"] + 50.0})
    _begin(folder)
    workdir.open_phase(tmp_path, "sft", _config())
    summary = workdir.finish(folder, "sft", time.monotonic() - 2.0, [])
    assert 52 <= summary["seconds"] < 60
    assert 50e6 < summary["peak_memory_bytes"] < 500e9


def test_sigterm_is_noted_while_watched():
    before = signal.getsignal(signal.SIGTERM)
    with workdir.watch_sigterm() as received:
        assert not received
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def body():
        with workdir.watch_sigterm() as received:
            seen.append(received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [[]]


def test_preemption_says_how_to_go_on(capsys):
    assert workdir.Preempted("rl", 7).code == 0
    assert "SIGTERM at step 7: saved; the same command goes on" in capsys.readouterr().out
