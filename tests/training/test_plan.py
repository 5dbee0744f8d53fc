import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from configs import common, reward_model, rl, sft
from empathy_jax import chips, main, sharding
from empathy_jax.models import decoder
from empathy_jax.training import common as training
from empathy_jax.training import plan, plan_counting, plan_steps
from tests.training import update_steps

MESHES = [(1, 1, 1), (8, 1, 1), (4, 2, 1), (2, 2, 2)]


def _config(module, **mesh):
    config = module.get_config("tiny")
    config.batch_size = 8
    config.data.max_prompt_tokens, config.data.max_completion_tokens = 64, 192
    config.sft.row_tokens, config.sft.tag_weight = 256, 0.0
    config.sampling.rows, config.rl.rows_per_pass = 16, 16
    config.mesh.update(mesh)
    return config


def _one_device_bytes(tree) -> int:
    """Bytes of real arrays on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


@pytest.mark.parametrize(
    ("shape", "lora_rank"), [*((shape, 0) for shape in MESHES), (MESHES[-1], 2)]
)
def test_arguments_are_as_large_as_the_real_arrays_on_every_mesh(shape, lora_rank):
    config = dataclasses.replace(update_steps.DECODER, lora_rank=lora_rank)
    place = update_steps.layout(*shape)
    optimizer, state, frozen, shardings = update_steps.prepare(config, place)
    abstract = training.abstract_state(config, optimizer, place)
    assert abstract[2] == shardings
    real = _one_device_bytes((state, frozen))
    assert plan_steps.device_bytes(abstract[:2]) == real
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state, frozen)))
    parts = shape[1] * shape[2]  # data parallel devices hold the same
    assert whole / parts <= real <= 1.1 * whole / parts or lora_rank


def test_a_compiled_update_takes_the_bytes_that_were_counted():
    config = _config(sft, data=2, fsdp=2, tensor=2)
    layout = sharding.make_layout(config.mesh)
    (step,) = plan_steps.steps(config, layout)
    with jax.set_mesh(layout.mesh):
        compiled = step.program.lower(*step.arguments).compile()
    taken = compiled.memory_analysis().argument_size_in_bytes
    assert taken == pytest.approx(plan_counting.count(step, layout).arguments, rel=1e-3)


def test_every_step_of_rl_takes_what_its_run_gives_it():
    """The abstract batch is that of a real rollout: the same programs are compiled."""
    config = _config(rl, data=4, fsdp=2, tensor=1)
    layout = sharding.make_layout(config.mesh)
    steps = plan_steps.steps(config, layout)
    names = ["rollout prefill", "rollout decode, 32 tokens", "reward scores"]
    assert [step.name for step in steps] == [*names, "reference log-probs", "policy update"]
    batch = steps[-1].arguments[2]
    assert batch["places"].shape == (64 // 2, 2, 192) and batch["places"].shape[0] % 8 == 0
    assert "ref_log_probs" in batch and "old_log_probs" not in batch
    decode = steps[1].arguments
    assert decode[3].v[0].shape == (16, 2, 192, 64)
    assert decode[3].v[0].sharding.shard_shape(decode[3].v[0].shape) == (2, 2, 192, 64)
    # Adapters: the reference is the frozen weights, no copy of them.
    config.model.lora_rank = 2
    adapted = plan_steps.steps(config, layout)
    assert adapted[3].arguments[0].keys() == {"params"}
    held = [plan_steps.device_bytes(step.held) for step in (steps[-1], adapted[-1])]
    assert held[1] < held[0]


def test_a_plan_by_counting_says_that_it_fits(capsys):
    made = plan.run(_config(sft, data=1, fsdp=4, tensor=2), "gpu:8xh200")
    said = capsys.readouterr().out
    assert (
        made.fits
        and "FITS: needs" in said
        and "mesh data 1 x fsdp 4 x sequence 1 x tensor 2" in said
    )
    (estimate,) = made.estimates
    assert not estimate.compiled and "SFT update" in said
    bounds = plan.bounds(estimate, made.target)
    assert bounds["compute"] == estimate.flops / 989e12 and made.seconds == max(bounds.values())
    # Six FLOPs a parameter and token, attention and one more forward pass come to less than ten.
    model = plan_steps.policy_architecture(_config(sft))
    tokens = 8 * 256
    parameters = sum(int(np.prod(spec.shape)) for spec in decoder.param_table(model))
    assert 6 < estimate.flops * 8 / (parameters * tokens) < 10


def _small(name: str, hbm_bytes: int) -> chips.Slice:
    target = chips.parse(name)
    return dataclasses.replace(target, chip=dataclasses.replace(target.chip, hbm_bytes=hbm_bytes))


def test_what_does_not_fit_comes_with_changes_that_would_and_they_do():
    config = _config(reward_model, data=1, fsdp=1, tensor=1)
    needs = plan.make(config, chips.parse("gpu:1xh200"))
    target = _small("gpu:1xh200", int(0.7 * needs.memory))
    made = plan.make(config, target)
    assert not made.fits and made.advice
    said = plan.table(config, made)
    assert "DOES NOT FIT: needs" in said and "turn --config.reward_model." in said
    for flag in made.advice[0].split(" (")[0].split():
        name, value = flag.removeprefix("--config.").split("=")
        section, _, field = name.rpartition(".")
        owner = config[section] if section else config
        owner[field] = type(owner[field])(value)
    assert plan.make(config, target).fits


@pytest.mark.parametrize(
    ("message", "temporaries"),
    [
        ("the total memory required for HLO temporaries (400.00G) exceeds", 400 * 2**30),
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm", int(18.5 * 2**30)),
        ("something else", None),
    ],
)
def test_what_the_compiler_says_of_programs_that_are_too_large(message, temporaries):
    assert plan.refused_temporaries(message, 2 * 2**30) == temporaries


def test_a_slice_or_a_mesh_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="--plan is 'v9:2x2'; allowed are a TPU"):
        main.plan(_config(sft), "v9:2x2")
    with pytest.raises(ValueError, match=r"config\.mesh\.fsdp=2.* do not fit 3 devices"):
        main.plan(_config(sft, data=1, fsdp=2), "gpu:3xh200")


def test_a_phase_without_steps_is_refused():
    config = common.get_config("tiny")
    config.phase = "export"
    with pytest.raises(ValueError, match="'export' has no training steps to plan; allowed: sft"):
        main.plan(config, "gpu:1xh200")


def test_a_real_compilation_for_a_tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'jax[tpu]'")
    config = _config(sft, data=1, fsdp=2, tensor=2)
    config.model.num_layers, config.model.compute_dtype = 2, "bfloat16"
    made = plan.make(config, chips.parse("v5e:2x2"))
    (estimate,) = made.estimates
    assert made.fits and estimate.compiled and not estimate.kernels
    # The compiled program does the products that the traced one asks for, but for what is simplified.
    assert 0.85 < estimate.flops / estimate.asked < 1.3
    assert {"all-gather", "all-reduce"} <= estimate.collectives.keys()
    layout = plan.make_layout(config, made.target)
    (step,) = plan_steps.steps(config, layout)
    assert estimate.arguments == pytest.approx(plan_counting.count(step, layout).arguments, rel=0.1)
