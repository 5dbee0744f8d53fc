"""What a step needs, counted by hand: for machines that cannot be compiled for here, and for changes.

Every figure is of one device. Arguments are exact: the arrays and how they are cut. The rest are sums of
what the program is known to hold or to move, with n tokens on a device at a time, widths cut over the
tensor axis (q, o, f for queries with keys and values, attention's output, the hidden layer), D width, V
vocabulary, L layers and c bytes of the compute dtype:

    saved for the backward pass   L · n · c · (D | 3 D + q + 2 f | 4 D + 2 q + o + 3 f), by remat
    one layer's activations       n · c · (6 D + 3 q + 2 o + 5 f)
    attention's scores            2 · 4 · heads · sequences · queries of a block · keys of a block
    weights of a layer            gathered in both dtypes, twice: one in use, one on its way
    gradients                     as the weights that are trained; twice where passes are added up
    output head                   3 · 4 · v · positions of a chunk, its table, and its gradient in float32,
                                  with v, the part of V, and the table cut over the tensor and fsdp axes

The compiler fuses and reorders: docs/plan.md compares these figures with compiled programs.
"""

import dataclasses
import math

import jax.numpy as jnp

from empathy_jax import sharding
from empathy_jax.models import decoder, flash_attention, vocabulary_cut
from empathy_jax.sharding import Layout
from empathy_jax.training import common
from empathy_jax.training.plan_steps import Step, device_bytes


