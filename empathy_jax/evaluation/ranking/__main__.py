"""Build a blind study, serve or hand it out, analyse its votes.

    python -m empathy_jax.evaluation.ranking build --system=ours=runs/a/evaluate/generations.jsonl \\
        --system=base=runs/b/evaluate/generations.jsonl --raters=20 --items=100 --output=study
    python -m empathy_jax.evaluation.ranking serve --study=study/study.json --votes=study/votes.jsonl
    python -m empathy_jax.evaluation.ranking offline --study=study/study.json --output=pages
    python -m empathy_jax.evaluation.ranking analyse --study=study/study.json --key=study/key.json \\
        --output=result study/votes.jsonl
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from empathy_jax import files
from empathy_jax.evaluation.ranking import analysis, page, report, server, study, votes

_HELP = {
    "items": "questions to rank; 0: all that every system answered",
    "raters": "people",
    "raters_per_item": "people who rank the same item; default: all raters",
    "checks": "attention checks that each rater sees",
    "repeats": "items that each rater sees twice",
    "language": "of the page at first: zh or en",
    "title": "of the page, seen by raters",
    "seed": "of all that is random but the raters' codes",
}


def build(options: argparse.Namespace) -> None:
    paths = dict(options.system)
    if len(paths) < len(options.system):
        raise ValueError(f"a name stands for two files in {[name for name, _ in options.system]}")
    questions, left_out = study.read_questions(paths)
    fields = [field.name for field in dataclasses.fields(study.Settings)]
    settings = study.Settings(**{name: getattr(options, name) for name in fields})
    if settings.raters_per_item is None:
        settings = dataclasses.replace(settings, raters_per_item=settings.raters)
    public, key = study.build(list(paths), questions, settings)
    study.write(options.output, public, key)
    print(f"{len(questions)} questions can be used; left out: {left_out or 'none'}")
    print("how often each system stands in each position, from the top of the page:")
    for name, counts in zip(key["systems"], key["positions"], strict=True):
        print(f"  {name}: {' '.join(map(str, counts))}")
    print(f"for the server: {options.output / 'study.json'}")
    print(f"for you alone, with the raters' codes: {options.output / 'key.json'}")


def serve(options: argparse.Namespace) -> None:
    public = study.read(options.study)
    log = votes.VoteLog(options.votes or options.study.with_name("votes.jsonl"), public)
    print(
        f"http://{options.host}:{options.port}/#CODE, a code of key.json for each rater", flush=True
    )
    try:
        server.serve(public, log, options.host, options.port)
    finally:
        log.close()


def offline(options: argparse.Namespace) -> None:
    public = study.read(options.study)
    options.output.mkdir(parents=True, exist_ok=True)
    for rater in public["raters"]:
        files.write_text(options.output / f"{rater}.html", page.render_offline(public, rater))
    print(f"{len(public['raters'])} pages in {options.output}; each saves its votes as a file")


def analyse(options: argparse.Namespace) -> None:
    public = study.read(options.study)
    key = json.loads(options.key.read_text(encoding="utf-8"))
    found = analysis.analyse(public, key, votes.read(options.votes, public))
    options.output.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output / "analysis.json", found)
    text = report.tables(found)
    files.write_text(options.output / "tables.md", text)
    report.draw(found, options.output)
    print(text)


def _system(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathy_jax.evaluation.ranking")
    commands = parser.add_subparsers(required=True)

    made = commands.add_parser("build", help="a blind study from the systems' generations.jsonl")
    made.add_argument("--system", type=_system, action="append", required=True, metavar="NAME=FILE")
    made.add_argument("--output", type=Path, required=True, metavar="DIR")
    for field in dataclasses.fields(study.Settings):
        default = None if field.name == "raters_per_item" else field.default
        flag = "--" + field.name.replace("_", "-")
        made.add_argument(flag, type=field.type, default=default, help=_HELP[field.name])
    made.set_defaults(run=build)

    served = commands.add_parser("serve", help="the page, and a file of votes")
    served.add_argument("--study", type=Path, required=True)
    served.add_argument("--votes", type=Path, help="default: votes.jsonl beside the study")
    served.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    served.add_argument("--port", type=int, default=8080)
    served.set_defaults(run=serve)

    handed = commands.add_parser("offline", help="one HTML file for each rater, without a server")
    handed.add_argument("--study", type=Path, required=True)
    handed.add_argument("--output", type=Path, required=True, metavar="DIR")
    handed.set_defaults(run=offline)

    read = commands.add_parser("analyse", help="tables and plots")
    read.add_argument("--study", type=Path, required=True)
    read.add_argument("--key", type=Path, required=True)
    read.add_argument("--output", type=Path, required=True, metavar="DIR")
    read.add_argument("votes", type=Path, nargs="+", help="votes.jsonl, and files saved by pages")
    read.set_defaults(run=analyse)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
