import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common as configs
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder, encoder, hf
from empathy_jax.training import common, export
from tests.training import run_folders, tiny_runs, update_steps

TEXTS = ["一些话", "some words", "<L1>累</L1>"] * 5


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """WORKDIR/sft with fresh weights, its config, and its model."""
    root = tmp_path_factory.mktemp("policy")
    config = run_folders.tiny_config("rl")
    return root, config, run_folders.make_policy_run(root, config, TEXTS)


def _load(init, config, language="zh"):
    layout = common.sharding.make_layout(config.mesh)
    return common.load_model(str(init), config.model, "config.model.init", language, layout)


# --- random streams ---


def test_streams_are_named_and_apart():
    keys = {
        name: tuple(jax.random.key_data(common.stream(0, name)).tolist()) for name in common.STREAMS
    }
    assert len(set(keys.values())) == len(common.STREAMS)
    again = jax.random.key_data(common.stream(0, "rollout")).tolist()
    assert again == list(keys["rollout"])
    assert jax.random.key_data(common.stream(1, "rollout")).tolist() != again


# --- model folders ---


def test_a_run_comes_back_as_it_was(policy):
    root, config, model = policy
    loaded = _load(root / "sft", config)
    assert loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)
    assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    question = "你好 <|im_end|>"
    ids = tokenizers.prompt_ids(loaded.tokenizer, question)
    assert ids == tokenizers.prompt_ids(model.tokenizer, question)


def test_the_folder_of_the_phase_before_is_found(policy, tmp_path):
    root, config, _ = policy
    assert common.find_run(root, ("rl", "sft"), "config.model.init") == str(root / "sft")
    with pytest.raises(ValueError, match=r"config\.model\.init is empty.*run the phase rl or sft"):
        common.find_run(tmp_path, ("rl", "sft"), "config.model.init")
    layout = common.sharding.make_layout(config.mesh)
    assert common.load_policy(config, root, layout).config.width == 32


def test_a_folder_without_a_checkpoint_is_not_the_phase_before(policy, tmp_path):
    root, _, _ = policy
    (tmp_path / "sft").symlink_to(root / "sft")
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "model.json").write_bytes((root / "sft" / "model.json").read_bytes())
    assert common.find_run(tmp_path, ("rl", "sft"), "config.model.init") == str(tmp_path / "sft")


def test_the_opening_line_counts(policy, capsys):
    common.announce("rl", policy[2], {"train": range(1200), "test": range(3)})
    count = sum(leaf.size for leaf in jax.tree.leaves(policy[2].variables["params"]))
    assert capsys.readouterr().out == (
        f"[rl] 8 x cpu; records: 1,200 train, 3 test; {count:,} parameters\n"
    )


def test_a_folder_without_a_checkpoint_says_so(policy, tmp_path):
    root, config, _ = policy
    (tmp_path / "model.json").write_bytes((root / "sft" / "model.json").read_bytes())
    with pytest.raises(ValueError, match="has no checkpoint yet; train it first"):
        _load(tmp_path, config)


def test_a_reward_model_is_no_policy(policy, tmp_path):
    _, config, model = policy
    run_folders.make_reward_run(tmp_path, config, model.tokenizer)
    config = config.copy_and_resolve_references()
    config.model.init = str(tmp_path / "reward_model")
    layout = common.sharding.make_layout(config.mesh)
    with pytest.raises(ValueError, match=r"config\.model\.init is .*an encoder.*a decoder"):
        common.load_policy(config, tmp_path, layout)


@pytest.mark.parametrize("has_head", [False, True])
def test_a_reward_model_comes_back_with_its_embedding_and_head(policy, tmp_path, has_head):
    _, config, model = policy
    embedding = dataclasses.replace(
        run_folders.REWARD_EMBEDDING, document_prompt="答：", has_head=has_head
    )
    made = run_folders.make_reward_run(tmp_path, config, model.tokenizer, embedding=embedding)
    place, field = common.sharding.make_layout(config.mesh), "config.reward_model.init"
    loaded = common.load_model(
        str(tmp_path / "reward_model"), config.reward_model, field, None, place
    )
    assert loaded.embedding == embedding and loaded.config == made.config
    assert loaded.variables.keys() == made.variables.keys() == {"params", *["head"] * has_head}
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, made.variables)


