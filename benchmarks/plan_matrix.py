"""Which size fits which slice: the tables of docs/plan.md.

    PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/plan_matrix.py --cache=plans.json --docs=docs/plan.md

plans SFT and RL of each size on each slice by counting, seconds a cell, and writes the tables between the
markers of the docs. Of the meshes whose rows divide it takes the first that fits: the recipe's tensor
axis, then 1, 2, 4 and 8; fsdp is what is left. With `--compile="rl qwen3_8b v5p:4x4x4,..."` it compiles
those cells as well, minutes each, and adds what the compiler found beside what was counted. What
is in the cache is not computed again, so that it may be stopped at any time. Prints one JSON line.
"""

import argparse
import json
import time
from pathlib import Path

from ml_collections import ConfigDict

from configs import common, rl, sft
from empathy_jax import chips, counting, files
from empathy_jax.chips import GIB, Slice
from empathy_jax.training import plan, plan_steps

PHASES = {"sft": sft.get_config, "rl": rl.get_config}
SIZES = [size for size in common.SIZES if size.startswith("qwen3_")]
SLICES = {
    "v5e": ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "v6e": ("v6e:2x2", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x4x8"),
    "tpu7x": ("tpu7x:2x2x1", "tpu7x:2x2x4", "tpu7x:4x4x4"),
    "GPU": ("gpu:1xh200", "gpu:8xh100", "gpu:8xh200"),
}
MARKS = ("<!-- tables: benchmarks/plan_matrix.py -->", "<!-- end -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, required=True, help="JSON file of cells, kept and reused"
    )
    parser.add_argument("--docs", type=Path, help="Markdown file with the two markers")
    parser.add_argument(
        "--compile", default="", help="cells 'PHASE SIZE SLICE', separated by commas"
    )
    flags = parser.parse_args()
    began = time.monotonic()
    cells = json.loads(flags.cache.read_text(encoding="utf-8")) if flags.cache.exists() else {}
    for phase in PHASES:
        for size in SIZES:
            for name in (name for names in SLICES.values() for name in names):
                if f"{phase} {size} {name}" not in cells:
                    cells[f"{phase} {size} {name}"] = _cell(phase, size, name, cells)
            files.write_json(flags.cache, cells)
    for key in filter(None, flags.compile.split(",")):
        if f"compiled {key}" not in cells:
            cells[f"compiled {key}"] = _compiled(*key.split())
            files.write_json(flags.cache, cells)
    if flags.docs:
        _write(flags.docs, cells)
    fitting = sum(cell.get("fits", False) for cell in cells.values())
    print(json.dumps({"cells": len(cells), "fit": fitting, "seconds": time.monotonic() - began}))


def _cell(phase: str, size: str, name: str, cells: dict) -> dict:
    """The plan of a cell by counting."""
    work = cells.setdefault(f"flops {phase} {size}", {}) or _flops(phase, size)
    cells[f"flops {phase} {size}"] = work
    target, best = chips.parse(name), None
    recipe = PHASES[phase](size).mesh.tensor
    for tensor in dict.fromkeys((recipe, 1, 2, 4, 8)):
        config = PHASES[phase](size)
        config.mesh.tensor = tensor
        try:
            layout = plan.make_layout(config, target)
            steps = plan_steps.steps(config, layout)
        except ValueError:  # rows that do not divide
            continue
        estimates = [
            plan.counted(step, layout, target, work[step.name] * step.rows * step.length)
            for step in steps
        ]
        made = plan.Plan(target, dict(layout.mesh.shape), estimates, [])
        if best is None or made.memory < best.memory:
            best = made
        if made.fits:
            best = made
            break
    return {} if best is None else _summary(best)


def _flops(phase: str, size: str) -> dict[str, float]:
    """FLOPs of each step for a token; a layer is as much work as any other, so two models tell.

    How a mesh packs completions changes how many tokens there are, and little else.
    """
    one = chips.parse("gpu:1xh200")
    counts = []
    for layers in (1, 2):
        config = _on_one(PHASES[phase](size))
        config.model.num_layers = layers
        layout = plan.make_layout(config, one)
        steps = plan_steps.steps(config, layout)
        counts.append(
            {
                s.name: counting.flops(s.program, *s.arguments, loops=s.loops) / (s.rows * s.length)
                for s in steps
            }
        )
    more = PHASES[phase](size).model.num_layers - 1
    first, second = counts
    return {name: first[name] + more * (second[name] - first[name]) for name in first}


def _on_one(config: ConfigDict) -> ConfigDict:
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
    return config


def _compiled(phase: str, size: str, name: str) -> dict:
    """The plan of a cell by compiling, with what is counted for it."""
    config, target = PHASES[phase](size), chips.parse(name)
    made = plan.make(config, target, say=lambda line: print(line, flush=True))
    print(plan.table(config, made), flush=True)
    return _summary(made)


def _summary(made: plan.Plan) -> dict:
    worst = max(made.estimates, key=lambda estimate: estimate.memory)
    return {
        "mesh": made.mesh,
        "bytes": made.memory,
        "fits": made.fits,
        "seconds": made.seconds,
        "in": worst.name,
        "steps": {
            e.name: {
                "arguments": e.arguments,
                "temporaries": e.temporaries,
                "output": e.output,
                "held": e.held,
                "flops": e.flops,
                "asked": e.asked,
                "bytes": e.bytes,
                "collectives": e.collectives,
                "compiled": e.compiled,
                "compile_seconds": e.compile_seconds,
            }
            for e in made.estimates
        },
    }


# --- Markdown ---


def _write(docs: Path, cells: dict) -> None:
    before, _, rest = docs.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    made = "\n\n".join(_table(phase, names, cells) for phase in PHASES for names in SLICES.values())
    files.write_text(docs, f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}")


def _table(phase: str, names: tuple[str, ...], cells: dict) -> str:
    targets = [chips.parse(name) for name in names]
    head = [f"| {phase} | " + " | ".join(_title(target) for target in targets) + " |"]
    head.append("|---" * (len(targets) + 1) + "|")
    rows = [
        f"| {size.removeprefix('qwen3_').replace('p', '.').upper()} | "
        + " | ".join(_text(cells.get(f"{phase} {size} {name}")) for name in names)
        + " |"
        for size in SIZES
    ]
    return "\n".join([*head, *rows])


def _title(target: Slice) -> str:
    return f"{target.name} ({target.chip.hbm_bytes / GIB:.0f} GiB)"


def _text(cell: dict | None) -> str:
    if cell is None:
        return "not planned"
    if not cell:
        return "rows do not divide"
    mesh = f"{cell['mesh']['fsdp']}x{cell['mesh']['tensor']}"
    size = f"{cell['bytes'] / GIB:.1f} GiB, {mesh}"
    return f"{size}, {cell['seconds']:.3g} s" if cell["fits"] else f"**no**: {size}"


if __name__ == "__main__":
    main()
