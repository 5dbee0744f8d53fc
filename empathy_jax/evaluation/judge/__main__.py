"""Compare the answers of several systems by one or two language models.

    python -m empathy_jax.evaluation.judge --system=ours=runs/a/evaluate/generations.jsonl \\
        --system=base=runs/b/evaluate/generations.jsonl --judge=large=http://localhost:8000/v1,MODEL \\
        --price=large=0,0 --max-tokens=5000000 --max-money=0 --mode=pairwise --output=judged

The same command goes on where it was stopped, and pays for nothing twice.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from empathy_jax import files
from empathy_jax.endpoint.client import Endpoint
from empathy_jax.endpoint.conversations import Terms
from empathy_jax.endpoint.journal import Past, Prices
from empathy_jax.evaluation.judge import MODES, analysis, comparing, people, prompts, report
from empathy_jax.evaluation.judge.comparing import Settings
from empathy_jax.evaluation.judge.people import Votes
from empathy_jax.evaluation.ranking import study
from empathy_jax.evaluation.ranking import votes as ballots
from empathy_jax.evaluation.ranking.study import Question

# Fields of an endpoint and its prices that have no option of their own name.
_OPTIONS = {"base_url": "--judge", "model": "--judge"} | dict.fromkeys(
    ("prompt_price", "completion_price"), "--price"
)


def judge(options: argparse.Namespace) -> None:
    systems = _named(options.system, "system")
    questions, left_out = study.read_questions({name: Path(path) for name, path in systems.items()})
    questions = questions[: options.items] if options.items else questions
    if not questions:
        raise ValueError(f"no question has answers to compare: {left_out}")
    judges = _judges(options)
    people_votes = _votes(options, list(systems), questions)
    settings = Settings(options.mode, options.language, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    judged, past, stopped = comparing.run(
        questions, list(systems), judges, settings, options.output, _say
    )
    if judged:
        found = {
            "mode": options.mode,
            "language": options.language,
            "prompt": prompts.fingerprint(options.mode, options.language),
            "seed": options.seed,
            "left_out": left_out,
            "stopped": stopped,
            "spent": _spent(past),
        } | analysis.analyse(judged, list(judges), list(systems), questions, people_votes)
        for name, terms in judges.items():
            endpoint = terms.endpoint
            found["judges"][name] |= {"model": endpoint.model, "base_url": endpoint.base_url}
        files.write_json(options.output / "analysis.json", found)
        text = report.tables(found)
        files.write_text(options.output / "tables.md", text)
        _say(text)
    if stopped:
        raise ValueError(stopped)


def _say(line: str) -> None:
    print(line, flush=True)


def _spent(past: Past) -> dict[str, float]:
    """Of all runs into the folder; `possible` is what requests without a seen end may have cost."""
    return {
        "tokens": past.spent.tokens,
        "money": round(past.spent.money, 6),
        "possible_tokens": past.possible.tokens,
        "possible_money": round(past.possible.money, 6),
    }


def _named(pairs: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """Name to value.

    Raises:
      ValueError: when a name comes twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a name stands for two values of --{option}: {names}")
    return found


def _judges(options: argparse.Namespace) -> dict[str, Terms]:
    """Terms of each judge, by name.

    Raises:
      ValueError: for more than two, for a judge without a price, or for options of no judge.
    """
    judges = _named(options.judge, "judge")
    if len(judges) > 2:
        raise ValueError(f"--judge names {list(judges)}; give one judge or two")
    prices, keys = _named(options.price, "price"), _named(options.api_key_env, "api-key-env")
    if missing := [name for name in judges if name not in prices]:
        raise ValueError(
            f"--price is missing for {missing}; give NAME=PROMPT,COMPLETION in money for a million "
            "tokens, 0,0 for an endpoint that charges nothing"
        )
    for option, given in (("price", prices), ("api-key-env", keys)):
        if strange := given.keys() - judges.keys():
            raise ValueError(f"--{option} names {sorted(strange)}, and judges are {list(judges)}")
    return {
        name: _terms(value, prices[name], keys.get(name, "OPENAI_API_KEY"), options)
        for name, value in judges.items()
    }


