"""The Chain of Empathy as text: prompt, rendering, strict parsing and a verdict.

The chain is the output format of Empathy-R1 (https://arxiv.org/abs/2509.14851): four layers of a
counsellor's reasoning, then the reply that the person reads.

    <empathy_think>
    <L1>emotions and context</L1>
    <L2>causes and beliefs</L2>
    <L3>intent</L3>
    <L4>response strategy</L4>
    </empathy_think>
    <answer>the reply</answer>

No other module spells a tag. A text is valid when each of the twelve tags stands in it exactly
once and in this order, no element is blank, and nothing but white space lies outside the elements.
Tags are plain text: letter case and spelling must match exactly, and `< L1>` is not a tag.

Beside this format, "chain", there is "answer": the last element alone, under the same rules. It is
what a model that was trained without the chain writes (the paper's ablation).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

FORMATS = ("chain", "answer")
LAYERS = ("L1", "L2", "L3", "L4")

_TEXT_ELEMENTS = (*LAYERS, "answer")
_OPEN = {name: f"<{name}>" for name in _TEXT_ELEMENTS} | {"think": "<empathy_think>"}
_CLOSE = {name: f"</{name}>" for name in _TEXT_ELEMENTS} | {"think": "</empathy_think>"}

# (element, tag, whether the tag closes the element) in the order of reading.
_SEQUENCE = (
    ("think", _OPEN["think"], False),
    *(step for name in LAYERS for step in ((name, _OPEN[name], False), (name, _CLOSE[name], True))),
    ("think", _CLOSE["think"], True),
    ("answer", _OPEN["answer"], False),
    ("answer", _CLOSE["answer"], True),
)

TAGS = tuple(tag for _, tag, _ in _SEQUENCE)
_STEPS = {"chain": _SEQUENCE, "answer": _SEQUENCE[-2:]}

_ANY_TAG = re.compile("|".join(map(re.escape, TAGS)))
_LONGEST_TAG = max(map(len, TAGS))

# What a `Reader` calls text that lies in none of the elements that hold text: between the layers, and
# outside everything.
BETWEEN, OUTSIDE = "between", "outside"
# The element that one is in after a tag.
_AFTER = (
    {_OPEN[name]: name for name in _TEXT_ELEMENTS}
    | {_CLOSE[name]: BETWEEN for name in LAYERS}
    | {_OPEN["think"]: BETWEEN, _CLOSE["think"]: OUTSIDE, _CLOSE["answer"]: OUTSIDE}
)

RULES: Mapping[str, str] = (
    {"control_token": "a control token of the tokenizer stands in the text"}
    | {f"missing_{name}": f"{_OPEN[name]} is missing" for name in ("think", *_TEXT_ELEMENTS)}
    | {f"unclosed_{name}": f"{_CLOSE[name]} is missing" for name in ("think", *_TEXT_ELEMENTS)}
    | {f"empty_{name}": f"{_OPEN[name]} holds only white space" for name in _TEXT_ELEMENTS}
    | {
        "repeated_tag": "a tag stands in the text more than once",
        "wrong_order": "a tag stands before or inside an element that should precede it",
        "text_outside": "text stands outside the elements",
    }
)

_SYSTEM_PROMPTS = {
    ("zh", "chain"): (
        f"你是温暖的心理倾听者。读完来信，先在{_OPEN['think']}中分四层思考："
        "L1情绪与处境，L2成因与信念，L3来意，L4回应策略；"
        f"再在{_OPEN['answer']}中回信：温暖、具体，不作诊断；若有危险，引向真实的帮助。"
    ),
    ("zh", "answer"): (
        f"你是温暖的心理倾听者。读完来信，在{_OPEN['answer']}中回信："
        "温暖、具体，不作诊断；若有危险，引向真实的帮助。"
    ),
    ("en", "chain"): (
        "You are a warm counsellor. Read the person's letter. "
        f"First think in four layers inside {_OPEN['think']}: L1 emotions and context, "
        "L2 causes and beliefs, L3 intent, L4 response strategy. "
        f"Then reply to the person in {_OPEN['answer']}: warm and specific, without diagnosis. "
        "If someone may be in danger, point to real help."
    ),
    ("en", "answer"): (
        "You are a warm counsellor. Read the person's letter. "
        f"Reply to the person in {_OPEN['answer']}: warm and specific, without diagnosis. "
        "If someone may be in danger, point to real help."
    ),
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """The four layers of reasoning and the answer, without tags; no layers in the format "answer"."""

    L1: str
    L2: str
    L3: str
    L4: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a text is worth in its format.

    Attributes:
      valid: no rule is broken.
      rule: the first broken rule in the order of reading, a key of `RULES`; None when valid.
      chain: the parsed chain; None unless valid.
      layers: for each of L1..L4 whether that layer is whole: opened and closed once each, not
        blank, no tag inside. It is filled for broken and unfinished texts too, for monitors.
    """

    valid: bool
    rule: str | None
    chain: Chain | None
    layers: Mapping[str, bool]


