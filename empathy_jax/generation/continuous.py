"""A batch that completions join and leave while it decodes: the engine's compiled programs, driven
a slice of tokens at a time.

`engine.generate` knows all its prompts before it begins; here the next one may come at any moment.
Each row has a prompt of its own, and what rows may ask for (temperature, top-p, length, random
stream) are arrays, so that no request causes a compilation. Both halves of the cache have few sizes:
they grow when a row needs it and shrink when half would do. `warm_up` compiles for all of them.

What a row samples depends on the key, its stream and its prompt alone, not on what shares the batch
(up to rounding in the logits).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_loop, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.cache import DecodeCache, PromptCache
from empathy_jax.generation.decode_loop import SEGMENT, scalars
from empathy_jax.generation.sampling import RowSampling, SamplingConfig
from empathy_jax.models import decoder
from empathy_jax.types import Array, Key, Params

# A size costs a compilation, so there are fewer than in a call of the engine.
SMALLEST = 128


class Sample(NamedTuple):
    """What one row is asked for.

    Attributes:
      stream: number that names its random stream, at least 0 and below 2³¹.
      limit: tokens at most, the end token included.
      temperature, top_p: as in `SamplingConfig`.
    """

    stream: int
    limit: int
    temperature: float
    top_p: float


class Prompt(NamedTuple):
    """A prefilled prompt: its cache, the tokens before its last one, and that one."""

    cache: PromptCache
    length: int
    last_token: int


class Made(NamedTuple):
    """What a row has made in a slice.

    Attributes:
      row: which.
      tokens: new ones; an end token is the last of them.
      stopped: whether it ended by an end token.
      done: whether it has ended, by that or by its limit. Its row is free again.
    """

    row: int
    tokens: list[int]
    stopped: bool
    done: bool


class ContinuousBatch:
    """The rows, their cache on the device, and the programs that decode them. For one thread."""

    def __init__(
        self,
        params: Params,
        config: decoder.DecoderConfig,
        *,
        key: Key[Array, ""],
        sampling: SamplingConfig,
        eos_ids: Sequence[int],
        rows: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        lora: Params | None = None,
    ):
        """Places an empty cache on the device.

        Args:
          params: decoder parameters.
          config: the decoder's configuration; its compute dtype is also the cache's.
          key: root of the random streams.
          sampling: its top-k and min-p are those of all rows; the rest is each row's own.
          eos_ids: tokens that end a completion.
          rows: completions decoded side by side, at most.
          max_prompt_tokens, max_new_tokens: of one completion.
          lora: adapters, applied beside the kernels.

        Raises:
          ValueError: when prompt and completion together exceed the model's positions.
        """
        if max_prompt_tokens + max_new_tokens > config.max_positions:
            raise ValueError(
                f"prompts of {max_prompt_tokens} tokens and completions of {max_new_tokens} exceed "
                f"the model's {config.max_positions} positions"
            )
        self.max_prompt_tokens, self.max_new_tokens = max_prompt_tokens, max_new_tokens
        self._params, self._lora, self._config, self._key = params, lora, config, key
        adapters = None if lora is None else lora["layers"]
        fuse = weights_lib.is_whole(params)
        self._layers = weights_lib.prepare(params["layers"], adapters, config, fuse)
        plain = dataclasses.replace(sampling, max_new_tokens=1, temperature=1.0, top_p=1.0)
        self._static = decode_loop.Static(config, plain, slots=1)
        self._stops = jax.device_put(decode_loop.stop_table([(token,) for token in eos_ids]))
        self._widths = schedule.column_sizes(max(max_prompt_tokens - 1, 1), SMALLEST)
        self._sizes = schedule.column_sizes(max_new_tokens, SMALLEST)
        # What each row goes on with, as the compiled loop is told it; changed in place.
        self._rows = decode_loop.Rows(
            *(np.zeros(rows, np.int32) for _ in range(6)),
            idle=np.ones(rows, bool),
            tail=np.full((rows, self._stops.shape[1]), decode_loop.NO_TOKEN, np.int32),
        )
        self._sampling = RowSampling(np.ones(rows, np.float32), np.ones(rows, np.float32))
        self._cache, self._column = self._empty(self._widths[0], self._sizes[0]), 0

    @property
    def rows(self) -> int:
        """Completions decoded side by side, at most."""
        return len(self._rows.idle)

    @property
    def free(self) -> int:
        """Rows that a completion may start in."""
        return int(np.sum(self._rows.idle))

    def prefill(self, tokens: Sequence[int]) -> Prompt:
        """Runs a prompt through the decoder; its samples may then start, one in each row.

        Raises:
          ValueError: for an empty prompt or one that is too long.
        """
        if not 1 <= len(tokens) <= self.max_prompt_tokens:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; allowed are 1 to {self.max_prompt_tokens}"
            )
        length = len(tokens) - 1
        return Prompt(self._prefill(tokens[:-1], self._bucket(length)), length, int(tokens[-1]))

    def start(self, prompt: Prompt, sample: Sample) -> int:
        """Puts a sample of a prompt into a free row; returns the row."""
        row = int(np.flatnonzero(self._rows.idle)[0])
        rows = self._rows
        rows.token[row], rows.prompt_length[row] = prompt.last_token, prompt.length
        rows.count[row], rows.limit[row], rows.stream[row] = 0, sample.limit, sample.stream
        rows.idle[row], rows.tail[row] = False, decode_loop.NO_TOKEN
        self._sampling.temperature[row] = sample.temperature
        self._sampling.top_p[row] = sample.top_p
        self._fit()
        self._cache = self._place(self._cache, prompt.cache, row)
        return row

    def stop(self, row: int) -> None:
        """Frees a row whose completion is not wanted any longer."""
        self._rows.idle[row] = True

    def decode(self, steps: int, enough: int) -> list[Made]:
        """Decodes `steps` tokens of each row, or fewer once `enough` rows have ended.

        Args:
          steps: at most `SEGMENT`.
          enough: of the running rows; at least 1.

        Returns:
          What each running row has made. Rows that are done are free.
        """
        running = np.flatnonzero(~self._rows.idle)
        if not len(running):
            return []
        self._fit()
        counts, limits = self._rows.count[running], self._rows.limit[running]
        steps = schedule.steps_with_room(self._cache.columns, counts, limits, min(steps, SEGMENT))
        made = self._segment(steps, enough)
        rows, taken = self._rows, made.taken[running]
        rows.count[running] += taken
        rows.token[running] = made.tokens[running, taken - 1]
        rows.idle[running] = made.done[running]
        return [
            Made(
                int(row),
                made.tokens[row, : made.taken[row]].tolist(),
                bool(made.stopped[row]),
                bool(made.done[row]),
            )
            for row in running
        ]

    def warm_up(self) -> None:
        """Compiles, or reads from the compilation cache, all that any request may need."""
        buckets = sorted({self._bucket(length) for length in range(self.max_prompt_tokens)})
        prompts = [self._prefill((), bucket) for bucket in buckets]
        for width in self._widths:
            for columns in self._sizes:
                cache, _ = self._sized(self._cache, 0, width, columns)
                for prompt in prompts:
                    if columns == self._sizes[0] and prompt.k[0].shape[2] <= width:
                        cache = self._place(cache, prompt, 0)
                self._cache, self._column = cache, 0
                self._segment(0, 1)
                # All ways to another size of one half; the other half is no part of the program.
                for other in self._widths if columns == self._sizes[0] else ():
                    self._sized(self._cache, 0, other, columns)
                for other in self._sizes if width == self._widths[0] else ():
                    self._sized(self._cache, 0, width, other)
        self._cache, self._column = self._empty(self._widths[0], self._sizes[0]), 0

    def _segment(self, steps: int, enough: int) -> decode_loop.Segment:
        """Runs the compiled loop; returns what it made, on the host."""
        self._cache, made = decode_loop.decode_segment(
            self._params,
            self._layers,
            self._static,
            self._cache,
            jax.device_put(self._rows),
            self._key,
            self._stops,
            decode_loop.Controls(*scalars(self._column, steps, enough)),
            jax.device_put(self._sampling),
        )
        made = jax.device_get(made)
        self._column = (self._column + int(made.steps)) % self._cache.columns
        return made

    def _fit(self) -> None:
        """Gives the cache the size that its running rows need."""
        running = ~self._rows.idle
        lengths = self._rows.prompt_length[running]
        counts, limits = self._rows.count[running], self._rows.limit[running]
        width = schedule.fit_columns(self._widths, self._width, lengths, lengths, 0)
        columns = schedule.fit_columns(
            self._sizes, self._cache.columns, counts, limits, schedule.MARGIN
        )
        self._cache, self._column = self._sized(self._cache, self._column, width, columns)

    @property
    def _width(self) -> int:
        return self._cache.prompt_k[0].shape[2]

    def _sized(
        self, cache: DecodeCache, column: int, width: int, columns: int
    ) -> tuple[DecodeCache, int]:
        """The cache with so many columns of prompts and of completions, and the column after."""
        before = cache.prompt_k[0].shape[2]
        if width > before:
            cache = caches.widen_prompts(cache, 1, width)
        elif width < before:
            cache = caches.narrow_prompts(cache, width)
        if columns == cache.columns:
            return cache, column
        return caches.resize(cache, *scalars(column), columns), 0

    def _empty(self, width: int, columns: int) -> DecodeCache:
        prompts = self._prefill((), self._bucket(0))
        return caches.empty(prompts, self.rows, 1, self.rows, columns, width)

    def _bucket(self, length: int) -> int:
        """Columns that a prompt of `length` tokens is prefilled in."""
        return min(schedule.bucket_length(length), self._widths[-1])

    def _prefill(self, tokens: Sequence[int], columns: int) -> PromptCache:
        padded = np.zeros((1, columns), np.int32)
        padded[0, : len(tokens)] = tokens
        return decode_loop.prefill(self._params, self._lora, self._config, jax.device_put(padded))

    def _place(self, cache: DecodeCache, prompt: PromptCache, row: int) -> DecodeCache:
        moves = jax.device_put(np.array([[0, row, 0]], np.int32))
        return caches.place(cache, prompt, moves, *scalars(1), slots=1)
