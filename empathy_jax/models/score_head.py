"""A scalar grade of an answer from the vectors of question and answer.

The cosine says whether an answer belongs to a question; the head, learnt from answers that people
graded or voted on, says how good it is: r = w₁·a + w₂·(q ∘ a), with q and a scaled so that their
coordinates are of size 1. With unit vectors a head would need weights of size √D, and would not get
there at the learning rate of an encoder.
"""

from pathlib import Path

import jax.numpy as jnp
from safetensors.numpy import load_file

from empathy_jax.types import Array, Float, Float32, Params

FILE = "score_head.safetensors"  # beside the weights of an exported reward model


def init_params(width: int) -> dict:
    """A head that gives every answer the same grade, 0: {"kernel": float32 [2, D]}."""
    return {"kernel": jnp.zeros((2, width), jnp.float32)}


def read(folder: Path) -> dict | None:
    """The head beside the weights of an exported reward model, as numpy; None without one."""
    file = folder / FILE
    return load_file(file) if file.is_file() else None


def grade(
    params: Params, questions: Float[Array, "N D"], answers: Float[Array, "N D"]
) -> Float32[Array, "N"]:
    """The grade of each answer; only differences between answers to one question mean something.

    Args:
      params: of `init_params`.
      questions, answers: unit vectors, [N, D].
    """
    of_answer, of_fit = params["kernel"].astype(jnp.float32)
    scale = answers.shape[1] ** 0.5
    questions, answers = questions * scale, answers * scale
    return answers @ of_answer + (questions * answers) @ of_fit
