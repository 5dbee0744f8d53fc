"""Every measure of a system's answers, beside floor and ceiling, with intervals.

`measure` gives values of single texts, `add_up` makes sums over questions of them, and `table` makes
the entries of scores.json. What needs a model (BERTScore, perplexity, a reward model) is measured by
the caller and joins the values by its name.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from empathy_jax.evaluation.metrics import diversity, manner, overlap, resampling
from empathy_jax.evaluation.metrics import tokens as tokens_lib
from empathy_jax.evaluation.metrics.catalogue import MEASURES
from empathy_jax.evaluation.metrics.copying import Copying
from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.evaluation.metrics.references import Candidates, Pairs
from empathy_jax.evaluation.metrics.resampling import Sums
from empathy_jax.evaluation.metrics.tokens import Ints

# Set to measure to values of its texts: [N], or [N, S] of what is summed up.
Values = dict[str, dict[str, Floats]]


def measure(
    sets: Mapping[str, Candidates],
    questions: Sequence[str],
    language: str,
    score_with_encoder: Callable[[list[str], np.ndarray], Mapping[str, Floats]] | None = None,
) -> Values:
    """What needs no model, and BERTScore where there is an encoder, of every text of every set.

    Args:
      sets: of `references.candidate_sets`.
      questions: Q texts.
      language: "zh" or "en"; the n-gram of the template overlap.
      score_with_encoder: (texts, pairs) to scores of the pairs; see `bert_score.score_pairs`.
    """
    pairs = Pairs(sets)
    values: Values = {name: {} for name in sets}
    # numpy, scipy and rapidfuzz leave other threads the interpreter while they work.
    with ThreadPoolExecutor() as pool:
        for found in pool.map(partial(_of_tokens, pairs, list(sets)), tokens_lib.TOKENIZATIONS):
            for name, own in found.items():
                values[name] |= own
    if score_with_encoder is not None:
        scores = score_with_encoder(pairs.texts, pairs.pairs)
        for name in sets:
            values[name] |= _over_references(pairs, name, scores)
    kinds = manner.tally(pairs.texts).astype(np.float64)
    copying = Copying([*questions, *pairs.texts], language)
    for name, candidates in sets.items():
        if not name.startswith("beside"):  # the same texts as the model's
            own = pairs.own(name)
            values[name] |= _manner(kinds[own])
            values[name] |= _copied(copying, candidates.owners, own + len(questions))
    return values


def _over_references(pairs: Pairs, name: str, scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Best and mean over references of a set's texts, from the scores of all pairs."""
    return {
        f"{metric}_{kind}": found
        for metric, own in scores.items()
        for kind, found in pairs.best_and_mean(name, own).items()
    }


def _of_tokens(pairs: Pairs, names: Sequence[str], tokenization: str) -> Values:
    """Overlap, lengths, Distinct-n per answer and what corpus BLEU sums up, of every set's texts."""
    cut = tokens_lib.tokenize(pairs.texts, tokenization)
    counts = overlap.ngram_counts(cut, overlap.orders(tokenization))
    scores = overlap.score_pairs(cut, counts, pairs.pairs)
    scores = {f"{metric}_{tokenization}": own for metric, own in scores.items()}
    length = {"char": "characters", "jieba": "words"}[tokenization]
    single = {length: cut.lengths.astype(np.float64)}
    single |= {f"distinct_{n}_{tokenization}": diversity.distinct(cut, counts, n) for n in (1, 2)}
    statistics = _bleu_statistics(pairs, names, cut, counts)
    return {
        name: {
            **_over_references(pairs, name, scores),
            **{metric: values[pairs.own(name)] for metric, values in single.items()},
            f"bleu_{overlap.BLEU_ORDER}_{tokenization}_corpus": statistics[name],
        }
        for name in names
    }


def _bleu_statistics(
    pairs: Pairs, names: Sequence[str], cut: tokens_lib.Tokens, counts: Sequence[Any]
) -> dict[str, Floats]:
    """What corpus BLEU sums up of the texts of each set, NaN for those without references."""
    some = {name: pairs.with_references(name) for name in names}
    texts = np.concatenate([pairs.own(name)[places] for name, (places, _) in some.items()])
    groups = [own for _, references in some.values() for own in references]
    sizes = [len(places) for places, _ in some.values()]
    made = np.zeros((0, 2 + 2 * overlap.BLEU_ORDER))
    if groups:
        made = overlap.bleu_statistics(cut, counts, texts, groups)
    found = {}
    for (name, (places, _)), own in zip(
        some.items(), np.split(made, np.cumsum(sizes)[:-1]), strict=True
    ):
        found[name] = np.full((len(pairs.own(name)), made.shape[1]), np.nan)
        found[name][places] = own
    return found


