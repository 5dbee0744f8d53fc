"""Settings of RL compared over seeds: a figure of their curves and a table of held-out figures.

    PYTHONPATH=. python benchmarks/rl_curves.py --reward_model=runs/a/reward_model \
        --runs default=runs/default empathy_r1=runs/empathy_r1 --figure=curves.svg

Each of --runs is a folder whose subfolders are runs of one setting with different seeds, as
`python -m launch.sweep --grid=seed=0,1,2` leaves them, made with --config.rl.rollout_examples at or above
the completions of a step. Whatever a run was trained on, here it is measured by one reward, the default
of configs/rl.py, and by the binary one of the paper: both follow from the terms that a run writes. The
figure's curves are of the questions trained on; a line of JSON for each setting has the held-out ones,
their mean over the runs and each run's value.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from configs import rl as configs
from empathy_jax import files
from empathy_jax.rl import rewards
from empathy_jax.training import reward_terms

PANELS = {
    "reward": "reward (of the default)",
    "format": "share of valid chains",
    "answer_characters": "characters of the answer (0 without one)",
    "echo_overlap": "share of the answer that echoes",
}
WINDOW = 3  # steps over which a curve is smoothed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reward_model", type=Path, required=True, help="the phase's folder")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--figure", type=Path, help="an SVG to write")
    arguments = parser.parse_args()
    calibration = json.loads((arguments.reward_model / "calibration.json").read_text("utf-8"))
    curves = {}
    for setting in arguments.runs:
        name, _, folder = setting.partition("=")
        runs = [path.parents[1] for path in Path(folder).glob("*/rl/summary.json")]
        runs.sort(key=lambda run: config_of(run)["seed"])
        if not runs:
            raise SystemExit(
                f"error: no subfolder of {folder!r} has a finished run of the phase rl"
            )
        print(json.dumps({"setting": name, **held_out(runs, calibration)}))
        curves[name] = [curve(run, calibration) for run in runs]
    if arguments.figure:
        draw(curves, arguments.figure)


def measured(terms: dict[str, np.ndarray], calibration: dict) -> dict[str, np.ndarray]:
    """What completions are worth by the default reward, by it without the charge for short answers, and
    by the paper's.

    Args:
      terms: of `reward_terms.score`, [N] each.
      calibration: of the reward model.
    """
    settings = {
        "reward": configs.get_config("tiny"),
        "reward_but_for_brevity": configs.get_config("tiny"),
        "binary": configs.get_config("tiny,empathy_r1"),
    }
    settings["reward_but_for_brevity"].rl.min_answer_characters = 0
    valid = terms["format"]
    found = {}
    for name, config in settings.items():
        parts = reward_terms.scaled(terms["similarity"], terms, calibration, config)
        parts = {part: rewards.gated(valid, values) for part, values in parts.items()}
        found[name] = reward_terms.combine({"format": valid, **parts}, config)
    kept = ("format", "similarity", "echo_overlap", "template_overlap", "answer_characters")
    return found | {name: terms[name] for name in kept}


def held_out(runs: list[Path], calibration: dict) -> dict:
    """Held-out figures of runs before and after: their mean and each run's own; tokens sampled."""
    found: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    tokens, kl = [], []
    for run in runs:
        first, *_, last = files.read_jsonl(run / "rl" / "held_out.jsonl")
        for name, row in (("before", first), ("after", last)):
            terms = {term: np.asarray(values) for term, values in row["terms"].items()}
            for measure, values in measured(terms, calibration).items():
                found[name].setdefault(measure, []).append(round(float(values.mean()), 4))
        rows = list(files.read_jsonl(run / "rl" / "metrics.jsonl"))
        rows = [row for row in rows if "completion_tokens" in row]
        tokens.append(sum(row["completion_tokens"] for row in rows) * completions_of(run) / 1e6)
        kl.append(round(rows[-1]["kl"], 4))
    return {
        "seeds": [config_of(run)["seed"] for run in runs],
        **{
            name: {k: {"mean": round(float(np.mean(v)), 4), "each": v} for k, v in own.items()}
            for name, own in found.items()
        },
        "kl": kl,
        "million_tokens": round(float(np.mean(tokens)), 4),
    }


def config_of(run: Path) -> dict:
    return json.loads((run / "rl" / "config.json").read_text("utf-8"))


def completions_of(run: Path) -> int:
    """How many completions a step of a run has."""
    config = config_of(run)
    return config["batch_size"] * config["rl"]["group_size"]


def curve(run: Path, calibration: dict) -> dict[str, np.ndarray]:
    """Tokens sampled so far, in millions, and the means of each step."""
    steps: dict[int, list[dict]] = {}
    for row in files.read_jsonl(run / "rl" / "rollouts.jsonl"):
        steps.setdefault(row["step"], []).append(row)
    expected = completions_of(run)
    points: dict[str, list[float]] = {name: [] for name in ("tokens", *PANELS)}
    for step, rows in sorted(steps.items()):
        if len(rows) != expected:
            raise SystemExit(
                f"error: step {step} of {run} has {len(rows)} of {expected} completions in "
                f"rollouts.jsonl; train with --config.rl.rollout_examples={expected}"
            )
        terms = {
            name: np.asarray([row["terms"][name] for row in rows]) for name in rows[0]["terms"]
        }
        values = measured(terms, calibration)
        points["tokens"].append(sum(row["tokens"] for row in rows) / 1e6)
        for name in PANELS:
            points[name].append(float(values[name].mean()))
    points["tokens"] = np.cumsum(points["tokens"]).tolist()
    kernel = np.ones(WINDOW) / WINDOW
    return {name: np.convolve(values, kernel, mode="valid") for name, values in points.items()}


def draw(curves: dict[str, list[dict[str, np.ndarray]]], path: Path) -> None:
    """A thin line for each run, a thick one for the mean of a setting, one panel a measure."""
    figure = Figure(figsize=(13, 3.3), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        for number, (setting, runs) in enumerate(curves.items()):
            colour = f"C{number}"
            for run in runs:
                axis.plot(run["tokens"], run[name], color=colour, alpha=0.3, linewidth=0.8)
            means = [np.mean([run[key] for run in runs], axis=0) for key in ("tokens", name)]
            axis.plot(*means, color=colour, linewidth=2, label=setting)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("million tokens sampled")
        axis.grid(alpha=0.3)
        if name == "echo_overlap":  # next to none looks like next to none
            axis.set_ylim(0, max(0.1, axis.get_ylim()[1]))
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(curves), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
