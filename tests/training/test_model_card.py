"""The card says what the files of the runs say, and nothing that they do not say any more."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import jax
import pytest

from empathy_jax import files
from empathy_jax.corpus import sample
from empathy_jax.training import lineage, model_card, workdir
from tests.training import run_folders

FIGURE = {"name": "loss", "before": 6.5, "after": 1.25, "error_before": 0.1, "error_after": 0.2}
SCORES = {
    "questions": 21,
    "completions": 42,
    "chain": {"valid": 40},
    "measures": {
        "validity": {"value": 0.75, "error": 0.05, "floor": None, "floor_error": None},
        "rouge_l_max": {
            "value": 0.31,
            "error": 0.02,
            "low": 0.27,
            "high": 0.35,
            "floor": 0.2,
            "floor_error": 0.01,
        },
        "of a later version": {"value": 2.0, "error": None, "floor": 1.0, "floor_error": None},
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished sft and rl on the sample; the model, and the config of its export."""
    root = tmp_path_factory.mktemp("trained")
    config = run_folders.tiny_config("export")
    config.steps, config.batch_size = 40, 8
    texts = [record["question"] for record in sample.sample_questions("zh")[:20]]
    model = run_folders.make_policy_run(root, config, texts)
    shutil.copytree(root / "sft", root / "rl")
    run_folders.save(root / "rl", jax.tree.map(lambda leaf: leaf / 2, model.variables), step=2)
    workdir.open_phase(root, "rl", config)
    for phase, counts in (("sft", (175, 21)), ("rl", (174, 22))):
        records = {"place": "sample", "train": counts[0], "validation": counts[1], "test": 0}
        files.write_json(root / phase / "records.json", records)
    workdir.finish(root / "sft", "sft", 0.0, [FIGURE])
    workdir.finish(root / "rl", "rl", 0.0, [FIGURE | {"name": "reward"}], stopped="KL above 1")
    return root, config, model


@pytest.fixture
def run(trained, tmp_path):
    """A copy of one's own; `card` renders its card."""
    root, config, model = trained
    for phase in ("sft", "rl"):
        shutil.copytree(root / phase, tmp_path / phase)
    config = config.copy_and_resolve_references()

    def card(phase: str = "rl", **options) -> str:
        return model_card.render(str(tmp_path / phase), model, config, tmp_path, **options)

    return tmp_path, config, card


def evaluate(root: Path, config, phase: str) -> None:
    """A finished evaluation of one phase's model."""
    config = config.copy_and_resolve_references()
    config.model.init = str(root / phase)
    folder = workdir.open_phase(root, "evaluate", config)
    files.write_json(folder / "scores.json", SCORES)
    files.write_json(folder / "records.json", {"place": "sample", "train": 0, "validation": 0})
    workdir.finish(folder, "evaluate", 0.0, [], model=config.model.init)


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    files.write_json(file, content)


def test_the_head_is_what_the_hub_reads(run):
    root, config, card = run
    edit(root / "sft" / "config.json", lambda c: c["model"].update(init="Qwen/Qwen3-0.6B"))
    edit(root / "rl" / "config.json", lambda c: c["data"].update(questions="hub:owner/letters"))
    for part, library, relation in (
        ("hf", "transformers", "finetune"),
        ("adapter", "peft", "adapter"),
        ("int4", "transformers", "quantized"),
    ):
        data = huggingface_hub.ModelCard(card(part=part)).data
        assert data.library_name == library
        assert data.pipeline_tag == "text-generation"
        assert data.language == ["zh"]
        assert (data.license, data.license_name) == ("other", "not-stated")
        assert data.base_model == "Qwen/Qwen3-0.6B"
        assert data.to_dict()["base_model_relation"] == relation
        assert data.datasets == ["owner/letters"]
        assert {"empathy", "chain-of-thought"} <= set(data.tags)
    config.export.license = "apache-2.0"
    data = huggingface_hub.ModelCard(card()).data
    assert data.license == "apache-2.0" and data.license_name is None
    assert "Published under `apache-2.0`" in card()


def test_a_base_on_this_machine_is_named_without_its_path(run):
    root, _, card = run
    for base in (root / "base-model", Path("/no/longer/there/base-model")):
        edit(root / "sft" / "config.json", lambda c, base=base: c["model"].update(init=str(base)))
        text = card()
        assert "Start: base-model." in text
        assert str(base.parent) not in text and "/no/longer" not in text
        assert huggingface_hub.ModelCard(text).data.base_model is None


