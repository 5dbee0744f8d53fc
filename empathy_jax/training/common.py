"""What the phases share: named random streams, model folders, and sharded train state."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy, checkpoint, files, hosts, pytree, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import (
    decoder,
    encoder,
    hf,
    lora,
    score_head,
    sentence_transformers_format,
)
from empathy_jax.models.pooling import Embedding
from empathy_jax.models.rope import RopeScaling
from empathy_jax.sharding import Layout

STREAMS = {
    "init": 0, "lora": 1, "sample": 2, "rollout": 3, "evaluate": 4, "minibatches": 5, "serving": 6,
}  # fmt: skip
# The models that a phase takes in: section of the config to the phases of the same WORKDIR that make
# one when the section's `init` is empty, the preferred phase first.
MODELS = {
    "sft": {"model": ()},
    "reward_model": {"reward_model": ()},
    "rl": {"model": ("sft",), "reward_model": ("reward_model",)},
    "evaluate": {"model": ("rl", "sft"), "reward_model": ("reward_model",)},
    "export": {"model": ("rl", "sft")},
    "generate": {"model": ("rl", "sft"), "reward_model": ("reward_model",)},
    "serve": {"model": ("rl", "sft"), "reward_model": ("reward_model",)},
}
LOGIT_CHUNK = 1024  # positions whose logits a device holds at a time


def stream(seed: int, name: str) -> jax.Array:
    """The root key of one named stream; fold in the step to draw."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in use.

    Attributes:
      config: the architecture.
      variables: `params`, `lora` where there are adapters, `head` where answers are graded.
      tokenizer: with our chat template.
      hf_config: the config.json that the weights were imported with; None for fresh ones.
      embedding: how a reward model makes vectors of texts; None for a policy.
      form: what a policy writes, one of `chain_of_empathy.FORMATS`.
    """

    config: decoder.DecoderConfig | encoder.EncoderConfig
    variables: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    hf_config: dict | None = None
    embedding: Embedding | None = None
    form: str = "chain"

    @property
    def module(self) -> ModuleType:
        """The functions that run this architecture."""
        return module_of(self.config)


def module_of(config: decoder.DecoderConfig | encoder.EncoderConfig) -> ModuleType:
    """`models.decoder` or `models.encoder`."""
    return decoder if isinstance(config, decoder.DecoderConfig) else encoder


def announce(phase: str, model: Model, records: Mapping[str, Sequence]) -> None:
    """Print what a phase is about to work on: devices, records of each split, parameters."""
    devices = jax.devices()
    counts = ", ".join(f"{len(split):,} {name}" for name, split in records.items())
    parameters = pytree.count_params(model.variables["params"])
    print(
        f"[{phase}] {len(devices)} x {devices[0].device_kind}; records: {counts}; "
        f"{parameters:,} parameters",
        flush=True,
    )


# --- model folders ---


def save_model_folder(folder: Path, model: Model) -> None:
    """Write what a run's checkpoints lack: `model.json` and `tokenizer/`."""
    if hosts.is_lead():
        tokenizers.save(model.tokenizer, folder / "tokenizer")
    described = {
        "kind": "decoder" if model.module is decoder else "encoder",
        "config": dataclasses.asdict(model.config),
        "hf_config": model.hf_config,
        "embedding": None if model.embedding is None else dataclasses.asdict(model.embedding),
    }
    files.write_json(folder / "model.json", described)


def is_run(path: Path) -> bool:
    """Whether a folder is `WORKDIR/<phase>` of a training phase."""
    return (path / "model.json").exists()


