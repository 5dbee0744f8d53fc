"""Raw dumps for tests: made-up letters and answers that the rules of the cleaning let pass."""

import json
import random
from pathlib import Path

COMMON = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
    "十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形"
)


def letter(seed: int, length: int = 60) -> str:
    """A text of common characters in sentences of twelve; another seed gives another text."""
    draw = random.Random(seed)
    characters = [draw.choice(COMMON) for _ in range(length)]
    return "".join(c + ("。" if place % 12 == 11 else "") for place, c in enumerate(characters))


def near_copy(text: str, seed: int) -> str:
    """The text with one character changed in every sixty."""
    draw = random.Random(seed)
    characters = list(text)
    for _ in range(max(1, len(text) // 60)):
        characters[draw.randrange(len(text))] = draw.choice(COMMON)
    return "".join(characters)


def answer(seed: int) -> str:
    return letter(1_000_000 + seed, 160)


def dialogue(question: str, *answers: str) -> dict:
    replies = [{"role": "counselor", "content": text} for text in answers]
    return {"messages": [{"role": "client", "content": question}, *replies]}


def write(path: Path, values: list) -> str:
    lines = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values
    )
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)