class ChainError(ValueError):
    """A text is no Chain of Empathy; `rule` is the key of `RULES` that it breaks."""

    def __init__(self, rule: str, text: str):
        start = text if len(text) <= 80 else text[:80] + "..."
        super().__init__(f"Not a Chain of Empathy ({rule}): {RULES[rule]}; got {start!r}.")
        self.rule = rule


def system_prompt(language: str, form: str = "chain") -> str:
    """The instruction that asks for a text of the format.

    Args:
      language: "zh" or "en".
      form: one of FORMATS.

    Raises:
      ValueError: for another language or format.
    """
    for given, allowed, field in (
        (language, sorted({language for language, _ in _SYSTEM_PROMPTS}), "language"),
        (form, list(FORMATS), "format"),
    ):
        if given not in allowed:
            raise ValueError(
                f"{field} must be one of {allowed}, got {given!r}; change config.data.{field}."
            )
    return _SYSTEM_PROMPTS[language, form]


def render(chain: Chain, form: str = "chain") -> str:
    """The chain as text, such that `parse(render(chain))` gives the chain back.

    White space at both ends of a layer is dropped. In the format "answer" the layers are left out.

    Raises:
      ValueError: when a layer or the answer is blank or contains a tag.
    """
    names = _TEXT_ELEMENTS if form == "chain" else ("answer",)
    texts = {name: getattr(chain, name).strip() for name in names}
    for name, text in texts.items():
        if not text:
            raise ValueError(f"{name} must hold text, got only white space.")
        if tag := next((tag for tag in TAGS if tag in text), None):
            raise ValueError(f"{name} must not contain a tag, got {tag}.")
    elements = {name: _OPEN[name] + text + _CLOSE[name] for name, text in texts.items()}
    if form == "answer":
        return elements["answer"]
    layers = (elements[name] for name in LAYERS)
    return "\n".join((_OPEN["think"], *layers, _CLOSE["think"], elements["answer"]))


def parse(text: str) -> Chain:
    """The chain that a text holds; layers are stripped of outer white space.

    Raises:
      ChainError: when the text breaks a rule; `error.rule` names it.
    """
    result = verdict(text)
    if result.chain is None:
        raise ChainError(result.rule, text)
    return result.chain


def verdict(text: str, control_tokens: Iterable[str] = (), form: str = "chain") -> Verdict:
    """Judges a text, whole or unfinished, by the rules of its format.

    The work is at most two `str.find` per tag and one search per control token, so the time is
    linear in the length of the text whatever it holds.

    Args:
      text: a completion, decoded with control tokens visible.
      control_tokens: strings that must not occur, such as `<|im_start|>`; they are looked for
        first.
      form: one of FORMATS. In "answer" a tag of the chain is one at the wrong place.
    """
    first = {tag: text.find(tag) for tag in TAGS}
    repeated = {
        tag for tag, start in first.items() if start >= 0 and text.find(tag, start + len(tag)) >= 0
    }
    layers = {name: _is_whole(text, name, first, repeated) for name in LAYERS}
    if any(token in text for token in control_tokens):
        return Verdict(False, "control_token", None, layers)
    texts, rule = _walk(text, first, repeated, form)
    chain = None if rule else Chain(**{**dict.fromkeys(LAYERS, ""), **texts})
    return Verdict(rule is None, rule, chain, layers)


