"""Whether a teacher's reply becomes a chain, and if not, why not."""

import dataclasses
import re
import unicodedata

from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.corpus import records
from empathy_jax.corpus.records import Record
from empathy_jax.endpoint.client import Reply
from empathy_jax.overlap import ngram_overlap

REASONS = (
    "format",
    "refusal",
    "too_short",
    "too_long",
    "cut_off",  # the reply ended at the token limit
    "echo",  # too much of the answer is copied from the question
    "model_error",  # the endpoint gave no usable reply
)

# The common shape of control tokens: <|im_start|>, <|eot_id|>, and DeepSeek's full-width bars.
_CONTROL_TOKEN = re.compile(r"<[|｜][^<>\s]{1,60}[|｜]>")

# Said by a model in place of an answer. A counsellor too says 我没办法替你决定, so within a valid
# chain only the beginning of the answer, and only a machine's way of saying it, counts.
_REFUSAL = re.compile(
    r"(无法|不能|不便|没办法)(为您|为你|给您|给你)?(提供|协助|完成|满足|继续|处理|生成|回应|回答)"
    r"|抱歉，?我(无法|不能)"
    r"|\bI(?:'m| am) sorry,? but\b|\bI (?:cannot|can't|can’t|won't|won’t|am unable to|am not able to) "
    r"(?:assist|help|comply|fulfil|fulfill|provide|continue|engage|create|write|respond)",
    re.IGNORECASE,
)
_MACHINE_REFUSAL = re.compile(
    r"作为(一个|一名)?(AI|人工智能|语言模型|大模型)[^。]{0,20}(无法|不能|没有能力)"
    r"|\bas an? (?:AI|language model)\b[^.]{0,60}\b(?:cannot|can't|can’t|unable|not able)\b",
    re.IGNORECASE,
)
_BEGINNING = 120
_ECHO_CHARACTERS = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a chain must keep to, in characters.

    Attributes:
      min_layer, max_layer: of each of L1..L4.
      min_answer, max_answer: of the answer.
      max_echo: largest share of the answer's character 4-grams that may occur in the question.
    """

    min_layer: int = 10
    max_layer: int = 1500
    min_answer: int = 100
    max_answer: int = 4000
    max_echo: float = 0.5


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A chain, or the reason (one of `REASONS`) against it.

    Attributes:
      chain: None when there is a reason.
      reason: None when there is a chain.
      detail: for "format" the broken rule, for lengths the layer, else None.
      repairable: asking again with the fault named may help.
    """

    chain: Chain | None
    reason: str | None = None
    detail: str | None = None
    repairable: bool = False


def judge(question: str, reply: Reply, limits: Limits) -> Judgement:
    """Judges a reply by the strict parser, then by refusal, lengths and echo."""
    text = reply.text
    if reply.refusal or reply.finish_reason == "content_filter":
        return Judgement(None, "refusal")
    verdict = chain_of_empathy.verdict(text, _CONTROL_TOKEN.findall(text))
    if verdict.chain is None:
        return _no_chain(text, reply.finish_reason, verdict.rule)
    chain = verdict.chain
    if _MACHINE_REFUSAL.search(chain.answer[:_BEGINNING]):
        return Judgement(None, "refusal")
    if fault := _length_fault(chain, limits):
        return Judgement(None, *fault, repairable=True)
    if echo(question, chain.answer) > limits.max_echo:
        return Judgement(None, "echo", repairable=True)
    return Judgement(chain)


def _no_chain(text: str, finish_reason: str, rule: str) -> Judgement:
    """Why a text without a valid chain has none."""
    if rule == "control_token":
        # Sent back, it would steer the teacher's own server.
        return Judgement(None, "format", rule)
    if finish_reason == "length":
        return Judgement(None, "cut_off", repairable=True)
    tagged = any(tag in text for tag in chain_of_empathy.TAGS)
    if not tagged and (_REFUSAL.search(text) or _MACHINE_REFUSAL.search(text)):
        return Judgement(None, "refusal")
    return Judgement(None, "format", rule, repairable=True)


def _length_fault(chain: Chain, limits: Limits) -> tuple[str, str] | None:
    for name in chain_of_empathy.LAYERS:
        if fault := _length(getattr(chain, name), limits.min_layer, limits.max_layer):
            return fault, name
    fault = _length(chain.answer, limits.min_answer, limits.max_answer)
    return (fault, "answer") if fault else None


def _length(text: str, least: int, most: int) -> str | None:
    return "too_short" if len(text) < least else "too_long" if len(text) > most else None


def echo(question: str, answer: str) -> float:
    """Share of the answer's character 4-grams that occur in the question, in [0, 1].

    White space, letter case and full-width forms make no difference, nor do the brackets that the
    teacher saw in place of the question's own.
    """
    return ngram_overlap(_comparable(question), _comparable(answer), _ECHO_CHARACTERS)


def _comparable(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")


def outcome(
    question: Record, replies: list[Reply], limits: Limits, teacher: str
) -> tuple[Record | None, Record | None]:
    """What the replies so far make of a question.

    Returns:
      (chain record, None), (None, reject), or (None, None) while the repair round is still due.
    """
    judgement = judge(question["question"], replies[-1], limits)
    if judgement.chain is not None:
        texts = dataclasses.asdict(judgement.chain)
        value = {"question": question["question"], "teacher": teacher, **texts}
        return records.chain_record(value, question["source"]), None
    if judgement.repairable and len(replies) == 1:
        return None, None
    return None, reject(question, judgement.reason, judgement.detail, replies[-1].text)


def reject(question: Record, reason: str, detail: str | None, text: str) -> Record:
    """The line of rejected.jsonl: the question, why it has no chain, and what the teacher wrote."""
    return {
        "id": question["id"],
        "reason": reason,
        "detail": detail,
        "question": question["question"],
        "text": text,
        "source": question["source"],
    }
