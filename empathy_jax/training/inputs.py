"""Records for the phases: read, split by question, and turned into examples; rejects are kept."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, files
from empathy_jax.corpus import readers, splits
from empathy_jax.data import examples as examples_lib

Records = dict[str, list[dict]]


def read_chains(config: ConfigDict, folder: Path) -> Records:
    """Chain records of `config.data.chains` by split; what could not be read goes to rejected.jsonl."""
    data = config.data
    return _split(
        *readers.read_chains(data.chains, data.language, data.max_rejected), config, folder
    )


def read_questions(config: ConfigDict, folder: Path) -> Records:
    """Question records of `config.data.questions` by split, as `read_chains`."""
    data = config.data
    return _split(
        *readers.read_questions(data.questions, data.language, data.max_rejected), config, folder
    )


def _split(records: list[dict], rejects: list[dict], config: ConfigDict, folder: Path) -> Records:
    files.write_jsonl(folder / "rejected.jsonl", rejects)
    if rejects:
        print(f"{len(rejects)} unreadable records are listed in {folder / 'rejected.jsonl'}")
    return splits.split(records, config.data.validation_fraction, config.data.test_fraction)


def build_examples(
    records: Records, make_example: Callable, config: ConfigDict, folder: Path
) -> Records:
    """Examples by split; with `config.data.overlong="reject"`, long records join rejected.jsonl.

    The records of each split are narrowed to those that became examples, so that indices agree.

    Raises:
      ValueError: for the first overlong record (`overlong="error"`), or a split left empty.
    """
    examples = {}
    for name in ("train", "validation"):
        examples[name], rejects = examples_lib.build(
            records[name], make_example, config.data.overlong
        )
        if rejects:
            print(f"{len(rejects)} overlong records are listed in {folder / 'rejected.jsonl'}")
            files.append_jsonl(folder / "rejected.jsonl", rejects)
        if not examples[name]:
            raise ValueError(
                f"all {len(rejects)} {name} records are too long; raise "
                f"config.data.max_prompt_tokens or config.data.max_completion_tokens. "
                f"The first: {rejects[0]['reason']}"
            )
        kept = {example["id"] for example in examples[name]}
        records[name] = [record for record in records[name] if record["id"] in kept]
    return examples


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