def _walk(
    text: str, first: Mapping[str, int], repeated: set[str], form: str
) -> tuple[dict[str, str], str | None]:
    """Reads the elements in order; returns their texts and the first broken rule, if any."""
    texts: dict[str, str] = {}
    position = 0
    for name, tag, closes in _STEPS[form]:
        start = first[tag]
        if start < 0:
            return texts, f"unclosed_{name}" if closes else f"missing_{name}"
        if tag in repeated:
            return texts, "repeated_tag"
        # A tag before its turn lies between two tags whose turn has come.
        if any(position <= other < start for other in first.values()):
            return texts, "wrong_order"
        between = text[position:start].strip()
        if closes and name in _TEXT_ELEMENTS:
            if not between:
                return texts, f"empty_{name}"
            texts[name] = between
        elif between:
            return texts, "text_outside"
        position = start + len(tag)
    return texts, "text_outside" if text[position:].strip() else None


def _is_whole(text: str, name: str, first: Mapping[str, int], repeated: set[str]) -> bool:
    """Whether one layer is opened and closed once each, not blank and free of tags."""
    opening, closing = _OPEN[name], _CLOSE[name]
    if first[opening] < 0 or first[closing] < 0 or repeated & {opening, closing}:
        return False
    start, end = first[opening] + len(opening), first[closing]
    inside = text[start:end] if start <= end else ""
    return bool(inside.strip()) and not any(tag in inside for tag in TAGS)


class Piece(NamedTuple):
    """Some more text of an element: of L1..L4 or the answer, `BETWEEN` the layers or `OUTSIDE`."""

    element: str
    text: str


class Reader:
    """Reads a completion as it grows: which element new text belongs to, without tags.

    It shows what stands there and judges nothing: elements in any order, broken or repeated, are read
    as their tags say. Of a valid chain, the pieces of each element together are what `parse` gives.
    The work is linear in the length of the text.
    """

    def __init__(self) -> None:
        self._element = OUTSIDE
        self._unread = ""  # may be the beginning of a tag
        self._space: list[str] = []  # counts only if more text of the element follows
        self._begun = False  # whether the element has text

    def feed(self, text: str) -> list[Piece]:
        """The pieces that become certain with some more text of the completion."""
        text, pieces, start = self._unread + text, [], 0
        for tag in _ANY_TAG.finditer(text):
            self._read(text[start : tag.start()], pieces)
            self._element = _AFTER[tag.group()]
            self._space, self._begun = [], False
            start = tag.end()
        end = self._where_a_tag_may_begin(text, start)
        self._read(text[start:end], pieces)
        self._unread = text[end:]
        return pieces

    def close(self) -> list[Piece]:
        """The pieces that are left when the completion has ended."""
        pieces: list[Piece] = []
        self._read(self._unread, pieces)
        self._unread = ""
        return pieces

    def _read(self, text: str, pieces: list[Piece]) -> None:
        text = text if self._begun else text.lstrip()
        read = text.rstrip()
        if read:
            pieces.append(Piece(self._element, "".join(self._space) + read))
            self._space, self._begun = [], True
        self._space.append(text[len(read) :])

    @staticmethod
    def _where_a_tag_may_begin(text: str, start: int) -> int:
        """Where the text's end may turn out to be a tag; the text's length if nowhere."""
        begin = text.rfind("<", max(start, len(text) - _LONGEST_TAG))
        is_open = begin >= 0 and any(tag.startswith(text[begin:]) for tag in TAGS)
        return begin if is_open else len(text)
