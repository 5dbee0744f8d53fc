"""The README.md of an exported model: what it is, how it was made, what was measured, its limits.

No figure is typed in: parameters are counted, all else is read from the files of the run
(`model_history.py`). What a file does not say, the card does not say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, pytree
from empathy_jax.models import decoder
from empathy_jax.training import lineage, model_history, reward_card
from empathy_jax.training.common import Model
from empathy_jax.training.lineage import Stage

# A licence of one's own needs a name beside it on the hub.
_NO_LICENCE = {"license": "other", "license_name": "not-stated", "license_link": "README.md"}
_RELATIONS = {"hf": "finetune", "adapter": "adapter", "int8": "quantized", "int4": "quantized"}
_TITLES = {
    "hf": "{}",
    "adapter": "{}: adapters (LoRA)",
    "int8": "{}: weights of 8 bits",
    "int4": "{}: weights of 4 bits",
}
_TAGS = ("empathy", "counselling", "mental-health", "jax")
_SMALL = 1_000_000_000  # parameters


def render(
    init: str,
    model: Model,
    config: ConfigDict,
    workdir: Path,
    part: str = "hf",
    verified: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown with a YAML head.

    Args:
      init: `WORKDIR/<phase>`, a Hugging Face directory, or a hub id.
      model: what is exported.
      config: of the phase `export`.
      workdir: of the export; an evaluation of this very model is looked for there too.
      part: "hf" (whole weights), "adapter", "int8" or "int4".
      verified: what verify.json says of this part; None before it was compared.
    """
    stages, base = lineage.trace(init)
    measured = lineage.evaluation(init, workdir)
    policy, embedding = is_policy(model), model.embedding
    scale = Path(init) / "calibration.json"
    calibrated = lineage.read_json(scale) if scale.exists() else None
    parts = [
        _head(stages, base, model, config, part),
        f"# {_TITLES[part].format('Counselling model' if policy else 'Reward model')}",
        _what(model, policy),
        _crisis(),
        "## Loading\n\n" + _loading(model, part, verified),
        _format(language_of(stages, config), form_of(stages, config)) if policy else "",
        reward_card.render(embedding, calibrated) if embedding else "",
        "## How it was made\n\n" + model_history.recipe(stages, lineage.base_name(base)),
        "## Data\n\n" + model_history.data(stages, measured),
        "## Measured\n\n" + model_history.measures(stages, measured),
        _limits(model, stages) if policy else "",
        _use(policy),
        "## Licence\n\n" + _licence(base, config.export.license),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_policy(model: Model) -> bool:
    """Whether a model writes answers; a reward model, encoder or decoder, only weighs them."""
    return model.module is decoder and model.embedding is None


def language_of(stages: list[Stage], config: ConfigDict) -> str:
    """The language that a model was trained in; of an import what the export's config says."""
    return stages[-1].config["data"]["language"] if stages else config.data.language


def form_of(stages: list[Stage], config: ConfigDict) -> str:
    """The format that a model was trained to write; of an import what the export's config says."""
    return stages[-1].config["data"].get("format", "chain") if stages else config.data.format


def usage(directory: str, model: Model, part: str = "hf") -> list[str]:
    """Two lines of Python that load an exported directory, with the library it is made for."""
    if part == "adapter":
        kind = "CausalLM" if is_policy(model) else "FeatureExtraction"
        load = f"model = AutoPeftModelFor{kind}.from_pretrained({directory!r})"
        return [f"from peft import AutoPeftModelFor{kind}", load]
    if model.embedding is not None:
        load = f"model = SentenceTransformer({directory!r})"
        return ["from sentence_transformers import SentenceTransformer", load]
    name = "AutoModelForCausalLM" if is_policy(model) else "AutoModel"
    load = ", ".join(f"{kind}.from_pretrained({directory!r})" for kind in (name, "AutoTokenizer"))
    return [f"from transformers import {name}, AutoTokenizer", f"model, tokenizer = {load}"]


def _head(stages: list[Stage], base: str, model: Model, config: ConfigDict, part: str) -> str:
    library, task = "transformers", "text-generation" if is_policy(model) else "feature-extraction"
    if model.embedding:
        library, task = "sentence-transformers", "sentence-similarity"
    fields: dict[str, Any] = {
        "library_name": "peft" if part == "adapter" else library,
        "pipeline_tag": task,
        "language": [language_of(stages, config)],
        **({"license": config.export.license} if config.export.license else _NO_LICENCE),
        "tags": [*_TAGS, "chain-of-thought" if is_policy(model) else "reward-model"],
    }
    if base and lineage.is_hub_id(base):
        fields |= {"base_model": base, "base_model_relation": _RELATIONS[part]}
    if datasets := model_history.hub_datasets(stages):
        fields["datasets"] = datasets
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
            "response strategy), the method of Empathy-R1 (https://arxiv.org/abs/2509.14851).\n\n"
            f"{shape}. Made with empathy_jax."
        )
    embedding = model.embedding
    pooling = f", {embedding.pooling} pooling and L2 normalisation" if embedding else ""
    return (
        "A model that puts questions and answers in one space: the cosine of the two says how "
        f"well an answer fits a question. {shape}{pooling}. Made with empathy_jax."
    )


