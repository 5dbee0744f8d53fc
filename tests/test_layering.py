"""The house has floors: imports go down only, and nothing heavy is imported before it is used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "empathy_jax"

# From the roof to the ground. A module imports from its own floor and from those below it.
FLOORS = (
    ("main",),
    ("serving",),
    ("training",),
    ("evaluation",),
    ("rl",),
    ("generation",),
    ("contrastive", "losses"),
    ("safety",),
    ("models",),
    ("data",),
    ("corpus",),
    ("chain_of_empathy",),
    ("endpoint",),
    (
        "checkpoint",
        "chips",
        "compilations",
        "counting",
        "files",
        "hlo",
        "hosts",
        "masked",
        "metric_writer",
        "optimizer",
        "overlap",
        "passes",
        "pytree",
        "replicas",
        "resources",
        "sharding",
        "types",
    ),
)
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Seconds and hundreds of megabytes each: imported inside the functions that need them.
HEAVY = {
    "compressed_tensors",
    "matplotlib",
    "peft",
    "sentence_transformers",
    "tensorflow",
    "tensorflow_text",
}


def _sources(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def _imported(node: ast.AST) -> list[str]:
    """Absolute names that an import statement may refer to; [] for other statements."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def _at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not function bodies, not TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def _room(path: Path) -> str:
    """`empathy_jax/models/decoder.py` is in the room `models`."""
    return path.parts[1].removesuffix(".py")


def test_every_room_has_a_floor():
    rooms = {_room(path) for path, _ in _sources(PACKAGE)} - {"__init__"}
    assert not rooms - HEIGHT.keys(), "give the new module a place in FLOORS"


def test_imports_go_down_only():
    upwards = []
    for path, tree in _sources(PACKAGE):
        own = HEIGHT.get(_room(path), -len(FLOORS))
        for node in ast.walk(tree):
            for name in _imported(node):
                top, _, rest = name.partition(".")  # top is empty in a relative import
                if not top or (top == "empathy_jax" and HEIGHT[rest.split(".")[0]] > own):
                    upwards.append(f"{path}:{node.lineno} imports {name}")
    assert not upwards


def test_heavy_modules_are_not_imported_at_module_level():
    found = [
        f"{path}:{node.lineno} imports {name}"
        for path, tree in _sources(PACKAGE)
        for node in _at_import_time(tree)
        for name in _imported(node)
        if name.split(".")[0] in HEAVY
    ]
    assert not found


def test_torch_is_never_imported():
    found = [
        f"{path}:{node.lineno} imports {name}"
        for path, tree in _sources(PACKAGE)
        for node in ast.walk(tree)
        for name in _imported(node)
        if name.split(".")[0] == "torch"
    ]
    assert not found


def test_configs_hold_values_only():
    found = [
        f"{path}:{node.lineno} imports {name}"
        for path, tree in _sources(ROOT / "configs")
        for node in ast.walk(tree)
        for name in _imported(node)
        if name.split(".")[0] not in {"configs", "ml_collections"}
    ]
    assert not found


def test_importing_the_whole_package_stays_light():
    """Also through others: `flax.training.checkpoints` and `clu` import TensorFlow, for example."""
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path, _ in _sources(PACKAGE)
    ]
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    heavy = sys.modules.keys() & {{"torch", *{sorted(HEAVY)!r}}}
    if heavy:
        sys.exit(f"{{name}} brings in {{heavy}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
