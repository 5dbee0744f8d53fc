import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import chain_of_empathy, files, main, sharding
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.training import common, sft
from tests.training import tiny_runs, update_steps

# --- the update, on its own ---


def _run(place, **options):
    """The trained collection and the metrics after two updates."""
    batches = [update_steps.packed_batch(seed) for seed in (0, 1)]
    run = functools.partial(update_steps.run, sft.update_fn, update_steps.DECODER)
    return run(place, batches, **options)[:2]


@functools.cache
def _whole():
    return _run(update_steps.layout(1, 1, 1))


# The second cuts tokens over a sequence axis.
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 2, 2)])
def test_one_device_equals_eight(mesh):
    config = update_steps.DECODER
    (one, one_metrics), (eight, eight_metrics) = _whole(), _run(update_steps.layout(*mesh))
    update_steps.assert_same(one, eight, 1e-5)
    update_steps.assert_same(one_metrics, eight_metrics, 1e-4)
    start = update_steps.fresh(config, update_steps.layout(1, 1, 1))
    assert len(update_steps.moved(start, one)) == len(jax.tree.leaves(start))


def test_rows_in_passes_equal_the_whole_batch():
    """Moments in Adam are divided by one another: compared after its large eps, see `prepare`."""
    update_steps.assert_same(_whole(), _run(update_steps.layout(1, 1, 1), rows_per_pass=2), 1e-6)


def test_adapters_learn_and_the_base_is_not_returned():
    config = dataclasses.replace(update_steps.DECODER, lora_rank=2)
    place = update_steps.layout(1, 1, 1)
    batches = [update_steps.packed_batch(seed) for seed in (0, 1)]
    trained, _, _ = update_steps.run(sft.update_fn, config, place, batches)
    start = {"lora": common.module_of(config).init_lora(common.stream(0, "lora"), config)}
    assert jax.tree.structure(start) == jax.tree.structure(trained)
    # B is zero at first, so A learns from the second step on.
    assert len(update_steps.moved(start, trained)) == len(jax.tree.leaves(start))


def test_steady_state_traces_and_compiles_once():
    traces = []

    def update_fn(*args, **options):
        traces.append(1)
        return sft.update_fn(*args, **options)

    batches = [update_steps.packed_batch(seed) for seed in range(4)]
    place = update_steps.layout(2, 2, 2)
    _, _, update = update_steps.run(update_fn, update_steps.DECODER, place, batches)
    assert len(traces) == 1
    # Donated states that came out are laid out as those that went in.
    assert update._cache_size() == 1


def test_loss_is_the_mean_over_counted_tokens_by_hand():
    config, batch = update_steps.DECODER, update_steps.packed_batch(0, rows=2)
    params = common.module_of(config).init_params(jax.random.key(0), config)
    trainable = {"params": params}
    total, count = sft.loss_fn(trainable, {}, batch=update_steps.as_jax(batch), config=config)
    assert count == batch["loss_mask"].sum()
    # Uncounted targets and everything in padding make no difference.
    changed = {name: value.copy() for name, value in batch.items()}
    changed["targets"][~batch["loss_mask"]] = 3
    changed["tokens"][batch["segment_ids"] == 0] = 5
    again, _ = sft.loss_fn(trainable, {}, batch=update_steps.as_jax(changed), config=config)
    assert again == pytest.approx(float(total), rel=1e-6)
    # The first example of a row does not see the second, nor the other way round.
    changed["tokens"][:, 8:] = 7
    first = jnp.asarray(batch["loss_mask"]) & (jnp.arange(16) < 8)
    alone = {**update_steps.as_jax(batch), "loss_mask": first}
    beside = {**update_steps.as_jax(changed), "loss_mask": first}
    one, other = (sft.loss_fn(trainable, {}, batch=b, config=config)[0] for b in (alone, beside))
    assert one == pytest.approx(float(other), rel=1e-6)


def test_which_tag_stands_where_one_stands_by_numpy():
    config, batch = update_steps.DECODER, update_steps.as_jax(update_steps.packed_batch(0))
    params = common.module_of(config).init_params(jax.random.key(0), config)
    tags = (3, 10, 11, 40)
    arguments = {"batch": batch, "config": config}
    trainable = {"params": params}
    plain, count = sft.loss_fn(trainable, {}, **arguments)
    with_tags, same_count = sft.loss_fn(trainable, {}, **arguments, tag_ids=tags, tag_weight=0.5)
    assert count == same_count
    hidden, _ = decoder.hidden_states(
        params,
        config,
        batch["tokens"],
        batch["positions"],
        causal_mask(batch["segment_ids"]),
    )
    logits = np.asarray(decoder.logits(params, config, hidden), np.float64)
    among = logits[..., tags] - np.log(np.exp(logits[..., tags]).sum(-1, keepdims=True))
    expected = 0.0
    for row, column in zip(*np.nonzero(batch["loss_mask"]), strict=True):
        if int(batch["targets"][row, column]) in tags:
            expected -= among[row, column, tags.index(int(batch["targets"][row, column]))]
    assert expected > 1
    assert float(with_tags - plain) == pytest.approx(0.5 * expected, rel=1e-4)


