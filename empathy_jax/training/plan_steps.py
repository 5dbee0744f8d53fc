"""The compiled programs of each phase with abstract arguments: what a plan compiles or counts.

The programs are those that the phases run, made by the same functions. Arguments are shapes with their
layout on the mesh; no weight is ever made. Batches are as large as the config lets them be: every row,
prompt, completion and text is as long as it may.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, sharding
from empathy_jax.data import pairs
from empathy_jax.generation import batch as batches
from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_loop, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.models import decoder, encoder
from empathy_jax.models.pooling import Embedding
from empathy_jax.optimizer import make_optimizer
from empathy_jax.sharding import Layout
from empathy_jax.training import (
    common,
    completions,
    policy_update,
    reward_model,
    rl_settings,
    rollout_rows,
    scorer,
    sft,
)

PHASES = ("sft", "reward_model", "rl")
STOPS = (
    4,
    8,
)  # stop sequences and their length: what a tokenizer makes of a few, of no weight here


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled program and what surrounds it.

    Attributes:
      name: what it does.
      program: a jitted function.
      arguments: shapes with layouts; values where it takes static ones.
      held: what lies on the devices meanwhile and is not an argument.
      times: how often it runs for one update of the phase.
      loops: the count of loops that the program itself does not know.
      model: the architecture that it runs, for counting.
      rows, length: tokens that go through the layers.
      keys: that each token attends to, at most.
      sequences: that attend to themselves alone, of those at once.
      scored: tokens whose logits are computed.
      at_once: rows whose activations are held at a time.
      trains: whether there is a backward pass.
    """

    name: str
    program: Callable[..., Any]
    arguments: tuple
    held: Any
    times: int
    loops: int
    model: decoder.DecoderConfig | encoder.EncoderConfig
    rows: int
    length: int
    keys: int
    sequences: int
    scored: int
    at_once: int
    trains: bool


def steps(config: ConfigDict, layout: Layout) -> list[Step]:
    """The steps of `config.phase`, in the order in which they run.

    Raises:
      ValueError: for a phase without compiled steps, or values that the phase itself refuses.
    """
    if config.phase == "sft":
        return _sft(config, layout)
    if config.phase == "reward_model":
        return _reward_model(config, layout)
    if config.phase == "rl":
        return _rl(config, layout)
    raise ValueError(
        f"config.phase {config.phase!r} has no training steps to plan; allowed: {', '.join(PHASES)}"
    )


def policy_architecture(config: ConfigDict) -> decoder.DecoderConfig:
    """The decoder that a phase trains: of `config.model.init` where that is a folder, else by shape."""
    section = config.model
    if section.init and Path(section.init).is_dir():
        return _as_configured(common.read_architecture(Path(section.init)), section)
    return _by_shape(decoder.DecoderConfig, section, "config.model")


def reward_architecture(
    config: ConfigDict,
) -> tuple[decoder.DecoderConfig | encoder.EncoderConfig, Embedding]:
    """The reward model, likewise, and how it pools."""
    section = config.reward_model
    if section.init and Path(section.init).is_dir():
        architecture = _as_configured(common.read_architecture(Path(section.init)), section)
    else:
        kind = encoder.EncoderConfig if section.architecture == "encoder" else decoder.DecoderConfig
        more = {"max_positions": section.max_tokens}
        architecture = _by_shape(kind, section, "config.reward_model", **more)
    pooling = section.pooling or (
        "mean" if isinstance(architecture, encoder.EncoderConfig) else "last"
    )
    return architecture, Embedding(pooling, section.max_tokens, "", "", section.head_weight > 0)


def _by_shape(kind: type, section: ConfigDict, name: str, **more: Any) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    with common.naming_section(name):
        return kind(**{field: value for field, value in section.items() if field in fields}, **more)


def _as_configured(architecture: Any, section: ConfigDict) -> Any:
    fields = ("param_dtype", "compute_dtype", "remat", "lora_rank", "lora_alpha")
    return dataclasses.replace(architecture, **{name: section[name] for name in fields})


# --- phases ---


