"""Completions of prompts: prefill once per prompt, decode all its samples in a compiled loop.

Right-padded prompts of a batch share a bucket length P; completions follow in columns of their own,
the same column for every row. The completion's part of the cache grows in segments, so that early
tokens do not attend to room that is still empty; a segment is one compiled `while_loop` that ends
early when all rows have ended.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax.generation import decode_step as decoding
from empathy_jax.generation.sampling import SamplingConfig, sample
from empathy_jax.models import decoder
from empathy_jax.types import Array, Bool, Float, Int, Key, Params

__all__ = ["Completions", "SamplingConfig", "generate"]

SMALLEST_BUCKET = 64
MAX_SEGMENTS = 4  # each is a compilation of its own; with 8, decoding takes 5 % less
SEGMENT_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Completions:
    """What was sampled, as numpy, in the order of the prompts and then of their samples.

    Attributes:
      tokens: Int[N, max_new_tokens]; the pad id after the end.
      log_probs: Float[N, max_new_tokens] under softmax(logits / temperature); 0 after the end.
      lengths: Int[N], tokens of each completion, its end token counted.
      finished: Bool[N], whether an end token was sampled; false where max_new_tokens cut it off.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray


class _State(NamedTuple):
    """What the decode loop carries; `step` tokens of each row are sampled."""

    step: Int[Array, ""]
    tokens: Int[Array, "N max_new"]
    log_probs: Float[Array, "N max_new"]
    lengths: Int[Array, "N"]
    done: Bool[Array, "N"]
    last_token: Int[Array, "N"]


@dataclasses.dataclass(frozen=True)
class _Static:
    """What a compilation of the decode loop depends on, besides shapes."""

    config: decoder.DecoderConfig
    sampling: SamplingConfig
    eos_ids: tuple[int, ...]
    pad_id: int


def generate(
    params: Params,
    config: decoder.DecoderConfig,
    prompts: Sequence[Sequence[int]],
    *,
    key: Key[Array, ""],
    sampling: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
    samples_per_prompt: int = 1,
    prompts_per_batch: int = 16,
    lora: Params | None = None,
    row_ids: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Completions:
    """Samples completions of each prompt.

    A row's random numbers depend on `key` and its row id alone, so that the same rows come out
    however they are batched and padded (up to rounding in the logits).

    Args:
      params: decoder parameters.
      config: the decoder's configuration; its compute dtype is also the cache's.
      prompts: token ids of each prompt, at least one token each.
      key: root of the random streams.
      sampling: length, temperature and filters.
      eos_ids: tokens that end a completion; none if empty.
      pad_id: fills `Completions.tokens` after the end.
      samples_per_prompt: completions of each prompt.
      prompts_per_batch: prompts decoded together; rows are this times `samples_per_prompt`.
      lora: adapters, applied beside the kernels.
      row_ids: one number per completion, [len(prompts) * samples_per_prompt], that names its random
        stream; 0, 1, 2, ... if not given.
      progress: called after each batch with (completions made, completions in all).

    Raises:
      ValueError: an empty prompt, or one that leaves no room for `max_new_tokens`.
    """
    total = len(prompts) * samples_per_prompt
    if samples_per_prompt < 1 or prompts_per_batch < 1:
        raise ValueError(
            f"samples_per_prompt is {samples_per_prompt} and prompts_per_batch is "
            f"{prompts_per_batch}; both must be at least 1"
        )
    if row_ids is None:
        row_ids = range(total)
    if len(row_ids) != total:
        raise ValueError(f"{len(row_ids)} row_ids were given for {total} completions")
    _check_lengths(prompts, config, sampling)
    static = _Static(config, sampling, tuple(eos_ids), pad_id)
    ids = np.asarray(row_ids, np.int32).reshape(len(prompts), samples_per_prompt)
    out = _empty(total, sampling.max_new_tokens, pad_id)
    made = 0
    # Prompts of like length go together, so that little of a bucket is padding.
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    for start in range(0, len(prompts), prompts_per_batch):
        chosen = order[start : start + prompts_per_batch]
        batch_size = min(prompts_per_batch, len(prompts))
        state = _complete_batch(
            params, lora, static, [prompts[i] for i in chosen], ids[chosen], batch_size, key
        )
        state = jax.device_get(state)
        rows = (chosen[:, None] * samples_per_prompt + np.arange(samples_per_prompt)).ravel()
        out.tokens[rows] = state.tokens[: rows.size]
        out.log_probs[rows] = state.log_probs[: rows.size]
        out.lengths[rows] = state.lengths[: rows.size]
        made += rows.size
        if progress is not None:
            progress(made, total)
    last = np.take_along_axis(out.tokens, np.maximum(out.lengths - 1, 0)[:, None], axis=1)[:, 0]
    return dataclasses.replace(out, finished=np.isin(last, static.eos_ids))


def _check_lengths(
    prompts: Sequence[Sequence[int]], config: decoder.DecoderConfig, sampling: SamplingConfig
) -> None:
    limit = config.max_positions - sampling.max_new_tokens
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= limit:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; allowed are 1 to {limit} "
                f"(max_positions {config.max_positions} less sampling.max_new_tokens "
                f"{sampling.max_new_tokens})"
            )


def _empty(rows: int, max_new: int, pad_id: int) -> Completions:
    return Completions(
        tokens=np.full((rows, max_new), pad_id, np.int32),
        log_probs=np.zeros((rows, max_new), np.float32),
        lengths=np.zeros(rows, np.int32),
        finished=np.zeros(rows, bool),
    )


