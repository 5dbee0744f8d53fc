import json
import math

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from empathy_jax import metric_writer
from empathy_jax.metric_writer import MetricWriter, Progress, Recorder


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_step_and_null_for_what_is_no_number(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "count": 3})
        writer.write(2, {"loss": math.nan, "other": math.inf})
    assert _lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "count": 3.0},
        {"step": 2, "loss": None, "other": None},
    ]


def _events(folder):
    """(step, name, value) of the event files, read record by record."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def test_events_hold_the_same_scalars(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": 0.25})
    assert _events(tmp_path) == [(1, "loss", 0.5), (2, "loss", 0.25)]


def test_steps_after_the_resumed_one_are_dropped(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with MetricWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"loss": 30})
    assert [(row["step"], row["loss"]) for row in _lines(tmp_path)] == [
        (0, 0), (1, 1), (2, 2), (3, 30),
    ]  # fmt: skip


def test_a_run_that_begins_anew_keeps_nothing(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(0, {"loss": 1})
    with MetricWriter(tmp_path, resume_step=0):
        pass
    assert _lines(tmp_path) == []


def test_plain_lines_with_time_left(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 30.0])
    monkeypatch.setattr(metric_writer.time, "monotonic", lambda: next(clock))
    progress = Progress("sft", steps=6, start=2, every=4)
    progress.update(3, {"loss": 9})
    progress.update(4, {"loss": 0.123456, "b": 1, "c": 2, "d": 3, "e": 4})
    progress.update(6, {"loss": 1})
    progress.say("text")
    progress.close()
    # Two of four steps took 20 s: two more take 20 s.
    assert capsys.readouterr().out.splitlines() == [
        "[sft] step 4/6 eta 20s loss=0.1235 b=1 c=2 d=3",
        "[sft] step 6/6 eta 0s loss=1",
        "text",
    ]


def test_metrics_are_written_one_step_late_and_flushed(tmp_path, capsys):
    with Recorder(tmp_path, "sft", start=0, steps=3, every=2) as recorder:
        recorder.push(1, {"loss": jnp.float32(1)})
        recorder.push(2, {"loss": jnp.float32(2)})
        assert not (tmp_path / "metrics.jsonl").exists()
        recorder.push(3, {"loss": jnp.float32(3)})
        assert [row["step"] for row in _lines(tmp_path)] == [2]
        recorder.flush()
        recorder.flush()
    rows = _lines(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 2), (3, 3)]
    assert all(row["seconds"] >= 0 for row in rows)
    assert "[sft] step 3/3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_no_number_stops_the_run(tmp_path, name):
    with Recorder(tmp_path, "sft", start=0, steps=3, every=1) as recorder:
        recorder.push(1, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)})
        recorder.push(2, {"loss": 1.0, "grad_norm": 1.0, name: jnp.float32(jnp.nan)})
        with pytest.raises(ValueError, match=rf"step 2: {name} is nan.*learning_rate"):
            recorder.flush()
    assert [row["step"] for row in _lines(tmp_path)] == [1]
