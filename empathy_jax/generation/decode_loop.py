"""The compiled parts of generation: prefill of prompts, and a segment of decoding.

Between segments the cache stays where it is and all else is the host's: which token a row goes on
with, how many it has, where its random stream is. So rows can be exchanged between any two segments.

Q prompts, P prompt columns, N rows, T the longest segment, W the longest stop sequence.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_step as decoding
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.cache import DecodeCache, PromptCache
from empathy_jax.generation.sampling import RowSampling, SamplingConfig, draw, draw_each
from empathy_jax.generation.weights import LayerWeights
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.types import Array, Bool, Float, Int, Key, Params

# Tokens between two chances to exchange rows; the host's part takes a millisecond or two.
SEGMENT = 32
ANY_TOKEN = -1  # in the table of stop sequences: before a shorter one
NO_TOKEN = -2  # before a row's first token, and in a table without sequences


@dataclasses.dataclass(frozen=True)
class Static:
    """What a compilation depends on, besides shapes.

    Attributes:
      config: the decoder's configuration.
      sampling: how tokens are drawn; its length has no meaning here.
      slots: prompts of a lane.
    """

    config: decoder.DecoderConfig
    sampling: SamplingConfig
    slots: int


class Rows(NamedTuple):
    """What the host says of the rows, [N] each.

    Attributes:
      token: the one that the row goes on with; at first the prompt's last.
      prompt_length: tokens before that last one.
      slot: of its lane, where they are.
      count: completion tokens so far.
      limit: of those.
      stream: number that names its random stream.
      idle: whether there is no sample in it.
      tail: [N, W], its latest completion tokens.
    """

    token: Array
    prompt_length: Array
    slot: Array
    count: Array
    limit: Array
    stream: Array
    idle: Array
    tail: Array


class Controls(NamedTuple):
    """Of a segment: the column to write first, the tokens to make at most, and the number of rows
    whose end makes it return early."""

    column: Array
    steps: Array
    enough: Array


class Segment(NamedTuple):
    """What a segment made.

    Attributes:
      tokens, log_probs: [N, T], the first `taken` of each row have a meaning.
      taken: [N].
      stopped: [N], whether the last of them completes a stop sequence.
      done: [N], that, or the limit is reached.
      steps: tokens made of the rows that were not done.
    """

    tokens: Array
    log_probs: Array
    taken: Array
    stopped: Array
    done: Array
    steps: Array


@functools.partial(jax.jit, static_argnames="config")
def prefill(
    params: Params,
    lora: Params | None,
    config: decoder.DecoderConfig,
    tokens: Int[Array, "Q P"],
) -> PromptCache:
    """Runs right-padded prompts, without their last tokens, through the decoder.

    The last token is the first that the decode loop takes in. What stands after a prompt's end comes
    later than all of it, so causality hides it here, and the loop's mask hides it there.
    """
    prompts, columns = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(columns), tokens.shape)
    mask = causal_mask(jnp.ones_like(tokens))
    empty = decoder.init_kv_cache(config, prompts, columns, config.compute_dtype)
    _, kv_cache = decoder.hidden_states(
        params, config, tokens, positions, mask, lora=lora, kv_cache=empty, cache_index=0
    )
    return caches.from_prefill(kv_cache)


@functools.partial(jax.jit, static_argnames="static", donate_argnames="cache")
def decode_segment(
    params: Params,
    layers: list[LayerWeights],
    static: Static,
    cache: DecodeCache,
    rows: Rows,
    key: Key[Array, ""],
    stops: Int[Array, "M W"],
    controls: Controls,
    each: RowSampling | None = None,
) -> tuple[DecodeCache, Segment]:
    """Decodes until `controls.steps` tokens are made or `controls.enough` rows are done.

    Args:
      params: decoder parameters.
      layers: of `weights.prepare`.
      static: see `Static`.
      cache: has room for as many tokens as are made.
      rows: see `Rows`.
      key: root of the random streams.
      stops: sequences that end a completion, right-aligned, ANY_TOKEN before them.
      controls: see `Controls`.
      each: what each row asks for in place of `static.sampling`'s temperature and top-p.
    """
    config, columns = static.config, cache.columns
    params = weights_lib.gather_ends(params, config)
    prompt_mask = _prompt_mask(rows, static.slots, cache.prompt_k[0].shape[2])
    uniforms = _uniforms(key, rows)

    def goes_on(carry: tuple) -> Array:
        _, made, _, _ = carry
        ended = jnp.sum(made.done) - jnp.sum(rows.idle)
        return (made.steps < controls.steps) & (ended < controls.enough)

    def next_token(carry: tuple) -> tuple:
        cache, made, token, tail = carry
        step = made.steps
        column, count = (controls.column + step) % columns, rows.count + step
        # A column's age is how many tokens ago it was written.
        age = (column - jnp.arange(columns)) % columns
        hidden, cache = decoding.decode_step(
            params,
            layers,
            config,
            token,
            rows.prompt_length + count,
            prompt_mask,
            age <= count[:, None],
            column,
            cache,
        )
        logits = decoder.logits(params, config, hidden)
        if each is None:
            token, log_probs = draw(uniforms[step], logits, static.sampling)
        else:
            token, log_probs = draw_each(uniforms[step], logits, each, static.sampling)
        tail = jnp.concatenate([tail[:, 1:], token[:, None]], axis=1)
        made = _append(made, token, log_probs, _matches(tail, stops), count + 1 >= rows.limit)
        return cache, made, token, tail

    shape = (rows.token.shape[0], SEGMENT)
    nothing = Segment(
        tokens=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape, jnp.float32),
        taken=jnp.zeros(shape[0], jnp.int32),
        stopped=jnp.zeros(shape[0], bool),
        done=rows.idle,
        steps=jnp.int32(0),
    )
    carry = (cache, nothing, rows.token, rows.tail)
    cache, made, _, _ = jax.lax.while_loop(goes_on, next_token, carry)
    return cache, made


def scalars(*values: int | np.integer) -> list[Array]:
    """Integers on the device."""
    return jax.device_put([np.int32(value) for value in values])


def stop_table(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Stop sequences of token ids, right-aligned in one table, [M, W]."""
    longest = max(map(len, sequences), default=1)
    table = np.full((max(len(sequences), 1), longest), ANY_TOKEN, np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[longest - len(sequence) :] = sequence
    if not sequences:
        table[:] = NO_TOKEN
    return table


def _append(
    made: Segment,
    token: Int[Array, "N"],
    log_probs: Float[Array, "N"],
    matches: Bool[Array, "N"],
    at_limit: Bool[Array, "N"],
) -> Segment:
    """The segment with one more token; rows that are done keep what they have."""

    def write(into: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(into, new[:, None], (0, made.steps))

    return Segment(
        tokens=write(made.tokens, token),
        log_probs=write(made.log_probs, log_probs),
        taken=made.taken + ~made.done,
        stopped=made.stopped | (matches & ~made.done),
        done=made.done | matches | at_limit,
        steps=made.steps + 1,
    )


def _matches(tail: Int[Array, "N W"], stops: Int[Array, "M W"]) -> Bool[Array, "N"]:
    """Whether a row's latest tokens are a stop sequence."""
    same = (tail[:, None] == stops) | (stops == ANY_TOKEN)
    return jnp.any(jnp.all(same, axis=-1), axis=-1)


def _prompt_mask(rows: Rows, slots: int, columns: int) -> Bool[Array, "N P"]:
    """Which of its lane's prompt columns a row may see: those of its own prompt."""
    length = columns // slots
    slot, place = jnp.divmod(jnp.arange(columns), length)
    return (slot == rows.slot[:, None]) & (place < rows.prompt_length[:, None])


def _uniforms(key: Key[Array, ""], rows: Rows) -> Float[Array, "T N"]:
    """Random numbers for a segment, each from the row's stream and its token's index alone."""
    streams = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows.stream)

    def of_step(step: Array) -> Array:
        return jax.vmap(jax.random.uniform)(
            jax.vmap(jax.random.fold_in)(streams, rows.count + step)
        )

    return jax.vmap(of_step)(jnp.arange(SEGMENT))