def bucket_length(length: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, ... that holds `length`: few shapes to compile."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket


def segment_ends(max_new_tokens: int) -> list[int]:
    """Where the completion's cache grows: at most 4 nearly equal segments, multiples of 64."""
    size = -(-max_new_tokens // MAX_SEGMENTS)
    size = -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
    return [*range(size, max_new_tokens, size), max_new_tokens]


def _complete_batch(
    params: Params,
    lora: Params | None,
    static: _Static,
    prompts: list[Sequence[int]],
    ids: np.ndarray,
    batch_size: int,
    key: Key[Array, ""],
) -> _State:
    """Completes `prompts`, filled up to `batch_size` with dummies that are done from the start."""
    dummies = batch_size - len(prompts)
    lengths = np.array([len(prompt) for prompt in prompts] + [1] * dummies, np.int32)
    tokens = np.full((batch_size, bucket_length(int(lengths.max()))), static.pad_id, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    ids = np.pad(ids, ((0, dummies), (0, 0))).ravel()
    done = np.arange(ids.size) >= ids.size - dummies * (ids.size // batch_size)
    tokens, lengths, ids, done = jax.device_put((tokens, lengths, ids, done))
    keys = row_keys(key, ids)
    state, cache = prefill(params, lora, static, tokens, lengths, keys, done)
    for end in segment_ends(static.sampling.max_new_tokens):
        state, cache = decode_segment(params, lora, static, end, lengths, keys, state, cache)
        if jax.device_get(state.done).all():
            break
    return state


@jax.jit
def row_keys(key: Key[Array, ""], ids: Int[Array, "N"]) -> Key[Array, "N"]:
    """One random stream per row, by the row's id."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


@functools.partial(jax.jit, static_argnames="static")
def prefill(
    params: Params,
    lora: Params | None,
    static: _Static,
    tokens: Int[Array, "Q P"],
    lengths: Int[Array, "Q"],
    keys: Key[Array, "N"],
    done: Bool[Array, "N"],
) -> tuple[_State, decoding.DecodeCache]:
    """Runs the prompts through the decoder and samples the first token of every row."""
    config, rows = static.config, keys.shape[0]
    prompts, columns = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(columns), tokens.shape)
    mask = jnp.broadcast_to(
        jnp.tril(jnp.ones((columns, columns), bool)), (prompts, columns, columns)
    )
    # What stands after a prompt's end comes later than all of it, so causality hides it already.
    empty = decoder.init_kv_cache(config, prompts, columns, config.compute_dtype)
    hidden, kv_cache = decoder.hidden_states(
        params, config, tokens, positions, mask, lora=lora, kv_cache=empty, cache_index=0
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = decoder.logits(params, config, last)
    logits = jnp.repeat(logits, rows // prompts, axis=0, total_repeat_length=rows)
    max_new = static.sampling.max_new_tokens
    state = _State(
        step=jnp.int32(0),
        tokens=jnp.full((rows, max_new), static.pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_new), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=done,
        last_token=jnp.full(rows, static.pad_id, jnp.int32),
    )
    return _append(state, logits, keys, static), decoding.from_prefill(kv_cache, rows)


@functools.partial(jax.jit, static_argnames=("static", "end"))
def decode_segment(
    params: Params,
    lora: Params | None,
    static: _Static,
    end: int,
    lengths: Int[Array, "Q"],
    keys: Key[Array, "N"],
    state: _State,
    cache: decoding.DecodeCache,
) -> tuple[_State, decoding.DecodeCache]:
    """Decodes until `end` tokens are sampled, or all rows are done."""
    config = static.config
    cache = decoding.grow(cache, end)
    layers = decoding.split_layers(params["layers"], config.num_layers)
    adapters = None if lora is None else decoding.split_layers(lora["layers"], config.num_layers)

    def unfinished(carry: tuple[_State, decoding.DecodeCache]) -> Array:
        return (carry[0].step < end) & ~jnp.all(carry[0].done)

    def next_token(
        carry: tuple[_State, decoding.DecodeCache],
    ) -> tuple[_State, decoding.DecodeCache]:
        state, cache = carry
        hidden, cache = decoding.decode_step(
            params,
            layers,
            config,
            state.last_token,
            lengths,
            state.step - 1,
            cache,
            lora_layers=adapters,
        )
        return _append(state, decoder.logits(params, config, hidden), keys, static), cache

    return jax.lax.while_loop(unfinished, next_token, (state, cache))


def _append(
    state: _State, logits: Float[Array, "N V"], keys: Key[Array, "N"], static: _Static
) -> _State:
    """The state with one more token per row, drawn from `logits` unless the row is done."""
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
    tokens, log_probs = sample(step_keys, logits, static.sampling)
    tokens = jnp.where(state.done, static.pad_id, tokens)
    log_probs = jnp.where(state.done, 0.0, log_probs)
    is_end = jnp.isin(tokens, jnp.array(static.eos_ids, jnp.int32))
    start = (0, state.step)
    return _State(
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice(state.tokens, tokens[:, None], start),
        log_probs=jax.lax.dynamic_update_slice(state.log_probs, log_probs[:, None], start),
        lengths=state.lengths + ~state.done,
        done=state.done | is_end,
        last_token=tokens,
    )
