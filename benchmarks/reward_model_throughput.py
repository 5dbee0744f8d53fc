"""Pairs per second in training a reward model: ours and sentence-transformers in turns, one JSON line.

    PYTHONPATH=. python benchmarks/reward_model_throughput.py [--model DIR] [--questions FILE]

Both sides make the same updates in float32: the same pairs in the same batches, cut to 512 tokens,
InfoNCE at scale 20 with the batch's answers as negatives, gradients clipped, AdamW; no dropout, no
prompts. A step is timed from texts to updated weights. Each side has a process of its own and waits
while the other works; they take turns batch by batch, and a figure is the sum over batches of the
medians over rounds. A first round, in which programs are compiled, warms up and is reported apart.

Ours is the phase's own update on its packed batches, on a mesh of one CPU device for each core, as
XLA_FLAGS=--xla_force_host_platform_device_count=2 makes it. Theirs is their collator, model and loss in a
plain torch loop with the fused AdamW; their trainer would add its own overhead. Questions and answers
are padded apart there, each to the longest of its batch. Both report the share of padding and the loss
of the first step, which is the same while both compute the same.

Without --model it is a random BERT of bge-small-zh's size that reads single characters. Some minutes
on two idle cores. Needs torch and sentence-transformers.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

MAX_TOKENS, SCALE = 512, 20.0
LEARNING_RATE, CLIP_NORM, WEIGHT_DECAY = 3e-5, 1.0, 0.01
SIDES = ("ours", "sentence_transformers")
# glibc keeps what a process frees. Else a side that waits gives gigabytes back to the system, and pays
# for getting them again with every turn.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",
}

Pair = tuple[str, str]


class Done(NamedTuple):
    """What a step reports: its loss, the tokens of its texts, and the positions computed."""

    loss: float
    tokens: int
    positions: int


Step = Callable[[list[Pair]], Done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a Hugging Face directory of an encoder")
    parser.add_argument(
        "--questions", default="sample", help="whatever config.data.questions takes"
    )
    parser.add_argument("--batch", type=int, default=16, help="pairs in a batch")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="how often each batch is timed")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA takes all cores that it may
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    pairs = read_pairs(arguments.questions, arguments.batch * arguments.batches)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or random_model(Path(folder), pairs)
        batches = [
            pairs[start : start + arguments.batch]
            for start in range(0, len(pairs), arguments.batch)
        ]
        found = measure(model, batches, arguments.rounds, arguments.threads)
    result = {
        "benchmark": "reward_model_throughput",
        "model": arguments.model or "random",
        "questions": Path(arguments.questions).name,
        "batch": arguments.batch,
        "max_tokens": MAX_TOKENS,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    print(json.dumps(result | found))


def read_pairs(questions: str, count: int) -> list[Pair]:
    """The first `count` questions that have a good answer, each with its first one."""
    from empathy_jax.corpus import readers
    from empathy_jax.data import pairs as pairs_lib

    records, _ = readers.read_questions(questions)
    good = ((record["question"], pairs_lib.positives(record)) for record in records)
    found = [(question, answers[0]) for question, answers in good if answers][:count]
    if len(found) < count:
        raise SystemExit(
            f"{questions} has {len(found)} questions with a good answer, and --batch x --batches "
            f"takes {count}; lower them"
        )
    return found


def random_model(folder: Path, pairs: list[Pair]) -> str:
    """A directory with a random BERT of bge-small-zh's size and a tokenizer of characters."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=21128,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=MAX_TOKENS,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    characters = sorted({character for pair in pairs for text in pair for character in text})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return str(folder)


# --- taking turns ---


def measure(model: str, batches: list[list[Pair]], rounds: int, threads: int) -> dict:
    """Both sides on the same batches in turns."""
    os.environ.update(KEEP_MEMORY)
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for side in SIDES:
        ends[side], other = context.Pipe()
        context.Process(target=work, args=(other, side, model, threads), daemon=True).start()
        other.close()  # so that the end of its process ends ours
    first = {side: [turn(ends[side], batch) for batch in batches] for side in SIDES}
    seconds = {side: [[] for _ in batches] for side in SIDES}
    for number in range(rounds):
        for index, batch in enumerate(batches):
            for side in SIDES if (number + index) % 2 == 0 else reversed(SIDES):
                seconds[side][index].append(turn(ends[side], batch)[0])
    for end in ends.values():
        end.send(None)
    pairs = sum(map(len, batches))
    found = {side: summary(pairs, first[side], seconds[side]) for side in SIDES}
    by_round = [
        sum(times[number] for times in seconds["sentence_transformers"])
        / sum(times[number] for times in seconds["ours"])
        for number in range(rounds)
    ]
    speeds = [found[side]["pairs_per_second"] for side in SIDES]
    return {
        "pairs": pairs,
        **found,
        "ratio": round(speeds[0] / speeds[1], 3),
        "ratio_by_round": [round(ratio, 3) for ratio in by_round],
    }


