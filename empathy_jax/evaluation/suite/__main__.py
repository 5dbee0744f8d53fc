"""Ask a model the prompts of the safety suite and read its replies by rules.

    python -m empathy_jax.evaluation.suite --base-url=http://127.0.0.1:8000/v1 --model=rl --output=behaviour

A model is any endpoint of the OpenAI protocol, such as `configs/serve.py`: then what is read is what a
person would, guard included. `--judge=BASE_URL,MODEL` has another model say whether each reply does
what is wanted. The same command goes on where it was stopped, and pays for nothing twice.

Writes replies.jsonl, suite.json and tables.md.
"""

import argparse
import asyncio
import importlib.resources
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from empathy_jax import chain_of_empathy, files
from empathy_jax.corpus import records
from empathy_jax.endpoint import conversations, journal
from empathy_jax.endpoint.client import Endpoint, Message, Reply
from empathy_jax.endpoint.conversations import Conversation, Terms
from empathy_jax.endpoint.journal import Prices
from empathy_jax.evaluation import safety_table
from empathy_jax.evaluation.suite import judging, rules
from empathy_jax.safety.measure import Share

_OPTIONS = {"base_url": "--base-url", "prompt_price": "--price", "completion_price": "--price"}
_JUDGE_OPTIONS = dict.fromkeys(("base_url", "model"), "--judge") | {
    "api_key_env": "--judge-key-env",
    "prompt_price": "--judge-price",
    "completion_price": "--judge-price",
}


def load(language: str | None = None) -> list[dict]:
    """The prompts, those of one language or all."""
    file = importlib.resources.files("empathy_jax.safety") / "suite.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if language in (None, row["language"])]


def run(options: argparse.Namespace) -> None:
    prompts = load(options.language)
    own = Endpoint(
        base_url=options.base_url,
        model=options.model,
        api_key_env=options.api_key_env,
        timeout=options.timeout,
        max_completion_tokens=options.max_completion_tokens,
        extra_body=options.extra_body,
        option=lambda field: _OPTIONS.get(field, "--" + field.replace("_", "-")),
    )
    terms = _terms(own, options.price, "--price", options)
    judge = _judge(options)
    for asked in (terms, judge):
        if asked is not None:
            conversations.check(asked)
    options.output.mkdir(parents=True, exist_ok=True)
    with journal.resume(options.output) as past:
        budget = terms.budget(past)

        def ask(asked: Terms, messages: Mapping[str, list[Message]]) -> dict[str, Reply]:
            """The replies to messages by prompt, those of earlier runs included."""
            found, stopped = _ask(asked, messages, options.output, budget, past.replies)
            if stopped:
                raise ValueError(stopped)
            return found

        replies = ask(
            terms, {row["id"]: [{"role": "user", "content": row["text"]}] for row in prompts}
        )
        made = [_row(row, replies[row["id"]]) for row in prompts if row["id"] in replies]
        if judge is not None:
            judged = ask(
                judge,
                {r["id"]: judging.messages(r["text"], r["wanted"], r["reply"]) for r in made},
            )
            made = [row | _verdict(judged.get(row["id"])) for row in made]
    files.write_jsonl(options.output / "replies.jsonl", made)
    found = summarise(made)
    about = {"base_url": own.base_url, "model": own.model, "judge": options.judge}
    files.write_json(options.output / "suite.json", {**about, "groups": found})
    text = table(found)
    files.write_text(options.output / "tables.md", text)
    print(text)
    if missing := len(prompts) - len(made):
        raise ValueError(
            f"{missing} of {len(prompts)} prompts got no reply, see {options.output / journal.NAME}; "
            "the same command asks these again"
        )


def _terms(endpoint: Endpoint, price: str, option: str, options: argparse.Namespace) -> Terms:
    try:
        prompt, completion = map(float, price.split(","))
    except ValueError:
        raise ValueError(
            f"{option} is {price!r}; give PROMPT,COMPLETION in money for a million tokens"
        ) from None
    return Terms(
        endpoint,
        Prices(prompt, completion),
        max_tokens=options.max_tokens,
        max_money=options.max_money,
        concurrency=options.concurrency,
    )


def _judge(options: argparse.Namespace) -> Terms | None:
    if not options.judge:
        return None
    base_url, comma, model = options.judge.partition(",")
    if not comma:
        raise ValueError(f"--judge is {options.judge!r}; give BASE_URL,MODEL")
    endpoint = Endpoint(
        base_url=base_url,
        model=model,
        api_key_env=options.judge_key_env,
        timeout=options.timeout,
        max_completion_tokens=options.max_completion_tokens,
        option=lambda field: _JUDGE_OPTIONS.get(field, "--" + field.replace("_", "-")),
    )
    return _terms(endpoint, options.judge_price, "--judge-price", options)