def _sft(config: ConfigDict, layout: Layout) -> list[Step]:
    rows, length = config.batch_size, config.sft.row_tokens
    sharding.check_rows(rows, layout.mesh, "config.batch_size")
    architecture = policy_architecture(config)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.abstract_state(architecture, optimizer, layout)
    # One token for each tag, as a tokenizer of ours has it.
    tags = tuple(range(len(chain_of_empathy.TAGS)))
    update = sft.make_update(config, architecture, optimizer, shardings, layout.mesh, tags)
    batch = {
        name: np.zeros((rows, length), bool if name == "loss_mask" else np.int32)
        for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions")
    }
    return [
        Step(
            "SFT update",
            update,
            (state, frozen, _on_mesh(batch, layout)),
            held={},
            times=1,
            loops=_chunks(rows, length, layout),
            model=architecture,
            rows=rows,
            length=length,
            keys=length,
            sequences=rows,
            scored=rows * length,
            at_once=rows,
            trains=True,
        )
    ]


def _reward_model(config: ConfigDict, layout: Layout) -> list[Step]:
    section, size = config.reward_model, config.batch_size
    sharding.check_rows(size, layout.mesh, "config.batch_size")
    architecture, embedding = reward_architecture(config)
    settings = reward_model.make_settings(config, embedding.pooling)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.abstract_state(architecture, optimizer, layout, embedding)
    update = reward_model.make_update(architecture, settings, optimizer, shardings, layout.mesh)
    graded = section.graded_pairs if section.head_weight else 0
    documents = size * (1 + section.corrupted)
    multiple = math.lcm(sharding.batch_parts(layout.mesh), section.rows_per_pass or 1)
    rows = pairs.row_count(size + documents + 3 * graded, multiple)
    packed = ("tokens", "segment_ids", "positions")
    batch = {name: np.zeros((rows, section.max_tokens), np.int32) for name in packed}
    batch |= {name: np.zeros(size, np.int32) for name in ("questions", "groups")}
    batch |= {name: np.zeros(documents, np.int32) for name in ("documents", "document_groups")}
    if graded:
        batch["graded"] = np.zeros((graded, 3), np.int32)
    return [
        Step(
            "reward update",
            update,
            (state, frozen, _on_mesh(batch, layout)),
            held={},
            times=1,
            loops=1,
            model=architecture,
            rows=rows,
            length=section.max_tokens,
            keys=section.max_tokens,
            sequences=min(section.rows_per_pass or rows, rows),
            scored=0,
            at_once=min(section.rows_per_pass or rows, rows),
            trains=True,
        )
    ]


