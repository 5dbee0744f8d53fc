"""What a chain of phases came to: a table, one answered question, and how to load the result."""

import resource
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from empathy_jax import chain_of_empathy, files

_HEADER = ("phase", "what is measured", "before", "after", "seconds")
# Bidirectional classes of the characters that reorder the text after them.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def show(workdir: Path, summaries: Mapping[str, dict]) -> dict:
    """Print the overview of the phases just run, and write `WORKDIR/summary.json`.

    Args:
      workdir: folder of the run.
      summaries: phase to its summary, in the order they ran.

    Returns:
      What was written: `phases` (the summaries), `table`, `seconds`, `peak_memory_bytes`.
    """
    table = rows(summaries)
    result = {
        "phases": dict(summaries),
        "table": [dict(zip(_HEADER, row, strict=True)) for row in table],
        "seconds": round(sum(summary["seconds"] for summary in summaries.values()), 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    files.write_json(workdir / "summary.json", result)
    parts = [align([_HEADER, *(tuple(_cell(value) for value in row) for row in table)])]
    if "evaluate" in summaries:
        parts[0] += "\nevaluate: before is the floor, the references of a different question"
        parts.append(_example(workdir / "evaluate" / "generations.jsonl"))
    if "export" in summaries:
        lines = "\n".join(f"  {line}" for line in summaries["export"]["usage"])
        parts.append(f"exported to {summaries['export']['directory']}; in transformers:\n{lines}")
    memory = result["peak_memory_bytes"] / 2**20
    parts.append(f"{result['seconds']:.1f} seconds, peak memory {memory:.0f} MiB")
    print("\n" + "\n\n".join(parts), flush=True)
    return result


def rows(summaries: Mapping[str, dict]) -> list[tuple]:
    """One row per figure: phase, name, before, after, and the phase's seconds on its first row."""
    table = []
    for phase, summary in summaries.items():
        figures = summary["figures"] or [{"name": "", "before": None, "after": None}]
        for index, figure in enumerate(figures):
            before = _with_error(figure["before"], figure.get("error_before"))
            after = _with_error(figure["after"], figure.get("error_after"))
            seconds = None if index else summary["seconds"]
            table.append((phase, figure["name"], before, after, seconds))
    return table


def align(table: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first two to the left, numbers to the right."""
    widths = [max(_width(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = []
        for i, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(text))
            cells.append(text + space if i < 2 else space + text)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes


def describe(row: Mapping) -> str:
    """One generation for a person to read; control characters (escape codes) are taken out."""
    parts = [("question", row["question"])]
    if row["rule"] is None:
        parts += [(name, row[name]) for name in (*chain_of_empathy.LAYERS, "answer")]
    else:
        parts.append((f"no valid chain ({row['rule']})", row["completion"]))
    blocks = []
    for name, text in parts:
        lines = [line.strip() for line in printable(text).split("\n") if line.strip()]
        blocks.append("\n".join([f"  {name}", *(f"    {line}" for line in lines)]))
    return "\n".join(blocks)


def printable(text: str) -> str:
    """The text without characters that steer a terminal: controls (but line ends) and overrides."""
    return "".join(
        c
        for c in text
        if c == "\n"
        or (unicodedata.category(c) != "Cc" and unicodedata.bidirectional(c) not in _DIRECTIONS)
    )


def _example(path: Path) -> str:
    generations = list(files.read_jsonl(path))
    chosen = next((row for row in generations if row["rule"] is None), generations[0])
    return "one held-out question\n" + describe(chosen)


def _with_error(value: float | None, error: float | None) -> str | None:
    if value is None:
        return None
    return _figure(value) if not error else f"{_figure(value)} ± {_figure(error)}"


def _figure(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _cell(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
