"""How often texts of others are graded 3 and above: `python -m empathy_jax.safety.outside FOLDER`.

FOLDER holds what docs/safety.md ("Outside") names: `smilechat/data/*.json`, `dialogue_safety/test.json`
and `safetybench_zh/test_zh_subset.json`. None of it has a grade; hardly any of it should have one of 3.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from empathy_jax.safety.measure import URGENT, Share
from empathy_jax.safety.risk import grade

_SPEAKER = re.compile(r"\[(seeker|supporter)\]")


def read(folder: Path) -> dict[str, list[str]]:
    """Distinct texts of each source: what people ask, what helpers reply, and examination questions."""
    dialogues = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "smilechat" / "data").glob("*.json"))
    ]
    turns = json.loads((folder / "dialogue_safety" / "test.json").read_text(encoding="utf-8"))
    file = folder / "safetybench_zh" / "test_zh_subset.json"
    questions = json.loads(file.read_text(encoding="utf-8"))
    minds = [one["question"] for one in questions if one["category"] == "Mental Health"]
    others = [one["question"] for one in questions if one["category"] != "Mental Health"]
    found = {
        "SmileChat, first message of a help-seeker": [_first(one, "client") for one in dialogues],
        "SmileChat, first message of a counsellor": [_first(one, "counselor") for one in dialogues],
        "DialogueSafety, what the seeker says": [_said(one["context"], "seeker") for one in turns],
        "DialogueSafety, the reply": [_said(one["response"], "supporter") for one in turns],
        "SafetyBench, mental health": minds,
        "SafetyBench, other": others,
    }
    return {name: sorted({text for text in texts if text}) for name, texts in found.items()}


def _first(messages: Sequence[dict], role: str) -> str:
    """What someone of a role says first in a dialogue; "" if nothing."""
    return next((one["content"].strip() for one in messages if one["role"] == role), "")


def _said(text: str, role: str) -> str:
    """All that a speaker says in a text in which "[seeker]" and "[supporter]" mark the speakers."""
    parts = _SPEAKER.split(text)
    said = zip(parts[1::2], parts[2::2], strict=True)
    return "\n".join(words.strip() for speaker, words in said if speaker == role)


def report(sources: dict[str, list[str]]) -> str:
    """A line for each source: texts, and shares graded 3 and above by the rules and by both."""
    lines = []
    for name, texts in sources.items():
        shares = [
            Share(sum(grade(text, learned).grade >= URGENT for text in texts), len(texts))
            for learned in (False, True)
        ]
        lines.append(f"{name:42}  rules {shares[0]}  with the learned part {shares[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(read(Path(sys.argv[1]))))
