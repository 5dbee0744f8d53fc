"""One question in the terminal: the four layers, then the answer, as they are written."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from empathy_jax import resources, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation.continuous import Sample
from empathy_jax.safety import guard
from empathy_jax.serving import guarded, server
from empathy_jax.serving.sample_text import Delta, SampleText
from empathy_jax.serving.worker import SLICE
from empathy_jax.training import common, completions, overview

STDIN = "-"
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


def run(config: ConfigDict, workdir: Path) -> dict:
    """Answers `config.generate.question` on standard output; returns what it took."""
    began = time.monotonic()
    question = config.generate.question
    if question == STDIN:
        question = sys.stdin.read()
    if not question.strip():
        raise ValueError("config.generate.question holds no text")
    question, region = question.strip(), guarded.region(config)
    decision = region and guard.examine([{"role": "user", "content": question}], region)
    layout = sharding.make_layout(config.mesh)
    model = common.load_policy(config, workdir, layout)
    write = Screen(sys.stdout.write, sys.stdout.isatty()).write
    if decision is None:
        guarded.announce("generate", None)
    elif decision.message is not None:
        print(decision.message, end="\n\n", flush=True)
    reply = decision and guard.Reply(decision.language, region)
    tokens, first, seconds = 0, None, time.monotonic()
    for made, deltas in stream(config, model, question, reply):
        tokens += made
        first = first or time.monotonic() - seconds
        for delta in deltas:
            write(delta)
        sys.stdout.flush()
    print(flush=True)
    if decision is not None:
        held_back = ", ".join(reply.held_back) or "nothing"
        note = f"[generate] guard: {decision.code}, grade {decision.grade}, held back: {held_back}"
        print(note, file=sys.stderr, flush=True)
    seconds = time.monotonic() - seconds
    figures = {"seconds to the first tokens": first, "tokens": tokens, "tokens/s": tokens / seconds}
    return {
        "phase": "generate",
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": resources.peak_memory_bytes(),
        "figures": [{"name": n, "before": None, "after": v} for n, v in figures.items()],
    }


def stream(
    config: ConfigDict, model: common.Model, question: str, reply: guard.Reply | None = None
) -> Iterator[tuple[int, list[Delta]]]:
    """The parts of one answer, each with the number of tokens it took, as `reply` lets them through."""
    batch = server.make_batch(config, model, rows=1)
    prompt = batch.prefill(tokenizers.prompt_ids(model.tokenizer, question))
    stream_number = completions.stream_number(config.seed, 0)
    sampling = completions.sampling(config)
    batch.start(
        prompt,
        Sample(stream_number, sampling.max_new_tokens, sampling.temperature, sampling.top_p),
    )
    text = SampleText(model.tokenizer, form=model.form)
    while not batch.free:
        (made,) = batch.decode(SLICE, enough=1)
        yield len(made.tokens), guarded.checked(reply, text.feed(made.tokens), ends=False)
        if reply and reply.ended:
            return
    yield 0, guarded.checked(reply, text.close(), ends=True)


class Screen:
    """Writes deltas for a person's eyes: a heading for each element, the chain dim on a terminal."""

    def __init__(self, write: Callable[[str], object], colours: bool):
        self._write, self._colours = write, colours
        self._heading: str | None = None

    def write(self, delta: Delta) -> None:
        """Some more text. Characters that steer a terminal are left out of it."""
        heading = (delta.layer or "...") if delta.reasoning else "answer"
        text = overview.printable(delta.text)
        if heading != self._heading:
            between = "\n\n" if self._heading else ""
            self._write(between + self._styled(_BOLD, heading) + "\n")
            self._heading, text = heading, text.lstrip("\n")
        self._write(self._styled(_DIM, text) if delta.reasoning else text)

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._colours else text
