"""The phase reward_model: which model, which texts, which batches; and whole tiny runs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import files, sharding
from empathy_jax.data import pairs
from empathy_jax.training import common, reward_model
from empathy_jax.training.scorer import load_scorer
from tests.training import run_folders, tiny_runs

# --- which model, which texts, which batches ---


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("architecture", "bert", "encoder, decoder"),
        ("triplet_negative", "all", "hardest, any"),
        ("in_batch", "hard", "random, same_topic, mined"),
    ],
)
def test_unknown_choices_are_refused(tmp_path, field, value, allowed):
    config = tiny_runs.make_config("reward_model", {f"reward_model.{field}": value})
    with pytest.raises(
        ValueError, match=rf"config\.reward_model\.{field} is '{value}'; allowed: {allowed}"
    ):
        reward_model.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"batch_size": 12}, r"config\.batch_size is 12"),
        (
            {"reward_model.head_weight": 1.0, "reward_model.graded_pairs": 3},
            r"config\.reward_model\.graded_pairs is 3",
        ),
    ],
)
def test_a_batch_is_cut_evenly_over_the_devices(tmp_path, values, name):
    with pytest.raises(ValueError, match=rf"{name}; it must be a multiple of 8"):
        reward_model.run(tiny_runs.make_config("reward_model", values), tmp_path)


def test_a_pooling_that_does_not_fit_the_model_is_refused(tmp_path):
    config = run_folders.tiny_config("reward_model")
    run_folders.make_policy_run(tmp_path, config, ["一些话"])
    layout = sharding.make_layout(config.mesh)
    config.reward_model.pooling = "last"
    with pytest.raises(ValueError, match=r"config\.reward_model\.pooling is 'last'.*an encoder"):
        reward_model.load(config, layout, [{"question": "问", "answers": []}])
    config.reward_model.update({"init": str(tmp_path / "sft"), "pooling": "cls"})
    with pytest.raises(ValueError, match=r"config\.reward_model\.pooling is 'cls'.*a decoder"):
        reward_model.load(config, layout, [])
    config.reward_model.remat = "some"
    with pytest.raises(ValueError, match=r"^config\.reward_model\.remat is 'some'"):
        reward_model.load(config, layout, [])


def _load(inputs, **values):
    fields = {f"reward_model.{name}": value for name, value in values.items()}
    language = fields.pop("reward_model.language", "zh")
    config = tiny_runs.make_config("reward_model", {**inputs, **fields, "data.language": language})
    return reward_model.load(config, sharding.make_layout(config.mesh), [])


def test_prompts_are_the_configs_else_the_imported_models_else_the_languages(tiny_run, tmp_path):
    inputs = tiny_run.inputs

    def prompts(**values):
        embedding = _load(inputs, **values).embedding
        return embedding.query_prompt, embedding.document_prompt

    assert prompts() == (reward_model.QUERY_PROMPTS["zh"], "") and prompts()[0]
    assert prompts(language="en") == (reward_model.QUERY_PROMPTS["en"], "")
    assert prompts(query_prompt="") == ("", "")
    assert prompts(query_prompt="问：", document_prompt="答：") == ("问：", "答：")
    tokenizer = _load(inputs).tokenizer
    run_folders.make_reward_run(tmp_path, run_folders.tiny_config("reward_model"), tokenizer)
    init = {"init": str(tmp_path / "reward_model"), "max_tokens": 64}
    assert prompts(**init) == prompts(**init, language="en") == ("问：", "")
    assert prompts(**init, query_prompt="") == ("", "")
    assert prompts(**init, document_prompt="答：") == ("问：", "答：")


def test_pooling_is_the_configs_else_the_imported_models_else_the_usual(tiny_run, tmp_path):
    inputs = tiny_run.inputs
    assert _load(inputs).embedding.pooling == "mean"
    decodes = {"architecture": "decoder", "head_dim": 16}
    assert _load(inputs, **decodes).embedding.pooling == "last"
    assert _load(inputs, **decodes, pooling="mean").embedding.pooling == "mean"
    init = {"init": str(tiny_run.root / "reward_model")}
    assert _load(inputs, **init).embedding.pooling == "mean"
    assert _load(inputs, **init, pooling="cls").embedding.pooling == "cls"
    # A policy has none of its own, and is a decoder.
    assert _load(inputs, init=str(tiny_run.root / "sft")).embedding.pooling == "last"


def test_a_head_is_kept_while_it_is_trained(tiny_run, tmp_path):
    model = _load(tiny_run.inputs, head_weight=0.5)
    assert model.embedding.has_head and not np.any(model.variables["head"]["kernel"])
    assert "head" not in _load(tiny_run.inputs).variables
    trained = {**model.variables, "head": {"kernel": jnp.ones((2, 32))}}
    folder = tmp_path / "reward_model"
    folder.mkdir()
    common.save_model_folder(folder, model)
    run_folders.save(folder, trained)
    again = _load(tiny_run.inputs, init=str(folder), head_weight=0.5)
    assert again.embedding.has_head
    np.testing.assert_array_equal(again.variables["head"]["kernel"], np.ones((2, 32)))
    without = _load(tiny_run.inputs, init=str(folder))
    assert not without.embedding.has_head and without.variables.keys() == {"params"}


def test_texts_are_prompted_cut_and_packed_as_the_config_says(tiny_run):
    values = {"reward_model.max_tokens": 6, "reward_model.query_prompt": "我"}
    values |= {"reward_model.rows_per_pass": 3, "reward_model.corrupted": 2}
    config = tiny_runs.make_config("reward_model", {**tiny_run.inputs, **values})
    layout = sharding.make_layout(config.mesh)
    model = reward_model.load(config, layout, [])
    found = reward_model.text_layout(config, model, layout)
    decode, end = model.tokenizer.decode, model.tokenizer.eos_token
    assert decode(found.tokenize_question("很累")) == f"我很累{end}"
    assert decode(found.tokenize_answer("很累")) == f"很累{end}"
    for tokenize in (found.tokenize_question, found.tokenize_answer):
        ids = tokenize("很累" * 9)
        assert len(ids) == 6 and ids[-1] == model.tokenizer.eos_token_id
    # 8 devices and passes of 3 rows; without a head, graded answers are not looked for.
    assert (found.row_multiple, found.corrupted, found.graded_pairs) == (24, 2, 0)
    assert (found.max_tokens, found.language) == (6, "zh")
    config.reward_model.head_weight = 0.1
    assert reward_model.text_layout(config, model, layout).graded_pairs == 8


class _Planted:
    """A scorer whose vector of a text is the one-hot of its first character."""

    def embed_questions(self, texts):
        return np.stack([np.eye(8)[tiny_runs.FEELINGS.index(text[2])] for text in texts])

    def embed_answers(self, texts):
        return np.stack([np.eye(8)[tiny_runs.FEELINGS.index(text[3])] for text in texts])


def _arranged(folder, in_batch, first=1, records=None, scorer=None):
    records = records or [
        {"question": r["question"], "topic": r["L1"], "answers": [{"text": r["answer"]}]}
        for r in tiny_runs.chain_records()
    ]
    values = {"reward_model.in_batch": in_batch, "reward_model.company": 3}
    values |= {"reward_model.mine_every": 6, "batch_size": 8}
    layout = pairs.Layout(list, list, 64, 0, 1, 0, 0, "zh")
    stream = pairs.PairStream(records, 8, layout, seed=0)
    config = tiny_runs.make_config("reward_model", values)
    return stream, reward_model.arranged(config, folder, stream, first, scorer)


def test_random_batches_are_the_stream(tmp_path):
    stream, batches = _arranged(tmp_path, "random", first=7)
    assert [pair for batch in batches for pair in batch] == stream.window(48, 48)
    assert {len(batch) for batch in batches} == {8} and not list(tmp_path.iterdir())


@pytest.mark.parametrize("in_batch", ["same_topic", "mined"])
def test_companies_are_of_one_topic_or_what_the_model_finds_alike(tmp_path, in_batch):
    stream, batches = _arranged(tmp_path, in_batch, scorer=_Planted())
    # One window is an epoch here: every pair once.
    assert sorted(pair for batch in batches for pair in batch) == list(range(48))
    # Six questions have the same feeling: two companies of three.
    feelings = [stream.question(pair)[2] for batch in batches for pair in batch]
    for start in range(0, 48, 3):
        assert len(set(feelings[start : start + 3])) == 1
    written = json.loads((tmp_path / "batches" / "1.json").read_text(encoding="utf-8"))
    assert written == batches
    assert _arranged(tmp_path / "batches", in_batch, first=7, scorer=_Planted())[1] != batches


def test_what_was_chosen_is_taken_again(tmp_path):
    _, batches = _arranged(tmp_path, "mined", scorer=_Planted())
    # Another model would choose otherwise; it is not asked.
    assert _arranged(tmp_path, "mined", scorer=None)[1] == batches


def test_questions_without_topics_cannot_be_put_together_by_topic(tmp_path):
    with pytest.raises(ValueError, match=r"in_batch is 'same_topic', but no question has a topic"):
        _arranged(tmp_path, "same_topic", records=tiny_runs.question_records())
    assert not list(tmp_path.iterdir())


# --- whole runs ---


def test_the_run_learns_and_is_calibrated(tiny_run):
    folder = tiny_run.root / "reward_model"
    rows = tiny_runs.metrics(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 24 and np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    accuracy = [row["pairwise_accuracy"] for row in rows if "pairwise_accuracy" in row]
    assert len(accuracy) == 3 and accuracy[-1] > accuracy[0]
    found = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    assert found["pairwise_accuracy"] == accuracy[-1]
    assert len(found["quantiles"]) == 101 and found["quantiles"] == sorted(found["quantiles"])
    assert -1 <= found["threshold"] <= 1 and found["genuine_mean"] > found["other_mean"]
    figure = tiny_run.summaries["reward_model"]["figures"][0]
    assert figure["before"] == accuracy[0] and figure["after"] == accuracy[-1]


def test_every_tensor_changed(tiny_run):
    before, after = (tiny_runs.arrays(tiny_run.root / "reward_model", step) for step in (21, 24))
    # Positions beyond the longest text and the unused segment embedding have no gradient, but
    # every tensor as a whole moves.
    assert [name for name in after if np.array_equal(before[name], after[name])] == []


def test_training_reads_no_more_than_the_imported_model_can(tiny_run, tmp_path):
    values = {
        "reward_model.init": str(tiny_run.root / "reward_model"),
        "reward_model.max_tokens": 999,
    }
    config = tiny_runs.make_config("reward_model", {**tiny_run.inputs, **values})
    with pytest.raises(ValueError, match=r"config\.reward_model\.max_tokens is 999.*128 positions"):
        reward_model.run(config, tmp_path)


def test_adapters_and_a_head_learn_from_graded_answers(tiny_run, tmp_path):
    """Kind answers are graded 5 and curt ones 1: held-out ones are told apart, the base stays."""
    records = [
        {
            **record,
            "answers": [
                {"text": f"{record['answers'][0]['text']}慢慢说", "score": 5},
                {"text": f"{record['answers'][1]['text']}别烦", "score": 1},
            ],
        }
        for record in tiny_runs.question_records()
    ]
    files.write_jsonl(tmp_path / "graded.jsonl", records)
    init = tiny_run.root / "reward_model"
    values = {
        **tiny_run.inputs,
        "data.questions": str(tmp_path / "graded.jsonl"),
        "steps": 10,
        "log.validate_every": 10,
        "reward_model.init": str(init),
        "reward_model.lora_rank": 4,
        "reward_model.head_weight": 1.0,
        "reward_model.info_nce_weight": 0.1,
        "reward_model.in_batch": "random",
    }
    config = tiny_runs.make_config("reward_model", values)
    reward_model.run(config, tmp_path)
    folder = tmp_path / "reward_model"
    surprise = [row["bradley_terry"] for row in tiny_runs.metrics(folder) if "loss" in row]
    assert surprise[0] == pytest.approx(np.log(2), rel=1e-4)  # a fresh head knows nothing
    assert len(surprise) == 10 and surprise[-1] < 0.3

    before, after = tiny_runs.arrays(init, 24), tiny_runs.arrays(folder, 10)
    assert after.keys() > before.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    more = {path: leaf for path, leaf in after.items() if path not in before}
    assert {path.split("']")[0] for path in more} == {"['lora", "['head"}
    assert all(np.any(leaf) for leaf in more.values())  # B of each adapter and the head were 0

    config.reward_model.init = str(folder)
    config.reward_model.lora_rank = 0
    scorer = load_scorer(config, tmp_path, sharding.make_layout(config.mesh))
    assert scorer.has_head
    held_out = [f"我很{feeling}，第{99}天了" for feeling in tiny_runs.FEELINGS]
    kind, curt = (
        scorer.quality(held_out, [text.format(feeling) for feeling in tiny_runs.FEELINGS])
        for text in ("我在，{}。慢慢说", "{}会过去别烦")
    )
    assert kind.dtype == np.float32 and (kind > curt + 1).all()


def test_a_fresh_decoder_with_last_pooling_learns(tiny_run, tmp_path):
    values = {
        **tiny_run.inputs,
        "steps": 20,
        "log.validate_every": 20,
        "optimizer.learning_rate": 3e-3,
        "reward_model.architecture": "decoder",
        "reward_model.head_dim": 16,
        "reward_model.temperature": 0.2,
        "reward_model.in_batch": "random",
        "reward_model.corrupted": 0,
        # All texts end in the same token, and before any training that makes all of them alike.
        "reward_model.negative_ceiling": 2.0,
    }
    config = tiny_runs.make_config("reward_model", values)
    reward_model.run(config, tmp_path)
    rows = tiny_runs.metrics(tmp_path / "reward_model")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    accuracy = [row["pairwise_accuracy"] for row in rows if "pairwise_accuracy" in row]
    assert accuracy[-1] > accuracy[0]
    scorer = load_scorer(config, tmp_path, sharding.make_layout(config.mesh))
    described = json.loads((tmp_path / "reward_model" / "model.json").read_text(encoding="utf-8"))
    assert described["kind"] == "decoder" and described["embedding"]["pooling"] == "last"
    assert not scorer.has_head and scorer.calibration["pairwise_accuracy"] == accuracy[-1]


def test_without_steps_an_import_is_calibrated_as_it_is(tiny_run, tmp_path):
    source = tiny_run.root / "reward_model"
    values = {**tiny_run.inputs, "steps": 0, "reward_model.init": str(source)}
    config = tiny_runs.make_config("reward_model", values)
    summary = reward_model.run(config, tmp_path)
    before, after = tiny_runs.arrays(source, 24), tiny_runs.arrays(tmp_path / "reward_model", 0)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in after)
    figure = summary["figures"][0]
    assert figure["before"] == figure["after"]
    scorer = load_scorer(config, tmp_path, sharding.make_layout(config.mesh))
    trained = json.loads((source / "calibration.json").read_text(encoding="utf-8"))
    assert scorer.calibration == trained
    assert reward_model.run(config, tmp_path) == summary
