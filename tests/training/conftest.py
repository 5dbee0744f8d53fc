"""One tiny run of sft and reward_model, which the tests of the phases look at and go on from."""

import dataclasses
from pathlib import Path

import pytest

from empathy_jax import main
from empathy_jax.training import sft
from tests.training import tiny_runs


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A finished run.

    Attributes:
      root: WORKDIR with sft/ and reward_model/.
      inputs: paths of data and tokenizer by config field.
      summaries: by phase.
      sft_traces: how often the update of sft was traced.
    """

    root: Path
    inputs: dict[str, str]
    summaries: dict[str, dict]
    sft_traces: int


SFT = {"steps": 40, "log.validate_every": 20, "checkpoint.every": 20, "sft.samples": 8}
REWARD_MODEL = {
    "steps": 24,
    "log.validate_every": 12,
    "optimizer.learning_rate": 3e-3,
    "reward_model.temperature": 0.1,
    # Alike questions have answers of the same words here, which would be each other's negatives.
    "reward_model.in_batch": "random",
}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    root = tmp_path_factory.mktemp("tiny_run")
    inputs = tiny_runs.write_inputs(root)
    traces = []

    def update_fn(*args, **options):
        traces.append(1)
        return original(*args, **options)

    original = sft.update_fn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "update_fn", update_fn)
        summaries = main.run(tiny_runs.make_config("sft", {**inputs, **SFT}), root)
    config = tiny_runs.make_config("reward_model", {**inputs, **REWARD_MODEL})
    summaries |= main.run(config, root)
    return TinyRun(root, inputs, summaries, len(traces))


@pytest.fixture
def next_root(tiny_run, tmp_path) -> Path:
    """A WORKDIR of one's own with the finished sft and reward_model in it."""
    for phase in ("sft", "reward_model"):
        (tmp_path / phase).symlink_to(tiny_run.root / phase)
    return tmp_path
