import json

import pytest

from empathy_jax import files
from empathy_jax.training import overview

SUMMARIES = {
    "sft": {
        "phase": "sft",
        "seconds": 12.5,
        "peak_memory_bytes": 300 * 2**20,
        "figures": [
            {"name": "loss", "before": 6.25, "after": 1.5},
            {
                "name": "validity",
                "before": 0.0,
                "after": 0.8,
                "error_before": 0.0,
                "error_after": 0.1,
            },
        ],
    },
    "evaluate": {
        "phase": "evaluate",
        "seconds": 3.0,
        "peak_memory_bytes": 400 * 2**20,
        "figures": [{"name": "chain validity", "before": None, "after": 0.5}],
    },
    "export": {
        "phase": "export",
        "seconds": 1.0,
        "peak_memory_bytes": 200 * 2**20,
        "figures": [{"name": "parameters", "before": None, "after": 1234567}],
        "directory": "runs/a/export/hf",
        "usage": ["from transformers import X", "model = X.from_pretrained('runs/a/export/hf')"],
    },
}


def _row(rule: str | None, text: str) -> dict:
    layers = {name: f"{name} {text}" if rule is None else None for name in ("L1", "L2", "L3", "L4")}
    return {"question": "问题\x1b[2J", "completion": text, "rule": rule, "answer": text, **layers}


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "evaluate").mkdir()
    rows = [_row("missing_L1", "坏"), _row(None, "你好\x1b]0;x\x07\u202e"), _row(None, "第三")]
    files.write_jsonl(tmp_path / "evaluate" / "generations.jsonl", rows)
    return tmp_path


def test_show_prints_table_example_and_usage(workdir, capsys):
    overview.show(workdir, SUMMARIES)
    out = capsys.readouterr().out
    lines = out.strip().split("\n")
    assert lines[0].split() == ["phase", "what", "is", "measured", "before", "after", "seconds"]
    assert lines[1].split() == ["sft", "loss", "6.25", "1.5", "12.5"]
    assert lines[2].split() == ["sft", "validity", "0", "0.8", "±", "0.1", "-"]
    assert lines[4].split() == ["export", "parameters", "-", "1,234,567", "1.0"]
    assert "L1 你好" in out and "坏" not in out and "第三" not in out
    for line in SUMMARIES["export"]["usage"]:
        assert line in out
    assert "16.5 seconds, peak memory 400 MiB" in out


def test_control_characters_of_a_completion_do_not_reach_the_terminal(workdir, capsys):
    overview.show(workdir, SUMMARIES)
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_without_a_valid_chain_the_first_completion_is_shown(workdir, capsys):
    files.write_jsonl(workdir / "evaluate" / "generations.jsonl", [_row("missing_L1", "坏")])
    overview.show(workdir, SUMMARIES)
    out = capsys.readouterr().out
    assert "no valid chain (missing_L1)" in out and "坏" in out


def test_summary_file_holds_all_phases_and_the_table(workdir):
    result = overview.show(workdir, SUMMARIES)
    written = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert written["phases"] == SUMMARIES
    assert written["seconds"] == 16.5
    assert written["peak_memory_bytes"] == 400 * 2**20
    assert written["table"][1] == {
        "phase": "sft",
        "what is measured": "validity",
        "before": "0",
        "after": "0.8 ± 0.1",
        "seconds": None,
    }


def test_a_chain_that_was_finished_keeps_its_summary_file(workdir, capsys):
    overview.show(workdir, SUMMARIES)
    before = (workdir / "summary.json").stat().st_mtime_ns
    shown = capsys.readouterr().out
    overview.show(workdir, SUMMARIES)
    assert (workdir / "summary.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out == shown
    changed = {**SUMMARIES, "sft": {**SUMMARIES["sft"], "seconds": 20.0}}
    assert overview.show(workdir, changed)["seconds"] == 24.0
    assert (workdir / "summary.json").stat().st_mtime_ns > before


def test_one_phase_ends_with_its_figures_and_folder(tmp_path, capsys):
    overview.show_phase(tmp_path / "sft", {"sft": SUMMARIES["sft"]})
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[1].split() == ["sft", "loss", "6.25", "1.5", "12.5"]
    assert lines[-1] == f"12.5 seconds, peak memory 300 MiB: {tmp_path / 'sft'}"
    overview.show_phase(tmp_path, {"evaluate": SUMMARIES["evaluate"]})
    assert "evaluate: before is the floor" in capsys.readouterr().out


def _probed(beats: float) -> dict:
    entry = {"beats": beats, "error": 0.01, "ties": 0.0, "mean_gain": 0.1, "questions": 100}
    return {"echo": entry, "empty": entry | {"beats": 0.0}}


def test_probes_are_shown_after_the_phases_that_ran_them(workdir, capsys, monkeypatch):
    (workdir / "reward_model").mkdir()
    calibration = {"threshold": 0.5, "probes": {"cosine": _probed(0.5)}}
    files.write_json(workdir / "reward_model" / "calibration.json", calibration)
    scores = {"probes": {"cosine": _probed(0.5), "reward": _probed(0.0)}}
    files.write_json(workdir / "evaluate" / "scores.json", scores)
    summary = SUMMARIES["sft"] | {"phase": "reward_model"}
    overview.show(workdir, {"reward_model": summary, **SUMMARIES})
    out = capsys.readouterr().out
    titles = [line for line in out.split("\n") if "how often cheating beats" in line]
    assert [title.split(":")[0] for title in titles] == ["reward_model", "evaluate", "evaluate"]
    assert titles[2].endswith("under the reward")
    assert out.count("prefers an echo") == 2 and out.count("over 5 %") == 2
    overview.show_phase(workdir / "reward_model", {"reward_model": summary})
    out = capsys.readouterr().out
    assert "50.0 ± 1.0 %" in out and out.endswith(f"{workdir / 'reward_model'}\n")
    # Colour is for terminals, and not for those that asked to be spared.
    assert "\x1b" not in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in overview.probe_tables(workdir / "reward_model")[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in overview.probe_tables(workdir / "reward_model")[0]


def test_phases_without_evaluation_or_export_have_no_such_part(tmp_path, capsys):
    overview.show(tmp_path, {"sft": SUMMARIES["sft"]})
    out = capsys.readouterr().out
    assert "held-out" not in out and "transformers" not in out


def test_columns_align_wide_characters():
    lines = overview.align([("a", "宽字", "1"), ("bb", "x", "22")]).split("\n")
    assert lines == ["a   宽字   1", "bb  x     22"]
