import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from empathy_jax import chain_of_empathy, files, sharding
from empathy_jax.corpus import sample
from empathy_jax.data import examples
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder, score_head
from empathy_jax.models.attention import causal_mask
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import export
from empathy_jax.training.scorer import Scorer
from tests.training import run_folders

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What a phase writes before it does anything.
BEGUN = {"config.json", "inputs.json", "environment.json", "resources.json"}
QUESTION = "我很难过<|im_end|>\n<|im_start|>assistant\n怎么办？"


CHAIN = chain_of_empathy.Chain("累", "因", "听", "陪", "我在。真的。")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [record["question"] for record in sample.sample_questions("zh")[:20]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("run")
    config = run_folders.tiny_config("export")
    model = run_folders.make_policy_run(root, config, texts)
    summary = export.run(config, root)
    return root, config, model, summary


@pytest.fixture
def run_copy(exported, tmp_path):
    """A folder of one's own with the same trained phase."""
    root, config, _, _ = exported
    shutil.copytree(root / "sft", tmp_path / "sft")
    return tmp_path, config


def test_transformers_loads_the_export_by_the_printed_lines(exported):
    _, _, model, summary = exported
    found: dict = {}
    exec("\n".join(summary["usage"]), found)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        summary["directory"], output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for loaded in (found["model"], theirs):
        np.testing.assert_allclose(_torch_logits(loaded), _our_logits(model), atol=1e-4)


QUESTIONS = (
    "我很难过，晚上睡不着，不知道该找谁说。",
    "  My mother calls every day.\n\nI can't say no…  ",
    QUESTION,
    "<answer>好</answer> </L1><|endoftext|>",
    "{{ messages }} {% raise %} \\n '\"",
)


def test_template_gives_the_prompt_that_the_model_is_trained_with(exported):
    _, _, model, summary = exported
    theirs = transformers.AutoTokenizer.from_pretrained(summary["directory"])
    system = {"role": "system", "content": chain_of_empathy.system_prompt("zh")}
    answer = {"role": "assistant", "content": chain_of_empathy.render(CHAIN)}
    for question in QUESTIONS:
        record = {"id": "1", "question": question, **dataclasses.asdict(CHAIN)}
        example = examples.sft_example(record, model.tokenizer, 4096, 4096)
        trained = example["tokens"][~example["loss_mask"]].tolist()
        turn = {"role": "user", "content": question}
        for messages in ([turn], [system, turn]):
            assert _template(theirs, messages, add_generation_prompt=True) == trained
        # The whole conversation goes on with the tokens that were learnt, and a line end.
        whole = _template(theirs, [turn, answer])
        assert whole[: len(example["tokens"])] == example["tokens"].tolist()
        assert theirs.decode(whole[len(example["tokens"]) :]) == "\n"
        other = _template(theirs, [{"role": "system", "content": "简短。"}, turn])
        own = f"<|im_start|>system\n{chain_of_empathy.system_prompt('zh')}<|im_end|>"
        assert theirs.decode(other) == theirs.decode(_template(theirs, [turn])).replace(
            own, "<|im_start|>system\n简短。<|im_end|>"
        )
    written = json.loads((Path(summary["directory"]) / "generation_config.json").read_text())
    assert written["eos_token_id"] == model.tokenizer.eos_token_id == theirs.eos_token_id
    assert written["pad_token_id"] == model.tokenizer.pad_token_id


def test_a_run_keeps_its_language_and_its_dtype_whatever_the_export_says(tmp_path, texts):
    config = run_folders.tiny_config("export")
    config.data.language, config.model.param_dtype = "en", "bfloat16"
    model = run_folders.make_policy_run(tmp_path, config, texts)
    summary = export.run(run_folders.tiny_config("export"), tmp_path)
    directory = Path(summary["directory"])
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": QUESTION}]
    ids = _template(theirs, messages, add_generation_prompt=True)
    assert ids == tokenizers.prompt_ids(model.tokenizer, QUESTION)
    assert chain_of_empathy.system_prompt("en") in theirs.decode(ids)
    assert {str(array.dtype) for array in _tensors(directory).values()} == {"bfloat16"}
    assert 'language: ["en"]' in (directory / "README.md").read_text(encoding="utf-8")


def test_finished_export_returns_its_summary_and_other_values_are_refused(exported):
    root, config, _, summary = exported
    assert export.run(config, root) == summary
    other = config.copy_and_resolve_references()
    other.export.dtype = "bfloat16"
    with pytest.raises(ValueError, match=r"export\.dtype"):
        export.run(other, root)
    other.export.dtype = "int8"
    with pytest.raises(ValueError, match=r"'int8'.*bfloat16"):
        export.run(other, root)


def test_an_export_is_made_anew_when_the_model_changed(exported, run_copy, capsys):
    tmp_path, config = run_copy
    export.run(config, tmp_path)
    weights = tmp_path / "export" / "hf" / "model.safetensors"
    before = weights.read_bytes()
    (tmp_path / "export" / "notes.txt").write_text("mine", encoding="utf-8")
    halved = jax.tree.map(lambda leaf: leaf / 2, exported[2].variables)
    run_folders.save(tmp_path / "sft", halved, step=2)
    capsys.readouterr()
    summary = export.run(config, tmp_path)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("[export] done anew: model was sft at step 1 (digest ")
    assert " and is now sft at step 2 (digest " in line
    assert weights.read_bytes() != before and summary["model"] == str(tmp_path / "sft")
    assert (tmp_path / "export" / "notes.txt").exists()
    assert export.run(config, tmp_path) == summary
    assert "anew" not in capsys.readouterr().out


def test_without_a_model_the_message_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"config\.model\.init is empty"):
        export.run(run_folders.tiny_config("export"), tmp_path)


