"""Time and memory of building a corpus, one JSON line for parts of one source.

    python benchmarks/corpus_build.py smilechat_all.jsonl.xz --fractions 0.25 0.5 1

Each part is the first lines of a JSONL file (plain, .gz or .xz), packed anew as .xz before the clock
starts. Measured is the whole build, from the packed file to the written splits, card and figures,
without near copies and with them, without topics; `cpu_seconds` are those of all processes, which
other programs on the machine disturb less; memory is the largest sum of the resident sizes of all
processes. Needs psutil.
"""

import argparse
import gzip
import json
import lzma
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import psutil

from empathy_jax.corpus import build

OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--near", choices=("off", "on", "both"), default="both")
    arguments = parser.parse_args()
    switches = {"off": (False,), "on": (True,), "both": (False, True)}[arguments.near]
    lines = (
        OPENERS.get(arguments.source.suffix, open)(arguments.source, "rb").read().splitlines(True)
    )
    runs = []
    with tempfile.TemporaryDirectory() as name:
        for fraction in arguments.fractions:
            part = Path(name) / f"{fraction}.jsonl.xz"
            with lzma.open(part, "wb", preset=1) as file:
                file.writelines(lines[: round(fraction * len(lines))])
        del lines
        for fraction in arguments.fractions:
            for near in switches:
                part = Path(name) / f"{fraction}.jsonl.xz"
                runs.append({"fraction": fraction, **measure(part, Path(name) / "corpus", near)})
    result = {"benchmark": "corpus_build", "source": arguments.source.name}
    print(json.dumps({**result, "cores": os.cpu_count(), "runs": runs}))


def measure(source: Path, folder: Path, near: bool) -> dict:
    """One build: seconds, pairs, and the peak of the memory of all processes."""
    done = threading.Event()
    peak = [0]
    sampler = threading.Thread(target=_sample_memory, args=(peak, done))
    sampler.start()
    began, cpu = time.perf_counter(), _cpu_seconds()
    settings = build.Settings(near_duplicates=near)
    try:
        stats = build.build([build.Source(str(source))], folder, settings)
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    finally:
        done.set()
        sampler.join()
    return {
        "near_duplicates": near,
        "pairs": stats["pairs"]["read"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "pairs_per_second": round(stats["pairs"]["read"] / seconds),
        "peak_memory_gb": round(peak[0] / 1e9, 2),
    }


def _cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _sample_memory(peak: list[int], done: threading.Event) -> None:
    own = psutil.Process()
    while not done.wait(0.1):
        total = 0
        for process in (own, *own.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


if __name__ == "__main__":
    main()
