import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from configs import common
from empathy_jax import optimizer


def _section(**changes) -> ConfigDict:
    section = common.get_config("tiny").optimizer
    section.update(changes)
    return section


def _rates(steps, **changes):
    schedule = optimizer.make_schedule(_section(learning_rate=1.0, **changes), steps)
    return [float(schedule(step)) for step in range(steps + 1)]


def test_schedules_by_hand():
    shape = {"warmup_steps": 2, "final_fraction": 0.1}
    np.testing.assert_allclose(
        _rates(6, schedule="linear", **shape), [0, 0.5, 1, 0.775, 0.55, 0.325, 0.1], atol=1e-6
    )
    # Cosine at a quarter, half and three quarters of the decay: 0.1 + 0.9 (1 + cos πx) / 2.
    np.testing.assert_allclose(
        _rates(6, schedule="cosine", **shape),
        [0, 0.5, 1, 0.8681981, 0.55, 0.2318019, 0.1],
        atol=1e-6,
    )
    assert _rates(4, schedule="constant", **shape) == [0, 0.5, 1, 1, 1]
    assert _rates(2, schedule="constant", warmup_steps=0) == [1, 1, 1]


def test_warm_up_longer_than_the_run_still_reaches_the_peak():
    assert _rates(3, schedule="constant", warmup_steps=50) == [0, 0.5, 1, 1]
    assert _rates(1, schedule="cosine", warmup_steps=50)[0] == 1


def test_unknown_schedule_names_field_and_choices():
    with pytest.raises(ValueError, match=r"config\.optimizer\.schedule is 'step'; allowed: con"):
        optimizer.make_schedule(_section(schedule="step"), 10)


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan")])
def test_a_learning_rate_that_does_not_learn_is_refused(rate):
    with pytest.raises(ValueError, match=r"config\.optimizer\.learning_rate is .*above 0"):
        optimizer.make_schedule(_section(learning_rate=rate), 10)


def test_moments_in_half_precision_are_computed_in_whole():
    """After two steps by hand: 0.1 g + 0.9 · 0.1 g, and its like, rounded to bfloat16 when kept."""
    transform = optimizer.make_optimizer(_section(mu_dtype="bfloat16", nu_dtype="bfloat16"), 10)
    params = {"kernel": jnp.full((2, 3), 0.3)}
    grads = {"kernel": jnp.full((2, 3), 0.01)}
    state = transform.init(params)
    for _ in range(2):
        _, state = transform.update(grads, state, params)
    adam = state[1][0]
    assert adam.mu["kernel"].dtype == adam.nu["kernel"].dtype == jnp.bfloat16

    def twice(decay, value):
        once = jnp.bfloat16((1 - decay) * value).astype(jnp.float32)
        return jnp.bfloat16(jnp.float32(decay) * once + jnp.float32((1 - decay) * value))

    section = _section()
    assert (adam.mu["kernel"] == twice(section.b1, 0.01)).all()
    assert (adam.nu["kernel"] == twice(section.b2, 1e-4)).all()


@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
def test_unknown_dtypes_of_moments_name_field_and_choices(name):
    with pytest.raises(ValueError, match=rf"config\.optimizer\.{name} is 'int8'; allowed: float32"):
        optimizer.make_optimizer(_section(**{name: "int8"}), 10)


def test_only_matrices_decay():
    params = {
        "embedding": 0,
        "norm": {"scale": 0},
        "q": {"kernel": 0, "bias": 0},
        "lora": {"a": 0, "b": 0},
    }
    assert optimizer.decay_mask(params) == {
        "embedding": False,
        "norm": {"scale": False},
        "q": {"kernel": True, "bias": False},
        "lora": {"a": True, "b": True},
    }


def test_three_steps_equal_torch():
    section = _section(
        learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.1, clip_norm=0.5
    )
    start = {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5])}
    ours = jax.tree.map(jnp.float32, start)
    transform = optimizer.make_optimizer(section, 10)
    state = transform.init(ours)
    kernel, bias = (torch.tensor(start[name], requires_grad=True) for name in ("kernel", "bias"))
    groups = [{"params": [kernel]}, {"params": [bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(
        groups, lr=0.1, betas=(section.b1, section.b2), eps=section.eps, weight_decay=0.1
    )
    for scale in (1.0, 0.01, -3.0):
        grads = {"kernel": np.array([[1.0, 2.0]]) * scale, "bias": np.array([2.0]) * scale}
        updates, state = transform.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        kernel.grad, bias.grad = torch.tensor(grads["kernel"]), torch.tensor(grads["bias"])
        torch.nn.utils.clip_grad_norm_([kernel, bias], 0.5)
        theirs.step()
    np.testing.assert_allclose(ours["kernel"], kernel.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(ours["bias"], bias.detach().numpy(), atol=2e-6)
