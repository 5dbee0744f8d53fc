import pytest
from ml_collections import ConfigDict

from configs import common
from empathy_jax import files, main
from tests.conftest import ROOT
from tests.training import tiny_runs


def _config(**changes) -> ConfigDict:
    config = common.get_config("tiny")
    config.update(changes)
    return config


def _summary(phase: str) -> dict:
    figure = {"name": "loss", "before": 2.0, "after": 1.0}
    return {"phase": phase, "seconds": 1.0, "peak_memory_bytes": 2**20, "figures": [figure]}


@pytest.fixture
def ran(monkeypatch):
    """The (config, workdir) of each phase that was run."""
    calls = []

    def run_phase(config, workdir):
        calls.append((config, workdir))
        return _summary(config.phase)

    monkeypatch.setattr(main, "run_phase", run_phase)
    return calls


def test_one_phase(ran, tmp_path, capsys):
    assert main.run(_config(phase="sft"), str(tmp_path)) == {"sft": _summary("sft")}
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[1].split()[:4] == ["sft", "loss", "2", "1"] and str(tmp_path / "sft") in lines[-1]
    (config, workdir), *more = ran
    assert not more and workdir == tmp_path and config.phase == "sft"


def test_a_finished_phase_is_said_to_be(ran, tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    path = tmp_path / "sft" / "summary.json"
    files.write_json(path, _summary("sft"))
    main.run(_config(phase="sft"), str(tmp_path))
    assert f"[sft] already finished: {path}\n" in capsys.readouterr().out
    files.write_json(path, {**_summary("sft"), "seconds": 7.0})  # done anew since
    main.run(_config(phase="sft"), str(tmp_path))
    assert "already" not in capsys.readouterr().out


def test_several_phases_in_order_with_their_own_values(ran, tmp_path, monkeypatch):
    from empathy_jax.training import overview

    shown = []
    monkeypatch.setattr(overview, "show", lambda *arguments: shown.append(arguments))
    config = _config(phases=("sft", "rl"), seed=5)
    with config.unlocked():
        config.per_phase = ConfigDict({"rl": {"steps": 3, "rl": {"group_size": 6}}})
    summaries = main.run(config, str(tmp_path))
    assert list(summaries) == ["sft", "rl"] and shown == [(tmp_path, summaries)]
    (sft, _), (rl, _) = ran
    assert (sft.phase, sft.steps, sft.rl.group_size) == ("sft", 100, 8)
    assert (rl.phase, rl.steps, rl.rl.group_size) == ("rl", 3, 6)
    assert rl.seed == sft.seed == 5 and config.phases == ("sft", "rl")


def test_nothing_runs_when_one_of_several_phases_is_unknown(ran, tmp_path):
    with pytest.raises(
        ValueError, match=r"config\.phases has 'sfft', which is not one of corpus, annotate, sft"
    ):
        main.run(_config(phases=("sft", "sfft")), str(tmp_path))
    with pytest.raises(ValueError, match=r"--workdir is empty"):
        main.run(_config(phase="sft"), "")
    assert not ran


@pytest.mark.parametrize("error", [ValueError("a reason"), OSError(28, "a reason")])
def test_an_error_is_one_line_and_exit_status_one(error, monkeypatch, capsys, tmp_path):
    def run(*_):
        raise error

    monkeypatch.setattr(main, "run", run)
    given = {"config": {"phase": "sft"}, "workdir": "x", "coordinator_address": ""}
    flags = ConfigDict({**given, "num_processes": None, "process_id": None})
    monkeypatch.setattr(main, "FLAGS", flags)
    with pytest.raises(SystemExit) as exit_:
        main.main(["main.py"])
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "a reason" in err and err.count("\n") == 1


def test_the_traceback_is_there_for_who_asks(tmp_path):
    arguments = tiny_runs.command("sft", tmp_path, {"data.chains": "absent"})
    done = tiny_runs.run_cli([*arguments, "--verbosity=1"], ROOT)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "\nerror: There is no file" in done.stderr
