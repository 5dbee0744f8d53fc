"""The README.md of an exported model: what it is, its origin, what was measured, its limits.

No figure is typed in: parameters are counted, results are read from the summaries of the run.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, pytree
from empathy_jax.models import decoder
from empathy_jax.training import common, reward_card
from empathy_jax.training.common import Model

_STAGES = {
    "sft": "supervised fine-tuning on chains",
    "reward_model": "contrastive training of the reward model",
    "rl": "reinforcement learning (GRPO) guided by the reward model",
    "evaluate": "evaluation on held-out test questions (before: the floor)",
}


def render(init: str, model: Model, config: ConfigDict) -> str:
    """The card as Markdown with a YAML head.

    Args:
      init: `WORKDIR/<phase>`, a Hugging Face directory, or a hub id.
      model: what is exported.
      config: of the phase `export`.
    """
    stages, base = lineage(init)
    policy, embedding = is_policy(model), model.embedding
    scale = Path(init) / "calibration.json"
    calibrated = _read(scale) if scale.exists() else None
    parts = [
        _head(base, model, config),
        f"# {'Counselling model' if policy else 'Reward model for counselling answers'}",
        _what(model, policy),
        "## Origin\n\n" + "\n".join(_origin(stages, base)),
        "## Measured\n\n" + _figures(stages, init),
        _format(config) if policy else "",
        reward_card.render(embedding, calibrated) if embedding else "",
        _use(policy),
        "## Licence\n\n" + _licence(base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_policy(model: Model) -> bool:
    """Whether a model writes answers; a reward model, encoder or decoder, only weighs them."""
    return model.module is decoder and model.embedding is None


def lineage(init: str) -> tuple[list[Path], str]:
    """The run folders that made a model, oldest first, and what they started from.

    Returns:
      The folders (none for an import), and a hub id, a directory, or "" for fresh weights.
    """
    folder = Path(init)
    if not common.is_run(folder):
        return [], init
    config = _read(folder / "config.json")
    section = "reward_model" if folder.name == "reward_model" else "model"
    earlier = config[section]["init"]
    if not earlier and folder.name == "rl":
        earlier = str(folder.parent / "sft")
    before, base = lineage(earlier) if earlier else ([], "")
    return [*before, folder], base


def _head(base: str, model: Model, config: ConfigDict) -> str:
    library, task = "transformers", "text-generation" if is_policy(model) else "feature-extraction"
    if model.embedding:
        library, task = "sentence-transformers", "sentence-similarity"
    fields: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": task,
        "language": [config.data.language],
        "license": "other",
    }
    if base and not Path(base).exists():
        fields["base_model"] = base
    # JSON values are YAML values, with the quoting done right.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _what(model: Model, policy: bool) -> str:
    count = pytree.count_params(model.variables["params"])
    shape = (
        f"{count:,} parameters, {model.config.num_layers} layers of width {model.config.width}, "
        f"vocabulary {model.config.vocab_size:,}"
    )
    if policy:
        return (
            "A language model that reads a person's letter and answers it. Before it replies it "
            "reasons in a Chain of Empathy (emotions and context, causes and beliefs, intent, "
            f"response strategy), the method of Empathy-R1 (https://arxiv.org/abs/2509.14851).\n\n"
            f"{shape}. Made with empathy_jax."
        )
    embedding = model.embedding
    pooling = f", {embedding.pooling} pooling and L2 normalisation" if embedding else ""
    return (
        "A model that puts questions and answers in one space: the cosine of the two says how "
        f"well an answer fits a question. {shape}{pooling}. Made with empathy_jax."
    )


def _origin(stages: Sequence[Path], base: str) -> list[str]:
    lines = [f"- start: {_base_name(base)}"]
    for folder in stages:
        config = _read(folder / "config.json")
        field = "chains" if folder.name == "sft" else "questions"
        lines.append(
            f"- {_stage(folder)}: {config['steps']} updates on {_data_name(config['data'][field])}"
        )
    if not stages:
        lines.append("- imported and exported again: the weights are not trained further")
    return lines


def _figures(stages: Sequence[Path], init: str) -> str:
    """A table of every figure in the summaries of the stages and of an evaluation of this model."""
    folders = list(stages)
    if stages and _evaluates(stages[-1].parent / "evaluate", init):
        folders.append(stages[-1].parent / "evaluate")
    rows = []
    for folder in folders:
        path = folder / "summary.json"
        for figure in _read(path)["figures"] if path.exists() else ():
            before = _value(figure["before"], figure.get("error_before"))
            after = _value(figure["after"], figure.get("error_after"))
            rows.append(f"| {_stage(folder)} | {figure['name']} | {before} | {after} |")
    if not rows:
        return "Nothing was measured in this run."
    return "\n".join(["| stage | figure | before | after |", "|---|---|---|---|", *rows])


def _evaluates(folder: Path, init: str) -> bool:
    """Whether a folder holds a finished evaluation of this very model."""
    path = folder / "summary.json"
    return path.exists() and Path(_read(path)["model"]).resolve() == Path(init).resolve()


def _format(config: ConfigDict) -> str:
    layers = {name: "..." for name in chain_of_empathy.LAYERS}
    example = chain_of_empathy.render(chain_of_empathy.Chain(**layers, answer="..."))
    return (
        "## Format\n\nThe chat template carries the system prompt that the model was trained with; "
        "a system message of your own replaces it. It writes a space into any control token that "
        "a message contains, so that what people type can never end a turn. Give one user message "
        f"and read back\n\n```\n{example}\n```\n\nOnly the last element is for the person. Do not "
        "show the reasoning as if it were a finding about them."
    )


def _use(policy: bool) -> str:
    what = (
        "research on empathetic language models and on reinforcement learning"
        if policy
        else "research on reward models: ranking answers within one question"
    )
    return (
        f"## Intended use\n\nMade for {what}, with people who know that a machine answers.\n\n"
        "## Not for\n\n- **No crisis service.** It must not be what a person in danger is left "
        "with; lead them to emergency services or a local helpline.\n"
        "- **Not a clinician.** It does not diagnose, treat, or assess risk, and does not replace "
        "people who do.\n"
        "- It errs, invents, and repeats what its data hold. The measures above say nothing about "
        "safety or clinical benefit."
    )


def _licence(base: str) -> str:
    weights = (
        f"The weights derive from {_base_name(base)}, whose licence applies to them"
        if base
        else "The weights were trained from nothing; their maker decides on a licence"
    )
    return (
        f"{weights}. The terms of the data named above may bind them too. Check both before you "
        "pass the model on."
    )


def _stage(folder: Path) -> str:
    return _STAGES.get(folder.name, folder.name)


def _base_name(base: str) -> str:
    """A hub id as it is, a directory by its name alone, without the machine's path."""
    if not base:
        return "freshly initialised weights"
    return Path(base).resolve().name if Path(base).exists() else base


def _data_name(value: str) -> str:
    return "the sample corpus of empathy_jax" if value == "sample" else Path(value).name


def _value(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
