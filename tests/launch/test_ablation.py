"""The ablation with a run that costs nothing: each phase writes what says where it began."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from empathy_jax import files
from launch import ablation, backends
from tests.evaluation.small_comparison import make_folder

# ml_collections reads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# A phase is told what `empathy_jax.main` is told, and ends at once. Where the file `stop-SYSTEM` is, it
# fails in its RL. What `evaluate` leaves is made beforehand, see `_answers`.
RUN = r"""
import ast, json, shutil, sys
from pathlib import Path
told = dict(word.removeprefix("--config.").partition("=")[::2] for word in sys.argv[1:])
workdir = Path(told["--workdir"])
root = next(parent for parent in workdir.parents if (parent / "answers").exists())
with open(root / "ran.jsonl", "a") as file:
    file.write(json.dumps(told) + "\n")
for needed in (told.get("reward_model.init"), told.get("model.init")):
    assert not needed or (Path(needed) / "summary.json").exists(), needed
for phase in ast.literal_eval(told["phases"]):
    folder = workdir / phase
    if (folder / "summary.json").exists():
        continue
    if phase == "rl" and (root / f"stop-{workdir.name}").exists():
        sys.exit("error: no signal")
    folder.mkdir(parents=True, exist_ok=True)
    if phase == "evaluate":
        name = "copy" if workdir.name == "full" else "base"
        shutil.copytree(root / "answers" / name / "evaluate", folder, dirs_exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"seconds": 1.0, "figures": []}))