def _terms(address: str, price: str, key: str, options: argparse.Namespace) -> Terms:
    base_url, comma, model = address.partition(",")
    if not comma:
        raise ValueError(f"--judge is {address!r}; give NAME=BASE_URL,MODEL")
    try:
        prompt, completion = map(float, price.split(","))
    except ValueError:
        raise ValueError(
            f"--price is {price!r}; give NAME=PROMPT,COMPLETION, two numbers"
        ) from None
    endpoint = Endpoint(
        base_url=base_url,
        model=model,
        api_key_env="" if key == "none" else key,
        timeout=options.timeout,
        max_completion_tokens=options.max_completion_tokens,
        token_limit_field=options.token_limit_field,
        extra_body=options.extra_body,
        option=lambda field: _OPTIONS.get(field, "--" + field.replace("_", "-")),
    )
    return Terms(
        endpoint,
        Prices(prompt, completion),
        max_tokens=options.max_tokens,
        max_money=options.max_money,
        concurrency=options.concurrency,
        retries=options.retries,
    )


def _votes(
    options: argparse.Namespace, systems: Sequence[str], questions: Sequence[Question]
) -> Votes | None:
    """Human votes on the same answers, where a study is given.

    Raises:
      ValueError: when only some of --study, --key and --votes are given.
    """
    given = [options.study, options.key, options.votes]
    if not any(given):
        return None
    if not all(given):
        raise ValueError("--study, --key and --votes belong together; give all three or none")
    public = study.read(options.study)
    key = json.loads(options.key.read_text(encoding="utf-8"))
    votes = ballots.read(options.votes, public)
    return people.read(public, key, votes, systems, questions)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathy_jax.evaluation.judge")
    add = parser.add_argument

    def named(flag: str, metavar: str, text: str, required: bool = False) -> None:
        add(
            flag,
            type=_pair,
            action="append",
            default=None if required else [],
            required=required,
            metavar=metavar,
            help=text,
        )

    named("--system", "NAME=FILE", "generations.jsonl of a system; two or more", True)
    named("--judge", "NAME=BASE_URL,MODEL", "an OpenAI-compatible endpoint; one or two", True)
    named("--price", "NAME=PROMPT,COMPLETION", "money for a million tokens of each kind")
    named("--api-key-env", "NAME=VARIABLE", 'default OPENAI_API_KEY; "none": it wants no key')
    add("--mode", choices=MODES, required=True)
    add("--output", type=Path, required=True, metavar="DIR")
    add("--max-tokens", type=int, required=True, help="of the folder, all judges and runs together")
    add(
        "--max-money", type=float, required=True, help="of the folder, all judges and runs together"
    )
    add("--items", type=int, default=0, help="the first so many questions; 0: all")
    add("--language", choices=prompts.LANGUAGES, default="zh", help="of the instructions")
    add("--seed", type=int, default=0, help="of the orders in which lists are shown")
    add("--concurrency", type=int, default=8, help="requests in flight, for each judge")
    add("--retries", type=int, default=5, help="of a request that failed for a passing reason")
    add("--timeout", type=float, default=300.0, help="seconds for one request")
    add("--max-completion-tokens", type=int, default=2048, help="of a reply, reasoning included")
    add("--token-limit-field", default="max_tokens", help="or max_completion_tokens")
    add("--extra-body", default="{}", help="JSON: further fields, such as a temperature")
    add("--study", type=Path, help="study.json of people who ranked the same answers")
    add("--key", type=Path, help="its key.json")
    add("--votes", type=Path, nargs="+", help="its votes.jsonl, and files saved by pages")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        judge(options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
