"""The phase `annotate`: chains for questions, written by a teacher; see `corpus.annotate`."""

import time
from pathlib import Path

from ml_collections import ConfigDict

from empathy_jax.corpus import annotate, readers
from empathy_jax.corpus.annotate import Settings
from empathy_jax.corpus.annotation import reporting
from empathy_jax.corpus.annotation.judging import Limits
from empathy_jax.endpoint import client
from empathy_jax.endpoint.client import Endpoint
from empathy_jax.endpoint.conversations import Terms
from empathy_jax.endpoint.journal import Prices
from empathy_jax.metric_writer import Progress
from empathy_jax.training import inputs
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
    summary = workdirs.finished(workdir / "annotate")
    done = summary is not None and summary["limit"] == wanted and not _open(summary)
    if not done:
        # Before config.json is written, which would hold a key given in place of its variable.
        client.api_key(settings.terms.endpoint)
    folder = workdirs.open_phase(workdir, "annotate", config)
    if done:
        return summary
    questions = _read(config, workdir)
    # Where it is less than the limit of an earlier run, that run's further chains stay bought.
    questions = questions[:wanted] if wanted else questions
    progress = Progress("annotate", len(questions), every=config.log.every)
    print(
        f"[annotate] {len(questions)} questions for {settings.terms.endpoint.model} at"
        f" {settings.terms.endpoint.base_url}; budget {settings.terms.max_tokens:,} tokens,"
        f" {settings.terms.max_money:g} in money",
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


def _open(summary: dict) -> int:
    """Questions of a run that has ended whose tries all failed; another run asks them again."""
    return summary["report"]["rejects"].get("model_error", 0)


def make_settings(config: ConfigDict) -> Settings:
    """The settings that `config.annotate` and `config.data.language` ask for."""
    values = config.annotate
    endpoint = Endpoint(
        base_url=values.base_url,
        model=values.model,
        api_key_env=values.api_key_env,
        timeout=values.timeout,
        max_completion_tokens=values.max_completion_tokens,
        token_limit_field=values.token_limit_field,
        extra_body=values.extra_body,
        option="config.annotate.{}".format,
    )
    return Settings(
        terms=Terms(
            endpoint=endpoint,
            prices=Prices(values.prompt_price, values.completion_price),
            max_tokens=values.max_tokens,
            max_money=values.max_money,
            concurrency=values.concurrency,
            retries=values.retries,
            backoff=values.backoff,
            max_failures=values.max_failures,
        ),
        language=config.data.language,
        limits=Limits(
            min_layer=values.min_layer_characters,
            max_layer=values.max_layer_characters,
            min_answer=values.min_answer_characters,
            max_answer=values.max_answer_characters,
            max_echo=values.max_echo,
        ),
    )


def _read(config: ConfigDict, workdir: Path) -> list[dict]:
    """The questions of `config.data.questions`; empty: those that the phase corpus has left.

    A folder of splits is read without its test split.

    Raises:
      ValueError: when there are none.
    """
    data = config.data
    paths = [inputs.questions_path(config, workdir)]
    sides = inputs.split_files(Path(paths[0])) if Path(paths[0]).is_dir() else None
    if sides is not None:
        # A corpus may do without a validation split.
        paths = [sides[name] for name in _SPLITS if sides[name].stat().st_size]
    found = readers.read_all(
        readers.read_questions,
        paths,
        data.language,
        data.max_rejected,
        workdir / "annotate" / "unreadable.jsonl",
    )
    return [record for records in found for record in records]


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