"""
CONFIG = "--config=configs/ablation.py:tiny"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "run.py"
    path.write_text(RUN, encoding="utf-8")
    monkeypatch.setattr(backends, "RUN", (sys.executable, "-IS", str(path)))
    monkeypatch.setattr(ablation.compare.comparison_report, "render", lambda *_: "<!doctype html>")
    for name in ("base", "copy"):
        make_folder(tmp_path / "answers", name, similarity=0.5)
    return tmp_path


def _ablate(root: Path, *arguments: str) -> None:
    ablation.main(["ablation", CONFIG, f"--workdir={root / 'runs'}", *arguments])


def _ran(root: Path) -> dict[str, dict]:
    """SEED/SYSTEM to what its run was told; each ran once."""
    found = {}
    for told in files.read_jsonl(root / "ran.jsonl"):
        name = str(Path(told["--workdir"]).relative_to(root / "runs"))
        assert name not in found, f"{name} ran twice"
        found[name] = told
    return found


def test_the_papers_four_share_what_is_the_same_and_are_compared(root):
    _ablate(root, "--seeds=2")
    ran = _ran(root)
    systems = ("full", "without_chain", "sft_only", "rl_only")
    assert set(ran) == {"shared", *(f"seed_{i}/{name}" for i in (0, 1) for name in systems)}
    one = {name: ran[f"seed_1/{name}"] for name in systems}
    assert all(told["seed"] == "1" for told in one.values())
    whole = "('sft', 'rl', 'evaluate')"
    assert [one[name]["phases"] for name in systems] == [whole, whole, "('evaluate',)", whole]
    assert one["without_chain"]["data.format"] == "answer"
    assert one["rl_only"]["per_phase.sft.steps"] == "0"
    assert one["sft_only"]["model.init"] == str(root / "runs/seed_1/full/sft")
    # One reward model for all, whose own run knows nothing of it.
    place = str(root / "runs/shared/reward_model")
    assert {told["reward_model.init"] for told in one.values()} == {place}
    assert "reward_model.init" not in ran["shared"]
    found = json.loads((root / "runs/comparison/comparison.json").read_text(encoding="utf-8"))
    assert found["runs"] == dict.fromkeys(systems, 2)
    assert found["by_run"]["validity"]["systems"]["full"]["values"] == [0.75, 0.75]


def test_variants_of_a_grid_begin_where_they_differ(root):
    _ablate(
        root,
        "--grid=rl.kl_weight=0,0.01,1e-2,0.04",  # 0.01 is the config's own
        "--config.per_phase.rl.steps=7",
    )
    _ablate(
        root, "--grid=per_phase.evaluate.sampling.temperature=0.3", "--config.per_phase.rl.steps=7"
    )
    _ablate(root, "--grid=per_phase.sft.steps=5", "--config.per_phase.rl.steps=7")
    ran = _ran(root)
    own = {name for name in ran if "." in name}
    assert own == {
        "seed_0/rl.kl_weight_0",
        "seed_0/rl.kl_weight_0.04",
        "seed_0/per_phase.evaluate.sampling.temperature_0.3",
        "seed_0/per_phase.sft.steps_5",
    }
    full = root / "runs" / "seed_0" / "full"
    begun = {name: (ran[name]["phases"], ran[name].get("model.init")) for name in own}
    assert begun["seed_0/rl.kl_weight_0"] == ("('rl', 'evaluate')", str(full / "sft"))
    assert begun["seed_0/per_phase.evaluate.sampling.temperature_0.3"] == (
        "('evaluate',)",
        str(full / "rl"),
    )
    assert begun["seed_0/per_phase.sft.steps_5"] == ("('sft', 'rl', 'evaluate')", None)
    assert all(told["per_phase.rl.steps"] == "7" for told in ran.values())


def test_what_failed_is_left_out_and_tried_again(root, capsys):
    (root / "stop-full").touch()
    with pytest.raises(SystemExit):
        _ablate(root)
    said = capsys.readouterr().err
    assert said.startswith("error: not finished, and left out of the comparison: seed_0/full: exit")
    assert "no signal" in said and "seed_0/sft_only: seed_0/full is not finished" in said
    found = json.loads((root / "runs/comparison/comparison.json").read_text(encoding="utf-8"))
    assert found["systems"] == ["without_chain", "rl_only"]
    (root / "stop-full").unlink()
    before = [Path(told["--workdir"]).name for told in files.read_jsonl(root / "ran.jsonl")]
    _ablate(root)
    after = [Path(told["--workdir"]).name for told in files.read_jsonl(root / "ran.jsonl")]
    assert after[len(before) :] == ["full", "sft_only"]
    found = json.loads((root / "runs/comparison/comparison.json").read_text(encoding="utf-8"))
    assert found["systems"] == ["full", "without_chain", "sft_only", "rl_only"]


def test_a_dry_run_prints_what_is_left_as_a_shell_reads_it(root, capsys):
    _ablate(root, "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and not (root / "runs").exists()
    (root / "runs").mkdir()
    for line in lines[:5]:
        subprocess.run(["bash", "-c", line], check=True)
    assert set(_ran(root)) >= {"shared", "seed_0/sft_only"}
    _ablate(root, "--dry_run")
    (compared,) = capsys.readouterr().out.splitlines()
    words = shlex.split(compared)
    assert words[1:3] == ["-m", "empathy_jax.evaluation.compare"]
    ablation.compare.main(words[3:])
    assert (root / "runs/comparison/comparison.html").exists()


def test_a_folder_of_other_flags_is_refused(root, capsys):
    _ablate(root)
    with pytest.raises(SystemExit):
        _ablate(root, "--config.per_phase.rl.steps=7")
    said = capsys.readouterr().err
    assert "runs/shared was begun with other flags: --config.per_phase.rl.steps=7 is in one" in said
    assert said.count("\n") == 1
    assert len(_ran(root)) == 5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--grid=seed=1,2"], "--grid names seed, which the ablation sets itself"),
        (["--grid=reward_model.margin=0.1"], "--grid names reward_model.margin, which"),
        (["--grid=rl.kl_weight=0.01"], "--grid=rl.kl_weight=0.01 changes nothing of full"),
        (
            ["--grid=optimizer.learning_rate=1.0"],
            "--grid=optimizer.learning_rate=1.0 changes nothing",
        ),
        (["--grid=rl.kl=1"], "unknown config field 'kl'"),
        (
            ["--grid=rl.kl_weight=0", "--config.rl.kl_weight=1"],
            "config.rl.kl_weight is given twice",
        ),
        (["--grid=data.chains=a b,a/b"], "--grid gives two systems one folder"),
        (["--seeds=0"], "flag --seeds=0"),
        (["--workdir="], "--workdir is empty"),
        (["--backend=cloud"], "--backend is 'cloud', which is not one of local"),
        (["more"], "not a flag: more"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_runs(root, capsys, arguments, error):
    with pytest.raises(SystemExit) as exit_:
        _ablate(root, *arguments)
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {error}") and said.count("\n") == 1
    assert not (root / "runs").exists() and not os.path.exists(root / "ran.jsonl")