def _ask(
    terms: Terms,
    messages: Mapping[str, list[Message]],
    folder: Path,
    budget: journal.Budget,
    replies: dict[str, list[Reply]],
) -> tuple[dict[str, Reply], str | None]:
    """Replies by the names of the messages, and why it stopped before the end.

    A request is known by its words and all that decides the reply, so that another model is asked anew.
    """
    endpoint = terms.endpoint
    who = (endpoint.base_url, endpoint.model, endpoint.max_completion_tokens, endpoint.extra_body)
    asked = {
        name: f"{name} {records.content_id(json.dumps([*who, own]))}"
        for name, own in messages.items()
    }
    todo = [
        Conversation(asked[name], _once(own))
        for name, own in messages.items()
        if not replies.get(asked[name])
    ]
    print(f"{endpoint.model}: {len(todo)} requests to make", flush=True)
    stopped = asyncio.run(
        conversations.hold(
            todo, terms, folder, budget, replies, lambda: False, lambda id_, own, failure: None
        )
    )
    return {name: replies[id_][0] for name, id_ in asked.items() if replies.get(id_)}, stopped


def _once(messages: list[Message]) -> Callable[[list[Reply]], list[Message] | None]:
    return lambda replies: None if replies else messages


def _row(prompt: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """A line of replies.jsonl. Of a whole chain in the text a person reads the answer alone."""
    chain = chain_of_empathy.verdict(reply.text).chain
    text = chain.answer if chain else reply.text or reply.refusal
    found = rules.facts(text, reply.finish_reason == "stop")
    return {
        **prompt,
        "reply": text,
        "finish_reason": reply.finish_reason,
        "facts": found,
        "as_wanted": rules.as_wanted(prompt["category"], found),
    }


def _verdict(reply: Reply | None) -> dict[str, Any]:
    nothing = {"verdict": None, "reason": None}
    return (reply and judging.read(reply)) or nothing


def summarise(rows: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """For all, each category and each category in each language: shares with Wilson's intervals.

    Returns:
      Group to `as_wanted`, each of `rules.FACTS`, and of judged rows `judge_yes` and `judge_no`, of those
      that the judge gave a verdict on.
    """
    groups = {"all": list(rows)}
    for category in rules.WANTED:
        own = [row for row in rows if row["category"] == category]
        groups[category] = own
        groups |= {
            f"{category}, {language}": [row for row in own if row["language"] == language]
            for language in ("zh", "en")
        }
    found = {}
    for name, own in groups.items():
        if not own:
            continue
        shares = {"as_wanted": [row["as_wanted"] for row in own]}
        shares |= {fact: [row["facts"][fact] for row in own] for fact in rules.FACTS}
        if verdicts := [row["verdict"] for row in own if row.get("verdict")]:
            for verdict in ("yes", "no"):
                shares[f"judge_{verdict}"] = [given == verdict for given in verdicts]
        found[name] = {share: safety_table.share(values) for share, values in shares.items()}
    return found


def table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """The shares as Markdown; a fact that a category wants, or wants absent, is marked so."""
    columns = list(groups["all"])
    rows = [
        ["", *(name.replace("_", " ") for name in columns)],
        ["---", *("---" for _ in columns)],
    ]
    for name, shares in groups.items():
        wanted = rules.WANTED.get(name.partition(",")[0], {})
        cells = []
        for column in columns:
            if column not in shares:
                cells.append("")
                continue
            share = str(Share(shares[column]["count"], shares[column]["total"]))
            mark = {True: " (wanted)", False: " (not wanted)"}.get(wanted.get(column), "")
            cells.append(share + mark)
        rows.append([name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathy_jax.evaluation.suite")
    add = parser.add_argument
    add("--base-url", required=True, help="of the model, up to and without /chat/completions")
    add("--model", required=True, help="as the endpoint names it")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--api-key-env", default="", help="variable with the key; default: none is wanted")
    add("--language", choices=("zh", "en"), help="prompts of one language; default: all")
    add("--max-completion-tokens", type=int, default=2048, help="of a reply, chain included")
    add("--extra-body", default="{}", help="JSON: further fields, such as a seed")
    add("--concurrency", type=int, default=4, help="requests in flight")
    add("--timeout", type=float, default=300.0, help="seconds for one request")
    add("--price", default="0,0", metavar="PROMPT,COMPLETION", help="for a million tokens")
    add("--judge", default="", metavar="BASE_URL,MODEL", help="reads each reply; default: none")
    add("--judge-key-env", default="", help="variable with its key; default: none is wanted")
    add("--judge-price", default="0,0", metavar="PROMPT,COMPLETION")
    add("--max-tokens", type=int, default=2_000_000, help="of the folder, all runs together")
    add("--max-money", type=float, default=0.0, help="of the folder, all runs together")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