def _crisis() -> str:
    return (
        "**This is software, not a clinician and not a crisis service.** In danger, speak to a person "
        "now. China: 12356 (psychological aid), 110, 120. European Union: 112. United States and "
        "Canada: 988, 911. United Kingdom: 999, 116 123. Elsewhere: the local emergency number.\n\n"
        "**这是软件，不是医生，也不是危机热线。** 如果你或身边的人有危险，请马上联系真人："
        "心理援助热线 12356，报警 110，急救 120。"
    )


def _loading(model: Model, part: str, verified: Mapping[str, Any] | None) -> str:
    lines = ["```python", *usage("...", model, part), "```"]
    if part in ("int8", "int4"):
        lines += [
            "",
            f"Weights of the linear layers rounded to {part[3:]} bits, symmetric, in groups along "
            "their inputs, without calibration; embeddings and the output head are not rounded. The "
            "format is `compressed-tensors`, a package that `transformers` and vLLM load it with.",
        ]
    return "\n".join([*lines, "", describe_check(verified)])


def describe_check(verified: Mapping[str, Any] | None) -> str:
    """What the comparison of an export with the model that it was made of has shown, in words."""
    if verified is None:
        return "Nobody has yet loaded this export and compared it (`--config.export.verify=True`)."
    libraries = ", ".join(f"{name} {version}" for name, version in verified["libraries"].items())
    failed = [] if verified["passed"] else ["**More than rounding: do not use this export.**"]
    words = [f"Loaded with {libraries} and compared with the model that was trained, in float32:"]
    if "texts" in verified:
        words.append(
            f"vectors of {verified['texts']} texts differ by at most "
            f"{verified['max_difference']:.1e} in any number."
        )
        return " ".join([*words, *failed])
    words.append(
        f"over {verified['prompts']} prompts of {verified['positions']} tokens in all a logit differs "
        f"by at most {verified['max_difference']:.1e} (their standard deviation is "
        f"{verified['logit_deviation']:.2g}), the likeliest next token is the same at "
        f"{verified['same_token']:.1%} of the places, and the mean KL divergence is "
        f"{verified['kl']:.1e} nats; the greedy answer ({verified['answer_tokens']} tokens at most) is "
        f"the same for {verified['same_answers']} of {verified['prompts']}."
    )
    if not verified["same_prompts"]:
        words.append("**The chat template gives another prompt than that of the training.**")
    return " ".join([*words, *failed])


def _format(language: str, form: str) -> str:
    layers = {name: "..." for name in chain_of_empathy.LAYERS}
    example = chain_of_empathy.render(chain_of_empathy.Chain(**layers, answer="..."), form)
    reasoning = (
        "\n\nOnly the last element is for the person. Do not show the reasoning as if it were a "
        "finding about them."
    )
    return (
        "## Format\n\nThe chat template carries the system prompt that the model was trained with "
        f"(`{language}`); a system message of your own replaces it. It writes a space into any "
        "control token that a message contains, so that what people type can never end a turn. Give "
        f"one user message and read back\n\n```\n{example}\n```"
        + (reasoning if form == "chain" else "")
    )


def _limits(model: Model, stages: list[Stage]) -> str:
    lines = [
        "**It errs.** It invents facts, misreads people, and repeats what its data hold; its "
        "reasoning need not be what led to its answer.",
        "**Nothing guards it.** The weights carry no check of what is asked or answered. How it "
        "answers people in danger was not measured.",
        "**The measures are of text.** Overlap, length, form and a model's score say nothing about "
        "safety or clinical benefit; no clinician has judged these answers unless a section above "
        "says so.",
    ]
    if pytree.count_params(model.variables["params"]) < _SMALL:
        lines.append(
            "**It is small.** A model of this size learns the form of a chain and the sound of an "
            "answer; it cannot counsel anyone."
        )
    if stages:
        language = {"zh": "Chinese", "en": "English"}[stages[-1].config["data"]["language"]]
        lines.append(f"**It was trained in {language}.** Other languages were not tried.")
    if any(stage.phase == "rl" for stage in stages):
        lines.append(
            "**A model's taste shaped it.** Reinforcement learning pays what the reward model "
            "scores, and a policy finds texts that score high and help nobody."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _use(policy: bool) -> str:
    what = (
        "research on empathetic language models and on reinforcement learning"
        if policy
        else "research on reward models: ranking answers within one question"
    )
    return (
        f"## Intended use\n\nMade for {what}, with people who know that a machine answers, and with "
        "trained humans in the loop wherever someone may be in distress.\n\n"
        "## Not for\n\n- **No crisis service.** It must not be what a person in danger is left "
        "with; lead them to emergency services or a local helpline.\n"
        "- **Not a clinician.** It does not diagnose, treat, prescribe or assess risk, and does not "
        "replace people who do.\n"
        "- **No judge of people.** Not for profiling, insurance, hiring, moderation or any decision "
        "about a person.\n"
        "- **Not for children alone**, and not as a companion that hides what it is."
    )


def _licence(base: str, licence: str) -> str:
    said = f"Published under `{licence}`, as its maker states. " if licence else ""
    weights = (
        f"The weights derive from {lineage.base_name(base)}, whose licence applies to them"
        if base
        else "The weights were trained from nothing"
        + ("" if licence else "; their maker decides on a licence")
    )
    return (
        f"{said}{weights}. The terms of the data named above may bind them too. Check both before "
        "you pass the model on."
    )
