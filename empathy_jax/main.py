"""The command line: `python -m empathy_jax.main --config=configs/rl.py:tiny --workdir=runs/a`.

A config names one phase, or several in order. Bad input ends in one clear line and exit status 1;
`--verbosity=1` adds the traceback. Several processes that are given the same command line make one run
(docs/launch.md).
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/, with a size after a colon.")
flags.DEFINE_string("workdir", "", "Folder of the run; each phase writes to its own folder in it.")
flags.DEFINE_string("plan", "", "Run nothing; say what it takes on a slice, such as v5p:4x4x4.")
flags.DEFINE_string("coordinator_address", "", "HOST:PORT of process 0, in a run of several.")
flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)

# What reading a command line may raise.
FLAG_ERRORS = (flags.Error, AttributeError, ValueError, TypeError, OSError)
PHASES = (
    "corpus", "annotate", "sft", "reward_model", "rl", "evaluate", "export", "generate", "serve",
)  # fmt: skip


def main(argv: list[str]) -> None:
    from empathy_jax import hosts  # takes a second, which a wrong flag need not wait for

    try:
        if len(argv) > 1:
            raise ValueError(f"not a flag: {' '.join(argv[1:])} (flags begin with --)")
        if FLAGS.config is None:
            raise ValueError(
                "--config is missing; name a file of configs/, e.g. configs/rl.py:tiny"
            )
        if FLAGS.plan:
            plan(FLAGS.config, FLAGS.plan)
        else:
            hosts.initialize(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
            run(FLAGS.config, FLAGS.workdir)
    except (ValueError, OSError) as error:
        logging.debug("traceback of the error below", exc_info=True)
        hosts.fail(str(error))
        _fail(error)
    except (Exception, KeyboardInterrupt) as error:
        if hosts.count() > 1:
            logging.exception("traceback of the error below")
        hosts.fail(f"{type(error).__name__}: {error}")
        raise


def _fail(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


def _parse_flags(argv: list[str]) -> list[str]:
    """Read the command line; a wrong flag, config file, size or field is one line, no traceback."""
    try:
        rest = FLAGS(argv)
        _ = FLAGS.config  # a file that could not be read is reported here
        return rest
    except FLAG_ERRORS as error:
        _fail(ValueError(explain_flag_error(error)))


def explain_flag_error(error: Exception) -> str:
    """What a wrong flag, config file, size or field (one of FLAG_ERRORS) is about, in one line."""
    text: object = error
    while isinstance(text, Exception) and text.args:
        text = text.args[0]
    text = str(text)
    if isinstance(error, AttributeError | KeyError):
        text = "unknown config field " + text.replace("\n", ": ")
    elif "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def run(config: ConfigDict, workdir: str) -> dict[str, dict]:
    """Run the phases of a config in order; returns the summary of each."""
    if not workdir:
        raise ValueError("--workdir is empty; name the folder that this run writes to")
    phases = config.phases or (config.phase,)
    for phase in phases:
        if phase not in PHASES:
            named = (
                f"config.phases has {phase!r}, which"
                if config.phases
                else f"config.phase {phase!r}"
            )
            how = "; write several as --config.phases=\"('sft','rl')\"" if config.phases else ""
            raise ValueError(f"{named} is not one of {', '.join(PHASES)}{how}")
    from empathy_jax import hosts
    from empathy_jax.training import overview
    from empathy_jax.training import workdir as workdirs

    summaries = {}
    for phase in phases:
        folder = Path(workdir) / phase
        before = workdirs.finished(folder)
        summaries[phase] = run_phase(phase_config(config, phase), Path(workdir))
        if summaries[phase] == before:
            print(f"[{phase}] already finished: {folder / 'summary.json'}", flush=True)
    if not hosts.is_lead():
        return summaries
    if len(phases) > 1:
        overview.show(Path(workdir), summaries)
    else:
        overview.show_phase(folder, summaries)
    return summaries


def plan(config: ConfigDict, target: str) -> None:
    """Print what the phases of a config take on a slice of chips, none of which need be there."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from empathy_jax.training import plan

    for phase in config.phases or (config.phase,):
        plan.run(phase_config(config, phase), target)


def phase_config(config: ConfigDict, phase: str) -> ConfigDict:
    """The values of one of several phases: the shared ones, then those of `per_phase.<phase>`.

    A later phase takes the records and the model that an earlier phase of the same chain has made:
    its field is empty then.
    """
    phases = tuple(config.phases)
    own = config.copy_and_resolve_references()
    with own.unlocked():
        changes = own.per_phase.get(phase, ConfigDict())
        own.phase, own.phases, own.per_phase = phase, (), ConfigDict()
    own.update(changes)
    if phase in phases:
        earlier = phases[: phases.index(phase)]
        if "corpus" in earlier:
            own.data.questions = ""
        if "annotate" in earlier:
            own.data.chains = ""
        if "sft" in earlier or "rl" in earlier:
            own.model.init, own.model.tokenizer = "", ""
        if "reward_model" in earlier:
            own.reward_model.init, own.reward_model.tokenizer = "", ""
    return own


def run_phase(config: ConfigDict, workdir: Path) -> dict:
    """Run one phase; what it needs is imported only here. Work without a model is the lead's."""
    from empathy_jax import hosts

    if config.phase == "corpus":
        from empathy_jax.training import corpus

        return hosts.from_lead(lambda: corpus.run(config, workdir))
    if config.phase == "annotate":
        from empathy_jax.training import annotate

        return hosts.from_lead(lambda: annotate.run(config, workdir))
    if config.phase == "sft":
        from empathy_jax.training import sft as phase
    elif config.phase == "reward_model":
        from empathy_jax.training import reward_model as phase
    elif config.phase == "rl":
        from empathy_jax.training import rl as phase
    elif config.phase == "evaluate":
        from empathy_jax.training import evaluate as phase
    elif config.phase == "export":
        from empathy_jax.training import export as phase
    elif config.phase == "generate":
        from empathy_jax.serving import generate as phase
    else:
        from empathy_jax.serving import server as phase
    return phase.run(config, workdir)


def cli() -> None:
    """Entry point: `empathy_jax` and `python -m empathy_jax.main`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    sys.path.insert(0, os.getcwd())  # configs import one another, from the project's root
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    cli()
