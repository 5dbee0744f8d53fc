"""How much danger to life speaks from a help-seeking text, by rules and a model that explain themselves.

The grades follow the order of the Columbia Suicide Severity Rating Scale (C-SSRS; Posner et al. 2011,
https://doi.org/10.1176/appi.ajp.2011.10111704): 0 none, 1 wish to be dead, 2 active thoughts, 3 with a
method, 4 with some intent, 5 with plan and intent, 6 preparation or attempt, now or lately. Three things
are graded that the scale rates apart: self-harm without intent is 2, an attempt of long ago is 2, and
thoughts of long ago are 1. This reads words; it is no clinical instrument and diagnoses nothing.

Somebody else in danger is graded as the writer is: the finding says that it is another.

The rules read first. What they took back is hidden from the learned model (learned.py), which adds a
finding of grade 1 or 3 where its score is high enough; it lowers nothing.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from empathy_jax.safety import learned as learning
from empathy_jax.safety.normalise import normalise
from empathy_jax.safety.rules import (
    Combination,
    Rule,
    combinations,
    context_scanner,
    modifiers,
    rule_scanner,
    rules,
)
from empathy_jax.safety.scanning import scan

LEARNED = "learned"  # the rule's name in the findings of the learned model
Subject = Literal["self", "other", "stranger", "you"]

_SENTENCE_END = re.compile(r"[。!?\n;]|\.(?![a-z0-9])")
_CLAUSE_END = re.compile(r"[,、:。!?\n;]|\.(?![a-z0-9])|但是?|可是|不过|\bbut\b")
_LONGEST_SENTENCE = (
    120  # characters: a text without full stops is cut, so that words far apart stay apart
)
_BEFORE = 60  # characters before a finding in which a denial or an insult stands
_BEHIND = 40
_DEEDS = {"means", "body", "got", "edge"}  # of grade 0, and yet denied, told of others or over
_LOWERED = {"act": 2}  # elements that lie in the past; others become 1


class Finding(NamedTuple):
    """Something that a rule, a combination or the learned model found.

    Attributes:
      rule: id of the rule or combination; `LEARNED`.
      grade: what it counts, after its modifiers; 0: nothing.
      start, end: where it stands in the text, end exclusive.
      text: the words that stand there.
      subject: whom it is about.
      modifiers: what took it back or lowered it, e.g. "negated", "idiom", "past".
      why: what the rule looks for, in words; of the model, the features that weighed most.
      score: of the model, log-odds that the grade is met; None of rules.
    """

    rule: str
    grade: int
    start: int
    end: int
    text: str
    subject: Subject
    modifiers: tuple[str, ...]
    why: str
    score: float | None = None


class Risk(NamedTuple):
    """The grade of a text, 0 to 6, and everything that was found, the gravest first."""

    grade: int
    findings: tuple[Finding, ...]


class _Hit(NamedTuple):
    """A match in normalised text, judged."""

    id: str
    element: str
    grade: int
    start: int
    end: int
    sentence: int
    subject: Subject
    modifiers: tuple[str, ...]
    why: str
    score: float | None = None


def grade(text: str, learned: bool = True) -> Risk:
    """The risk that a text speaks of. Any string will do; the time is linear in its length.

    Args:
      text: what a person writes.
      learned: whether the learned model reads the text too, or the rules alone.
    """
    now = normalise(text)
    context = _context(now.text)
    hits = _found(context)
    if learned:
        hits += _learned(learning.weights(), context, hits)
    findings = []
    for hit in hits:
        if hit.grade or hit.modifiers:
            start, end = now.span(hit.start, hit.end)
            findings.append(
                Finding(
                    hit.id,
                    hit.grade,
                    start,
                    end,
                    text[start:end],
                    hit.subject,
                    hit.modifiers,
                    hit.why,
                    hit.score,
                )
            )
    findings.sort(key=lambda finding: (-finding.grade, finding.rule == LEARNED, finding.start))
    return Risk(findings[0].grade if findings else 0, tuple(findings))


def windows(text: str) -> list[learning.Window]:
    """What the learned model reads of a text."""
    context = _context(normalise(text).text)
    return learning.windows(context.text, context.sentences, _marks(context, _found(context)))


@dataclasses.dataclass(frozen=True)
class _Context:
    """Where things stand in a normalised text.

    Attributes:
      text: the normalised text.
      sentences, clauses: where each begins.
      idioms: spans, in order.
      subjects: ends of mentions and whom they mention, in order.
      frames: the sentences in which each kind of frame stands.
    """

    text: str
    sentences: list[int]
    clauses: list[int]
    idioms: list[tuple[int, int]]
    subjects: list[tuple[int, Subject]]
    frames: dict[str, set[int]]

    def sentence(self, place: int) -> int:
        """Index of the sentence of a place."""
        return bisect.bisect_right(self.sentences, place) - 1

    def bounds(self, sentence: int) -> tuple[int, int]:
        """Start and end of a sentence."""
        following = self.sentences[sentence + 1 : sentence + 2]
        return self.sentences[sentence], following[0] if following else len(self.text)

    def clause_start(self, place: int) -> int:
        """Start of the clause of a place."""
        return self.clauses[bisect.bisect_right(self.clauses, place) - 1]

    def subject(self, place: int, sentence: int) -> tuple[Subject, bool]:
        """Whom a place is about, and whether its own clause says so.

        The nearest mention in this sentence or the one before; "you" and strangers count in the clause
        itself only; without any it is the writer, as Chinese leaves "I" out.
        """
        clause = self.clause_start(place)
        first = self.sentences[max(sentence - 1, 0)]
        index = bisect.bisect_right(self.subjects, (place, "~")) - 1
        while index >= 0 and self.subjects[index][0] > first:
            end, name = self.subjects[index]
            if end > clause or name in ("self", "other"):
                return name, end > clause
            index -= 1
        return "self", False

    def idiom(self, start: int, end: int) -> bool:
        """Whether an idiom overlaps the span."""
        index = bisect.bisect_left(self.idioms, (end,))
        return index > 0 and self.idioms[index - 1][1] > start


def _context(text: str) -> _Context:
    """The context of a normalised text."""
    frames: dict[str, set[int]] = {name: set() for name in modifiers().frames}
    clauses = [0, *(match.end() for match in _CLAUSE_END.finditer(text))]
    context = _Context(text, list(_sentence_starts(text)), clauses, [], [], frames)
    for (kind, name), start, end in scan(context_scanner(), text):
        if kind == "idioms":
            context.idioms.append((start, end))
        elif kind == "subjects":
            context.subjects.append((end, name))
        else:
            frames[name].add(context.sentence(start))
    context.subjects.sort()
    return context


def _sentence_starts(text: str) -> Iterator[int]:
    yield 0
    last = 0
    for end in itertools.chain(
        (match.end() for match in _SENTENCE_END.finditer(text)), [len(text)]
    ):
        yield from range(last + _LONGEST_SENTENCE, end, _LONGEST_SENTENCE)
        if end > last and end < len(text):
            yield end
        last = end


def _found(context: _Context) -> list[_Hit]:
    """All that rules and combinations found."""
    hits = list(_judged(context))
    return hits + [hit for one in combinations() for hit in _combine(one, hits)]


def _marks(context: _Context, hits: Iterable[_Hit]) -> list[learning.Mark]:
    """What the learned model is told of a text: all that was found, and idioms, found or not."""
    marks = [learning.Mark("phrase", start, end, "idiom") for start, end in context.idioms]
    return marks + [
        learning.Mark(hit.element, hit.start, hit.end, hit.modifiers[0] if hit.modifiers else "")
        for hit in hits
    ]


def _learned(model: learning.Weights, context: _Context, hits: Sequence[_Hit]) -> Iterator[_Hit]:
    """The gravest grade that the model says is met, if any."""
    readings = learning.read(model, context.text, context.sentences, _marks(context, hits))
    targets = zip(learning.TARGETS.values(), readings, model.thresholds, strict=True)
    met = [(least, one) for least, one, limit in targets if one.named and one.score >= limit]
    for least, one in met[-1:]:
        sentence = context.sentence(one.start)
        subject, _ = context.subject(one.start, sentence)
        why = "weighed most: " + ", ".join(f"{name} {raised:+.2f}" for name, raised in one.named)
        place = one.start, one.end, sentence
        yield _Hit(LEARNED, LEARNED, least, *place, subject, (), why, round(one.score, 3))


def _judged(context: _Context) -> Iterator[_Hit]:
    """All matches of rules; of those that count in combinations only, one a sentence."""
    seen = set()
    for index, start, end in scan(rule_scanner(), context.text):
        rule, sentence = rules()[index], context.sentence(start)
        if rule.grade or (index, sentence) not in seen:
            hit = _judge(rule, start, end, context)
            if not hit.modifiers:
                seen.add((index, sentence))
            yield hit


def _judge(rule: Rule, start: int, end: int, context: _Context) -> _Hit:
    """A match of a rule, with what takes it back or lowers it."""
    sentence = context.sentence(start)
    subject, stated = context.subject(start, sentence)
    found = tuple(_modifiers(rule, start, end, sentence, subject, stated, context))
    if not found:
        counted = rule.grade
    elif found == ("past",):
        counted = min(rule.grade, _LOWERED.get(rule.element, 1))
    else:
        counted = 0
    return _Hit(rule.id, rule.element, counted, start, end, sentence, subject, found, rule.why)


def _modifiers(
    rule: Rule,
    start: int,
    end: int,
    sentence: int,
    subject: Subject,
    stated: bool,
    context: _Context,
) -> Iterator[str]:
    """Names of what applies to a match; only "past" leaves anything of its grade."""
    words, text = modifiers(), context.text
    first, last = context.bounds(sentence)
    if context.idiom(start, end):
        yield "idiom"
    if rule.unless and rule.unless.search(text, first, last):
        yield "unless"
    if rule.grade == 0 and rule.element not in _DEEDS:
        return
    clause = context.clause_start(start)
    before = text[max(clause, start - _BEFORE) : start]
    denied = words.negation.search(before) and not words.no_negation.search(before)
    if denied or words.denial_behind.search(text[end : end + _BEHIND]):
        yield "negated"
    if rule.element == "request":
        return
    near = text[max(first, start - _BEFORE) : start]
    if subject == "you" or (
        words.insults.search(near) and words.imperative.search(text[start : end + _BEHIND])
    ):
        yield "insult"
    if subject == "stranger":
        yield "stranger"
    sentences = {sentence, sentence - 1}
    if not words.also_me.search(text, first, last):
        if context.frames["play"] & sentences:
            yield "play"
        elif context.frames["story"] & sentences and not (subject == "self" and stated):
            yield "story"
    if subject == "other" and rule.element != "wish" and words.grief.search(text, first, last):
        yield "grief"
    if _is_past(start, end, first, last, context):
        yield "past"


def _is_past(start: int, end: int, first: int, last: int, context: _Context) -> bool:
    """Whether a word of the past stands before a match in its sentence, or close behind it."""
    words, text = modifiers(), context.text
    before = [match.end() for match in words.past.finditer(text, first, start)]
    if before:
        return not words.still.search(text, before[-1], start)
    behind = words.past.search(text, end, min(end + _BEHIND, last))
    return behind is not None and not words.still.search(text, first, behind.end())


def _combine(one: Combination, hits: Sequence[_Hit]) -> Iterator[_Hit]:
    """What a combination finds among the hits that count, at most one for each sentence."""
    elements = frozenset().union(*one.needs)
    here: dict[int, dict[str, _Hit]] = {}
    for hit in hits:
        if hit.element in elements and not hit.modifiers:
            here.setdefault(hit.sentence, {}).setdefault(hit.element, hit)
    for sentence, found in here.items():
        open_ = (here.get(sentence + 1, {}) if one.sentences == 2 else {}) | found
        parts = [next((open_[name] for name in need if name in open_), None) for need in one.needs]
        if all(parts):
            subject = "other" if any(part.subject == "other" for part in parts) else "self"
            start, end = min(part.start for part in parts), max(part.end for part in parts)
            yield _Hit(one.id, "combination", one.grade, start, end, sentence, subject, (), one.why)
