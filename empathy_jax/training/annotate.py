"""The phase `annotate`: chains for questions, written by a teacher; see `corpus.annotate`."""

import time
from pathlib import Path

from ml_collections import ConfigDict

from empathy_jax import files
from empathy_jax.corpus import annotate, readers
from empathy_jax.corpus.annotate import Settings
from empathy_jax.corpus.annotation import reporting
from empathy_jax.corpus.annotation.journal import Prices
from empathy_jax.corpus.annotation.judging import Limits
from empathy_jax.corpus.annotation.teacher import Endpoint
from empathy_jax.metric_writer import Progress
from empathy_jax.training import workdir as workdirs

# A chain for a test question would be paid for and never trained on.
_SPLITS = ("train", "validation")


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes `chains.jsonl`, `rejected.jsonl`, `report.json` and the journal `requests.jsonl`.

    What could not be read as a question goes to `unreadable.jsonl`.

    Raises:
      ValueError: for bad settings, and when it stops before every question has an outcome (budget,
        wrong key, an endpoint that is down); what was answered until then is kept.
    """
    began = time.monotonic()
    settings = make_settings(config)
    annotate.check(settings)
    wanted = config.annotate.questions
    if wanted < 0:
        raise ValueError(f"config.annotate.questions is {wanted}; it must be 0 (all) or more")
    folder = workdirs.open_phase(workdir, "annotate", config)
    summary = workdirs.finished(folder)
    if summary is not None and summary["limit"] == wanted:
        return summary
    questions = _read(config, workdir)
    # Where it is less than the limit of an earlier run, that run's further chains stay bought.
    questions = questions[:wanted] if wanted else questions
    progress = Progress("annotate", len(questions), every=config.log.every)
    print(
        f"[annotate] {len(questions)} questions for {settings.endpoint.model} at"
        f" {settings.endpoint.base_url}; budget {settings.max_tokens:,} tokens,"
        f" {settings.max_money:g} in money",
        flush=True,
    )
    with workdirs.watch_sigterm() as received:
        report = annotate.annotate(
            questions, folder, settings, lambda: bool(received), progress.update
        )
    progress.close()
    print("[annotate]", "\n  ".join(reporting.summary_lines(report)), flush=True)
    if report["stopped"] is not None:
        if received:
            raise workdirs.Preempted("annotate", len(questions) - report["questions"]["left"])
        raise ValueError(report["stopped"])
    return workdirs.finish(folder, "annotate", began, _figures(report), limit=wanted, report=report)


def make_settings(config: ConfigDict) -> Settings:
    """The settings that `config.annotate` and `config.data.language` ask for."""
    values = config.annotate
    return Settings(
        endpoint=Endpoint(
            base_url=values.base_url,
            model=values.model,
            api_key_env=values.api_key_env,
            timeout=values.timeout,
            max_completion_tokens=values.max_completion_tokens,
            token_limit_field=values.token_limit_field,
            extra_body=values.extra_body,
        ),
        language=config.data.language,
        prices=Prices(values.prompt_price, values.completion_price),
        max_tokens=values.max_tokens,
        max_money=values.max_money,
        concurrency=values.concurrency,
        retries=values.retries,
        backoff=values.backoff,
        max_failures=values.max_failures,
        limits=Limits(
            min_layer=values.min_layer_characters,
            max_layer=values.max_layer_characters,
            min_answer=values.min_answer_characters,
            max_answer=values.max_answer_characters,
            max_echo=values.max_echo,
        ),
    )


def _read(config: ConfigDict, workdir: Path) -> list[dict]:
    """The questions of `config.data.questions`; empty: of WORKDIR/corpus without its test split.

    Raises:
      ValueError: when there are none.
    """
    data = config.data
    if not data.questions:
        splits = [workdir / "corpus" / "splits" / f"{name}.jsonl" for name in _SPLITS]
        if missing := [str(path) for path in splits if not path.exists()]:
            raise ValueError(
                f"config.data.questions is empty and there is no {missing[0]}; run the phase corpus"
                " in this --workdir first, or name a file"
            )
        return [record for path in splits for record in files.read_jsonl(path)]
    unreadable = workdir / "annotate" / "unreadable.jsonl"
    (questions,) = readers.read_all(
        readers.read_questions, [data.questions], data.language, data.max_rejected, unreadable
    )
    return questions


def _figures(report: dict) -> list[dict]:
    """Validity before and after the repair round, and what the run took."""
    validity = report["validity"]
    return [
        {
            "name": "share of replies that are chains, first and repaired",
            "before": validity["first"],
            "after": validity["final"],
        },
        {"name": "chains", "before": None, "after": report["questions"]["chains"]},
        {"name": "tokens", "before": None, "after": report["tokens"]["spent"]},
        {"name": "money", "before": None, "after": report["money"]["spent"]},
    ]
