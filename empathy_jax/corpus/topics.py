"""Topics of questions in two levels: by the source's own labels, else by the nearest description.

The taxonomy is a YAML file (`topics.yaml` beside this module shows the form); users bring their own.
A label of a source is understood when it is a name, an English name or an alias in the taxonomy, or
when a mapping (a second YAML file) says what it means. The rest go to the sub topic whose description
lies nearest to the question, as a sentence encoder sees it, if near enough.
"""

import dataclasses
import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float32

from empathy_jax.corpus.splits import split_key

Embed = Callable[[list[str]], Float32[np.ndarray, "N D"]]

_KEYS = {"name", "english", "description", "aliases"}
_SEVERAL = re.compile(r"[,，、;；|]")  # between the labels of a question that has several


@dataclasses.dataclass(frozen=True)
class Topic:
    """A main topic, or a sub topic, which has no `subtopics` of its own."""

    name: str
    english: str
    description: str
    aliases: tuple[str, ...] = ()
    subtopics: tuple["Topic", ...] = ()


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Topics and where they come from."""

    topics: tuple[Topic, ...]
    source: str


class Place(NamedTuple):
    """Names of a main topic and, where known, of one of its sub topics."""

    topic: str | None
    subtopic: str | None


class Assignment(NamedTuple):
    """The topic of one question.

    Attributes:
      topic, subtopic: names in the taxonomy; None where unknown.
      by: "label": the source says the topic; "nearest": its description does; "unassigned".
      similarity: cosine of the question and the nearest description that was open to it, also
        where it was too far; None where nothing was compared.
    """

    topic: str | None
    subtopic: str | None
    by: Literal["label", "nearest", "unassigned"]
    similarity: float | None


def load_taxonomy(path: str = "") -> Taxonomy:
    """The taxonomy in a YAML file, or ours where `path` is empty.

    Raises:
      ValueError: when the file cannot be read, or an entry is incomplete, unknown or ambiguous; the
        message names the entry.
    """
    if path:
        value = _read_yaml(path, "config.corpus.topics")
    else:
        path = "topics.yaml"
        packaged = importlib.resources.files("empathy_jax.corpus") / path
        value = yaml.safe_load(packaged.read_text(encoding="utf-8"))
    where = f"the taxonomy {path!r} (config.corpus.topics)"
    if not isinstance(value, dict) or set(value) != {"topics"}:
        raise ValueError(f"{where} must be one mapping with the single key `topics`")
    taxonomy = Taxonomy(_topics(value["topics"], f"{where}: topics", main=True), path)
    _labels(taxonomy)
    return taxonomy


def load_mapping(path: str = "") -> dict[str, str | None]:
    """What the labels of a source mean: a YAML mapping from label to topic; {} where `path` is empty.

    A topic is written "main" or "main/sub", by its names; null says that the label means none.

    Raises:
      ValueError: when the file cannot be read or is no such mapping.
    """
    if not path:
        return {}
    value = _read_yaml(path, "config.corpus.topic_mapping")
    if not isinstance(value, dict):
        raise ValueError(
            f"The mapping {path!r} (config.corpus.topic_mapping) must map labels to topics, got"
            f" {type(value).__name__}"
        )
    for label, target in value.items():
        if not isinstance(label, str) or not isinstance(target, str | None):
            raise ValueError(
                f"The mapping {path!r} (config.corpus.topic_mapping) must map text to text or null,"
                f" got {label!r}: {target!r}; put the label in quotes"
            )
    return value


def assign(
    records: Sequence[Mapping[str, Any]],
    taxonomy: Taxonomy,
    label_mapping: Mapping[str, str | None],
    embed: Embed | None,
    threshold: float,
) -> list[Assignment]:
    """The topic of each question.

    Its labels decide, "topic" and "subtopic" of the record: through the mapping, else as names,
    English names and aliases. Where they give a main topic alone, the sub topic is the nearest of
    that main topic; where they give nothing, the nearest of all, with its main topic.

    Args:
      records: question records.
      taxonomy: of `load_taxonomy`.
      label_mapping: of `load_mapping`.
      embed: unit vectors [N, D] of N texts; None: labels only.
      threshold: cosine below which a description is too far, in [-1, 1].

    Raises:
      ValueError: for a threshold out of range or a mapping to a topic that there is not.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"The cosine threshold must lie in [-1, 1], got {threshold};"
            " change config.corpus.topic_threshold."
        )
    labels = _labels(taxonomy) | _mapped(label_mapping, taxonomy)
    places = [_labelled(record, labels) for record in records]
    assignments = [
        Assignment(*place, "label" if place.topic else "unassigned", None) for place in places
    ]
    open_ = [index for index, place in enumerate(places) if place.subtopic is None]
    if embed is None or not open_:
        return assignments
    leaves = [(topic, sub) for topic in taxonomy.topics for sub in topic.subtopics]
    questions = embed([records[index]["question"] for index in open_])
    similarity = questions @ embed([sub.description for _, sub in leaves]).T
    mains = np.array([topic.name for topic, _ in leaves])
    for index, row in zip(open_, similarity, strict=True):
        main = places[index].topic
        row = row if main is None else np.where(mains == main, row, -np.inf)
        best = int(np.argmax(row))
        near = bool(row[best] >= threshold)
        topic, sub = leaves[best]
        by = "label" if main else "nearest" if near else "unassigned"
        place = Place(topic.name, sub.name) if near else places[index]
        assignments[index] = Assignment(*place, by, float(row[best]))
    return assignments