def _copied(copying: Copying, owners: Ints, texts: Ints) -> dict[str, Floats]:
    """Overlap with the question, and with answers to other questions.

    The latter grows with the number of texts, so each question has one, whoever answers it: the
    first; it is NaN for the others.
    """
    template = np.full(len(texts), np.nan)
    _, first = np.unique(owners, return_index=True)
    template[first] = copying.template(texts[first])
    return {"echo_overlap": copying.echo(owners, texts), "template_overlap": template}


def _manner(kinds: Floats) -> dict[str, Floats]:
    """From sentences, questions, reflections and advice of each text, [N, 4]."""
    sentences, asks, reflections, advice = kinds.T
    return {
        "reflections_to_questions": np.column_stack([reflections, asks]),
        "advice_share": np.column_stack([advice, sentences]),
        "questions_asked": asks,
        "reflections": reflections,
    }


def add_up(
    values: Values, sets: Mapping[str, Candidates], questions: int
) -> dict[str, dict[str, Sums]]:
    """Measure to set to its sums over questions."""
    made: dict[str, dict[str, Sums]] = {}
    for set_name, own in values.items():
        owners = sets[set_name].owners
        for name, found in own.items():
            made.setdefault(name, {})[set_name] = sums_of(name, found, owners, questions)
    return made


def sums_of(name: str, values: Floats, owners: Any, questions: int) -> Sums:
    """A measure's values of single answers as sums over questions."""
    finish = MEASURES[name].finish
    if values.ndim == 2:
        return resampling.sums_of(values, owners, questions, finish)
    return resampling.mean_of(values, owners, questions, finish)


def table(sums: Mapping[str, Mapping[str, Sums]], seed: int) -> dict[str, dict[str, Any]]:
    """The entries of scores.json.

    Returns:
      For each measure `value`, `error`, `low`, `high`, `questions` of the system; the same of the
      floor and of the ceiling as `floor`, `floor_error`, ... (None where there is none);
      `over_floor` with `over_floor_low` and `_high`, the system less the floor; `beside_ceiling`,
      the system on the questions of the ceiling, with as many references; `tokens`, its
      tokenization.
    """
    flat = {(name, which): one for name, own in sums.items() for which, one in own.items()}
    drawn = resampling.bootstrap(flat, seed)
    return {
        name: _entry(name, own, {which: drawn[name, which] for which in own})
        for name, own in sums.items()
    }


def _entry(name: str, own: Mapping[str, Sums], drawn: Mapping[str, Floats]) -> dict[str, Any]:
    entry = resampling.summarise(own["model"], drawn["model"])
    for which in ("floor", "ceiling"):
        side = dict.fromkeys(("value", "error", "low", "high", "questions"))
        if which in own:
            side = resampling.summarise(own[which], drawn[which])
        entry[which] = side.pop("value")
        entry |= {f"{which}_{key}": value for key, value in side.items()}
    entry |= dict.fromkeys(("over_floor", "over_floor_low", "over_floor_high"))
    if entry["value"] is not None and entry["floor"] is not None:
        above = resampling.spread(drawn["model"] - drawn["floor"])
        entry["over_floor"] = entry["value"] - entry["floor"]
        entry["over_floor_low"], entry["over_floor_high"] = above["low"], above["high"]
    entry["beside_ceiling"] = None
    if entry["ceiling"] is not None:
        kept = own["ceiling"].counted
        beside = (
            own.get("beside", own["model"].only(kept))
            if MEASURES[name].per_reference
            else (own["model"].only(kept))
        )
        entry["beside_ceiling"] = None if np.isnan(beside.value) else beside.value
    return entry | {"tokens": MEASURES[name].tokens}


WIN_MEASURES = ("similarity", "bertscore_f1_max", "rouge_l_char_max", "chrf_char_max")