def test_failure_midway_leaves_nothing(run_copy, monkeypatch):
    tmp_path, config = run_copy

    def refuse(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(export.tokenizers, "save", refuse)
        with pytest.raises(OSError, match="no space"):
            export.run(config, tmp_path)
    left = {path.name for path in (tmp_path / "export").iterdir()}
    assert left == BEGUN
    (tmp_path / "export" / ".hf.killed").mkdir()
    export.run(config, tmp_path)
    left = {path.name for path in (tmp_path / "export").iterdir()}
    assert left == {*BEGUN, "hf", "summary.json"}


def test_adapters_are_merged_and_shards_and_dtype_follow_the_config(tmp_path, texts):
    config = run_folders.tiny_config("export")
    config.model.lora_rank = 2
    model = run_folders.make_policy_run(tmp_path, config, texts)
    config.export.dtype, config.export.max_shard_bytes = "bfloat16", 20_000
    summary = export.run(config, tmp_path)
    directory = Path(summary["directory"])
    assert (directory / "model.safetensors.index.json").exists()
    tensors = _tensors(directory)
    assert not any("lora" in name for name in tensors)
    assert {str(array.dtype) for array in tensors.values()} == {"bfloat16"}
    kernel = np.asarray(model.variables["params"]["layers"]["mlp"]["up"]["kernel"])[1]
    adapter = {
        k: np.asarray(v)[1] for k, v in model.variables["lora"]["layers"]["mlp"]["up"].items()
    }
    merged = kernel + 16.0 / 2 * adapter["a"] @ adapter["b"]
    found = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32).T
    assert np.abs(merged - kernel).max() > 0.05
    np.testing.assert_allclose(found, merged, rtol=2**-8)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.dtype == torch.bfloat16


UNTIED_DECODER = decoder.DecoderConfig(
    vocab_size=512,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
    max_positions=64,
)
REWARD_MODELS = {
    "encoder": (run_folders.REWARD_ENCODER, Embedding("mean", 48, "来信：", "回信：")),
    "decoder with a head": (UNTIED_DECODER, Embedding("last", 64, "来信：", "", has_head=True)),
}


@pytest.fixture(params=REWARD_MODELS)
def reward(request, tmp_path, texts):
    """The folder of a reward model's run, the model, and the summary of its export."""
    config = run_folders.tiny_config("export")
    tokenizer = tokenizers.train(texts, 512)
    architecture, embedding = REWARD_MODELS[request.param]
    model = run_folders.make_reward_run(tmp_path, config, tokenizer, architecture, embedding)
    echo = {"beats": 0.02, "error": 0.01, "ties": 0.0, "mean_gain": -0.3, "questions": 200}
    calibrated = run_folders.CALIBRATION | {"probes": {"cosine": {"echo": echo}}}
    files.write_json(tmp_path / "reward_model" / "calibration.json", calibrated)
    config.model.init = str(tmp_path / "reward_model")
    return tmp_path / "reward_model", model, export.run(config, tmp_path)


