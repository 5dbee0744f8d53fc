import json
import math

import jax.numpy as jnp
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from empathy_jax import metric_writer, resources
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


def test_a_full_disk_is_an_error_of_the_next_flush(tmp_path, monkeypatch):
    full = lambda _: open("/dev/full", "wb")  # noqa: E731, SIM115
    monkeypatch.setattr(record_writer, "open_file", full)
    with (
        pytest.raises(OSError, match=r"no space left for .*events.*free some space"),
        MetricWriter(tmp_path) as writer,
    ):
        for step in range(1000):
            writer.write(step, {"loss": 0.5})
        pytest.fail("a thousand events went nowhere")


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
    clock = _Clock(monkeypatch)
    progress = Progress("sft", steps=16, every=4)
    clock.now = 500.0  # loading and compilation
    progress.update(3, {"loss": 9})
    for step in range(4, 9):
        clock.now += 2.0
        progress.update(step, {"loss": 0.123456, "b": 1, "c": 2, "d": 3, "e": 4})
    progress.say("text")
    progress.update(16, {"loss": 1})
    progress.close()
    # Two seconds a step since the first update.
    assert capsys.readouterr().out.splitlines() == [
        "[sft] step 3/16 eta ? loss=9",
        "[sft] step 4/16 eta 24s loss=0.1235 b=1 c=2 d=3",
        "[sft] step 8/16 eta 16s loss=0.1235 b=1 c=2 d=3",
        "text",
        "[sft] step 16/16 eta 0s loss=1",
    ]


class _Clock:
    """A clock that stands still until `now` is changed."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(metric_writer.time, "monotonic", lambda: self.now)


def test_the_bar_counts_from_the_first_update(monkeypatch):
    monkeypatch.setattr(metric_writer.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("sft", steps=10)
    assert progress._bar is None
    progress.update(4, {"loss": 1})
    assert (progress._bar.initial, progress._bar.n, progress._bar.total) == (4, 4, 10)
    progress.update(6, {"loss": 1})
    assert progress._bar.n == 6
    progress.close()


def test_seconds_of_a_step_hold_nothing_else(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    recorder = Recorder(tmp_path, "sft", start=0, steps=9, every=1)

    def push(step):
        clock.now += 1.0
        recorder.push(step, {"loss": 1})

    clock.now += 30.0
    recorder.write(0, {"validation_loss": 1})
    for step in range(1, 4):
        push(step)
    clock.now += 100.0
    recorder.write(3, {"validation_loss": 1})
    push(4)
    push(5)
    recorder.flush()
    clock.now += 100.0  # a checkpoint
    push(6)
    push(7)
    clock.now += 100.0
    recorder.say("samples")
    push(8)
    push(9)
    recorder.flush()
    with recorder:
        pass
    rows = _lines(tmp_path)
    seconds = {row["step"]: row.get("seconds") for row in rows if "loss" in row}
    assert seconds == {1: None, 2: 1, 3: 1, 4: None, 5: 1, 6: None, 7: 1, 8: None, 9: 1}
    measuring = {row["step"]: row["measuring_seconds"] for row in rows if "loss" not in row}
    assert measuring == {0: 30, 3: 100}


@pytest.mark.parametrize("start", [0, 5])
def test_a_training_loop_says_at_once_where_it_is(tmp_path, capsys, start):
    with Recorder(tmp_path, "sft", start=start, steps=9, every=1):
        line = capsys.readouterr().out.strip()
    assert line == (
        "[sft] goes on after step 5 of 9"
        if start
        else "[sft] measures before training; 9 steps follow"
    )


def test_time_used_is_noted_at_checkpoints_and_at_the_end(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    resources.begin(tmp_path)
    with Recorder(tmp_path, "sft", start=0, steps=9, every=1) as recorder:
        clock.now = 7.0
        recorder.push(1, {"loss": 1})
        recorder.flush()
        clock.now = 8.0  # killed here; the next part has a clock of its own
        clock.now = -100.0
        resources.begin(tmp_path)
        with Recorder(tmp_path, "sft", start=1, steps=9, every=1):
            clock.now += 2.0
        found = resources.note(tmp_path)
    assert found["earlier_seconds"] == 7 and found["seen"] - found["began"] == 2
    assert 50e6 < found["peak_memory_bytes"] < 500e9


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
