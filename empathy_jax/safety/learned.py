"""What a linear model says of a text beside the rules: log-odds of grade 1 and above, and of 3 and above.

A text is read in windows of sentences. The features of a window are its n-grams (1 to 3 Chinese
characters, 1 or 2 words) and what the rules found in it, as elements and pairs of elements. Words that a
rule took back are not read: the name of what took them back stands in their place, so that "我没有想自杀"
holds a `<negated>` and no 自杀. A window scores w·x + b with

    x_f = 1 / √max(n, 10) for each of its n different n-grams, and ELEMENT_VALUE for each element or pair,

and a text as its highest window does. `train.py` makes the weights, `weights.json`.
"""

import bisect
import functools
import importlib.resources
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

TARGETS = {
    "noticed": 1,
    "urgent": 3,
}  # name of a score: the grade from which on it should be positive
WINDOW = 80  # tokens that a window of several sentences may have
ELEMENT_VALUE = 0.2
FEWEST = 10  # n-grams that a window is taken to have at least
NAMED = 3  # features that an explanation names
_TOKEN = re.compile(r"[a-z0-9']+|[\u3400-\u9fff]|[^\w\s]", re.ASCII)
_DIGITS = re.compile(r"[0-9]+")
_LONGEST = {"zh": 3, "word": 2}


class Mark(NamedTuple):
    """What a rule found, as the model sees it.

    Attributes:
      element: of the rule, or "combination".
      start, end: where, in the normalised text.
      taken_back: what took it back or lowered it, e.g. "negated"; "" for nothing.
    """

    element: str
    start: int
    end: int
    taken_back: str


class Weights(NamedTuple):
    """A model: for each feature its weight in each of `TARGETS`, in their order.

    Attributes:
      features: weights of each feature; others weigh nothing.
      biases: of each target.
      thresholds: the score from which on a target is said to be met.
    """

    features: Mapping[str, tuple[float, ...]]
    biases: tuple[float, ...]
    thresholds: tuple[float, ...]


class Reading(NamedTuple):
    """What a model says of a text for one target.

    Attributes:
      score: log-odds of the highest window.
      named: the features that raised it most, and how much each.
      start, end: where the first of them that has a place stands; the window if none has.
    """

    score: float
    named: tuple[tuple[str, float], ...]
    start: int
    end: int


class Window(NamedTuple):
    """Features of a stretch of text: their values and, of n-grams, where they first stand."""

    start: int
    end: int
    values: Mapping[str, float]
    places: Mapping[str, tuple[int, int]]


class _Token(NamedTuple):
    text: str
    kind: str  # "zh", "word", "mark" or "sign"
    start: int
    end: int


@functools.cache
def weights() -> Weights:
    """The model of the package."""
    file = importlib.resources.files("empathy_jax.safety") / "weights.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    features = {name: tuple(values) for name, values in document["features"].items()}
    return Weights(features, tuple(document["biases"]), tuple(document["thresholds"]))


def read(
    model: Weights, text: str, sentences: Sequence[int], marks: Sequence[Mark]
) -> list[Reading]:
    """What a model says of a normalised text, one reading for each of `TARGETS`.

    Args:
      model: weights.
      text: normalised.
      sentences: where each sentence begins.
      marks: what the rules found.
    """
    found = [(window, scores(model, window)) for window in windows(text, sentences, marks)]
    return [
        _reading(model, target, *max(found, key=lambda one: one[1][target]))
        for target in range(len(TARGETS))
    ]


def scores(model: Weights, window: Window) -> list[float]:
    """Log-odds of each of `TARGETS` for one window."""
    totals = list(model.biases)
    for feature, value in window.values.items():
        for target, weight in enumerate(model.features.get(feature, ())):
            totals[target] += weight * value
    return totals


def _reading(model: Weights, target: int, window: Window, totals: list[float]) -> Reading:
    raised = {
        feature: model.features[feature][target] * value
        for feature, value in window.values.items()
        if feature in model.features
    }
    named = sorted(raised.items(), key=lambda item: (-item[1], item[0]))[:NAMED]
    place = next((window.places[name] for name, _ in named if name in window.places), None)
    start, end = place or (window.start, window.end)
    return Reading(totals[target], tuple(named), start, end)