def wins(
    sums: Mapping[str, Mapping[str, Sums]], systems: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Who beats whom, question by question, on a few measures.

    Args:
      sums: of `add_up`.
      systems: names of sets, each with a set `beside NAME` (`beside` for `model`).
      seed: of the bootstrap.

    Returns:
      For each of WIN_MEASURES that there is: `systems`, the given ones, floor and ceiling; and
      `matrix`, where row i and column j have `resampling.win_share` of i over j, None on the
      diagonal. Against the ceiling a system has one reference less.
    """
    found = {}
    for name in WIN_MEASURES:
        own = sums.get(name, {})
        players = [player for player in (*systems, "floor", "ceiling") if player in own]
        if len(players) < 2:
            continue
        sides = [[_side(name, own, one, two) for two in players] for one in players]
        found[name] = {
            "systems": players,
            "matrix": [
                [
                    None if i == j else resampling.win_share(sides[i][j], sides[j][i], seed)
                    for j in range(len(players))
                ]
                for i in range(len(players))
            ],
        }
    return found


def _side(name: str, own: Mapping[str, Sums], one: str, two: str) -> Sums:
    """What stands for a player against another one."""
    beside = "beside" if one == "model" else f"beside {one}"
    if two == "ceiling" and MEASURES[name].per_reference and beside in own:
        return own[beside]
    return own[one]


def corpus_distinct(
    sets: Mapping[str, Candidates], questions: int, seed: int
) -> dict[str, tuple[int, dict[str, float], dict[str, Floats]]]:
    """Distinct-n at equal length of each set, one answer to a question: the first.

    Returns:
      For each measure the number of n-grams that all are measured at, the value of each set, and
      its values over half-samples of questions.
    """
    first = {name: np.unique(own.owners, return_index=True) for name, own in sets.items()}
    texts = [sets[name].texts[index] for name in sets for index in first[name][1]]
    edges = np.cumsum([0, *(len(owners) for owners, _ in first.values())])
    places = [np.arange(start, end) for start, end in itertools.pairwise(edges)]
    asked = [owners for owners, _ in first.values()]
    found = {}
    for tokenization in tokens_lib.TOKENIZATIONS:
        cut = tokens_lib.tokenize(texts, tokenization)
        for n in (1, 2):
            counts = diversity.counts_by_question(cut, n, places, asked, questions)
            length, values, halves = diversity.at_equal_length(counts, seed)
            found[f"distinct_{n}_{tokenization}_corpus"] = (
                length,
                dict(zip(sets, values, strict=True)),
                dict(zip(sets, halves, strict=True)),
            )
    return found


def corpus_distinct_entries(
    sets: Mapping[str, Candidates], questions: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Entries of `table` for Distinct-n at equal length, with `ngrams`, that length.

    There is no floor: answers to other questions are the same answers.
    """
    sides = {name: sets[name] for name in ("model", "ceiling")}
    return {
        name: distinct_entry(
            name,
            length,
            (values["model"], halves["model"]),
            (values["ceiling"], halves["ceiling"]),
        )
        for name, (length, values, halves) in corpus_distinct(sides, questions, seed).items()
    }


def distinct_entry(
    name: str, length: int, model: tuple[float, Floats], ceiling: tuple[float, Floats]
) -> dict[str, Any]:
    """An entry of `table` from (value, half-samples) of the system and of people's answers."""
    entry = half_sample_interval(*model)
    people = half_sample_interval(*ceiling)
    entry["ceiling"] = people.pop("value")
    entry |= {f"ceiling_{key}": own for key, own in people.items()}
    nothing = ("floor", "floor_error", "floor_low", "floor_high", "floor_questions")
    nothing += ("over_floor", "over_floor_low", "over_floor_high", "questions", "ceiling_questions")
    entry |= dict.fromkeys(nothing)
    return entry | {
        "beside_ceiling": entry["value"], "ngrams": length, "tokens": MEASURES[name].tokens,
    }  # fmt: skip


def half_sample_interval(value: float, halves: Floats) -> dict[str, float | None]:
    """`value`, `error`, `low` and `high` = value ± 1.96 standard deviations over half-samples."""
    if np.isnan(value):
        return dict.fromkeys(("value", "error", "low", "high"))
    error = float(np.nanstd(halves))
    return {
        "value": value, "error": error, "low": value - 1.96 * error, "high": value + 1.96 * error,
    }  # fmt: skip


def single(name: str, values: Floats) -> list[float | None]:
    """The measure of each text by itself, None where it has none."""
    finish = MEASURES[name].finish
    found = (
        finish(values)
        if values.ndim == 2
        else finish(np.column_stack([values, np.ones(len(values))]))
    )
    return [None if np.isnan(value) else float(value) for value in found]
