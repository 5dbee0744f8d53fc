"""Model directories: round trips against torch transformers, and checkpoints that do not fit."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import AxisType
from safetensors.numpy import load_file, save_file

from benchmarks import parity
from empathy_jax import sharding
from empathy_jax.models import decoder, encoder, hf, safetensors_file
from empathy_jax.pytree import flatten_paths, tree_bytes, unflatten_paths

ARCHITECTURES = {
    "qwen3 tied": parity.DECODERS["qwen3 tied"],
    "qwen3 untied": parity.DECODERS["qwen3 biases, narrow heads, theta 5e6"],
    "qwen2 tied": parity.DECODERS["qwen2 tied"],
    "llama untied": parity.DECODERS["llama mlp biases, one kv head"],
    "llama tied": parity.DECODERS["llama tied, all biases"],
    "bert": {},
}


def tensors_in(folder):
    """All tensors of a directory, its files read without any of our code."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        held = load_file(file)
        assert not tensors.keys() & held.keys()
        tensors |= held
    return tensors


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name


def auto_class(folder):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM


def assert_transformers_loads(folder):
    _, info = auto_class(folder).from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], (problem, info[problem])


def copy_through_us(source, target, **arguments):
    config = hf.read_config(source)
    params = hf.load_params(source, config)
    settings = hf.read_json(source / "config.json")
    hf.save_model(target, config, params, source_config=settings, **arguments)
    return config, params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip(name, sharded, dtype, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    model = parity.torch_model(ARCHITECTURES[name]).to(getattr(torch, dtype))
    size = {"max_shard_size": "30KB"} if sharded else {}
    model.save_pretrained(source, **size)
    config, params = copy_through_us(source, target, max_shard_bytes=2e4 if sharded else 5e9)
    assert (len(list(source.glob("*.safetensors"))) > 2) == sharded
    assert (len(list(target.glob("*.safetensors"))) > 2) == sharded
    assert_same_tensors(tensors_in(target), tensors_in(source))
    assert hf.read_json(target / "config.json") == hf.read_json(source / "config.json")
    assert_transformers_loads(target)
    flat = flatten_paths(params)
    assert {leaf.dtype.name for leaf in flat.values()} == {dtype}
    assert hf.read_config(target) == config
    again = flatten_paths(hf.load_params(target, config))
    assert all(again[path].tobytes() == leaf.tobytes() for path, leaf in flat.items())


FRESH = decoder.DecoderConfig(
    vocab_size=61,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=64,
)


@pytest.mark.parametrize(
    "config",
    [
        FRESH,
        dataclasses.replace(FRESH, tie_embeddings=False, param_dtype="bfloat16"),
        dataclasses.replace(FRESH, qk_norm=False, qkv_bias=True),
        dataclasses.replace(FRESH, qk_norm=False, mlp_bias=True),
        encoder.EncoderConfig(
            vocab_size=61, width=32, mlp_width=48, num_layers=2, num_heads=4, pooler=True
        ),
    ],
)
def test_fresh_models_load_in_transformers(config, tmp_path):
    module = encoder if isinstance(config, encoder.EncoderConfig) else decoder
    params = module.init_params(jax.random.key(0), config)
    hf.save_model(tmp_path / "fresh", config, params)
    assert_transformers_loads(tmp_path / "fresh")
    assert str(hf.read_json(tmp_path / "fresh" / "config.json")["dtype"]) == config.param_dtype
    read = hf.read_config(tmp_path / "fresh")
    assert dataclasses.replace(read, param_dtype=config.param_dtype) == config


def test_dtype_on_the_way_in_and_out(tmp_path):
    parity.torch_model(ARCHITECTURES["qwen3 tied"]).save_pretrained(tmp_path / "source")
    config = hf.read_config(tmp_path / "source")
    params = hf.load_params(tmp_path / "source", config, dtype="bfloat16")
    expected = load_file(tmp_path / "source" / "model.safetensors")
    expected = {name: x.astype(ml_dtypes.bfloat16) for name, x in expected.items()}
    settings = hf.read_json(tmp_path / "source" / "config.json")
    copy_through_us(tmp_path / "source", tmp_path / "out", dtype="bfloat16")
    hf.save_model(tmp_path / "in", config, params, source_config=settings)
    for folder in (tmp_path / "in", tmp_path / "out"):
        assert_same_tensors(tensors_in(folder), expected)
        assert hf.read_json(folder / "config.json")["dtype"] == "bfloat16"


LARGER = dataclasses.replace(
    FRESH, width=128, mlp_width=256, num_layers=8, num_kv_heads=2, tie_embeddings=False
)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """(folder, config, layout over 8 devices) of a decoder whose tensors are a small part of it."""
    folder = tmp_path_factory.mktemp("larger")
    rng = np.random.default_rng(0)
    table = decoder.param_table(LARGER)
    made = {spec.path: rng.standard_normal(spec.shape, np.float32) for spec in table}
    hf.save_model(folder, LARGER, unflatten_paths(made), max_shard_bytes=1e6)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rules = (("vocab", "fsdp"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"))
    return folder, LARGER, sharding.Layout(mesh, (*rules, ("embed", "fsdp"), ("head", "data")))


def _shardings(config, layout):
    table = hf.param_table(config)
    shapes = {spec.path: jax.ShapeDtypeStruct(spec.shape, np.float32) for spec in table}
    return sharding.param_shardings(unflatten_paths(shapes), table, layout)


def test_parameters_are_read_to_where_they_lie(larger):
    folder, config, layout = larger
    shardings = _shardings(config, layout)
    params = flatten_paths(hf.load_params(folder, config, "bfloat16", shardings))
    places, whole = flatten_paths(shardings), flatten_paths(hf.load_params(folder, config))
    assert params.keys() == whole.keys()
    for path, leaf in whole.items():
        assert params[path].sharding == places[path]
        np.testing.assert_array_equal(params[path], leaf.astype(ml_dtypes.bfloat16), err_msg=path)
    assert not params["layers/attention/q/kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["bert", "qwen2 tied"])
def test_biases_and_encoders_are_read_to_where_they_lie(name, larger, tmp_path):
    parity.torch_model(ARCHITECTURES[name]).save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    params = flatten_paths(hf.load_params(tmp_path, config, None, _shardings(config, larger[2])))
    for path, leaf in flatten_paths(hf.load_params(tmp_path, config)).items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


def test_the_host_holds_a_part_at_a_time(larger, tmp_path):
    """Beside the model itself: a few tensors or parts in reading, a few tensors in writing."""
    folder, config, layout = larger
    shardings = _shardings(config, layout)
    tensor = 4 * max(np.prod(spec.hf_shape) for spec in hf.param_table(config))
    tracemalloc.start()
    try:
        params = jax.block_until_ready(hf.load_params(folder, config, None, shardings))
        held, peak = tracemalloc.get_traced_memory()
        part = max(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
        size = tree_bytes(params)
        assert peak - held < 3 * max(part, tensor)
        hf.save_model(tmp_path / "compiled", config, params, max_shard_bytes=1e6)
        tracemalloc.reset_peak()
        held, _ = tracemalloc.get_traced_memory()
        hf.save_model(tmp_path / "out", config, params, max_shard_bytes=1e6)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - held < 6 * tensor
    finally:
        tracemalloc.stop()
    assert 6 * tensor < size / 2
    assert_same_tensors(tensors_in(tmp_path / "out"), tensors_in(folder))


def edit(folder, change):
    """Rewrite the single file of a directory with its tensors changed."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def rename(tensors, old, new):
    for name in list(tensors):
        if name.startswith(old):
            tensors[new + name.removeprefix(old)] = tensors.pop(name)


LAYOUTS = {
    "bert with its prefix": ({}, lambda tensors: rename(tensors, "", "bert.")),
    "bert without pooler": (
        {},
        lambda tensors: [tensors.pop(f"pooler.dense.{name}") for name in ("weight", "bias")],
    ),
    "bert with position buffer": (
        {},
        lambda tensors: tensors.update({"embeddings.position_ids": np.arange(256)[None]}),
    ),
    "bare decoder": (
        ARCHITECTURES["qwen3 tied"],
        lambda tensors: rename(tensors, "model.", ""),
    ),
    "tied head stored twice": (
        ARCHITECTURES["qwen3 tied"],
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_real_checkpoints_have(name, tmp_path):
    fields, change = LAYOUTS[name]
    parity.torch_model(fields).save_pretrained(tmp_path / "source")
    edit(tmp_path / "source", change)
    copy_through_us(tmp_path / "source", tmp_path / "target")
    assert_same_tensors(tensors_in(tmp_path / "target"), tensors_in(tmp_path / "source"))


def test_rotary_buffers_are_ignored(tmp_path):
    parity.torch_model(ARCHITECTURES["llama tied"]).save_pretrained(tmp_path / "source")
    before = tensors_in(tmp_path / "source")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(tmp_path / "source", lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    copy_through_us(tmp_path / "source", tmp_path / "target")
    assert_same_tensors(tensors_in(tmp_path / "target"), before)


@pytest.fixture
def checkpoint(tmp_path):
    parity.torch_model(ARCHITECTURES["llama tied"]).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_all_that_does_not_fit_is_reported_at_once(checkpoint):
    def damage(tensors):
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.ones(3, np.float32)
        tensors["visual.weight"] = np.ones(3, np.float32)
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name][:5].copy()
        tensors["model.layers.0.mlp.up_proj.bias"] = np.ones(80, np.int8)

    edit(checkpoint, damage)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load_params(checkpoint, hf.read_config(checkpoint))
    error = caught.value
    assert sorted(error.missing) == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    assert error.unexpected == ["model.layers.7.mlp.up_proj.weight", "visual.weight"]
    assert error.mis_shaped == [
        "model.layers.0.mlp.up_proj.bias: dtype I8, readable are F32, F16, BF16",
        "model.layers.0.self_attn.q_proj.weight: [5, 48], needed [48, 48]",
        "model.layers.{layer}.mlp.up_proj.bias: dtype differs by layer (F32, I8)",
    ]
    for line in (*error.missing, *error.unexpected, *error.mis_shaped):
        assert line in str(error)


def test_a_tied_head_that_differs_in_its_last_row_is_refused(checkpoint, monkeypatch):
    def untie(tensors):
        head = tensors["model.embed_tokens.weight"].copy()
        head[-1] += 1
        tensors["lm_head.weight"] = head

    monkeypatch.setattr(hf, "_ROWS", 50)  # the last block is a shorter one
    edit(checkpoint, untie)
    with pytest.raises(hf.CheckpointError, match=r"lm_head\.weight: differs"):
        hf.load_params(checkpoint, hf.read_config(checkpoint))


def test_damaged_directories_are_named(checkpoint, tmp_path):
    config = hf.read_config(checkpoint)
    file = checkpoint / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        hf.load_params(checkpoint, config)
    file.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        hf.load_params(checkpoint, config)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-1\.safetensors cannot be read"):
        hf.load_params(checkpoint, config)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        hf.read_config(checkpoint)
    with pytest.raises(ValueError, match="does not exist"):
        hf.read_config(tmp_path / "nowhere")


def test_an_index_that_names_the_wrong_shard_reports_what_is_missing(tmp_path):
    source = tmp_path / "source"
    model = parity.torch_model(ARCHITECTURES["llama tied"])
    model.save_pretrained(source, max_shard_size="30KB")
    index = hf.read_json(source / "model.safetensors.index.json")
    shards = sorted(set(index["weight_map"].values()))
    moved = "model.norm.weight"
    wrong = next(shard for shard in shards if shard != index["weight_map"][moved])
    index["weight_map"][moved] = wrong
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load_params(source, hf.read_config(source))
    assert caught.value.missing == [moved]


def test_a_save_that_fails_leaves_the_older_model(checkpoint, tmp_path, monkeypatch):
    copy_through_us(checkpoint, tmp_path / "target")
    before = tensors_in(tmp_path / "target")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "write", full_disk)
    with pytest.raises(OSError, match="No space"):
        copy_through_us(checkpoint, tmp_path / "target")
    assert_same_tensors(tensors_in(tmp_path / "target"), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "target"]


def test_saving_replaces_a_model_and_nothing_else(checkpoint, tmp_path):
    target = tmp_path / "target"
    copy_through_us(checkpoint, target, max_shard_bytes=2e4)
    copy_through_us(checkpoint, target)
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    (tmp_path / "empty").mkdir()
    copy_through_us(checkpoint, tmp_path / "empty")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds other files"):
        copy_through_us(checkpoint, tmp_path / "run")
    with pytest.raises(ValueError, match="is a file"):
        copy_through_us(checkpoint, tmp_path / "run" / "config.json")


def test_generation_config_is_the_sources_or_made_of_its_token_ids(checkpoint, tmp_path):
    config = hf.read_config(checkpoint)
    params = hf.load_params(checkpoint, config)
    settings = hf.read_json(checkpoint / "config.json") | {"eos_token_id": 2, "bos_token_id": 1}
    hf.save_model(tmp_path / "made", config, params, source_config=settings)
    made = hf.read_json(tmp_path / "made" / "generation_config.json")
    assert made == {"bos_token_id": 1, "eos_token_id": 2}
    given = {"eos_token_id": [2, 0], "temperature": 0.6, "do_sample": True}
    hf.save_model(tmp_path / "given", config, params, generation_config=given)
    assert hf.read_json(tmp_path / "given" / "generation_config.json") == given


def test_params_of_another_model_are_not_saved(tmp_path):
    params = decoder.init_params(jax.random.key(0), FRESH)
    other = dataclasses.replace(FRESH, qkv_bias=True, qk_norm=False, mlp_width=40)
    with pytest.raises(ValueError) as caught:
        hf.save_model(tmp_path / "wrong", other, params)
    for part in ("q/bias is missing", "q_norm/scale is not", "(2, 32, 48), needed (2, 32, 40)"):
        assert part in str(caught.value)
    assert not any(tmp_path.iterdir())


FIELD = "config.reward_model.init"


def test_resolve_takes_directories_and_hub_ids(tmp_path, monkeypatch):
    import huggingface_hub

    assert hf.resolve(tmp_path, FIELD) == tmp_path
    with pytest.raises(
        ValueError, match=r"reward_model\.init is .*neither a directory nor a hub id"
    ):
        hf.resolve(tmp_path / "absent", FIELD)
    asked = {}

    def download(name, **arguments):
        asked.update(arguments, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf.resolve("owner/name", FIELD) == tmp_path
    assert asked["name"] == "owner/name"
    assert "*.safetensors" in asked["allow_patterns"] and "*.bin" not in asked["allow_patterns"]


def test_a_hub_model_that_cannot_be_fetched_is_named():
    """The tests run offline, so that nothing is fetched."""
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.init is 'no-such/model'.*could not be fetched"
    ):
        hf.resolve("no-such/model", FIELD)


def test_what_the_hub_says_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_, **__):
        raise LocalEntryNotFoundError("404 Client Error.\n\nRepository Not Found\nfor url: x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError) as caught:
        hf.resolve("owner/name", FIELD)
    assert str(caught.value).endswith("404 Client Error. Repository Not Found for url: x")
    assert "\n" not in str(caught.value)


def test_a_directory_without_weights_has_the_usual_layout(checkpoint, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(checkpoint / "config.json", tmp_path / "bare")
    assert hf.read_config(tmp_path / "bare") == hf.read_config(checkpoint)