def test_recipe_data_and_figures_of_each_stage(run):
    _, _, card = run
    text = card()
    for part in (
        "Start: freshly initialised weights.",
        "### 1. Supervised fine-tuning on chains",
        "### 2. Reinforcement learning guided by the reward model",
        "1 of 40 steps of 8 packed rows\n",
        "2 of 40 steps of 8 questions; ended early: KL above 1",
        "learning rate 1e-05 (cosine, 10 steps of warm-up)",
        "trained: all weights; kept in float32",
        "advantage `dr_grpo`, ratio `token`",
        "weights format 1, answer 1, echo 0.5, template 0.5, quality 0",
        "answers below 100 characters are charged for",
        "175 training and 21 validation chains of the sample corpus of empathy_jax.",
        "174 training and 22 validation questions of the sample corpus",
        "its people are fictional. Apache-2.0.",
        "| Supervised fine-tuning on chains | loss | 6.5 ± 0.1 | 1.25 ± 0.2 |",
        "| reward | 6.5 ± 0.1 |",
        "It was trained in Chinese",
        "A model's taste shaped it",
        "No crisis service",
        "Not a clinician",
        "12356",
    ):
        assert part in text
    sft = card("sft")
    assert "### 2." not in sft and "taste" not in sft


def test_a_run_that_was_cut_off_says_so(run):
    root, _, card = run
    (root / "rl" / "summary.json").unlink()
    assert "2 of 40 steps of 8 questions; not finished" in card()


def test_the_evaluation_is_of_this_very_model(run, trained):
    root, config, card = run
    model = trained[2]
    assert "held-out test questions" not in card()
    evaluate(root, config, "rl")
    text = card()
    for part in (
        "On 21 held-out test questions, 42 completions, 40 of them whole chains",
        "| chain validity (completions that are a whole chain) | 0.75 ± 0.05 | - |",
        "| 0.31 [0.27, 0.35] | 0.2 ± 0.01 |",
        "| of a later version | 2 | 1 |",
        "- Evaluation: 21 test questions of the sample corpus",
    ):
        assert part in text
    assert "held-out test questions" not in card("sft")
    # The same folder, trained further: the evaluation is of what it was before.
    run_folders.save(root / "rl", model.variables, step=3)
    text = card()
    assert "3 of 40 steps of 8 questions" in text and "held-out test questions" not in text


def test_a_stage_that_was_trained_anew_is_not_taken_for_the_one_before(run, trained):
    root, _, card = run
    run_folders.save(root / "sft", trained[2].variables, step=7)
    text = card()
    assert "1 steps; its folder has been trained anew since, so no more is known" in text
    assert "175 training" not in text and "| Supervised fine-tuning" not in text
    assert "174 training" in text and "| reward |" in text


def test_the_corpus_gives_its_sources_with_their_licences(run):
    root, _, card = run
    corpus = root / "corpus"
    (corpus / "splits").mkdir(parents=True)
    files.write_text(corpus / "card.md", "# Corpus card\n")
    source = {"path": "dump|a.csv", "licence": "CC BY 4.0", "read": 1200, "cleaned": 1100}
    stats = {
        "questions": 500,
        "answers": 1000,
        "pairs": {"read": 1200, "kept": 1000, "rejected": 200},
        "sources": [source, source | {"path": "b", "licence": ""}],
    }
    files.write_json(corpus / "stats.json", stats)
    edit(root / "rl" / "records.json", lambda r: r.update(place=str(corpus / "splits")))
    text = card()
    assert "validation questions of the corpus described below." in text
    assert "| dumpa.csv | CC BY 4.0 | 1,200 | 1,100 |" in text
    assert "| b | not stated | 1,200 | 1,100 |" in text
    assert "of 1,200 pairs read 1,000 were kept" in text


def test_the_teacher_of_annotated_chains_is_named(run):
    root, _, card = run
    (root / "annotate").mkdir()
    report = {"teacher": "big-model", "questions": {"all": 210, "chains": 196}}
    files.write_json(root / "annotate" / "report.json", report)
    place = str(root / "annotate" / "chains.jsonl")
    edit(root / "sft" / "records.json", lambda r: r.update(place=place))
    text = card()
    assert "validation chains of the annotation described below." in text
    assert "teacher model `big-model`: 196 of 210 questions" in text


def test_no_card_has_a_path_of_this_machine(run):
    root, config, card = run
    place = str(root / "letters.jsonl")
    edit(root / "rl" / "records.json", lambda r: r.update(place=place))
    evaluate(root, config, "rl")
    for part in ("hf", "adapter", "int8"):
        text = card(part=part)
        assert "letters.jsonl" in text and str(root) not in text
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work)/", text)


def test_an_older_run_without_counts_still_has_a_card(run):
    root, _, card = run
    for phase in ("sft", "rl"):
        (root / phase / "records.json").unlink()
        (root / phase / "environment.json").unlink()
    assert "Supervised fine-tuning on chains: the sample corpus of empathy_jax." in card()


def test_hub_ids_are_told_from_directories(tmp_path):
    assert lineage.is_hub_id("Qwen/Qwen3-8B") and lineage.is_hub_id("gpt2")
    for no in (str(tmp_path), "/a/b", "a/b/c", "../b", ""):
        assert not lineage.is_hub_id(no), no
