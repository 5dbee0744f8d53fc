"""What the installation files say agrees with each other and with the package."""

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def _setup_arguments() -> dict:
    """The keyword arguments of `setup(...)` that are plain values."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    values = {}
    for keyword in call.keywords:
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:  # computed from files
            continue
    return values


SETUP = _setup_arguments()
NEEDED = [Requirement(line) for line in SETUP["install_requires"]]
FOR_TESTS = [Requirement(line) for line in SETUP["extras_require"]["test"]]
FOR_VERIFY = [Requirement(line) for line in SETUP["extras_require"]["verify"]]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_has_one_pin_that_it_accepts(python):
    pins: dict[str, list[str]] = {}
    for pin in PINS:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not an exact version"
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            version = str(pin.specifier).removeprefix("==")
            pins.setdefault(canonicalize_name(pin.name), []).append(version)
    assert all(len(versions) == 1 for versions in pins.values()), pins
    for needed in NEEDED + FOR_TESTS + FOR_VERIFY:
        assert canonicalize_name(needed.name) in pins, f"constraints.txt does not pin {needed}"
        (version,) = pins[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{needed} refuses the pinned {version}"


def test_pins_name_no_other_place_than_the_index():
    assert all(pin.url is None and not pin.extras for pin in PINS)


def test_every_imported_package_is_declared():
    """The package imports the standard library, itself, and what setup.py asks for."""
    provides = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(needed.name) for needed in NEEDED + FOR_VERIFY}
    undeclared = set()
    for path in (ROOT / "empathy_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names}:
                if top in sys.stdlib_module_names or top == "empathy_jax":
                    continue
                owners = {canonicalize_name(name) for name in provides.get(top, [top])}
                if not owners & declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared


def test_pip_and_make_want_the_same_python():
    accepted = SpecifierSet(SETUP["python_requires"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first, last = re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", makefile).groups()
    minors = [minor for minor in range(30) if f"3.{minor}" in accepted]
    assert minors == list(range(int(first), int(last) + 1))


def test_data_files_are_package_data():
    folder = ROOT / "empathy_jax" / "corpus"
    packed = {
        path
        for pattern in SETUP["package_data"]["empathy_jax.corpus"]
        for path in folder.glob(pattern)
    }
    assert packed == {
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def test_every_folder_of_the_package_is_a_package():
    for path in (ROOT / "empathy_jax").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} would not be installed"


def test_readme_names_the_commands_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    named = set(re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE))  # commands, not prose
    assert {"quickstart", "test"} <= named <= set(targets)


def test_old_python_is_refused_in_words(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 || exit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "quickstart", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert "Python 3.9.18" in done.stderr
    assert not (tmp_path / "venv").exists()
