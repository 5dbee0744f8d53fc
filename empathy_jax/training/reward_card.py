"""What the card of a reward model says besides: how to score, on what scale, and its limits.

Every figure is read from the calibration.json of its training.
"""

import json
from collections.abc import Mapping
from typing import Any

from empathy_jax.evaluation import probes
from empathy_jax.models.pooling import Embedding

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_CODE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("...")
questions = model.encode_query(["a letter", "another letter"])
answers = model.encode_document(["an answer to the one", "an answer to the other"])
scores = model.similarity_pairwise(questions, answers)
```"""

_LIMITS = """## Limits

- **No measure of good counselling.** A high cosine says that an answer belongs to the question, not
  that it is kind, right or safe.
- **It can be gamed.** What is trained on it finds texts that score high and help nobody, other ones
  than those tried here; read them, and keep a second measure."""


def render(embedding: Embedding, calibrated: Mapping[str, Any] | None) -> str:
    """Sections of the card as Markdown.

    Args:
      embedding: how texts become vectors.
      calibrated: content of calibration.json; None without one.
    """
    parts = [_scoring(embedding), "## Scale\n\nThese scores were never calibrated.", _LIMITS]
    if calibrated is not None:
        parts[1:2] = [_scale(calibrated), _cheats(calibrated["probes"]["cosine"])]
    return "\n\n".join(parts)


def _scoring(embedding: Embedding) -> str:
    query, document = (
        f"`{json.dumps(prompt, ensure_ascii=False)}`" if prompt else "nothing"
        for prompt in (embedding.query_prompt, embedding.document_prompt)
    )
    text = (
        f"## Scoring\n\n{_CODE}\n\nA score is a cosine. `encode_query` puts {query} before a question "
        f"and `encode_document` {document} before an answer; `encode` puts nothing before either, and "
        f"its cosines are others. Texts are cut at {embedding.max_tokens} tokens. Control tokens in "
        "them are read as plain text."
    )
    if embedding.has_head:
        text += (
            "\n\n`score_head.safetensors` holds `kernel` [2, D] for a grade of the answer, learnt "
            "from graded answers: `kernel[0] @ a + kernel[1] @ (q * a)`, with the vectors q and a of "
            "question and answer. Only differences between answers to one question mean something."
        )
    return text


def _scale(calibrated: Mapping[str, Any]) -> str:
    lines = [
        f"Measured on {calibrated['questions']} held-out questions, each with its own answer and "
        "those of the others; more is in `calibration.json`.",
        "",
        f"- Own answers and others are told apart best at a cosine of {calibrated['threshold']:.3f} "
        f"(balanced accuracy {calibrated['balanced_accuracy']:.3f}).",
        f"- {100 * calibrated['pass_rate']:g} % of the own answers reach a cosine of "
        f"{calibrated['pass_rate_threshold']:.3f}.",
    ]
    for name, whose in (
        ("random", "questions drawn at random"),
        ("nearest", "the nearest questions"),
    ):
        found = calibrated[name]
        lines.append(
            f"- Among {found['answers']} answers, the others to {whose}, the own one is first for "
            f"{found['recall_at_1']:.3f} ± {found['recall_at_1_error']:.2g} of the questions."
        )
    quantiles = calibrated["quantiles"]
    cosines = [quantiles[round(share * (len(quantiles) - 1))] for share in _SHARES]
    lines += [
        "",
        "Of own answers and others, half and half, this share has a cosine below:",
        "",
        "| " + " | ".join(f"{100 * share:g} %" for share in _SHARES) + " |",
        "|" + "---|" * len(_SHARES),
        "| " + " | ".join(f"{cosine:.3f}" for cosine in cosines) + " |",
    ]
    return "## Scale\n\n" + "\n".join(lines)


def _cheats(found: Mapping[str, Mapping[str, float]]) -> str:
    """A table of all probes, in bold what wins too often."""
    rows = []
    for name, entry in found.items():
        share = f"{100 * entry['beats']:.1f} ± {100 * entry['error']:.1f} %"
        share = f"**{share}**" if probes.fails(name, entry["beats"]) else share
        rows.append(f"| {probes.PROBES[name].meaning} | {share} |")
    lines = [
        "How often a text scores higher than the human answer to the same question. In bold is what "
        f"does so in more than {100 * probes.MAX_BEATS:g} %; only an answer to a similar question may.",
        "",
        "| text | scores above the human answer |",
        "|---|---|",
        *rows,
    ]
    if sentence := probes.warning(found):
        lines += ["", f"**{sentence}**"]
    return "## Ways to cheat\n\n" + "\n".join(lines)
