"""Loads an export with the libraries that it is made for, and compares its outputs with ours.

Ours are those of the trained model itself, not of what was written, so a mistake of the export cannot
hide. Both sides compute in float32 on the same rounded weights: what differs is the order of sums. The
libraries need torch, which the package does not ask for; `require` says what to install. No module of
torch is named here: transformers makes its tensors.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy, files, sharding
from empathy_jax.corpus import sample
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation import engine
from empathy_jax.models import decoder, peft
from empathy_jax.models.attention import causal_mask
from empathy_jax.models.hf import read_json
from empathy_jax.models.pooling import Embedding
from empathy_jax.sharding import Layout
from empathy_jax.training import model_card
from empathy_jax.training.common import Model, merged
from empathy_jax.training.scorer import Scorer

FILE = "verify.json"
# Largest difference in float32, of logits as a share of their standard deviation, of unit vectors as
# it is. Weights in the wrong dtype, a wrong RoPE or a lost bias are ten times that and more.
LOGITS_TOLERANCE, VECTORS_TOLERANCE = 1e-3, 1e-4
# Mean KL divergence in nats that rounding the weights may cost.
MAX_KL = {"int8": 0.05, "int4": 1.0}
ANSWER_TOKENS = 64
QUESTIONS_PER_LANGUAGE = 2
Scores = Callable[[list[int]], np.ndarray]


def require(field: str, *packages: str) -> None:
    """Refuses to begin without a package that a field needs.

    Raises:
      ValueError: names the packages and how to install them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise ValueError(
            f"{field} needs {names}, which the rest of the program does without: "
            "pip install 'empathy_jax[verify]'"
        )


def run(folder: Path, parts: Sequence[str], trained: Model, dtype: str, mesh: ConfigDict) -> dict:
    """Compares each part of an export; writes `verify.json`.

    Args:
      folder: WORKDIR/export.
      parts: folders in it: "hf", "adapter", "int8", "int4".
      trained: the model they were made of, adapters beside the weights.
      dtype: that "hf" was rounded to; empty for none.
      mesh: `config.mesh`.

    Returns:
      Part to what was found; "passed" says whether it is as near as it should be.

    Raises:
      ValueError: when a library is not installed.
    """
    vectors = not model_card.is_policy(trained)
    needed = {"transformers", "torch"} | ({"sentence_transformers"} if vectors else set())
    if "adapter" in parts:
        needed.add("peft")
    if {"int8", "int4"} & set(parts):
        needed.add("compressed_tensors")
    require("config.export.verify", *sorted(needed))
    versions = {name.replace("_", "-"): _version(name) for name in sorted(needed)}
    layout = sharding.make_layout(mesh)
    trained = _placed(trained, layout)
    found = {}
    for part in parts:
        # The adapters are compared as they are; the rest was made of the rounded sum.
        ours = trained if part == "adapter" else _rounded(merged(trained), dtype)
        ours = dataclasses.replace(
            ours, config=dataclasses.replace(ours.config, compute_dtype="float32")
        )
        with jax.set_mesh(layout.mesh), jax.default_matmul_precision("highest"):
            check = _vectors(folder, part, ours, layout) if vectors else _text(folder, part, ours)
        found[part] = {"libraries": versions, **check}
    files.write_json(folder / FILE, found)
    return found


