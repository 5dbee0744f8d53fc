"""Records for the phases: read, split by question, and turned into examples; rejects are kept.

How many there are, and of what, is left in `records.json` for the card of the model.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy, files
from empathy_jax.corpus import readers, splits
from empathy_jax.data import examples as examples_lib

Records = dict[str, list[dict]]
RECORDS_FILE = "records.json"


def read_chains(config: ConfigDict, folder: Path) -> Records:
    """Chain records of `config.data.chains` by split; what could not be read goes to rejected.jsonl.

    Empty: those that the phase `annotate` has left in the same WORKDIR.
    """
    data = config.data
    path = data.chains or _left(folder.parent / "annotate" / "chains.jsonl", "chains", "annotate")
    (records,) = _read(readers.read_chains, [path], data, folder)
    sides = splits.split(records, data.validation_fraction, data.test_fraction)
    return _note(folder, sides, place=str(path))


def read_questions(config: ConfigDict, folder: Path) -> Records:
    """Question records of `config.data.questions` by split, as `read_chains`.

    The folder of splits that the phase `corpus` writes, or a file in it, is taken as it was split.
    Empty: the one that this phase has left in the same WORKDIR.
    """
    data = config.data
    path = questions_path(config, folder.parent)
    files_ = split_files(Path(path))
    if files_ is None:
        (records,) = _read(readers.read_questions, [path], data, folder)
        sides = splits.split(records, data.validation_fraction, data.test_fraction)
        return _note(folder, sides, place=str(path))
    if not files_["test"].stat().st_size:  # a corpus may do without a test split
        del files_["test"]
    sides = _read(readers.read_questions, list(files_.values()), data, folder)
    sides = {"test": [], **dict(zip(files_, sides, strict=True))}
    return _note(folder, sides, place=str(path))


def _note(folder: Path, records: Records, **more: str) -> Records:
    """Writes how many records of each split a phase works on, and where they come from (`place`)."""
    path = folder / RECORDS_FILE
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    files.write_json(path, noted | more | {name: len(side) for name, side in records.items()})
    return records


def questions_path(config: ConfigDict, workdir: Path) -> str | Path:
    """`config.data.questions`; where that is empty, the splits that the phase corpus has left.

    Raises:
      ValueError: when it has not.
    """
    left = workdir / "corpus" / "splits"
    return config.data.questions or _left(left, "questions", "corpus")


def split_files(path: Path) -> dict[str, Path] | None:
    """The file of each split, where `path` is a folder of splits or a file in one."""
    folder = path if path.is_dir() else path.parent
    found = {name: folder / f"{name}.jsonl" for name in splits.SPLITS}
    named = path.is_dir() or path in found.values()
    return found if named and all(file.is_file() for file in found.values()) else None


def _left(path: Path, field: str, phase: str) -> Path:
    """What an earlier phase has left in this WORKDIR.

    Raises:
      ValueError: when it has not.
    """
    if path.exists():
        return path
    raise ValueError(
        f"config.data.{field} is empty and there is no {path}; run the phase {phase} first with the "
        f'same --workdir, or set config.data.{field} to a file, a folder or "sample"'
    )


def _read(
    read: Callable, paths: Sequence[str | Path], data: ConfigDict, folder: Path
) -> list[list[dict]]:
    return readers.read_all(
        read, paths, data.language, data.max_rejected, folder / "rejected.jsonl"
    )


def build_examples(
    records: Records, make_example: Callable, config: ConfigDict, folder: Path
) -> Records:
    """Examples by split; with `config.data.overlong="reject"`, long records join rejected.jsonl.

    The records of each split are narrowed to those that became examples, so that indices agree.

    Raises:
      ValueError: for overlong records (`overlong="error"`), or a split left empty.
    """
    everyone = [*records["train"], *records["validation"]]
    built, rejects = examples_lib.build(everyone, make_example, config.data.overlong)
    if rejects:
        print(f"{len(rejects)} overlong records are listed in {folder / 'rejected.jsonl'}")
        files.append_jsonl(folder / "rejected.jsonl", rejects)
    by_id = {example["id"]: example for example in built}
    examples = {}
    for name in ("train", "validation"):
        kept = [record for record in records[name] if record["id"] in by_id]
        if not kept:
            raise ValueError(
                f"all {len(records[name])} {name} records are too long; raise "
                f"config.data.max_prompt_tokens or config.data.max_completion_tokens. "
                f"The first reject: {rejects[0]['reason']}"
            )
        records[name], examples[name] = kept, [by_id[record["id"]] for record in kept]
    _note(folder, records)
    return examples


def fitting_questions(
    records: Sequence[dict], tokenizer: PreTrainedTokenizerFast, data: ConfigDict
) -> tuple[list[dict], list[dict]]:
    """The questions that `data.max_prompt_tokens` can hold, and rejects of the others.

    Raises:
      ValueError: for an overlong one (`data.overlong="error"`).
    """
    make = functools.partial(
        examples_lib.prompt_example, tokenizer=tokenizer, max_prompt_tokens=data.max_prompt_tokens
    )
    examples, rejects = examples_lib.build(records, make, data.overlong)
    fitting = {example["id"] for example in examples}
    return [record for record in records if record["id"] in fitting], rejects


def training_texts(records: Iterable[dict]) -> list[str]:
    """Texts that a tokenizer is learnt from: questions, and whole chains where there are some."""
    texts = []
    for record in records:
        texts.append(record["question"])
        if "L1" in record:
            fields = (*chain_of_empathy.LAYERS, "answer")
            chain = chain_of_empathy.Chain(*(record[name] for name in fields))
            texts.append(chain_of_empathy.render(chain))
        texts += [answer["text"] for answer in record.get("answers", ())]
    return texts