def load_model(
    init: str,
    section: ConfigDict,
    field: str,
    language: str | None,
    layout: Layout,
    form: str = "chain",
) -> Model:
    """Architecture, weights and tokenizer from a run's folder, a Hugging Face directory or a hub id.

    Args:
      init: `WORKDIR/<phase>`, a local directory, or a hub id.
      section: `config.model` or `config.reward_model`: dtypes, remat, adapters, tokenizer.
      field: where `init` comes from, such as "config.model.init", for messages.
      language: of the system prompt in the chat template; None for a reward model, which has none.
      layout: where the weights are laid out.
      form: what the system prompt asks for, one of `chain_of_empathy.FORMATS`.

    Returns:
      The model; adapters of a finished run are merged into its weights, new ones are not made yet.

    Raises:
      ValueError: for a missing place, unfitting tensors, an encoder where a chat template is asked
        for, or a tokenizer that does not fit the weights.
    """
    path = Path(init)
    section_name = "config.model" if field == "config.model.init" else "config.reward_model"
    if is_run(path):
        model, own_tokenizer = merged(restore_run(path, layout)), path / "tokenizer"
    else:
        found = find_hugging_face(init, field)
        own_tokenizer = sentence_transformers_format.transformer_folder(found)
        model = _load_hugging_face(found, init, section.param_dtype, field, layout)
    if language is not None and model.module is not decoder:
        raise ValueError(
            f"{field} is {init!r}, an encoder ({type(model.config).__name__}); a policy is a "
            "decoder: Qwen3, Qwen2 or Llama"
        )
    fields = ("param_dtype", "compute_dtype", "remat", "lora_rank", "lora_alpha")
    with naming_section(section_name):
        config = dataclasses.replace(
            model.config, **{name: section[name] for name in fields if name in section}
        )
    # A run's weights come in the dtype they were trained in.
    variables = jax.tree.map(lambda leaf: leaf.astype(config.param_dtype), model.variables)
    source = section.tokenizer or str(own_tokenizer)
    if language is None:
        tokenizer = tokenizers.load_plain(source, config.vocab_size)
    else:
        tokenizer = tokenizers.load(source, language, config.vocab_size, form)
    if section.tokenizer:
        tokenizers.check_same_ids(tokenizer, own_tokenizer, f"{section_name}.tokenizer", field)
    return dataclasses.replace(
        model, config=config, variables=variables, tokenizer=tokenizer, form=form
    )


@contextmanager
def naming_section(section: str) -> Iterator[None]:
    """Puts the config section before the field that an architecture refuses ("remat is ...")."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from error


def find_hugging_face(init: str, field: str) -> Path:
    """The directory of a Hugging Face model that `field` names.

    Raises:
      ValueError: when there is none; for a WORKDIR it names the runs in it.
    """
    refuse_workdir(init, field)
    return hf.resolve(init, field)


def refuse_workdir(init: str, field: str) -> None:
    """Says which run in a WORKDIR is meant, where `field` names the WORKDIR itself."""
    phases = ("rl", "sft") if field == "config.model.init" else ("reward_model",)
    runs = [str(Path(init) / phase) for phase in phases if is_run(Path(init) / phase)]
    if runs:
        raise ValueError(
            f"{field} is {init!r}, a --workdir; name the run in it: {' or '.join(runs)}"
        )


def read_architecture(path: Path) -> decoder.DecoderConfig | encoder.EncoderConfig:
    """The architecture of a run's folder or a Hugging Face directory, without its weights."""
    if not is_run(path):
        return hf.read_config(sentence_transformers_format.transformer_folder(path))
    described = json.loads((path / "model.json").read_text(encoding="utf-8"))
    return _config_from_json(described["kind"], described["config"])


def restore_run(path: Path, layout: Layout) -> Model:
    """The model of `WORKDIR/<phase>` as it was trained: adapters beside the weights, no tokenizer.

    Raises:
      ValueError: when it has no checkpoint yet.
    """
    described = json.loads((path / "model.json").read_text(encoding="utf-8"))
    config = _config_from_json(described["kind"], described["config"])
    step = checkpoint.newest_sound_step(path / "checkpoints")
    if step is None:
        raise ValueError(f"{path} has no checkpoint yet; train it first")
    values = described["embedding"]
    embedding = None if values is None else Embedding(**values)
    wanted = {"model": abstract_variables(config, layout, embedding)}
    variables = checkpoint.restore(path / "checkpoints", step, wanted)["model"]
    return Model(config, variables, None, described["hf_config"], embedding)


def merged(model: Model) -> Model:
    """The model with its adapters, if it has any, added to its weights."""
    variables = dict(model.variables)
    if "lora" in variables:
        adapters = variables.pop("lora")
        variables["params"] = lora.merge(variables["params"], adapters, model.config)
    return dataclasses.replace(model, variables=variables)


def _config_from_json(kind: str, values: dict) -> decoder.DecoderConfig | encoder.EncoderConfig:
    if kind == "encoder":
        return encoder.EncoderConfig(**values)
    scaling = values["rope_scaling"]
    return decoder.DecoderConfig(
        **{**values, "rope_scaling": None if scaling is None else RopeScaling(**scaling)}
    )


def _load_hugging_face(found: Path, init: str, dtype: str, field: str, layout: Layout) -> Model:
    try:
        embedding = sentence_transformers_format.read(found)
        folder = sentence_transformers_format.transformer_folder(found)
        config = hf.read_config(folder)
    except ValueError as error:
        raise ValueError(f"{field} is {init!r}: {error}") from error
    variables = {"params": hf.load_params(folder, config, dtype, hf_shardings(config, layout))}
    if embedding is not None and (head := score_head.read(folder)) is not None:
        variables["head"] = hosts.put(head, sharding.replicated(layout.mesh))
        embedding = dataclasses.replace(embedding, has_head=True)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(config, variables, None, hf_config, embedding)


