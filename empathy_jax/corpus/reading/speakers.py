"""Who speaks: roles of messages, and dialogues written as text with speaker labels.

来访者：我最近总是失眠。          [seeker]I cannot sleep.
咨询师：愿意多说说吗？            [supporter]Would you tell me more?
"""

import re
from collections.abc import Iterator

from empathy_jax.corpus.records import BadRecord

# Role: labels. What a "system" says is left out; a dialogue in which "other" speaks is not used.
LABELS = {
    "client": (
        "client", "user", "human", "seeker", "patient", "visitor", "question", "q",
        "来访者", "来访", "求助者", "求助", "咨询者", "提问者", "提问", "问", "用户", "患者", "题主", "楼主",
    ),
    "counselor": (
        "counselor", "counsellor", "assistant", "gpt", "supporter", "therapist", "bot", "doctor",
        "answer", "a", "model",
        "咨询师", "心理咨询师", "咨询员", "心理师", "治疗师", "支持者", "回答者", "答主", "回答", "答",
        "助手", "医生",
    ),
    "system": ("system", "系统"),
    "other": (
        "supervisor", "moderator", "narrator", "observer", "督导", "主持人", "旁白", "观察员", "记录者",
    ),
}  # fmt: skip

ROLES = {label: role for role, labels in LABELS.items() for label in labels}

_ANY = "|".join(sorted(map(re.escape, ROLES), key=len, reverse=True))
# "来访者：", "咨询师1:", "[seeker]", "【求助者】：" at the beginning of a line.
_LINE = re.compile(
    rf"\s*(?:[\[【]({_ANY})\d{{0,3}}[\]】]\s*[:：]?|({_ANY})\d{{0,3}}\s*[:：])", re.I
)
_INLINE = re.compile(rf"\[({_ANY})\]", re.I)
_SEPARATOR = re.compile(r"\s*([-=*_#])\1{2,}\s*")

Turn = tuple[str, str]


def inline_turns(text: str) -> list[Turn] | None:
    """The (role, text) of a text like "[seeker]...[supporter]...", None for any other text."""
    text = text.strip()
    if not _INLINE.match(text):
        return None
    _, *parts = _INLINE.split(text)
    labels, contents = parts[::2], parts[1::2]
    return [
        (ROLES[label.casefold()], content) for label, content in zip(labels, contents, strict=True)
    ]


def text_dialogues(text: str) -> Iterator[tuple[int, str, list[dict[str, str]] | BadRecord]]:
    """The (line, raw text, messages) of the dialogues in a text with a label at each turn.

    Dialogues are parted by lines of three or more -, =, *, _ or #. In a text without such lines a
    dialogue begins where the client speaks after a blank line, unless blank lines also stand
    before the counsellor's turns: then they part turns, and the text is one dialogue.
    A line without a label belongs to the turn above it.
    """
    for number, lines in _blocks(re.split(r"\r\n|\r|\n", text)):
        yield number, "\n".join(lines), _messages(lines)


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The (number of the first line, lines) of each dialogue."""
    separated = any(_SEPARATOR.fullmatch(line) for line in lines)
    spoken = [(_role(line), i > 0 and not lines[i - 1].strip()) for i, line in enumerate(lines)]
    blank_parts = not separated and ("counselor", True) not in spoken
    block: list[str] = []
    start = 1
    for number, (line, turn) in enumerate(zip(lines, spoken, strict=True), 1):
        separator = separated and _SEPARATOR.fullmatch(line)
        if separator or (blank_parts and turn == ("client", True)):
            if block:
                yield start, block
            block = []
        if not separator and (block or line.strip()):
            start = start if block else number
            block.append(line)
    if block:
        yield start, block


def _role(line: str) -> str | None:
    found = _LINE.match(line)
    return ROLES[(found[1] or found[2]).casefold()] if found else None


def _messages(lines: list[str]) -> list[dict[str, str]] | BadRecord:
    turns: list[tuple[str, list[str]]] = []
    for line in lines:
        role = _role(line)
        if role == "other":
            return BadRecord(f"unknown role: {_LINE.match(line)[0].strip()!r:.40}")
        if role is not None:
            turns.append((role, [_LINE.sub("", line, count=1)]))
        elif turns:
            turns[-1][1].append(line)
        else:
            return BadRecord(f"no known speaker label: {line.strip()!r:.40}")
    return [{"role": role, "content": "\n".join(said).strip()} for role, said in turns]