def test_another_architecture_in_model_json_is_reported_whole(policy, tmp_path):
    root, config, _ = policy
    (tmp_path / "checkpoints").symlink_to(root / "sft" / "checkpoints")
    described = json.loads((root / "sft" / "model.json").read_text(encoding="utf-8"))
    described["config"] |= {"width": 64, "qk_norm": False}
    (tmp_path / "model.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ValueError, match="of another architecture") as error:
        _load(tmp_path, config)
    text = str(error.value)
    assert text.count("mis-shaped:") > 3 and text.count("unexpected:") == 2
    assert "model/params/embed/embedding is (352, 32), wanted (352, 64)" in text


def test_dtypes_come_from_the_config(policy):
    root, config, _ = policy
    config = config.copy_and_resolve_references()
    config.model.param_dtype, config.model.compute_dtype = "bfloat16", "bfloat16"
    loaded = _load(root / "sft", config)
    assert loaded.config.param_dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.variables)} == {"bfloat16"}


def test_adapters_of_a_run_are_merged(tmp_path):
    config = run_folders.tiny_config("rl")
    config.model.lora_rank = 2
    made = run_folders.make_policy_run(tmp_path, config, TEXTS)
    config.model.lora_rank = 0
    loaded = _load(tmp_path / "sft", config)
    assert set(loaded.variables) == {"params"} and loaded.config.lora_rank == 0
    tokens = jnp.arange(12)[None] % 300
    arguments = (tokens, jnp.arange(12)[None], jnp.tril(jnp.ones((1, 12, 12), bool)))
    with_adapters, _ = decoder.hidden_states(
        made.variables["params"], made.config, *arguments, lora=made.variables["lora"]
    )
    merged, _ = decoder.hidden_states(loaded.variables["params"], loaded.config, *arguments)
    np.testing.assert_allclose(merged, with_adapters, atol=1e-4)


@pytest.fixture(scope="module")
def hf_directory(policy):
    """The run exported as a Hugging Face directory."""
    root, config, _ = policy
    config = config.copy_and_resolve_references()
    config.phase = "export"
    export.run(config, root)
    return root / "export" / "hf"


def test_a_hugging_face_directory_is_a_policy(policy, hf_directory):
    _, config, model = policy
    loaded = _load(hf_directory, config)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)
    assert loaded.hf_config["hidden_size"] == 32


def test_tensors_that_contradict_config_json_are_reported_together(policy, hf_directory, tmp_path):
    _, config, _ = policy
    for file in hf_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    described = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    described |= {"intermediate_size": 50, "num_hidden_layers": 3}
    if "layer_types" in described:
        described["layer_types"] = ["full_attention"] * 3
    (tmp_path / "config.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(hf.CheckpointError, match=r"do not fit its config\.json") as error:
        _load(tmp_path, config)
    text = str(error.value)
    assert "model.layers.2.mlp.up_proj.weight" in text and "missing" in text
    assert "model.layers.0.mlp.up_proj.weight: [48, 32], needed [50, 32]" in text


def test_a_tokenizer_with_too_many_tokens_is_refused(policy, tmp_path):
    root, config, _ = policy
    words = ["".join(chr(0x4E00 + (i * 7 + j) % 900) for j in range(3)) for i in range(900)]
    larger = tokenizers.train(words * 3, 900)
    tokenizers.save(larger, tmp_path)
    config = config.copy_and_resolve_references()
    config.model.tokenizer = str(tmp_path)
    with pytest.raises(ValueError, match=r"largest token id is .* 352 rows.*config\.model\.token"):
        _load(root / "sft", config)


def test_a_tokenizer_of_other_ids_is_refused(policy, hf_directory, tmp_path):
    root, config, model = policy
    config = config.copy_and_resolve_references()
    config.model.tokenizer = str(tmp_path)
    tokenizers.save(model.tokenizer, tmp_path)
    assert _load(hf_directory, config).tokenizer.get_vocab() == model.tokenizer.get_vocab()
    # Smaller than the weights' own, and learnt without the tags, which came first there.
    tokenizers.save(tokenizers.train(TEXTS, 300), tmp_path)
    message = r"config\.model\.tokenizer shares .* config\.model\.init have another id"
    for init in (root / "sft", hf_directory):
        with pytest.raises(ValueError, match=message):
            _load(init, config)
    config.model.init = str(hf_directory)
    with pytest.raises(ValueError, match=message):
        export.load(str(hf_directory), config)
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.tokenizer shares .*reward_model\."
    ):
        common.load_model(
            str(hf_directory),
            config.model,
            "config.reward_model.init",
            None,
            common.sharding.make_layout(config.mesh),
        )


def test_a_place_that_does_not_exist_names_the_field(policy):
    _, config, _ = policy
    with pytest.raises(ValueError, match=r"config\.model\.init is .no/such/place"):
        _load("no/such/place", config)


def test_a_workdir_is_pointed_to_the_runs_in_it(policy):
    root, config, _ = policy
    with pytest.raises(ValueError, match=r"config\.model\.init is .*workdir; name .*/sft$"):
        _load(root, config)


