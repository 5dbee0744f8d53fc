"""What holds for every shell script of the project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / ".ci" / "run")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_scripts_that_are_called_by_name_are_executable():
    called = ("tpu_vm.sh", "queued_resource.sh")
    assert all(os.access(ROOT / "launch" / name, os.X_OK) for name in called)