def hf_shardings(config: decoder.DecoderConfig | encoder.EncoderConfig, layout: Layout) -> Any:
    """Where the parameters of a Hugging Face directory go."""
    table = module_of(config).param_table(config)
    shapes = {spec.path: jax.ShapeDtypeStruct(spec.shape, np.float32) for spec in table}
    return sharding.param_shardings(pytree.unflatten_paths(shapes), table, layout)


def load_policy(
    config: ConfigDict, workdir: Path, layout: Layout, texts: Callable[[], list[str]] | None = None
) -> Model:
    """The decoder that a phase starts from.

    `config.model.init` if it is given; else, for the phase `sft` (which passes `texts`), fresh
    weights and, without `config.model.tokenizer`, a tokenizer learnt from `texts()`; else the
    newest of WORKDIR/rl and WORKDIR/sft that stands before this phase.
    """
    section, language, form = config.model, config.data.language, config.data.format
    init = section.init if texts is not None else model_place(config, workdir)
    if init:
        model = load_model(init, section, "config.model.init", language, layout, form)
        _check_context(config, model.config)
        return model
    if section.tokenizer:
        tokenizer = tokenizers.load(section.tokenizer, language, section.vocab_size, form)
    else:
        learnt = tokenizers.train(texts(), section.vocab_size, chain_of_empathy.TAGS)
        tokenizer = tokenizers.set_chat_template(learnt, language, form)
    fields = {field.name for field in dataclasses.fields(decoder.DecoderConfig)}
    with naming_section("config.model"):
        architecture = decoder.DecoderConfig(
            **{name: value for name, value in section.items() if name in fields}
        )
    _check_context(config, architecture)
    params = fresh_params(stream(config.seed, "init"), architecture, layout)
    return Model(architecture, {"params": params}, tokenizer, form=form)


def _check_context(config: ConfigDict, architecture: decoder.DecoderConfig) -> None:
    prompt, completion = config.data.max_prompt_tokens, config.data.max_completion_tokens
    if prompt + completion > architecture.max_positions:
        raise ValueError(
            f"config.data.max_prompt_tokens {prompt} and config.data.max_completion_tokens "
            f"{completion} together exceed the model's {architecture.max_positions} positions; "
            "lower one of them"
        )


def model_place(config: ConfigDict, workdir: Path) -> str:
    """`config.model.init`, or the folder of the newest policy in WORKDIR that the phase may take."""
    phases = MODELS[config.phase]["model"]
    return config.model.init or find_run(workdir, phases, "config.model.init")


def first_run(workdir: Path, phases: tuple[str, ...]) -> Path | None:
    """The first of `WORKDIR/<phase>` that is a trained model: it has a checkpoint."""

    def find() -> str | None:
        for phase in phases:
            folder = workdir / phase
            if is_run(folder) and checkpoint.steps(folder / "checkpoints"):
                return phase
        return None

    found = hosts.from_lead(find)
    return None if found is None else workdir / found


def find_run(workdir: Path, phases: tuple[str, ...], field: str) -> str:
    """`first_run`, which must be there.

    Raises:
      ValueError: says which phases to run first, or which field to set.
    """
    found = first_run(workdir, phases)
    if found is not None:
        return str(found)
    places = " or ".join(str(workdir / phase) for phase in phases)
    raise ValueError(
        f"{field} is empty and there is no trained model in {places}; run the phase "
        f"{' or '.join(phases)} first with the same --workdir, or set {field} to a directory or hub id"
    )


def fresh_params(key: jax.Array, config: Any, layout: Layout) -> Any:
    """Newly initialised parameters, made where they will lie."""
    module = module_of(config)
    shapes = jax.eval_shape(lambda key: module.init_params(key, config), key)
    shardings = sharding.param_shardings(shapes, module.param_table(config), layout)
    return jax.jit(lambda key: module.init_params(key, config), out_shardings=shardings)(key)