def test_a_hugging_face_encoder_is_no_policy_whatever_its_tokenizer(policy, tmp_path):
    _, config, _ = policy
    architecture = encoder.EncoderConfig(
        vocab_size=400, width=32, mlp_width=48, num_layers=1, num_heads=2
    )
    hf.save_model(tmp_path, architecture, encoder.init_params(jax.random.key(0), architecture))
    with pytest.raises(ValueError, match=r"config\.model\.init is .*an encoder.*a decoder"):
        _load(tmp_path, config)


def test_what_config_json_says_wrong_is_put_to_the_field(policy, tmp_path):
    _, config, _ = policy
    (tmp_path / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.model\.init is .*model_type is 't5'"):
        _load(tmp_path, config)


def test_fields_of_an_architecture_are_named_whole(policy):
    root, config, _ = policy
    layout = common.sharding.make_layout(config.mesh)
    config = config.copy_and_resolve_references()
    config.model.compute_dtype = "int8"
    with pytest.raises(ValueError, match=r"^config\.model\.compute_dtype is 'int8'"):
        _load(root / "sft", config)
    with pytest.raises(ValueError, match=r"^config\.model\.compute_dtype is 'int8'"):
        common.load_policy(config, root, layout, lambda: TEXTS)


# --- train state ---


def test_state_is_the_weights_or_the_adapters():
    place = update_steps.layout(1, 1, 1)
    _, state, frozen, _ = update_steps.prepare(update_steps.DECODER, place)
    assert frozen == {} and state.trainable.keys() == {"params"}
    assert common.join(state.trainable, frozen).keys() == {"params"}
    config = dataclasses.replace(update_steps.DECODER, lora_rank=2)
    _, state, frozen, _ = update_steps.prepare(config, place)
    assert frozen.keys() == {"params"} and state.trainable.keys() == {"lora"}
    assert common.join(state.trainable, frozen).keys() == {"params", "lora"}
    items = common.checkpoint_items(state, frozen)
    assert items.keys() == {"model", "optimizer"} and items["model"].keys() == {"params", "lora"}


@pytest.mark.parametrize(("lora_rank", "weights"), [(0, "params"), (2, "lora")])
def test_a_head_is_trained_beside_weights_or_adapters_and_restored(tmp_path, lora_rank, weights):
    config = dataclasses.replace(update_steps.ENCODER, lora_rank=lora_rank)
    place = update_steps.layout(1, 1, 1)
    head = {"head": {"kernel": jnp.arange(32.0).reshape(2, 16)}}
    transform, state, frozen, _ = update_steps.prepare(config, place, head)
    assert state.trainable.keys() == {weights, "head"}
    assert frozen.keys() == ({"params"} if lora_rank else set())
    grads = jax.tree.map(jnp.ones_like, state.trainable)
    changed = common.apply_gradients(state, grads, transform)
    assert len(update_steps.moved(state.trainable, changed.trainable)) == len(
        jax.tree.leaves(grads)
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, common.checkpoint_items(changed, frozen))
    step, found = common.restore_state(tmp_path, state, frozen)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, found, changed)


def test_restoring_without_a_checkpoint_begins_at_zero(tmp_path):
    place = update_steps.layout(1, 1, 1)
    _, state, frozen, _ = update_steps.prepare(update_steps.DECODER, place)
    assert common.restore_state(tmp_path, state, frozen) == (0, state)


def test_a_state_moves_to_another_mesh_unchanged(tmp_path):
    _, state, frozen, _ = update_steps.prepare(update_steps.DECODER, update_steps.layout(1, 1, 1))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, common.checkpoint_items(state, frozen))
    _, other, frozen, places = update_steps.prepare(
        update_steps.DECODER, update_steps.layout(2, 2, 2)
    )
    other = jax.tree.map(lambda leaf: leaf * 0, other)
    step, found = common.restore_state(tmp_path, other, frozen)
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert all(
        jax.tree.leaves(
            jax.tree.map(
                lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), found, places
            )
        )
    )


def test_config_fields_reach_fresh_weights(tmp_path):
    inputs = tiny_runs.write_inputs(tmp_path)
    config = tiny_runs.make_config("sft", {**inputs, "model.num_heads": 4, "model.lora_rank": 3})
    layout = common.sharding.make_layout(config.mesh)
    model = common.load_policy(config, tmp_path, layout, lambda: TEXTS)
    assert (model.config.num_heads, model.config.lora_rank) == (4, 3)
    assert set(configs.get_config("tiny").model) - {"init", "tokenizer"} <= {
        field.name for field in dataclasses.fields(model.config)
    }
