"""Rows with a shared prompt against plain attention under a mask that is written out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import decoder, shared_prompt
from empathy_jax.models.attention import SHORT, attention, causal_mask
from empathy_jax.training import rollout_rows


def random_rows(
    prompt_lengths=(5, 1), completion_lengths=(3, 9, 1, 4, 2, 7), per_row=3, seed=0
) -> tuple[list, list, dict]:
    """Random prompts and completions, and the rows they are packed into."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, 64, n).tolist() for n in prompt_lengths]
    lengths = np.asarray(completion_lengths)
    tokens = random.integers(0, 64, (len(lengths), lengths.max())).astype(np.int32)
    rows = rollout_rows.pack_rollouts(
        prompts, tokens, -tokens / 10, lengths, np.arange(len(lengths)), per_row, 0
    )
    completions = [tokens[i, :n].tolist() for i, n in enumerate(lengths)]
    return prompts, completions, jax.tree.map(jnp.asarray, rows)


def naive_mask(segment_ids: np.ndarray) -> np.ndarray:
    """True where a query may see a key, place by place."""
    rows, width = segment_ids.shape
    mask = np.zeros((rows, width, width), bool)
    for row in range(rows):
        for query in range(width):
            for key in range(query + 1):
                own, other = segment_ids[row, query], segment_ids[row, key]
                mask[row, query, key] = own > 0 and (other == own or other == rollout_rows.PROMPT)
    return mask


@pytest.mark.parametrize(
    ("heads", "lengths"),
    [
        ((4, 4), {}),
        ((4, 2), {}),
        # Longer than a block of queries, one shorter.
        ((4, 2), {"prompt_lengths": (150,), "completion_lengths": (SHORT + 140, SHORT + 20, 7)}),
    ],
)
def test_values_and_gradients_are_those_of_the_mask(heads, lengths):
    _, _, rows = random_rows(**lengths)
    layout = shared_prompt.from_batch(rows)
    mask = jnp.asarray(naive_mask(np.asarray(rows["segment_ids"])))
    shape = rows["tokens"].shape
    keys = jax.random.split(jax.random.key(0), 4)
    q, weights = (jax.random.normal(key, (*shape, heads[0], 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (*shape, heads[1], 8)) for key in keys[2:])
    counts = rows["segment_ids"][..., None, None] > 0

    def objective(attend, q, k, v):
        found = jnp.where(counts, attend(q, k, v), 0.0)
        return jnp.sum(found * weights), found

    def both(attend):
        loss = functools.partial(objective, attend)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    (_, found), gradients = both(
        lambda q, k, v: shared_prompt.shared_prompt_attention(q, k, v, layout)
    )
    (_, expected), expected_gradients = both(lambda q, k, v: attention(q, k, v, mask))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_a_permutations_gradient_is_autodiffs():
    _, _, rows = random_rows()
    layout = shared_prompt.from_batch(rows)
    x = jax.random.normal(jax.random.key(0), (*rows["tokens"].shape, 3))
    used = rows["segment_ids"] > 0

    def found(x):
        return jnp.sum(jnp.cos(shared_prompt.per_completion(x, layout)))

    def expected(x):
        row = jnp.arange(x.shape[0])[:, None, None]
        taken = jnp.where(layout.completion_mask[..., None], x[row, layout.places], 0.0)
        return jnp.sum(jnp.cos(taken))

    for one, other in zip(*(jax.value_and_grad(f)(x) for f in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert float(jnp.abs(jax.grad(found)(x)[~used]).max()) == 0


def test_the_decoder_sees_of_a_row_what_it_sees_of_each_completion_alone(tiny_decoder):
    prompts, completions, rows = random_rows()
    params = decoder.init_params(jax.random.key(0), tiny_decoder)
    layout = shared_prompt.from_batch(rows)
    packed, _ = decoder.hidden_states(
        params, tiny_decoder, rows["tokens"], rows["positions"], layout
    )
    apart = shared_prompt.per_completion(packed, layout)
    tokens, segment_ids = np.zeros((2, len(completions), 16), np.int32)
    for index, completion in enumerate(completions):
        alone = [*prompts[index // 3], *completion[:-1]]
        tokens[index, : len(alone)] = alone
        segment_ids[index, : len(alone)] = 1
    positions = jnp.tile(jnp.arange(16), (len(completions), 1))
    mask = causal_mask(jnp.asarray(segment_ids))
    alone, _ = decoder.hidden_states(params, tiny_decoder, jnp.asarray(tokens), positions, mask)
    for index, completion in enumerate(completions):
        where = np.flatnonzero(rows["completion_ids"].ravel() == index)[0]
        first = len(prompts[index // 3]) - 1
        np.testing.assert_allclose(
            apart[where, : len(completion)],
            alone[index, first : first + len(completion)],
            atol=1e-5,
        )