def meaning_nothing(labels: Iterable[str], label_mapping: Mapping[str, str | None]) -> set[str]:
    """The labels that a mapping maps to null, as a whole or each of several in one."""
    nothing = {split_key(label) for label, target in label_mapping.items() if target is None}
    return {
        label
        for label in labels
        if split_key(label) in nothing
        or nothing.issuperset(split_key(part) for part in _SEVERAL.split(label))
    }


def _labelled(record: Mapping[str, Any], labels: Mapping[str, Place | None]) -> Place:
    """What a record's own labels say; the finer label counts where the two agree."""
    main = _find(record.get("topic"), labels)
    sub = _find(record.get("subtopic"), labels)
    if main is None or (sub is not None and sub.topic == main.topic and main.subtopic is None):
        main = sub
    return main or Place(None, None)


def _find(label: str | None, labels: Mapping[str, Place | None]) -> Place | None:
    """The place of a label, or of the first understood one in a list of labels."""
    for part in [label, *_SEVERAL.split(label)] if label else []:
        place = labels.get(split_key(part))
        if place is not None:
            return place
    return None


def _labels(taxonomy: Taxonomy) -> dict[str, Place]:
    """The place of every name, English name and alias, by its `split_key`.

    Raises:
      ValueError: where one label means two places.
    """
    places: dict[str, Place] = {}
    for topic in taxonomy.topics:
        for place, entry in [
            (Place(topic.name, None), topic),
            *((Place(topic.name, sub.name), sub) for sub in topic.subtopics),
        ]:
            for label in (entry.name, entry.english, *entry.aliases):
                if places.setdefault(split_key(label), place) != place:
                    raise ValueError(
                        f"In the taxonomy {taxonomy.source!r} (config.corpus.topics) {label!r} means"
                        f" both {_shown(places[split_key(label)])} and {_shown(place)}"
                    )
    return places


def _mapped(label_mapping: Mapping[str, str | None], taxonomy: Taxonomy) -> dict[str, Place | None]:
    places = {_shown(Place(topic.name, None)): Place(topic.name, None) for topic in taxonomy.topics}
    for topic in taxonomy.topics:
        for sub in topic.subtopics:
            places[f"{topic.name}/{sub.name}"] = Place(topic.name, sub.name)
    unknown = [target for target in label_mapping.values() if target and target not in places]
    if unknown:
        raise ValueError(
            f"The taxonomy {taxonomy.source!r} (config.corpus.topics) has no topic {unknown[0]!r},"
            f" which config.corpus.topic_mapping names; it has {', '.join(list(places)[:5])}, ..."
        )
    return {
        split_key(label): places[target] if target else None
        for label, target in label_mapping.items()
    }


def _shown(place: Place) -> str:
    return "/".join(filter(None, place))


def _read_yaml(path: str, field: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read ({error.strerror}); change {field}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8; save it as such, or change {field}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path!r} ({field}) is not YAML: {error}") from error


def _topics(value: Any, where: str, main: bool) -> tuple[Topic, ...]:
    """Checked entries of one level.

    Raises:
      ValueError: for what is missing, blank, unknown or there twice.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list with at least one entry")
    topics = tuple(_topic(entry, f"{where}[{place}]", main) for place, entry in enumerate(value))
    names = [topic.name for topic in topics]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{where} has {twice!r} twice")
    return topics


def _topic(entry: Any, where: str, main: bool) -> Topic:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping, got {type(entry).__name__}")
    if isinstance(entry.get("name"), str):
        where += f" ({entry['name']})"
    allowed = _KEYS | ({"subtopics"} if main else set())
    if unknown := set(entry) - allowed:
        raise ValueError(
            f"{where} has the key {sorted(map(str, unknown))[0]!r};"
            f" allowed are {', '.join(sorted(allowed))}"
        )
    texts = [_text(entry.get(key), f"{where}: {key}") for key in ("name", "english", "description")]
    if "/" in texts[0]:
        raise ValueError(f"{where}: a name has no '/', which divides main from sub topic")
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list):
        raise ValueError(f"{where}: aliases must be a list, got {aliases!r}")
    aliases = tuple(_text(alias, f"{where}: an alias") for alias in aliases)
    subtopics = ()
    if main:
        subtopics = _topics(entry.get("subtopics"), f"{where}: subtopics", main=False)
    return Topic(*texts, aliases, subtopics)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text, got {value!r}")
    return value.strip()