def test_tag_ids_are_the_tokens_of_the_tags_and_the_end(tiny_run):
    tokenizer = tokenizers.load(tiny_run.inputs["model.tokenizer"])
    ids = sft.tag_ids(tokenizer)
    assert tokenizer.eos_token_id in ids and list(ids) == sorted(set(ids))
    text = chain_of_empathy.render(Chain("累", "因", "听", "陪", "在"))
    pieces = tokenizers.completion_ids(tokenizer, text)
    assert set(ids) <= set(pieces)
    rest = [tokenizer.decode([id_]) for id_ in pieces if id_ not in ids]
    assert not any(set("<>") & set(piece) for piece in rest)


# --- a whole run ---


def test_loss_falls_and_everything_is_written(tiny_run):
    folder = tiny_run.root / "sft"
    rows = tiny_runs.metrics(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 40 and losses[-1] < 0.3 * losses[0]
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert set(validation) == {0, 20, 40} and validation[40] < validation[20] < validation[0]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    figures = tiny_run.summaries["sft"]["figures"]
    assert figures[0]["before"] == validation[0] and figures[0]["after"] == validation[40]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == tiny_run.summaries["sft"]
    samples = list(files.read_jsonl(folder / "samples.jsonl"))
    assert [row["step"] for row in samples] == [0] * 8 + [40] * 8
    assert any(row["valid"] for row in samples[8:]) and not any(row["valid"] for row in samples[:8])
    for name in ("config.json", "environment.json", "model.json", "rejected.jsonl"):
        assert (folder / name).exists(), name
    assert {p.name for p in (folder / "checkpoints").iterdir()} >= {"20", "20.json", "40.json"}


def test_the_run_traced_its_update_once(tiny_run):
    assert tiny_run.sft_traces == 1


def test_every_tensor_changed(tiny_run):
    before, after = (tiny_runs.arrays(tiny_run.root / "sft", step) for step in (20, 40))
    assert before.keys() == after.keys() and len(after) > 5
    assert [name for name in after if np.array_equal(before[name], after[name])] == []


def test_a_finished_run_is_returned_and_not_made_again(tiny_run):
    from tests.training.conftest import SFT

    config = tiny_runs.make_config("sft", {**tiny_run.inputs, **SFT})
    before = {p: p.stat().st_mtime_ns for p in (tiny_run.root / "sft").glob("*.jsonl")}
    assert main.run(config, tiny_run.root)["sft"] == tiny_run.summaries["sft"]
    assert before == {p: p.stat().st_mtime_ns for p in (tiny_run.root / "sft").glob("*.jsonl")}


@pytest.fixture(scope="module")
def lora_run(tiny_run, tmp_path_factory):
    """Adapters trained on the finished run's weights."""
    root = tmp_path_factory.mktemp("lora")
    values = {
        "model.init": str(tiny_run.root / "sft"),
        "model.tokenizer": "",
        "model.lora_rank": 2,
        "steps": 3,
    }
    main.run(tiny_runs.make_config("sft", {**tiny_run.inputs, **values}), root)
    return root / "sft"


def test_with_adapters_the_base_stays_as_it_was(tiny_run, lora_run):
    base = tiny_runs.arrays(tiny_run.root / "sft", 40)
    after = tiny_runs.arrays(lora_run, 3)
    adapters = {name: leaf for name, leaf in after.items() if "['lora']" in name}
    assert adapters and after.keys() - adapters.keys() == base.keys()
    for name, leaf in base.items():
        np.testing.assert_array_equal(after[name], leaf)
    # B began at zero; A is the same at every checkpoint only if it does not learn.
    assert all(np.any(leaf) for leaf in adapters.values())
    described = json.loads((lora_run / "model.json").read_text(encoding="utf-8"))
    assert described["config"]["lora_rank"] == 2


def test_adapters_begin_where_the_base_ended(tiny_run, lora_run):
    end = [r for r in tiny_runs.metrics(tiny_run.root / "sft") if "validation_loss" in r][-1]
    start = tiny_runs.metrics(lora_run)[0]
    assert start["validation_loss"] == pytest.approx(end["validation_loss"], abs=1e-5)


def test_no_steps_in_the_format_answer_keep_the_weights_and_ask_for_no_chain(tiny_run, tmp_path):
    values = {**tiny_run.inputs, "steps": 0, "data.format": "answer"}
    config = tiny_runs.make_config("sft", values)
    summary = main.run(config, tmp_path)["sft"]
    assert summary["figures"][0]["before"] == summary["figures"][0]["after"]
    config.phase, config.model.tokenizer = "rl", ""
    layout = sharding.make_layout(config.mesh)
    model = common.load_policy(config, tmp_path, layout)
    fresh = common.fresh_params(common.stream(config.seed, "init"), model.config, layout)
    jax.tree.map(np.testing.assert_array_equal, model.variables["params"], fresh)
    assert model.form == "answer"
    prompt = tokenizers.prompt_ids(model.tokenizer, "我很累")
    assert "<answer>" in model.tokenizer.decode(prompt)
    assert "L1" not in model.tokenizer.decode(prompt)
    samples = list(files.read_jsonl(tmp_path / "sft" / "samples.jsonl"))
    assert {row["step"] for row in samples} == {0}
