"""What a chain of phases came to: a table, one answered question, and how to load the result."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from empathy_jax import chain_of_empathy, files
from empathy_jax.evaluation import probes

_HEADER = ("phase", "what is measured", "before", "after", "seconds")
# Bidirectional classes of the characters that reorder the text after them.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def show(workdir: Path, summaries: Mapping[str, dict]) -> dict:
    """Print the overview of a chain of phases, and write `WORKDIR/summary.json`.

    A file that holds these very summaries already is left alone.

    Args:
      workdir: folder of the run.
      summaries: phase to its summary, in the order they ran.

    Returns:
      What the file holds: `phases` (the summaries), `table`, `seconds`, `peak_memory_bytes`.
    """
    path = workdir / "summary.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if result.get("phases") != summaries:
        result = collect(summaries)
        files.write_json(path, result)
    parts = [_table(summaries), *(t for phase in summaries for t in probe_tables(workdir / phase))]
    if "evaluate" in summaries:
        parts.append(_example(workdir / "evaluate" / "generations.jsonl"))
    if "export" in summaries:
        lines = "\n".join(f"  {line}" for line in summaries["export"]["usage"])
        parts.append(f"exported to {summaries['export']['directory']}; to load it:\n{lines}")
    parts.append(_used(result))
    print("\n" + "\n\n".join(parts), flush=True)
    return result


def show_phase(folder: Path, summaries: Mapping[str, dict]) -> None:
    """Print what one phase came to, and the folder that holds it."""
    (summary,) = summaries.values()
    end = f"{_used(summary)}: {folder}"
    print("\n" + "\n\n".join([*probe_tables(folder), f"{_table(summaries)}\n{end}"]), flush=True)


def collect(summaries: Mapping[str, dict]) -> dict:
    """The figures of several phases in one: seconds added up, the highest peak of memory."""
    return {
        "phases": dict(summaries),
        "table": [dict(zip(_HEADER, row, strict=True)) for row in rows(summaries)],
        "seconds": round(sum(summary["seconds"] for summary in summaries.values()), 1),
        "peak_memory_bytes": max(
            summary.get("peak_memory_bytes", 0) for summary in summaries.values()
        ),
    }


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


def describe(row: Mapping) -> str:
    """One generation for a person to read; control characters (escape codes) are taken out."""
    parts = [("question", row["question"])]
    if row["rule"] is None:
        parts += [(n, row[n]) for n in (*chain_of_empathy.LAYERS, "answer") if row[n]]
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


def _table(summaries: Mapping[str, dict]) -> str:
    table = align([_HEADER, *(tuple(_cell(value) for value in row) for row in rows(summaries))])
    if "evaluate" in summaries:
        table += "\nevaluate: before is the floor, the references of a different question"
    return table


def probe_tables(folder: Path) -> list[str]:
    """How the rewards that a phase has put to the test stood up to cheating, each as a table.

    Args:
      folder: of the phase: reward_model's calibration.json holds `probes` of the cosine,
        evaluate's scores.json those of the cosine and of the whole reward.
    """
    tables = []
    for name in ("calibration.json", "scores.json"):
        if (path := folder / name).exists():
            found = json.loads(path.read_text(encoding="utf-8")).get("probes") or {}
            for reward, entries in found.items():
                title = f"{folder.name}: how often cheating beats a human answer under the {reward}"
                tables.append(f"{title}\n{probes.render(entries, probes.wants_colour())}")
    return tables


def _used(used: Mapping) -> str:
    memory = used.get("peak_memory_bytes", 0) / 2**20
    return f"{used['seconds']:.1f} seconds, peak memory {memory:.0f} MiB"


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