@dataclasses.dataclass(frozen=True)
class Counted:
    """Of one device.

    Attributes:
      arguments, temporaries, output, held: bytes.
      bytes: to and from main memory.
      collectives: kind to (mesh axes, bytes of the whole result).
    """

    arguments: int
    temporaries: int
    output: int
    held: int
    bytes: float
    collectives: dict[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of a step on one device; see the module.

    `passes` is how often the layers run over `tokens`; the output head scores a `chunk` of positions of
    the devices that are `sharing` one, against its `scored_vocab` entries.
    """

    tokens: int
    passes: int
    compute: int
    stored: int
    width: int
    layers: int
    vocab: int
    q: int
    out: int
    hidden: int
    heads: int
    kv: int
    layer_weights: int
    table: int
    sharing: int
    scored_vocab: int
    chunk: int


def count(step: Step, layout: Layout) -> Counted:
    """What a step needs on each device of a layout."""
    sizes = _sizes(step, layout)
    output = 0
    if step.name == "rollout prefill":
        output = 2 * sizes.layers * sizes.tokens * sizes.kv * sizes.compute
    return Counted(
        arguments=device_bytes(step.arguments),
        temporaries=_temporaries(step, sizes, layout),
        output=output,
        held=device_bytes(step.held),
        bytes=_traffic(step, sizes),
        collectives=_collectives(step, sizes, layout),
    )


def _sizes(step: Step, layout: Layout) -> _Sizes:
    model, mesh = step.model, layout.mesh
    tensor = mesh.shape["tensor"]
    is_decoder = isinstance(model, decoder.DecoderConfig)
    heads = model.num_heads
    kv_heads = model.num_kv_heads if is_decoder else heads
    head_dim = model.head_dim if is_decoder else model.width // heads

    def cut(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    tokens = -(-step.at_once // sharding.batch_parts(mesh)) * step.length
    sharing = mesh.shape["fsdp"]
    own = max(common.LOGIT_CHUNK // sharing, vocabulary_cut.LEAST_POSITIONS)
    table = common.module_of(model).param_table(model)
    stacked = sum(math.prod(spec.shape) for spec in table if spec.stacked)
    return _Sizes(
        tokens=tokens,
        passes=max(step.rows // step.at_once, 1),
        compute=jnp.dtype(model.compute_dtype).itemsize,
        stored=jnp.dtype(model.param_dtype).itemsize,
        width=model.width,
        layers=model.num_layers,
        vocab=model.vocab_size,
        q=(cut(heads) + 2 * cut(kv_heads)) * head_dim,
        out=cut(heads) * head_dim,
        hidden=cut(model.mlp_width),
        heads=cut(heads),
        kv=cut(kv_heads) * head_dim,
        layer_weights=stacked // model.num_layers // tensor,
        table=model.vocab_size * model.width,
        sharing=sharing,
        scored_vocab=-(-model.vocab_size // (tensor * sharing)),
        chunk=min(own, tokens) * sharing,
    )


def _temporaries(step: Step, s: _Sizes, layout: Layout) -> int:
    """Bytes that live between arguments and results."""
    mesh = layout.mesh
    sequences = -(-step.sequences // sharding.batch_parts(mesh))
    block, keys = (min(flash_attention.BLOCK, size) for size in (step.length, step.keys))
    scores = 2 * 4 * s.heads * sequences * block * keys
    activations = s.tokens * s.compute * (6 * s.width + 3 * s.q + 2 * s.out + 5 * s.hidden)
    total = scores + activations
    if step.name.startswith("rollout decode"):
        logits = 3 * 4 * s.vocab * -(-step.rows // sharding.batch_parts(mesh))
        ends = device_bytes(step.arguments[0]) and s.compute * s.table // mesh.shape["tensor"]
        return total + logits + (2 * ends if mesh.size > 1 else 0)
    whole_layer = s.layer_weights * (s.stored + s.compute)
    total += 2 * whole_layer if mesh.shape["fsdp"] > 1 else whole_layer
    if s.stored != s.compute:
        total += s.layers * s.layer_weights * s.compute // mesh.shape["fsdp"]
    if step.name == "rollout prefill":
        total += 2 * s.layers * s.tokens * s.kv * s.compute
    if step.scored:
        total += 3 * 4 * s.scored_vocab * s.chunk + s.scored_vocab * s.width * s.compute
    if not step.trains:
        return total
    kept = {
        "full": s.width,
        "dots": 3 * s.width + s.q + 2 * s.hidden,
        "none": 4 * s.width + 2 * s.q + s.out + 3 * s.hidden,
    }
    total += s.layers * s.tokens * s.compute * kept[step.model.remat]
    if step.model.remat == "none":
        total += (s.layers - 1) * scores
    if step.scored and not step.model.lora_rank:
        total += 4 * s.scored_vocab * s.width
    return total + (2 if s.passes > 1 else 1) * device_bytes(step.arguments[0].trainable)


def _traffic(step: Step, s: _Sizes) -> float:
    """Bytes to and from main memory: weights, activations, logits, cache and optimizer."""
    weights = s.layers * s.layer_weights * s.compute
    if step.name.startswith("rollout decode"):
        once = weights + s.table * s.compute + device_bytes(step.arguments[3])
        return float(step.loops * once)
    runs = s.passes * (3 if step.trains else 1)
    activations = (
        s.layers * s.tokens * s.compute * (12 * s.width + 4 * s.q + 4 * s.out + 8 * s.hidden)
    )
    scored = 4 * 3 * s.scored_vocab * s.tokens * s.sharing if step.scored else 0
    total = runs * (2 * weights + activations + scored)
    if step.trains:
        state = step.arguments[0]
        total += 3 * device_bytes(state.trainable) + 2 * device_bytes(state)
    return float(total)


def _collectives(step: Step, s: _Sizes, layout: Layout) -> dict[tuple[str, str], float]:
    """(kind, mesh axis) to bytes of what is made of all parts, or of what is added up."""
    mesh, found = layout.mesh, {}
    weights = s.layers * s.layer_weights
    is_decode = step.name.startswith("rollout decode")
    if mesh.shape["tensor"] > 1:
        runs = s.passes * (6 if step.trains else 2) * (step.loops if is_decode else 1)
        found["all-reduce", "tensor"] = runs * s.layers * s.tokens * s.width * s.compute
    if is_decode:
        return found
    if mesh.shape["fsdp"] > 1:
        states = s.tokens * s.sharing * s.width * s.compute if step.scored else 0
        runs = s.passes * (2 if step.trains else 1)
        found["all-gather", "fsdp"] = runs * (weights * s.compute + states)
    if step.trains:
        trained = 0 if step.model.lora_rank else weights * s.stored
        if mesh.shape["fsdp"] > 1:
            found["reduce-scatter", "fsdp"] = s.passes * (trained + states)
        if mesh.shape["data"] > 1:
            found["all-reduce", "data"] = device_bytes(step.arguments[0].trainable)
    return found