def abstract_variables(
    config: Any, layout: Layout, embedding: Embedding | None = None
) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a model's variables, adapters and head included."""
    module, table = module_of(config), module_of(config).param_table(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = {"params": jax.eval_shape(lambda key: module.init_params(key, config), key)}
    if config.lora_rank:
        shapes["lora"] = jax.eval_shape(lambda key: module.init_lora(key, config), key)
    if embedding is not None and embedding.has_head:
        shapes["head"] = jax.eval_shape(lambda: score_head.init_params(config.width))
    places = {name: sharding.param_shardings(tree, table, layout) for name, tree in shapes.items()}
    return abstract(shapes, places)


# --- train state ---


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes: the collections `trainable` and the optimizer's moments.

    Attributes:
      trainable: `params` or, with adapters, `lora`; and `head` where there is one.
      opt_state: of the optimizer.
    """

    trainable: dict[str, Any]
    opt_state: Any


jax.tree_util.register_dataclass(TrainState, ["trainable", "opt_state"], [])


def make_state(
    model: Model, optimizer: optax.GradientTransformation, seed: int, layout: Layout
) -> tuple[TrainState, dict[str, Any], TrainState]:
    """A fresh train state, the variables that it leaves alone, and the shardings of the state.

    With `lora_rank` the adapters are trained and `frozen` is {"params": weights}; without, the
    weights are trained and `frozen` is empty. A head is always trained.
    """
    variables = model.variables
    if model.config.lora_rank:
        adapters = model.module.init_lora(stream(seed, "lora"), model.config)
        variables = {**variables, "lora": adapters}
    trainable, frozen = _split(variables, model.config)
    shardings = _state_shardings(trainable, model.config, optimizer, layout)
    trainable = hosts.put(trainable, shardings.trainable)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trainable)
    return TrainState(trainable, opt_state), frozen, shardings


def abstract_state(
    config: Any,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    embedding: Embedding | None = None,
) -> tuple[TrainState, dict[str, Any], TrainState]:
    """What `make_state` returns for a model of this configuration, as shapes that take no memory."""
    trainable, frozen = _split(abstract_variables(config, layout, embedding), config)
    shardings = _state_shardings(trainable, config, optimizer, layout)
    state = TrainState(trainable, jax.eval_shape(optimizer.init, trainable))
    return abstract(state, shardings), frozen, shardings


def abstract(tree: Any, places: Any) -> Any:
    """Shapes and dtypes of the leaves of a tree, each with its place."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        places,
    )


def _split(variables: dict[str, Any], config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained of a model's variables, and what is not."""
    frozen = {"params": variables["params"]} if config.lora_rank else {}
    return {name: tree for name, tree in variables.items() if name not in frozen}, frozen


def _state_shardings(
    trainable: dict[str, Any], config: Any, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    table = module_of(config).param_table(config)
    places = {
        name: sharding.param_shardings(tree, table, layout) for name, tree in trainable.items()
    }
    moments = sharding.optimizer_shardings(optimizer, trainable, places, layout.mesh)
    return TrainState(places, moments)


def join(trainable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """The variables of a model from those that are trained and those that are not."""
    return {**frozen, **trainable}


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after one optimizer step."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    return TrainState(optax.apply_updates(state.trainable, updates), opt_state)


def checkpoint_items(state: TrainState, frozen: dict[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint: `model` (every variable) and `optimizer`."""
    return {"model": join(state.trainable, frozen), "optimizer": state.opt_state}


def restore_state(
    folder: Path, state: TrainState, frozen: dict[str, Any]
) -> tuple[int, TrainState]:
    """The newest sound checkpoint of this run as (step, state), or (0, `state`) without one."""
    step, items = restore_items(folder, checkpoint_items(state, frozen))
    return step, state_of(items, frozen)


def restore_items(folder: Path, items: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The newest sound checkpoint of this run as (step, items like these), or (0, `items`)."""
    step = checkpoint.newest_sound_step(folder)
    if step is None:
        return 0, items
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), items
    )
    return step, checkpoint.restore(folder, step, wanted)


def state_of(items: dict[str, Any], frozen: dict[str, Any]) -> TrainState:
    """The train state in the parts of a checkpoint."""
    trainable = {name: tree for name, tree in items["model"].items() if name not in frozen}
    return TrainState(trainable, items["optimizer"])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch, equal on all hosts, on the mesh, its leading axis over the data axes."""
    return hosts.put(dict(batch), sharding.batch_sharding(mesh))


def own_rows(rows: int, mesh: Mesh) -> np.ndarray:
    """The rows of a batch that this process has to read: those that lie on its devices."""
    return hosts.own_rows(rows, sharding.batch_sharding(mesh))


def put_own_rows(batch: Mapping[str, np.ndarray], rows: int, mesh: Mesh) -> dict[str, jax.Array]:
    """As `put_batch` for a batch of `rows` rows of which each process has read its own."""
    return hosts.put_own_rows(batch, rows, sharding.batch_sharding(mesh))
