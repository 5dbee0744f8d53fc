"""How an answer counsels, counted by plain phrases: questions, reflections, advice.

Motivational interviewing asks for more reflections than questions and no advice that was not asked
for (MITI 4.2.1, Moyers et al. 2014, https://casaa.unm.edu/tools/miti.html: one reflection for each
question is fair, two are good). Trained coders judge that from the talk; here a sentence counts by
what it says in so many words, so the figures compare systems and are no MITI scores.

Each sentence is one of:
  - question: it ends with a question mark or, in Chinese without any mark, with 吗 or 呢;
  - advice: it proposes, asks for or forbids something to do;
  - reflection: it gives back to the person what they feel or go through;
  - other.
A question that proposes something ("要不要试试写日记？") is a question, and advice besides.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from empathy_jax.corpus.rules import sentences
from empathy_jax.evaluation.metrics.tokens import Ints

_QUESTION = re.compile(r"[？?][”’」』）\"')\]]*\s*\Z|(?<!才)[吗呢么][”’」』）]*\s*\Z")

_FEELING = (
    "难过|痛苦|委屈|焦虑|不安|害怕|恐惧|孤独|孤单|无助|无力|绝望|失望|沮丧|愤怒|生气|疲惫|累|压抑|"
    "迷茫|困惑|矛盾|纠结|自责|内疚|羞耻|伤心|心痛|心酸|煎熬|挣扎|担心|紧张|烦躁|失落|受伤|不容易|"
    "辛苦|艰难|崩溃|压力"
)
_REFLECTION_ZH = re.compile(
    r"(?:(?:听|看|读)(?:起来|上去|得出)|我(?:听|看)到)[^。！？]{0,12}[你您]"
    r"|(?:我|让人)?(?:能|可以)?(?:感受|感觉|体会|理解|想象|明白)(?:到|得到|得出)?[^。！？]{0,10}[你您]"
    rf"|[你您](?:现在|当时|一定|其实|心里|内心|真的|也|都|正|一直|既|又|会|似乎|好像|可能|应该)*"
    rf"(?:感到|觉得|感觉|很|非常|特别|如此|这么|那么|有些|有点|承受|经历|面对)[^。！？]{{0,12}}"
    rf"(?:{_FEELING})"
    rf"|[你您]的?(?:{_FEELING})"
    r"|(?:似乎|好像|仿佛)[^。！？]{0,4}[你您]"
    r"|[你您](?:一方面|既)[^。！？]{0,40}(?:另一方面|又)"
    r"|对[你您](?:来说|而言)"
)
_WISH_ZH = re.compile(r"\A\s*(?:最后)?(?:，|,)?(?:希望|祝|相信|愿)")
_ADVICE_ZH = re.compile(
    r"建议|不妨|试着|试试|尝试|试一试|推荐|最好|记得|千万|务必|一定要|别忘|"
    r"[你您](?:也|还|都|现在|先|不|并不)*(?:可以|应该|应当|需要|必须|得)"
    r"(?!是|来找|找我|告诉我|跟我|和我)"
    r"|(?:^|[，。！；：、\s])(?:也|还|先|首先|其次|然后|同时|另外|平时|再)?(?:可以|应该|需要|要)"
    r"(?!是|说|看出|想见|想象|理解|感受)[^。！？]"
    r"|(?:^|[，。！；：\s])(?:请|请你|请您|不要|别(?!人|的|说)|学会|学着"
    r"|多(?:和|跟|与|去|做|给|陪|参加|运动|关注))"
    r"|要不要|何不|为什么不|怎么不"
)

_REFLECTION_EN = re.compile(
    r"\b(?:it|that|this) (?:sounds|seems|looks|must|feels)\b"
    r"|\b(?:sounds|seems) (?:like|as if|as though) (?:you|it)\b"
    r"|\bi (?:can )?(?:hear|sense|see|imagine|notice|understand|gather) (?:that |how |the )?"
    r"(?:you|your|much|hard|painful|difficult)\b"
    r"|\byou(?:'re|’re| are| were|'ve been|’ve been| have been)? (?:feel|felt|feeling|torn|"
    r"afraid|scared|hurt|hurting|grieving|exhausted|tired|angry|lonely|alone|sad|overwhelmed|worried|"
    r"carrying|struggling|going through|missing|longing|trying|caught|stuck)\b"
    r"|\bpart of you\b|\bfor you,? (?:it|this)\b|\byou (?:must|seem to) (?:be|feel|have)\b",
    re.IGNORECASE,
)
_ADVICE_EN = re.compile(
    r"\b(?:you|we) (?:should|could|can|might|may|ought to|need to|must not|have to)\b"
    r"(?! (?:feel|be feeling|hear|see|tell))"
    r"|\b(?:i|i'd|i would|we) (?:suggest|recommend|advise|encourage|urge|invite)\b"
    r"|\b(?:it|that) (?:may|might|could|can|would) (?:also )?help\b"
    r"|\bmake sure\b|\bhow about\b|\bwhy not\b|\bhave you (?:considered|tried|thought about)\b"
    r"|\b(?:please|try|consider|remember)\b(?! (?:that you|how)) "
    r"|(?:^|[.;:,]\s*|\b(?:and|then|first|next|so) )(?:please )?(?:don't|don’t|do not|let yourself|"
    r"talk|reach|write|start|begin|find|set|give|ask|keep|seek|call|take|make|allow|practi[cs]e|tell|"
    r"choose|pick|plan|visit|contact|avoid|stop|focus|join|speak|see|go|get|put|use|be)\b",
    re.IGNORECASE,
)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_SPOKEN = re.compile(r"\w")


@dataclasses.dataclass(frozen=True)
class Manner:
    """Sentences of a text: all, and those of each kind."""

    sentences: int = 0
    questions: int = 0
    reflections: int = 0
    advice: int = 0


def count(text: str) -> Manner:
    """The sentences of a text by kind; time is linear in its length."""
    kinds = [kinds_of(text[start:end]) for start, end in sentences.spans(text)]
    kinds = [kind for kind in kinds if kind is not None]
    tally = {
        name: sum(name in kind for kind in kinds) for name in ("question", "reflection", "advice")
    }
    return Manner(len(kinds), tally["question"], tally["reflection"], tally["advice"])


def kinds_of(sentence: str) -> frozenset[str] | None:
    """What a sentence is: "question", "advice", "reflection", or nothing of these.

    None for one without a letter or digit. Only a question may be a second thing, advice.
    """
    if not _SPOKEN.search(sentence):
        return None
    chinese = bool(_HAN.search(sentence))
    reflection, advice = (_REFLECTION_ZH, _ADVICE_ZH) if chinese else (_REFLECTION_EN, _ADVICE_EN)
    asks = bool(_QUESTION.search(sentence))
    if advice.search(sentence.strip()):
        return frozenset({"question", "advice"} if asks else {"advice"})
    if asks:
        return frozenset({"question"})
    if chinese and _WISH_ZH.search(sentence):
        return frozenset()
    return frozenset({"reflection"} if reflection.search(sentence) else ())


def tally(texts: Sequence[str]) -> Ints:
    """Sentences, questions, reflections and advice of each text, [N, 4]."""
    rows = [dataclasses.astuple(count(text)) for text in texts]
    return np.array(rows, np.int64).reshape(-1, 4)
