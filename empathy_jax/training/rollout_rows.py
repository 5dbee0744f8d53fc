"""Completions that share their question's prompt: one row holds the prompt once.

R rows, T places in a row, G completions in a row, C tokens of a completion, P places of a prompt, N
completions in all. A prompt of p tokens fills p - 1 places; its last token begins each completion, so
that every place of a completion predicts one of its tokens and none of the prompt predicts any:

```
prompt a b c; completions d e f and g h

place        0 1  2 3 4  5 6  7 8
tokens       a b  c d e  c g  . .
targets      . .  d e f  g h  . .
positions    0 1  2 3 4  2 3  . .
segment_ids  1 1  2 2 2  3 3  0 0
```

A place of a completion sees the prompt and what stands before it in its own segment
(`models.shared_prompt`). Losses work on one row per completion: `places` says where in the packed row
the tokens of each are found.
"""

import math
from collections.abc import Sequence

import numpy as np

PROMPT = 1  # segment id of a row's prompt; its completions are 2, 3, ...
LENGTH_STEP = 64  # lengths below 1,024 are multiples of this

Rows = dict[str, np.ndarray]


def pack_rollouts(
    prompts: Sequence[Sequence[int]],
    tokens: np.ndarray,
    log_probs: np.ndarray,
    lengths: np.ndarray,
    advantages: np.ndarray,
    completions_per_row: int,
    pad_id: int,
) -> Rows:
    """Rows of completions behind their shared prompt, and where the tokens of each completion are.

    A question's completions are dealt over its rows so that these come out about equally long. All
    arrays have the row as their leading axis, so they are cut, sharded and accumulated along it.

    Args:
      prompts: token ids of each question, at least one token each.
      tokens: completions [N, M], those of one question side by side.
      log_probs: the sampler's, of `tokens`.
      lengths: tokens of each completion [N].
      advantages: one per completion [N], or per token [N, M].
      completions_per_row: G, a divisor of N / len(prompts); see `completions_per_row`.
      pad_id: fills the rows.

    Returns:
      Per place of a row, [R, T]: tokens, targets, loss_mask (the completions' places), segment_ids,
      positions, and `slots`, the inverse of `places`: the place's index in the row's P prompt places
      followed by its G · C completion tokens, -1 in padding.
      Per prompt place, [R, P]: prompt_mask.
      Per completion's token, [R, G, C]: `places` (the place in the row, 0 where there is no token),
      completion_mask, sampler_log_probs. Per completion: completion_ids [R, G], its index in
      `tokens`; advantages [R, G, 1], or [R, G, C] when given per token.
    """
    groups = _deal(np.asarray(lengths), len(prompts), completions_per_row)
    prompt_of = np.repeat(np.arange(len(prompts)), len(groups) // max(len(prompts), 1))
    shared = np.asarray([len(prompts[i]) - 1 for i in prompt_of])
    totals = shared + np.asarray(lengths)[groups].sum(axis=1)
    rows, width = len(groups), bucket(int(totals.max()), per_octave=8)
    longest = bucket(int(np.max(lengths)), per_octave=2)
    prompt_width = min(bucket(int(shared.max()), per_octave=1), width)
    packed = _empty(rows, width, prompt_width, groups.shape[1], longest, pad_id)
    packed["completion_ids"][:] = groups
    per_token = np.ndim(advantages) == 2
    packed["advantages"] = np.zeros((*groups.shape, longest if per_token else 1), np.float32)
    for row, group in enumerate(groups):
        prompt = np.asarray(prompts[prompt_of[row]], np.int32)
        _fill_prompt(packed, row, prompt)
        start = len(prompt) - 1
        for member, index in enumerate(group):
            count = int(lengths[index])
            _fill_completion(packed, row, member, start, prompt, tokens[index, :count])
            packed["sampler_log_probs"][row, member, :count] = log_probs[index, :count]
            packed["advantages"][row, member, : count if per_token else 1] = (
                advantages[index, :count] if per_token else advantages[index]
            )
            start += count
    return packed


def completions_per_row(group_size: int, completions_per_pass: int, devices: int = 1) -> int:
    """How many completions of a question share a row, where a pass may hold so many completions.

    A pass is then a whole number of rows on each device, and a question a whole number of rows, so the
    number of rows of a batch is fixed.

    Args:
      group_size: completions of a question.
      completions_per_pass: the memory bound, over all devices.
      devices: that hold different rows.
    """
    return math.gcd(group_size, max(completions_per_pass // devices, 1))


def bucket(length: int, per_octave: int) -> int:
    """The padded length for `length`: one of few, so that few shapes are compiled.

    Multiples of LENGTH_STEP, and of 1/`per_octave` of the power of two below `length`: with 2 they
    are 64, 128, 192, 256, 384, 512, 768, 1024, ...
    """
    octave = 1 << max(length - 1, 1).bit_length() - 1
    step = max(octave // per_octave, LENGTH_STEP)
    return max(-(-length // step), 1) * step


def _deal(lengths: np.ndarray, questions: int, per_row: int) -> np.ndarray:
    """Indices of the completions in each row [R, G]: longest first, each to the shortest row."""
    group_size = len(lengths) // max(questions, 1)
    if not questions or len(lengths) != questions * group_size or group_size % per_row:
        raise ValueError(
            f"{len(lengths)} completions of {questions} questions cannot be dealt {per_row} to a row"
        )
    dealt = []
    for first in range(0, len(lengths), group_size):
        members = first + np.argsort(-lengths[first : first + group_size], kind="stable")
        rows: list[list[int]] = [[] for _ in range(group_size // per_row)]
        for index in members.tolist():
            open_rows = (row for row in rows if len(row) < per_row)
            min(open_rows, key=lambda row: int(lengths[row].sum())).append(index)
        dealt += [sorted(row) for row in rows]
    return np.asarray(dealt, np.int32)


def _empty(
    rows: int, width: int, prompt_width: int, members: int, longest: int, pad_id: int
) -> Rows:
    per_token = (rows, members, longest)
    return {
        "tokens": np.full((rows, width), pad_id, np.int32),
        "targets": np.full((rows, width), pad_id, np.int32),
        "loss_mask": np.zeros((rows, width), bool),
        "segment_ids": np.zeros((rows, width), np.int32),
        "positions": np.zeros((rows, width), np.int32),
        "slots": np.full((rows, width), -1, np.int32),
        "prompt_mask": np.zeros((rows, prompt_width), bool),
        "places": np.zeros(per_token, np.int32),
        "completion_mask": np.zeros(per_token, bool),
        "sampler_log_probs": np.zeros(per_token, np.float32),
        "completion_ids": np.zeros((rows, members), np.int32),
    }


def _fill_prompt(packed: Rows, row: int, prompt: np.ndarray) -> None:
    shared = np.arange(len(prompt) - 1)
    packed["tokens"][row, shared] = prompt[:-1]
    packed["segment_ids"][row, shared] = PROMPT
    packed["positions"][row, shared] = shared
    packed["slots"][row, shared] = shared
    packed["prompt_mask"][row, shared] = True


def _fill_completion(
    packed: Rows, row: int, member: int, start: int, prompt: np.ndarray, tokens: np.ndarray
) -> None:
    count = np.arange(len(tokens))
    places = start + count
    prompt_width, longest = packed["prompt_mask"].shape[1], packed["places"].shape[2]
    packed["tokens"][row, places] = np.concatenate([prompt[-1:], tokens])[:-1]
    packed["targets"][row, places] = tokens
    packed["loss_mask"][row, places] = True
    packed["segment_ids"][row, places] = PROMPT + 1 + member
    packed["positions"][row, places] = len(prompt) - 1 + count
    packed["slots"][row, places] = prompt_width + member * longest + count
    packed["places"][row, member, count] = places
    packed["completion_mask"][row, member, count] = True
