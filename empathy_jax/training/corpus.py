"""The phase `corpus`: raw dumps to a corpus of records with splits, a card and figures."""

import dataclasses
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from empathy_jax import sharding
from empathy_jax.corpus import build, cleaning
from empathy_jax.corpus.build import Embed, Settings, Source
from empathy_jax.models.pooling import KINDS, Embedding, check_kind
from empathy_jax.training import common, scorer
from empathy_jax.training import workdir as workdirs


def run(config: ConfigDict, workdir: Path) -> dict:
    """Builds the corpus of `config.corpus.sources` in WORKDIR/corpus; a killed build begins anew."""
    began = time.monotonic()
    folder = workdirs.open_phase(workdir, "corpus", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    stats = build.build(make_sources(config), folder, make_settings(config), _load_embed(config))
    pairs = stats["pairs"]
    print(
        f"[corpus] {pairs['read']:,} pairs read = {pairs['kept']:,} kept + {pairs['rejected']:,} "
        f"rejected; {stats['questions']:,} questions, {stats['answers']:,} answers: "
        f"{folder / 'card.md'}",
        flush=True,
    )
    figures = [
        {"name": "pairs read and kept", "before": pairs["read"], "after": pairs["kept"]},
        {"name": "questions", "before": None, "after": stats["questions"]},
        {"name": "answers", "before": None, "after": stats["answers"]},
    ]
    return workdirs.finish(folder, "corpus", began, figures, splits=stats["splits"])


def make_sources(config: ConfigDict) -> list[Source]:
    """The sources with their licences.

    Raises:
      ValueError: when there is none, or the licences do not go with the sources.
    """
    paths, licences = config.corpus.sources, config.corpus.licences
    if not paths:
        raise ValueError(
            "config.corpus.sources is empty; name files, folders or hub:owner/name, e.g. "
            "--config.corpus.sources=\"('DIR','FILE.csv')\""
        )
    for name in ("sources", "licences"):
        for place, value in enumerate(config.corpus[name]):
            if not isinstance(value, str):
                raise ValueError(
                    f"config.corpus.{name}[{place}] is {value!r}; it must be text, in quotes"
                )
    if licences and len(licences) != len(paths):
        raise ValueError(
            f"config.corpus.licences names {len(licences)} licences for {len(paths)} "
            "config.corpus.sources; give one for each, in their order, or none"
        )
    return [Source(*pair) for pair in zip(paths, licences or [""] * len(paths), strict=True)]


def make_settings(config: ConfigDict) -> Settings:
    """The settings of the build.

    Raises:
      ValueError: for a number of processes below 0, or a threshold out of range.
    """
    section = config.corpus
    if section.workers < 0:
        raise ValueError(
            f"config.corpus.workers is {section.workers}; it must be 0 (one process per core) or more"
        )
    names = {field.name for field in dataclasses.fields(Settings)} & set(section.keys())
    values = {name: section[name] for name in names - {"clean"}}
    return Settings(
        clean=cleaning.Rules(**section.clean),
        validation_fraction=config.data.validation_fraction,
        test_fraction=config.data.test_fraction,
        **values,
    )


def _load_embed(config: ConfigDict) -> Embed | None:
    """The sentence encoder of `config.corpus.topic_encoder`; None where that is empty.

    It reads the first `topic_max_tokens` of a text: a letter's beginning says what it is about.
    """
    section = config.corpus
    if not section.topic_encoder:
        return None
    if section.topic_pooling not in KINDS:
        raise ValueError(
            f"config.corpus.topic_pooling is {section.topic_pooling!r}, allowed are "
            f"{', '.join(KINDS)}"
        )
    layout = sharding.make_layout(config.mesh)
    # Dtypes as those of the other encoder.
    own = config.reward_model.copy_and_resolve_references()
    own.tokenizer = ""
    model = common.load_model(
        section.topic_encoder, own, "config.corpus.topic_encoder", None, layout
    )
    check_kind(section.topic_pooling, model.config, "config.corpus.topic_pooling")
    embedding = Embedding(section.topic_pooling, section.topic_max_tokens)
    model = dataclasses.replace(model, embedding=embedding)
    if model.config.max_positions < section.topic_max_tokens:
        raise ValueError(
            f"config.corpus.topic_max_tokens is {section.topic_max_tokens}, but "
            f"{section.topic_encoder} reads {model.config.max_positions} positions at most; lower it"
        )
    encoder = scorer.Scorer(model.variables, model, {}, layout)

    def embed(texts: list[str]):
        with jax.set_mesh(layout.mesh):
            return encoder.embed_answers(texts)

    return embed
