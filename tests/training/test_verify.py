"""An export that gives our outputs passes, and one that was changed in any way does not."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from empathy_jax import chain_of_empathy
from empathy_jax.corpus import sample
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import common, export, verify
from tests.training import run_folders

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def short():
    """Fewer and shorter answers: what is compared is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "QUESTIONS_PER_LANGUAGE", 1)
        patch.setattr(verify, "ANSWER_TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """What a tokenizer learns from, so that prompts are short."""
    questions = [record["question"] for record in sample.sample_questions("zh")[:40]]
    return [chain_of_empathy.system_prompt("zh"), "system user assistant"] * 20 + questions


def random_adapters(model: common.Model) -> dict:
    """Adapters as after training, all different."""
    lora = model.module.init_lora(jax.random.key(1), model.config)
    leaves, structure = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@pytest.fixture(scope="module")
def policy(tmp_path_factory, texts):
    """A verified export of a policy with adapters, and of its weights in 4 bits."""
    root = tmp_path_factory.mktemp("policy")
    config = run_folders.tiny_config("export")
    config.model.update(
        {"vocab_size": 1024, "width": 64, "mlp_width": 96, "head_dim": 32, "lora_rank": 2}
    )
    model = run_folders.make_policy_run(root, config, texts)
    variables = {"params": _spread(model.variables["params"]), "lora": random_adapters(model)}
    run_folders.save(root / "sft", variables, step=2)
    config.export.update({"adapter": True, "weight_only": "int4", "verify": True})
    return root, config, export.run(config, root)


def _spread(params: dict) -> dict:
    """Weights large enough that tokens are told apart by more than rounding."""
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)


def test_a_policy_passes_in_every_part_and_the_cards_say_so(policy):
    root, _, summary = policy
    folder = root / "export"
    found = json.loads((folder / "verify.json").read_text())
    assert list(found) == ["hf", "adapter", "int4"]
    assert summary["verified"] and json.loads((folder / "summary.json").read_text()) == summary
    for part in ("hf", "adapter"):
        check = found[part]
        assert check["passed"] and check["same_prompts"]
        bound = verify.LOGITS_TOLERANCE * check["logit_deviation"]
        assert 0 < check["max_difference"] <= bound
        assert check["prompts"] == check["same_answers"] == 3
        assert check["same_token"] == 1.0
    assert found["adapter"]["libraries"].keys() == {
        "compressed-tensors",
        "peft",
        "torch",
        "transformers",
    }
    rounded = found["int4"]
    assert rounded["passed"]
    assert rounded["max_difference"] > 100 * found["hf"]["max_difference"]
    assert 1e-5 < rounded["kl"] < verify.MAX_KL["int4"]
    for part, check in found.items():
        card = (folder / part / "README.md").read_text(encoding="utf-8")
        assert f"at most {check['max_difference']:.1e}" in card
        assert "Nobody has yet loaded" not in card
        assert str(root) not in card


def test_every_part_loads_by_the_lines_of_its_card(policy):
    root, _, summary = policy
    assert summary["usage"][1].count(str(root)) == 2
    for part in ("hf", "adapter", "int4"):
        directory = root / "export" / part
        card = (directory / "README.md").read_text(encoding="utf-8")
        code = card.split("```python\n")[1].split("```")[0]
        found: dict = {}
        exec(code.replace("'...'", repr(str(directory))), found)
        assert found["model"].config.vocab_size == 1024


def change_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def round_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        # What bfloat16 keeps of a float32.
        tensors[name] = (tensor.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def change_rope(directory: Path) -> None:
    edit_json(directory / "config.json", lambda c: c.update(rope_theta=2 * c["rope_theta"]))


def change_end(directory: Path) -> None:
    edit_json(directory / "generation_config.json", lambda c: c.update(repetition_penalty=1.3))


def change_template(directory: Path) -> None:
    file = directory / "chat_template.jinja"
    file.write_text(file.read_text().replace("| trim", ""))


def edit_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change", [change_weights, round_weights, change_rope, change_end, change_template]
)
def test_an_export_that_was_changed_is_refused(policy, tmp_path, change, monkeypatch):
    root, config, _ = policy
    for name in ("sft", "export"):
        shutil.copytree(root / name, tmp_path / name)
    folder = tmp_path / "export"
    summary = json.loads((folder / "summary.json").read_text()) | {"verified": False}
    (folder / "summary.json").write_text(json.dumps(summary))
    for part in ("adapter", "int4"):
        shutil.rmtree(folder / part)
    change(folder / "hf")
    with pytest.raises(ValueError, match=r"hf gives other outputs .*verify\.json"):
        export.run(config, tmp_path)
    check = json.loads((folder / "verify.json").read_text())["hf"]
    assert not check["passed"]
    assert check["same_prompts"] == (change is not change_template)
    card = (folder / "hf" / "README.md").read_text(encoding="utf-8")
    assert "do not use this export" in card
    config = config.copy_and_resolve_references()
    config.export.update({"verify": False, "upload": "owner/name", "dry_run": True})
    with pytest.raises(ValueError, match=r"hf gives other outputs"):
        export.run(config, tmp_path)


def test_a_reward_model_and_its_adapters_pass_in_sentence_transformers(tmp_path, texts):
    config = run_folders.tiny_config("export")
    config.model.init = str(tmp_path / "reward_model")
    architecture = dataclasses.replace(run_folders.REWARD_ENCODER, lora_rank=2, name_prefix="bert.")
    embedding = Embedding("cls", 48, "来信：", "回信：")
    tokenizer = tokenizers.train(texts, 512)
    model = run_folders.make_reward_run(tmp_path, config, tokenizer, architecture, embedding)
    variables = {**model.variables, "lora": random_adapters(model)}
    run_folders.save(tmp_path / "reward_model", variables, step=2)
    config.export.update({"adapter": True, "verify": True})
    summary = export.run(config, tmp_path)
    found = json.loads((tmp_path / "export" / "verify.json").read_text())
    assert summary["verified"] and list(found) == ["hf", "adapter"]
    for check in found.values():
        assert check["passed"] and check["texts"] == 6 and check["max_difference"] < 1e-5

    lost = tmp_path / "export" / "adapter" / "adapter_model.safetensors"
    tensors = {name: 0 * tensor for name, tensor in load_file(lost).items()}
    save_file(tensors, lost, metadata={"format": "pt"})
    trained = export.load(config.model.init, config)
    found = verify.run(tmp_path / "export", ["hf", "adapter"], trained, "", config.mesh)
    assert found["hf"]["passed"] and not found["adapter"]["passed"]


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    for field, value in (("verify", True), ("weight_only", "int8")):
        config = run_folders.tiny_config("export")
        config.export[field] = value
        with pytest.raises(ValueError, match=rf"export\.{field} needs torch.*pip install"):
            export.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_greedy_answers_part():
    logits = np.array([[0.0, 2.0, 1.5, -1.0]])
    asked = []

    def score(ids):
        asked.append(ids)
        return logits

    assert verify.gap([7, 8], [1, 3], [1, 3], score) == 0.0
    # One that only goes on, or ends sooner, is no tie.
    assert verify.gap([7, 8], [1, 3], [1, 3, 2], score) is None
    assert verify.gap([7, 8], [1, 3], [1], score) is None
    assert not asked
    assert verify.gap([7, 8], [5, 1, 0], [5, 2, 3], score) == 0.5
    assert asked == [[7, 8, 5]]


def test_questions_hold_what_nobody_should_be_able_to_say(policy):
    root, config, _ = policy
    tokenizer = export.load(str(root / "sft"), config).tokenizer
    hostile, _ = verify.questions(tokenizer)[-1]
    for token in (*tokenizers.control_tokens(tokenizer), *chain_of_empathy.TAGS):
        assert token in hostile
