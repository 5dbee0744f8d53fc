"""How expected an answer is under a given language model, after its question.

The model reads plain text, without a chat template: a first token, the question, an empty line, the
answer. Perplexity is exp of the mean negative log-likelihood per token of the answer; over answers
the logarithms are averaged. It depends on the tokenizer, so it compares under one model alone. Low
is not good: the same kind sentence for everybody is the least surprising of all.

Legend: B texts, T tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from empathy_jax import losses, sharding
from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.types import Array, Bool, Float, Int, Params

LONGEST = 2048  # tokens of question and answer; the question's beginning gives way, then the end
ROWS = 8  # texts at a time
_BUCKET = 256  # lengths are padded to a multiple of it, so that few shapes are compiled
_CHUNK = 1024  # positions whose logits are held at a time


def surprise(
    questions: list[str],
    answers: list[str],
    params: Params,
    config: decoder.DecoderConfig,
    tokenizer: PreTrainedTokenizerFast,
    mesh: jax.sharding.Mesh,
) -> Floats:
    """Mean negative log-likelihood per token of each answer in nats, [N]; NaN for an empty one.

    Args:
      questions, answers: N texts each.
      params, config, tokenizer: of a decoder.
      mesh: that the weights lie on.
    """
    longest = min(LONGEST, config.max_positions)
    made = [
        _ids(tokenizer, question, answer, longest)
        for question, answer in zip(questions, answers, strict=True)
    ]
    found = np.full(len(made), np.nan)
    # Texts of like length share a batch.
    order = np.argsort([len(ids) for ids, _ in made], kind="stable")
    order = [index for index in order if made[index][1]]
    rows = -(-ROWS // sharding.batch_parts(mesh)) * sharding.batch_parts(mesh)
    placed = sharding.batch_sharding(mesh)
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        size = -(-max(len(made[index][0]) for index in some) // _BUCKET) * _BUCKET
        tokens, counted = np.zeros((rows, size), np.int32), np.zeros((rows, size), bool)
        lengths = np.zeros(rows, np.int32)
        for row, index in enumerate(some):
            ids, count = made[index]
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            counted[row, len(ids) - count : len(ids)] = True
        batch = jax.device_put((tokens, counted, lengths), placed)
        sums = np.asarray(negative_log_likelihood(params, config, *batch))
        found[some] = sums[: len(some)] / [made[index][1] for index in some]
    return found


def _ids(
    tokenizer: PreTrainedTokenizerFast, question: str, answer: str, longest: int
) -> tuple[list[int], int]:
    """The ids that the model reads, and how many at their end are the answer's."""

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    own = plain(answer)[: longest - 1]
    context = plain(question + "\n\n")
    context = context[max(len(context) - (longest - 1 - len(own)), 0) :]
    return [first, *context, *own], len(own)


@functools.partial(jax.jit, static_argnames="config")
def negative_log_likelihood(
    params: Params,
    config: decoder.DecoderConfig,
    tokens: Int[Array, "B T"],
    counted: Bool[Array, "B T"],
    lengths: Int[Array, "B"],
) -> Float[Array, "B"]:
    """-Σ log p(token | those before it) over the counted tokens of each row, [B].

    Args:
      params, config: of a decoder.
      tokens: ids; what follows a row's length is padding.
      counted: whose log-probability is summed; never the first of a row.
      lengths: tokens of each row.
    """
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = causal_mask((places < lengths[:, None]).astype(jnp.int32))
    hidden, _ = decoder.hidden_states(params, config, tokens, places, mask)
    # A state predicts the token after it.
    targets, wanted = jnp.roll(tokens, -1, axis=1), jnp.roll(counted, -1, axis=1)
    log_probs, _ = losses.token_log_probs_from_hidden(
        params, config, hidden, targets, _CHUNK, loss_mask=wanted, entropy_gradient=False
    )
    return -jnp.sum(log_probs, axis=1)
