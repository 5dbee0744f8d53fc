"""Completions of prompts: each prefilled once, its samples decoded together, rows refilled as they end.

A batch of rows decodes in compiled segments of some tokens. Between two of them the host takes out
the rows that are done and puts the next samples in their places (`schedule.py` says which), so that
one long completion does not hold the batch. Three more things keep a token cheap:

- The completions' cache has few sizes. It grows when most rows have outgrown it; while samples still
  wait, a single row that outgrows it is parked instead, and decoded with its like at the end.
- When no sample waits any longer and few rows are left, they go on in a batch of a quarter of the size.
- Prompts go in the order of their lengths, so that little of a prompt's columns is padding.

What a row samples depends on the key, its row id and its prompt alone, not on what shares its batch.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from empathy_jax.generation import batch as batches
from empathy_jax.generation import decode_loop, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.batch import Completions
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.models import decoder
from empathy_jax.types import Array, Key, Params

__all__ = ["Completions", "SamplingConfig", "generate"]


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
    rows: int = 64,
    stop: Sequence[Sequence[int]] = (),
    limits: Sequence[int] | np.ndarray | None = None,
    lora: Params | None = None,
    row_ids: Sequence[int] | None = None,
    refill: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Completions:
    """Samples completions of each prompt.

    A row's random numbers depend on `key`, its row id and the index of its token alone, so that the
    same rows come out however they are batched and padded (up to rounding in the logits).

    Args:
      params: decoder parameters.
      config: the decoder's configuration; its compute dtype is also the cache's.
      prompts: token ids of each prompt, at least one token each.
      key: root of the random streams.
      sampling: length, temperature and filters.
      eos_ids: tokens that end a completion; none if empty.
      pad_id: fills `Completions.tokens` after the end.
      samples_per_prompt: completions of each prompt.
      rows: completions decoded side by side, at most.
      stop: sequences of token ids that end a completion as an end token does. A tag may tokenize in
        several ways: give each.
      limits: most tokens of the completions of each prompt, or of each completion;
        `sampling.max_new_tokens` if not given.
      lora: adapters, applied beside the kernels.
      row_ids: one number per completion, [len(prompts) * samples_per_prompt], that names its random
        stream; 0, 1, 2, ... if not given.
      refill: false decodes each batch to the end of its longest before the next begins.
      progress: called as completions end with (completions made, completions in all).

    Raises:
      ValueError: an empty prompt, one that leaves no room for its completion, or arguments that do
        not fit together.
    """
    total = len(prompts) * samples_per_prompt
    limits = _check(prompts, config, sampling, samples_per_prompt, rows, stop, limits)
    row_ids = np.arange(total) if row_ids is None else np.asarray(row_ids)
    if len(row_ids) != total:
        raise ValueError(f"{len(row_ids)} row_ids were given for {total} completions")
    out = _empty(total, sampling.max_new_tokens, pad_id)
    if not total:
        return out
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    # Sample j of the job is sample place[j] of the caller.
    place = (order[:, None] * samples_per_prompt + np.arange(samples_per_prompt)).ravel()
    adapters = None if lora is None else lora["layers"]
    job = batches.Job(
        params,
        lora,
        weights_lib.prepare(params["layers"], adapters, config, weights_lib.is_whole(params)),
        config,
        # The length is no part of what is compiled.
        dataclasses.replace(sampling, max_new_tokens=1),
        key,
        [prompts[i] for i in order],
        np.array([len(prompts[i]) for i in order], np.int32),
        np.array([prompts[i][-1] for i in order], np.int32),
        samples_per_prompt,
        limits[place],
        row_ids[place].astype(np.int32),
        jax.device_put(decode_loop.stop_table([*((token,) for token in eos_ids), *stop])),
        schedule.column_sizes(int(limits.max())),
        refill,
    )
    made = _empty(total, sampling.max_new_tokens, pad_id)
    _run(job, made, schedule.choose_shape(len(prompts), samples_per_prompt, rows), progress)
    for name in ("tokens", "log_probs", "lengths", "finished"):
        getattr(out, name)[place] = getattr(made, name)
    return out


def _check(
    prompts: Sequence[Sequence[int]],
    config: decoder.DecoderConfig,
    sampling: SamplingConfig,
    samples_per_prompt: int,
    rows: int,
    stop: Sequence[Sequence[int]],
    limits: Sequence[int] | np.ndarray | None,
) -> np.ndarray:
    """Refuses what cannot be done; returns the limit of each completion."""
    if samples_per_prompt < 1 or rows < 1:
        raise ValueError(
            f"samples_per_prompt is {samples_per_prompt} and rows is {rows}; both must be at least 1"
        )
    for index, sequence in enumerate(stop):
        if not len(sequence) or min(sequence) < 0:
            raise ValueError(
                f"stop sequence {index} is {list(sequence)}; it must be one or more token ids"
            )
    longest, total = sampling.max_new_tokens, len(prompts) * samples_per_prompt
    limits = np.full(total, longest) if limits is None else np.asarray(limits, np.int64)
    if len(limits) not in (len(prompts), total):
        raise ValueError(
            f"{len(limits)} limits were given for {len(prompts)} prompts of {samples_per_prompt} "
            "completions"
        )
    for index, limit in enumerate(limits):
        if not 1 <= limit <= longest:
            raise ValueError(
                f"limit {index} is {limit}; allowed are 1 to sampling.max_new_tokens ({longest})"
            )
    limits = np.repeat(limits, total // max(len(limits), 1))
    limits = limits.reshape(len(prompts), samples_per_prompt)
    for index, (prompt, limit) in enumerate(zip(prompts, limits.max(axis=1), strict=True)):
        room = config.max_positions - int(limit)
        if not 1 <= len(prompt) <= room:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; allowed are 1 to {room} "
                f"(max_positions {config.max_positions} less the {limit} new tokens it may have)"
            )
    return limits.ravel()


def _empty(rows: int, max_new: int, pad_id: int) -> Completions:
    return Completions(
        tokens=np.full((rows, max_new), pad_id, np.int32),
        log_probs=np.zeros((rows, max_new), np.float32),
        lengths=np.zeros(rows, np.int32),
        finished=np.zeros(rows, bool),
    )


def _run(
    job: batches.Job,
    out: Completions,
    shape: schedule.Shape,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fills `out` with the completions of all samples."""
    batch = batches.start(job, shape)
    ended, total = 0, len(out.lengths)
    while ended < total:
        if job.refill:
            batch = batches.compact(batches.park(job, batch, out))
        batch = batches.refill(job, batch, out)
        batch, done = batches.segment(job, batch, out)
        ended += done
        if done and progress is not None:
            progress(ended, total)