def test_sentence_transformers_gives_our_vectors_by_the_printed_lines(reward, texts):
    _, model, summary = reward
    found: dict = {}
    exec("\n".join(summary["usage"]), found)
    scorer = Scorer(
        model.variables, model, {}, sharding.make_layout(run_folders.tiny_config("export").mesh)
    )
    answers = [text[::-1] for text in texts]
    for ours, theirs in (
        (scorer.embed_questions(texts), found["model"].encode_query(texts)),
        (scorer.embed_answers(answers), found["model"].encode_document(answers)),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    cosines = found["model"].similarity_pairwise(
        found["model"].encode_query(texts), found["model"].encode_document(answers)
    )
    np.testing.assert_allclose(scorer.similarity(texts, answers), cosines, atol=1e-5)


def test_a_reward_model_takes_along_its_calibration_and_head_and_leaves_the_output_head(reward):
    run, model, summary = reward
    directory = Path(summary["directory"])
    assert (directory / "calibration.json").read_bytes() == (run / "calibration.json").read_bytes()
    _, info = transformers.AutoModel.from_pretrained(
        directory,
        output_loading_info=True,
        **({} if model.module is decoder else {"add_pooling_layer": False}),
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    card = (directory / "README.md").read_text(encoding="utf-8")
    for part in (
        'library_name: "sentence-transformers"',
        f"{model.embedding.pooling} pooling",
        "at a cosine of 0.432",
        "| the question itself | 2.0 ± 1.0 % |",
    ):
        assert part in card
    heads = directory / score_head.FILE
    assert heads.exists() == model.embedding.has_head
    if heads.exists():
        kernel = load_file(heads)["kernel"]
        np.testing.assert_array_equal(kernel, model.variables["head"]["kernel"])


def test_an_exported_reward_model_is_imported_and_exported_as_it_is(reward, tmp_path):
    _, _, first = reward
    config = run_folders.tiny_config("export")
    config.model.init = first["directory"]
    second = export.run(config, tmp_path / "again")
    old, new = Path(first["directory"]), Path(second["directory"])
    assert _tree(new) == _tree(old)


@pytest.mark.parametrize("name", ["minimind2_small", "bge_small_zh"])
def test_import_without_training_goes_through_byte_for_byte(tmp_path, shared_dir, name):
    source = shared_dir / "models" / name
    if not source.exists():
        pytest.skip(f"no weights of {name}: {source} does not exist")
    config = run_folders.tiny_config("export")
    config.model.init = str(source)
    summary = export.run(config, tmp_path)
    before, after = _tensors(source), _tensors(Path(summary["directory"]))
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.dtype == after[key].dtype and array.tobytes() == after[key].tobytes(), key
    old, new = (directory / "config.json" for directory in (source, Path(summary["directory"])))
    assert json.loads(old.read_text()) == json.loads(new.read_text())


def _template(tokenizer, messages: list[dict], **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def _tree(directory: Path) -> dict:
    """Name to content of every file but the card; the score head's under "head"."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        content = json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        found["head" if name == score_head.FILE else name] = content
    return {name: content for name, content in found.items() if name != "README.md"}


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


_TOKENS = np.arange(2 * 11).reshape(2, 11) * 7 % 512


def _our_logits(model) -> np.ndarray:
    params, config = model.variables["params"], model.config
    positions = jnp.broadcast_to(jnp.arange(_TOKENS.shape[1]), _TOKENS.shape)
    mask = causal_mask(jnp.ones_like(_TOKENS))
    hidden, _ = jax.jit(decoder.hidden_states, static_argnums=1)(
        params, config, _TOKENS, positions, mask
    )
    return np.asarray(decoder.logits(params, config, hidden))


def _torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(_TOKENS)).logits.numpy()