def questions(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """Questions with answers in both languages, and at last what somebody may type as well: the
    tokenizer's control tokens, the tags of a chain, a piece of a template."""
    hostile = "".join(
        [*tokenizer.all_special_tokens, *chain_of_empathy.TAGS, "{{ messages }} \\n？"]
    )
    return [
        *(
            (record["question"], record["answers"][0]["text"])
            for language in sample.LANGUAGES
            for record in sample.sample_questions(language)[:QUESTIONS_PER_LANGUAGE]
        ),
        (hostile, hostile[::-1]),
    ]


# --- a model that writes ---


def _text(folder: Path, part: str, ours: Model) -> dict[str, Any]:
    """Prompts, logits and greedy answers of one part beside ours."""
    from transformers import AutoTokenizer

    # White space around a question is taken off by the template.
    texts = [f"  {question}\n" for question, _ in questions(ours.tokenizer)]
    tokenizer = AutoTokenizer.from_pretrained(folder / part)
    asked = [tokenizers.prompt_ids(ours.tokenizer, text) for text in texts]
    same_prompts = asked == [tokenizers.prompt_ids(tokenizer, text) for text in texts]
    if (longest := max(map(len, asked))) > (room := ours.config.max_positions - ANSWER_TOKENS):
        raise ValueError(
            f"config.export.verify asks prompts of up to {longest} tokens, and beside an answer of "
            f"{ANSWER_TOKENS} the model has {room} positions for them; leave it False"
        )
    theirs = _load_writer(folder, part)
    answers = _greedy(ours, asked)
    score = _scores(ours, longest + ANSWER_TOKENS)
    rows = [
        _compare(ids, answer, score, theirs) for ids, answer in zip(asked, answers, strict=True)
    ]
    positions = sum(map(len, asked))
    deviation = float(np.sqrt(np.mean([row["variance"] for row in rows])))
    largest = max(row["difference"] for row in rows)
    kl = max(0.0, sum(row["kl"] for row in rows) / positions)  # rounding may bring it below 0
    tolerance = LOGITS_TOLERANCE * deviation
    if part in MAX_KL:
        passed = kl <= MAX_KL[part]
    else:
        agree = (row["gap"] is not None and row["gap"] <= 2 * tolerance for row in rows)
        passed = largest <= tolerance and all(agree)
    return {
        "passed": bool(same_prompts and passed),
        "same_prompts": same_prompts,
        "prompts": len(asked),
        "positions": positions,
        "max_difference": largest,
        "logit_deviation": deviation,
        "same_token": sum(row["same_token"] for row in rows) / positions,
        "kl": kl,
        "answer_tokens": ANSWER_TOKENS,
        "same_answers": sum(row["same_answer"] for row in rows),
    }


def _load_writer(folder: Path, part: str) -> Any:
    """A part as a torch model in float32."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    if part == "adapter":
        model = _with_adapter(AutoModelForCausalLM, folder / part)
        # The base's own settings of generation are not those of what it became.
        model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder / "hf")
        return model
    model = AutoModelForCausalLM.from_pretrained(folder / part, dtype="float32")
    return model.eval().requires_grad_(False)


def _with_adapter(kind: Any, directory: Path) -> Any:
    """The base that the adapters name, with these."""
    from peft import PeftModel

    base = read_json(directory / peft.CONFIG_FILE)["base_model_name_or_path"]
    model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype="float32"), directory)
    return model.eval().requires_grad_(False)


def _compare(ids: list[int], answer: list[int], score: Scores, theirs: Any) -> dict[str, Any]:
    """One prompt: how far the logits are apart, and the greedy answers."""
    inputs = _tensors(ids)
    found = theirs(**inputs).logits[0].float().numpy()
    made = score(ids)
    written = theirs.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
    written = written[0, len(ids) :].tolist()
    ours, their = _log_softmax(made), _log_softmax(found)
    return {
        "difference": float(np.abs(made - found).max()),
        "variance": float(made.var()),
        "same_token": int((made.argmax(-1) == found.argmax(-1)).sum()),
        "kl": float((np.exp(ours) * (ours - their)).sum()),
        "same_answer": answer == written,
        "gap": gap(ids, answer, written, score),
    }


def gap(ids: list[int], answer: list[int], written: list[int], score: Scores) -> float | None:
    """How much higher our logit of our token is than that of theirs, where two greedy answers part.

    Two tokens that are equal but for rounding may be taken in either order. 0 for equal answers; None
    where one only ends sooner, which rounding does not do.
    """
    if answer == written:
        return 0.0
    pairs = enumerate(zip(answer, written, strict=False))
    parting = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    if parting is None:
        return None
    after = score(ids + answer[:parting])[-1]
    return float(after[answer[parting]] - after[written[parting]])


@functools.partial(jax.jit, static_argnames="config")
def _forward(variables: dict, config: decoder.DecoderConfig, tokens: jax.Array, count: int):
    """Logits [T, V] of a row of which the first `count` tokens count."""
    positions = jnp.arange(tokens.size)[None]
    mask = causal_mask((positions < count).astype(jnp.int32))
    params, lora = variables["params"], variables.get("lora")
    hidden, _ = decoder.hidden_states(params, config, tokens[None], positions, mask, lora=lora)
    return decoder.logits(params, config, hidden)[0]


def _scores(model: Model, length: int) -> Scores:
    """A function from token ids [T] to our logits [T, V], compiled once for any T up to `length`."""

    def score(ids: list[int]) -> np.ndarray:
        tokens = np.zeros(length, np.int32)
        tokens[: len(ids)] = ids
        found = _forward(model.variables, model.config, tokens, len(ids))
        return np.asarray(found)[: len(ids)].astype(np.float32)

    return score


def _greedy(model: Model, asked: list[list[int]]) -> list[list[int]]:
    """Our greedy answers, each with its end token where it has one."""
    done = engine.generate(
        model.variables["params"],
        model.config,
        asked,
        key=jax.random.key(0),
        sampling=engine.SamplingConfig(max_new_tokens=ANSWER_TOKENS, temperature=0.0),
        eos_ids=(model.tokenizer.eos_token_id,),
        pad_id=model.tokenizer.pad_token_id,
        lora=model.variables.get("lora"),
    )
    return [
        [int(id_) for id_ in row[:length]]
        for row, length in zip(done.tokens, done.lengths, strict=True)
    ]


# --- a model that makes vectors ---


def _vectors(folder: Path, part: str, ours: Model, layout: Layout) -> dict[str, Any]:
    """Vectors of questions and answers by sentence-transformers beside ours."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    pairs = questions(ours.tokenizer)
    if ours.embedding is None:  # an encoder as it comes: the library takes the mean, and control
        pairs = pairs[:-1]  # tokens for what they say
        ours = dataclasses.replace(ours, embedding=Embedding("mean", ours.config.max_positions))
    scorer = Scorer(ours.variables, ours, {}, layout)
    theirs = SentenceTransformer(
        str(folder / "hf"), device="cpu", model_kwargs={"dtype": "float32"}, local_files_only=True
    )
    if part == "adapter":
        theirs[0].model = _with_adapter(AutoModel, folder / part).merge_and_unload()
    asked, answers = map(list, zip(*pairs, strict=True))
    differences = [
        np.abs(made - found).max()
        for made, found in (
            (scorer.embed_questions(asked), _encode(theirs.encode_query, asked)),
            (scorer.embed_answers(answers), _encode(theirs.encode_document, answers)),
        )
    ]
    largest = float(max(differences))
    return {
        "passed": largest <= VECTORS_TOLERANCE,
        "texts": len(asked) + len(answers),
        "max_difference": largest,
    }


def _encode(encode: Any, texts: list[str]) -> np.ndarray:
    return np.asarray(encode(texts, normalize_embeddings=True, show_progress_bar=False))


# --- both ---


def _rounded(model: Model, dtype: str) -> Model:
    """The weights as they are written, rounded to the dtype of the files."""
    if not dtype:
        return model
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), model.variables["params"])
    return dataclasses.replace(model, variables={**model.variables, "params": params})


def _placed(model: Model, layout: Layout) -> Model:
    """The model on the mesh; an import comes as arrays of the host."""
    table = model.module.param_table(model.config)
    variables = {
        name: jax.device_put(tree, sharding.param_shardings(tree, table, layout))
        for name, tree in model.variables.items()
    }
    return dataclasses.replace(model, variables=variables)


def _tensors(ids: list[int]) -> dict[str, Any]:
    """One row of token ids as transformers hands them to a model."""
    from transformers import BatchEncoding

    rows = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    return dict(BatchEncoding(rows, tensor_type="pt"))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _version(package: str) -> str:
    return importlib.metadata.version(package.replace("_", "-"))
