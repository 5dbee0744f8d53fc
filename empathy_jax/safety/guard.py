"""The guard of a conversation: what the person hears before the reply, and what the reply may not say.

`examine` grades what a person wrote and chooses the message of `messages.yaml`. `Reply` lets what a model
says through a sentence at a time, and puts a sentence of ours in place of one that `held_back` finds.
Neither is certain: docs/safety.md has the figures.
"""

import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import yaml

from empathy_jax.safety import held_back, risk

ANSWER = "answer"  # the part of a reply that a person reads
URGENT_GRADE = 3
LONGEST_SENTENCE = 300  # characters; where no sentence ends before, the text is cut
_CONTEXT = 160  # characters before a sentence that it is read with

# A sentence has ended where something follows that belongs to it no longer.
_END = re.compile(
    r"[。！？!?…][。！？!?…”’\"'」』）)\]]*+(?=.)|\.[”’\"'」』）)\]]*+(?=\s)|(?<=\S)(?=\n)",
    re.DOTALL,
)
_PAUSES = ("，", "、", ",", " ")
_LATIN = re.compile(r"[A-Za-z]")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


class Decision(NamedTuple):
    """What the guard makes of what a person wrote.

    Attributes:
      code: "none"; "gentle": a question of ours comes first; "urgent": what to do now comes first.
      grade: 0 to 6, as `risk.grade` has them.
      about: whose danger it is: the writer's, or another's.
      language: of the last that was written, "zh" or "en".
      message: what comes before the reply; None: nothing.
    """

    code: Literal["none", "gentle", "urgent"]
    grade: int
    about: Literal["self", "other"]
    language: Literal["zh", "en"]
    message: str | None


def check_region(region: str) -> None:
    """Refuses a region without messages.

    Raises:
      ValueError: names the regions.
    """
    if region not in _messages()["regions"]:
        raise ValueError(
            f"config.guard.region is {region!r}; it must be one of {', '.join(_messages()['regions'])}"
        )


def examine(messages: Sequence[Mapping[str, str]], region: str) -> Decision:
    """The decision about a conversation, from what its user wrote.

    The last turn counts in full. All turns together, a line apart, count from grade 3 on: what was gently
    asked about before is not asked about again, but danger stays danger. Takes time linear in the texts.

    Args:
      messages: with `role` and `content`, oldest first.
      region: a key of `regions` in messages.yaml.
    """
    turns = [message["content"] for message in messages if message["role"] == "user"] or [""]
    found = risk.grade(turns[-1])
    if len(turns) > 1 and (whole := risk.grade("\n".join(turns))).grade >= URGENT_GRADE:
        found = max(whole, found, key=lambda one: one.grade)
    code = "urgent" if found.grade >= URGENT_GRADE else "gentle" if found.grade else "none"
    gravest = {one.subject for one in found.findings if one.grade == found.grade}
    about = "other" if found.grade and gravest == {"other"} else "self"
    language = _language(turns[-1])
    message = None
    if code != "none":
        message = _told(_messages()["before"][code][about], language, region)
    return Decision(code, found.grade, about, language, message)


class Reply:
    """What a model says, let through a sentence at a time.

    What comes out does not depend on how the text was cut when it came. Details of a method end a reply,
    wherever they stand: a sentence of ours is the rest of the answer. A sentence with a dosage or a
    diagnosis gives way to ours; the next such sentences of the same part are left out.

    Attributes:
      held_back: codes of the sentences that were withheld, in their order.
      told: all that was let through, by part.
      ended: whether it was ended; nothing more comes out.
    """

    def __init__(self, language: str, region: str) -> None:
        self._language, self._region = language, region
        self._part, self._unread, self._before = ANSWER, "", ""
        self._replaced: set[tuple[str, str]] = set()
        self.held_back: list[str] = []
        self.told: dict[str, str] = {}
        self.ended = False

    def feed(self, part: str, text: str) -> list[tuple[str, str]]:
        """What may be told, with its part, once some more text of a part has come.

        Args:
          part: `ANSWER`, or a name of any other part, such as a layer.
          text: of it. A new part ends the sentence of the one before.
        """
        out = [] if part == self._part else self.close()
        self._part, self._unread = part, self._unread + text
        while end := _sentence_end(self._unread):
            out += self._judge(self._unread[:end])
            self._unread = self._unread[end:]
        return out

    def close(self) -> list[tuple[str, str]]:
        """What may be told when no more text of the part comes."""
        text, self._unread = self._unread, ""
        return self._judge(text) if text else []

    def _judge(self, sentence: str) -> list[tuple[str, str]]:
        """A sentence as it may be told."""
        if self.ended:
            return []
        code = held_back.find(sentence, self._before)
        self._before = (self._before + sentence)[-_CONTEXT:]
        if code is None:
            return [self._tell(self._part, sentence)]
        self.held_back.append(code)
        if (self._part, code) in self._replaced:
            return []
        self._replaced.add((self._part, code))
        space = sentence[: len(sentence) - len(sentence.lstrip())]
        instead = _told(_messages()["instead"][code], self._language, self._region)
        if code != "method":
            return [self._tell(self._part, space + instead)]
        self.ended = True
        if self._part != ANSWER:
            space = "\n\n" if ANSWER in self.told else ""
        return [self._tell(ANSWER, space + instead)]

    def _tell(self, part: str, text: str) -> tuple[str, str]:
        self.told[part] = self.told.get(part, "") + text
        return part, text


def _sentence_end(text: str) -> int:
    """Where the first sentence ends, as far as that is certain; else 0."""
    if match := _END.search(text, 0, LONGEST_SENTENCE + 1):
        return match.end()
    if len(text) <= LONGEST_SENTENCE:
        return 0
    pause = max(text.rfind(sign, 0, LONGEST_SENTENCE) for sign in _PAUSES)
    return pause + 1 or LONGEST_SENTENCE


def _language(text: str) -> Literal["zh", "en"]:
    """English where most letters are Latin, else Chinese."""
    return "en" if len(_LATIN.findall(text)) > len(_CHINESE.findall(text)) else "zh"


@functools.cache
def _messages() -> Mapping[str, Any]:
    file = importlib.resources.files("empathy_jax.safety") / "messages.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _told(texts: Mapping[str, str], language: str, region: str) -> str:
    """A text of messages.yaml in a language, with what the region puts in."""
    place = _messages()["regions"][region]
    script = place["script"] if language == "zh" else language
    return texts[script].format(**place[language])