def _rl(config: ConfigDict, layout: Layout) -> list[Step]:
    settings = rl_settings.make_settings(config, sharding.batch_parts(layout.mesh))
    architecture = policy_architecture(config)
    updates = config.steps * settings.minibatches * settings.passes
    optimizer = make_optimizer(config.optimizer, updates)
    state, frozen, shardings = common.abstract_state(architecture, optimizer, layout)
    variables = common.join(state.trainable, frozen)
    copies = settings.needs_reference and (settings.reference_every or not frozen)
    reference = state.trainable if copies else {}
    judge, embedding = reward_architecture(config)
    judging = common.abstract_variables(judge, layout, embedding)

    made = _generation(
        config, layout, architecture, variables, (state.opt_state, reference, judging)
    )
    made.append(_scores(config, layout, judge, embedding, judging, (state, frozen, reference)))
    batch = _rollout_rows(config, settings)
    length, keys = (
        batch["tokens"].shape[1],
        batch["prompt_mask"].shape[1] + batch["places"].shape[2],
    )
    shapes = {"model": architecture, "length": length, "keys": keys}
    placed, rows = _on_mesh(batch, layout), len(batch["tokens"])
    passes = min(settings.rows_per_pass, rows)
    log_probs = policy_update.make_log_probs(architecture, settings, layout.mesh)
    shared = shapes | {
        "rows": rows,
        "loops": _chunks(passes, length, layout),
        "at_once": passes,
        "sequences": passes * settings.completions_per_row,
        "scored": rows * settings.completions_per_row * config.data.max_completion_tokens,
    }
    scores = jax.ShapeDtypeStruct(batch["places"].shape, jnp.float32)
    if settings.needs_reference:
        read = {**reference, **frozen} if copies else {**frozen}
        held = (state, judging) if copies else (state.opt_state, state.trainable, judging)
        arguments = (read, placed)
        made.append(
            Step("reference log-probs", log_probs, arguments, held, 1, trains=False, **shared)
        )
        batch["ref_log_probs"] = np.zeros(scores.shape, np.float32)
    if settings.needs_old:
        held = (state.opt_state, reference, judging)
        arguments = (variables, placed)
        made.append(Step("old log-probs", log_probs, arguments, held, 1, trains=False, **shared))
        batch["old_log_probs"] = np.zeros(scores.shape, np.float32)
    rows //= settings.minibatches
    part = {name: leaf[:rows] for name, leaf in batch.items()}
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    shared |= {"rows": rows, "scored": shared["scored"] // settings.minibatches}
    made.append(
        Step(
            "policy update",
            policy_update.make_update(architecture, settings, optimizer, shardings, layout.mesh),
            (state, frozen, _on_mesh(part, layout), weight),
            held=(reference, judging),
            times=settings.minibatches * settings.passes,
            trains=True,
            **shared,
        )
    )
    return made


# --- rollouts ---


def _generation(
    config: ConfigDict,
    layout: Layout,
    architecture: decoder.DecoderConfig,
    variables: dict[str, Any],
    resident: Any,
) -> list[Step]:
    """Prefill and a segment of decoding, as `generation.engine` runs them at their largest."""
    params, lora = variables["params"], variables.get("lora")
    questions, group = config.batch_size, config.rl.group_size
    shape = schedule.choose_shape(questions, group, config.sampling.rows)
    prompt, new = config.data.max_prompt_tokens - 1, config.data.max_completion_tokens
    columns = schedule.bucket_length(prompt)
    at_once = min(
        max(batches.PREFILL, sharding.batch_parts(layout.mesh)),
        shape.lanes * shape.slots,
        questions,
    )
    tokens = jax.ShapeDtypeStruct((at_once, columns), jnp.int32)
    prefilled = _cache(
        jax.eval_shape(
            functools.partial(decode_loop.prefill, config=architecture), params, lora, tokens=tokens
        ),
        layout,
    )
    fuse = layout.mesh.size == 1
    adapters = None if lora is None else lora["layers"]
    prepare = functools.partial(weights_lib.prepare, config=architecture, fuse=fuse)
    layers = _decoding_weights(jax.eval_shape(prepare, params["layers"], adapters), fuse, layout)
    sizes = {"lanes": shape.lanes, "slots": shape.slots, "rows": shape.rows}
    widest = schedule.column_sizes(new)[-1]
    cache = _cache(
        jax.eval_shape(functools.partial(caches.empty, columns=widest, **sizes), prefilled), layout
    )
    sampling = dataclasses.replace(completions.sampling(config), max_new_tokens=1)
    of_rows = jax.ShapeDtypeStruct((shape.rows,), jnp.int32)
    rows = decode_loop.Rows(
        *[of_rows] * 6, of_rows.update(dtype=bool), of_rows.update(shape=(shape.rows, STOPS[1]))
    )
    count = jax.ShapeDtypeStruct((), jnp.int32)
    static = decode_loop.Static(architecture, sampling, shape.slots)
    ends = {name: tree for name, tree in params.items() if name != "layers"}
    arguments = (
        params,
        layers,
        static,
        cache,
        rows,
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct(STOPS, jnp.int32),
        decode_loop.Controls(count, count, count),
    )
    # What the decode program does not read is no argument of it, but lies there all the same.
    unread = (params["layers"], lora, prefilled, resident)
    batches_of_rows = -(-questions * group // shape.rows)
    return [
        Step(
            "rollout prefill",
            decode_loop.prefill,
            (params, lora, architecture, tokens),
            held=(layers, cache, resident),
            times=-(-questions // at_once),
            loops=1,
            model=architecture,
            rows=at_once,
            length=columns,
            keys=columns,
            sequences=at_once,
            scored=0,
            at_once=at_once,
            trains=False,
        ),
        Step(
            f"rollout decode, {decode_loop.SEGMENT} tokens",
            decode_loop.decode_segment,
            (ends, *arguments[1:]),
            held=unread,
            times=-(-new // decode_loop.SEGMENT) * batches_of_rows,
            loops=decode_loop.SEGMENT,
            model=architecture,
            rows=shape.rows,
            length=1,
            keys=columns + widest,
            sequences=shape.rows,
            scored=shape.rows,
            at_once=shape.rows,
            trains=False,
        ),
    ]


def _cache(tree: Any, layout: Layout) -> Any:
    """A cache's shapes, laid out as `generation.cache` asks."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = (*caches.AXES, *(None,) * (leaf.ndim - 2))
        return leaf.update(sharding=_activation(axes, leaf, layout))

    return jax.tree.map(place, tree)


def _decoding_weights(layers: Any, fuse: bool, layout: Layout) -> Any:
    """Shapes of `weights.prepare`'s result, laid out as it asks."""
    names = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "out": ("out",), "down": ("down",)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        field, part = path[1].name, next((key.idx for key in path[2:-1] if hasattr(key, "idx")), 0)
        is_kernel = getattr(path[-1], "name", "") == "kernel" and not fuse
        axes = weights_lib.AXES[names[field][part]] if is_kernel else (None,) * leaf.ndim
        return leaf.update(sharding=_activation(axes, leaf, layout))

    return jax.tree_util.tree_map_with_path(place, layers)


def _activation(axes: tuple, leaf: jax.ShapeDtypeStruct, layout: Layout) -> NamedSharding:
    rules = Layout(layout.mesh, sharding.ACTIVATION_RULES)
    return NamedSharding(layout.mesh, sharding.partition_spec(axes, leaf.shape, rules))


def _scores(
    config: ConfigDict,
    layout: Layout,
    judge: Any,
    embedding: Embedding,
    judging: dict[str, Any],
    resident: Any,
) -> Step:
    """The vectors of answers and questions; a row each where texts are as long as they may be."""
    parts = sharding.batch_parts(layout.mesh)
    size = -(-scorer.ROWS_PER_PASS // parts) * parts
    names = ("tokens", "segment_ids", "positions")
    rows = {name: np.zeros((size, embedding.max_tokens), np.int32) for name in names}
    embed = scorer.make_embed(judge, embedding.pooling, layout.mesh)
    texts = config.batch_size * (config.rl.group_size + 1)
    return Step(
        "reward scores",
        embed,
        (judging, _on_mesh(rows, layout)),
        held=resident,
        times=-(-texts // size),
        loops=1,
        model=judge,
        rows=size,
        length=embedding.max_tokens,
        keys=embedding.max_tokens,
        sequences=size,
        scored=0,
        at_once=size,
        trains=False,
    )


def _rollout_rows(config: ConfigDict, settings: rl_settings.Settings) -> dict[str, np.ndarray]:
    """The rows of a rollout whose prompts and completions are all as long as they may be."""
    questions, new = config.batch_size, config.data.max_completion_tokens
    total = questions * config.rl.group_size
    prompts = [[0] * config.data.max_prompt_tokens] * questions
    batch = rollout_rows.pack_rollouts(
        prompts,
        np.zeros((total, new), np.int32),
        np.zeros((total, new), np.float32),
        np.full(total, new),
        np.zeros(total),
        settings.completions_per_row,
        pad_id=0,
    )
    return batch | {"cut_off": np.zeros(batch["completion_ids"].shape, bool)}


# --- shapes ---


def _on_mesh(batch: dict[str, np.ndarray], layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes as `common.put_batch` lays it out."""
    place = NamedSharding(layout.mesh, PartitionSpec(sharding.BATCH_AXES))
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for name, leaf in batch.items()
    }


def _chunks(rows: int, length: int, layout: Layout) -> int:
    """Chunks of positions that the output head takes on each device; see `losses`."""
    devices = layout.mesh.size
    on_device = rows * length // devices if rows % devices == 0 else length
    return -(-on_device // min(common.LOGIT_CHUNK, on_device))


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of shapes takes on each device, by its layouts; without one a leaf is whole."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            place = leaf.sharding
            shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
            total += math.prod(shape) * _item_size(leaf.dtype)
    return total


def _item_size(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
