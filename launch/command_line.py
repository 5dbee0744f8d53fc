"""What the programs of launch/ share: flags, clear errors, one program at a time in a folder."""

import fcntl
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from absl import flags
from ml_collections import config_flags

from empathy_jax.main import FLAG_ERRORS, explain_flag_error
from launch import backends


def make_flags(argv: list[str], config_help: str) -> flags.FlagValues:
    """The flags that all have, not parsed yet: config, workdir, backend, resources, dry_run, help."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, config_help, flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", "", "Folder that all is written to.", flag_values=values)
    flags.DEFINE_string("backend", "local", ", ".join(backends.BACKENDS), flag_values=values)
    flags.DEFINE_string(
        "resources",
        "",
        "What sbatch, tpu_vm.sh or queued_resource.sh is given.",
        flag_values=values,
    )
    flags.DEFINE_boolean("dry_run", False, "Print the commands and run none.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Print this.", flag_values=values)
    return values


def parse(values: flags.FlagValues, argv: list[str]) -> flags.FlagValues:
    """Reads the command line; a misspelled flag, file or field raises one of main's FLAG_ERRORS."""
    rest = values(argv)
    if len(rest) > 1:
        raise ValueError(f"not a flag: {' '.join(rest[1:])} (flags begin with --)")
    return values


def run(program: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a program; wrong flags end it with one line and exit status 1."""
    try:
        program(argv)
    except FLAG_ERRORS as error:
        print(f"error: {explain_flag_error(error)}", file=sys.stderr, flush=True)
        sys.exit(1)


@contextmanager
def lock(workdir: Path) -> Iterator[IO]:
    """Nobody else starts runs here. They inherit the lock: one that outlives its program holds it."""
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"a sweep, or a run that outlived one, is at work in {workdir}; wait for it, end it, "
                "or choose another --workdir"
            ) from None
        yield file


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this program as Ctrl-C does: the run under way saves first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
