import importlib
import re

import pytest
from ml_collections import ConfigDict

from configs import common
from empathy_jax import main
from tests.conftest import ROOT

NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


def _load(name: str, size: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(size)


def _leaves(config: ConfigDict, prefix: str = "") -> dict:
    found = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


@pytest.mark.parametrize("size", sorted(common.SIZES))
@pytest.mark.parametrize("name", NAMES)
def test_every_size_loads_locked_with_the_common_fields(name, size):
    config = _load(name, size)
    assert config.is_locked
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.learning_rat = 1
    # The phases of a chain may differ from one another; nothing else adds a field.
    own = {key for key in _leaves(config) if not key.startswith("per_phase.")}
    assert own == set(_leaves(common.get_config(size)))
    phases = config.phases or (config.phase,)
    assert set(phases) <= set(main.PHASES)
    for phase in phases:
        values = main.phase_config(config, phase)
        assert values.phase == phase and not values.phases and values.is_locked
        assert not values.per_phase


@pytest.mark.parametrize("name", NAMES)
def test_unknown_size_lists_the_sizes(name):
    with pytest.raises(ValueError, match=r"'tinny'.*tiny, small, qwen3_0p6b"):
        _load(name, "tinny")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_the_command(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"python -m empathy_jax.main --config=configs/{name}.py" in module.__doc__


def test_every_field_is_read_somewhere():
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "empathy_jax").rglob("*.py")
    )
    words = set(re.findall(r"\w+", sources))
    unread = [name for name in _leaves(common.get_config()) if name.rpartition(".")[2] not in words]
    assert unread == []


def test_a_later_phase_of_a_chain_takes_the_earlier_ones_model():
    config = _load("quickstart", "tiny")
    config.model.init, config.reward_model.init = "weights", "encoder"
    assert main.phase_config(config, "sft").model.init == "weights"
    assert main.phase_config(config, "reward_model").reward_model.init == "encoder"
    rl = main.phase_config(config, "rl")
    assert rl.model.init == "" and rl.reward_model.init == ""
    assert rl.steps == _load("rl", "tiny").steps and rl.rl.group_size == 8
    alone = _load("rl", "tiny")
    alone.model.init = "weights"
    assert main.phase_config(alone, "rl").model.init == "weights"


def test_a_chains_own_values_may_not_name_unknown_fields():
    config = _load("quickstart", "tiny")
    with config.unlocked():
        config.per_phase.sft.stepz = 3
    with pytest.raises((ValueError, KeyError, AttributeError), match="stepz"):
        main.phase_config(config, "sft")
