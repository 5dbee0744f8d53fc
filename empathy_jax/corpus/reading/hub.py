"""Datasets of the Hugging Face hub, or directories that hold one, through `datasets`."""

from collections.abc import Iterator
from pathlib import Path

from empathy_jax.corpus.reading import columns

_PREFIX = "hub:"
_ROWS = 1000


def dataset_name(path: str | Path) -> str | None:
    """The name behind "hub:", a directory that `save_to_disk` wrote, or None for any other path.

    >>> dataset_name("hub:owner/name")
    'owner/name'
    """
    if str(path).startswith(_PREFIX):
        return str(path).removeprefix(_PREFIX)
    return str(path) if _is_saved(Path(path)) else None


def hub_dataset(name: str, field: str):
    """The splits of a dataset as a mapping.

    Args:
      name: "owner/name" on the hub, "owner/name:configuration" where it has several, or a directory
        (of data files, or written by `save_to_disk`).
      field: the config field to name in errors.

    Raises:
      ValueError: when it cannot be loaded, with the reason that `datasets` gives.
    """
    import datasets

    path, _, configuration = name.partition(":")
    try:
        if _is_saved(Path(path)):
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, configuration or None)
    except Exception as error:  # the network, the hub, its file formats: all have their own errors
        raise ValueError(
            f"The dataset {name!r} cannot be loaded: {type(error).__name__}: {error}\nChange {field}"
            ' ("hub:owner/name", or "hub:owner/name:configuration").'
        ) from error
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def row_groups(name: str, field: str) -> Iterator[tuple[str, bytes]]:
    """The (file name for reports, Arrow stream) of some rows each, of all splits.

    Raises:
      ValueError: as `hub_dataset`.
    """
    import pyarrow as pa

    for split, rows in hub_dataset(name, field).items():
        arrow = rows.with_format("arrow")
        names = tuple(rows.column_names)
        if columns.ask(names):
            # Images and the like stay where they are.
            arrow = arrow.select_columns(sorted({*columns.roles(names).values(), *_own(names)}))
        for start in range(0, len(rows), _ROWS):
            table = arrow[start : start + _ROWS]
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            yield f"{Path(name).name}/{split}", sink.getvalue().to_pybytes()


def _is_saved(path: Path) -> bool:
    if (path / "dataset_dict.json").is_file():
        return True
    # Other programs, too, leave a state.json.
    return all((path / name).is_file() for name in ("state.json", "dataset_info.json"))


def _own(names: tuple[str, ...]) -> set[str]:
    """Columns that our own records have beside those with a role."""
    return {"source", "teacher", "L1", "L2", "L3", "L4"}.intersection(names)