def windows(text: str, sentences: Sequence[int], marks: Sequence[Mark]) -> list[Window]:
    """The windows of a text: as many sentences as fit, each window beginning half of one after the last.

    A text of one window's length is one window; a text without tokens, one without features.
    """
    tokens = _tokens(text, marks)
    marks = sorted(marks, key=lambda mark: mark.start)
    starts = [token.start for token in tokens]
    bounds = [bisect.bisect_left(starts, sentence) for sentence in sentences] + [len(tokens)]
    found: list[Window] = []
    begun = reached = last = 0
    for index, first in enumerate(bounds[:-1]):
        if first < reached and first - begun < WINDOW // 2:
            continue
        last = max(last, index + 1)
        while last + 1 < len(bounds) and bounds[last + 1] - first <= WINDOW:
            last += 1
        if bounds[last] > reached:
            begun, reached = first, bounds[last]
            found.append(_window(tokens[first:reached], marks))
    return found or [Window(0, len(text), {}, {})]


def _window(tokens: Sequence[_Token], marks: Sequence[Mark]) -> Window:
    places: dict[str, tuple[int, int]] = {}
    for feature, start, end in _ngrams(tokens):
        places.setdefault(feature, (start, end))
    values = dict.fromkeys(places, 1 / math.sqrt(max(len(places), FEWEST)))
    start, end = tokens[0].start, tokens[-1].end
    first = bisect.bisect_left(marks, start, key=lambda mark: mark.start)
    last = bisect.bisect_left(marks, end, key=lambda mark: mark.start)
    values |= dict.fromkeys(sorted(_elements(marks[first:last])), ELEMENT_VALUE)
    return Window(start, end, values, places)


def _ngrams(tokens: Sequence[_Token]) -> Iterator[tuple[str, int, int]]:
    """N-grams within a run of one script, with their places; a mark is a token of either."""
    for first, token in enumerate(tokens):
        kind, parts = token.kind, []
        for following in tokens[first : first + _LONGEST["zh"]]:
            if following.kind == "sign" or len({kind, following.kind} - {"mark"}) > 1:
                break
            kind = following.kind if kind == "mark" else kind
            parts.append(following.text)
            if len(parts) > _LONGEST.get(kind, 1) and kind != "zh":
                break
            yield ("" if kind == "zh" else " ").join(parts), token.start, following.end


def _elements(marks: Sequence[Mark]) -> set[str]:
    """Names of what the rules found: "[means]", taken back "[means negated]", pairs "[means][time]"."""
    names = {f"[{mark.element} {mark.taken_back}]" for mark in marks if mark.taken_back}
    stands = sorted({mark.element for mark in marks if not mark.taken_back})
    names |= {f"[{element}]" for element in stands}
    return names | {
        f"[{one}][{other}]" for index, one in enumerate(stands) for other in stands[index + 1 :]
    }


def _tokens(text: str, marks: Sequence[Mark]) -> list[_Token]:
    """The tokens of a text; those under a mark that was taken back are one, its modifier's name."""
    covers = sorted((mark.start, mark.end, mark.taken_back) for mark in marks if mark.taken_back)
    tokens: list[_Token] = []
    cover, done = 0, 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        while cover < len(covers) and covers[cover][1] <= start:
            cover += 1
        if cover < len(covers) and covers[cover][0] <= start:
            if start >= done:
                done = covers[cover][1]
                tokens.append(_Token(f"<{covers[cover][2]}>", "mark", start, done))
        elif start >= done:
            tokens.append(_Token(_DIGITS.sub("0", match[0]), _kind(match[0]), start, end))
    return tokens


def _kind(token: str) -> str:
    if "\u3400" <= token <= "\u9fff":
        return "zh"
    return "word" if token[0].isalnum() or token[0] == "'" else "sign"