def turn(end: Connection, batch: list[Pair]) -> tuple[float, Done]:
    """One step of the side at the other end: its seconds and what it reports."""
    end.send(batch)
    return end.recv()


def summary(pairs: int, first: list[tuple[float, Done]], seconds: list[list[float]]) -> dict:
    """A side's figures from its first round and the seconds of each batch in the others."""
    tokens = sum(done.tokens for _, done in first)
    positions = sum(done.positions for _, done in first)
    return {
        "pairs_per_second": round(pairs / sum(map(statistics.median, seconds)), 3),
        "first_round_seconds": round(sum(taken for taken, _ in first), 1),
        "tokens": tokens,
        "padding": round(1 - tokens / positions, 3),
        "first_loss": round(first[0][1].loss, 5),
    }


def work(end: Connection, side: str, model: str, threads: int) -> None:
    """A side's process: makes a step for every batch that comes, until None does."""
    step = {"ours": our_step, "sentence_transformers": their_step}[side](model, threads)
    for batch in iter(end.recv, None):
        began = time.perf_counter()
        done = step(batch)
        end.send((time.perf_counter() - began, done))


# --- ours ---


def our_step(model_folder: str, threads: int) -> Step:
    """The update of the phase `reward_model`."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", threads)

    from empathy_jax import sharding
    from empathy_jax.data import pairs as pairs_lib
    from empathy_jax.optimizer import make_optimizer
    from empathy_jax.training import common, reward_model

    config = our_config(model_folder)
    layout = sharding.make_layout(config.mesh)
    model = reward_model.load(config, layout, [])
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    update = jax.jit(
        functools.partial(
            reward_model.update_fn,
            config=model.config,
            settings=reward_model.make_settings(config, model.embedding.pooling),
            optimizer=optimizer,
        ),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(layout.mesh)),
    )
    text_layout = reward_model.text_layout(config, model, layout)

    def step(batch: list[Pair]) -> Done:
        nonlocal state
        records = [{"question": q, "answers": [{"text": answer}]} for q, answer in batch]
        stream = pairs_lib.PairStream(records, len(batch), text_layout, seed=0)
        arrays = stream.batch(1, range(len(batch)))
        with jax.set_mesh(layout.mesh):
            state, metrics = update(state, frozen, common.put_batch(arrays, layout.mesh))
        jax.block_until_ready(state)
        used = int(np.count_nonzero(arrays["segment_ids"]))
        return Done(float(metrics["loss"]), used, arrays["segment_ids"].size)

    return step


def our_config(model_folder: str):
    """The phase's config with the benchmark's loss and nothing beside it."""
    from configs import reward_model

    config = reward_model.get_config("tiny")
    config.reward_model.update(
        {
            "init": model_folder,
            "pooling": "cls",
            "max_tokens": MAX_TOKENS,
            "query_prompt": "",
            "document_prompt": "",
            "temperature": 1 / SCALE,
            "info_nce_weight": 1.0,
            "triplet_weight": 0.0,
            "head_weight": 0.0,
            "corrupted": 0,
            # Beyond what cosines can reach: no answer is too good to be a negative.
            "negative_ceiling": 3.0,
            "negative_margin": -3.0,
        }
    )
    config.optimizer.update(
        {
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "schedule": "constant",
            "clip_norm": CLIP_NORM,
            "weight_decay": WEIGHT_DECAY,
        }
    )
    return config


# --- sentence-transformers ---


def their_step(model_folder: str, threads: int) -> Step:
    """Collator, model and loss of sentence-transformers in a plain loop."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses, modules
    from sentence_transformers.sentence_transformer.data_collator import (
        SentenceTransformerDataCollator,
    )

    torch.set_num_threads(threads)
    transformer = modules.Transformer(
        model_folder,
        max_seq_length=MAX_TOKENS,
        # Weights stored in 16 bits would be trained in them, which CPUs do ten times as slowly.
        model_kwargs={"dtype": torch.float32},
        config_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "cls")
    model = SentenceTransformer(
        modules=[transformer, pooling, modules.Normalize()], device="cpu"
    ).train()
    loss = losses.MultipleNegativesRankingLoss(model, scale=SCALE)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    collate = SentenceTransformerDataCollator(preprocess_fn=model.preprocess)

    def step(batch: list[Pair]) -> Done:
        collated = collate([{"anchor": q, "positive": answer} for q, answer in batch])
        columns = [dict(split_column(collated, name)) for name in ("anchor_", "positive_")]
        masks = [column["attention_mask"] for column in columns]
        value = loss(columns, None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        tokens = sum(int(mask.sum()) for mask in masks)
        return Done(value.item(), tokens, sum(mask.numel() for mask in masks))

    return step


def split_column(collated: dict, prefix: str) -> Iterator[tuple[str, object]]:
    """The features of one column, as their trainer hands them to the loss."""
    for name, value in collated.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), value


if __name__ == "__main__":
    main()
