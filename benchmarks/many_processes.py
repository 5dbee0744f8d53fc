"""Training by one process and by several, compared: the losses of the same steps of three phases.

    python benchmarks/many_processes.py --processes=1,2,4

runs sft, reward_model and rl of a tiny model on this machine, all processes with two CPU devices, once
for each number of processes, and prints one JSON line: for each phase and number the largest difference
of a step's loss, and of its gradient norm as a share of it, from those of the first number.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHASES = ("sft", "reward_model", "rl")
FEELINGS = ("累", "怕", "烦", "急", "空", "气", "闷", "慌")
RECORDS = 48
VALUES = {
    "phases": str(PHASES),
    "batch_size": 8,
    "model.width": 32,
    "model.mlp_width": 48,
    "model.num_layers": 1,
    "model.head_dim": 16,
    "model.max_positions": 1024,
    "reward_model.width": 32,
    "reward_model.mlp_width": 48,
    "reward_model.max_tokens": 128,
    # Mined batches hang on which of two nearly equal cosines is the larger; see docs/many_processes.md.
    "reward_model.in_batch": "random",
    "reward_model.eval_questions": 8,
    "data.validation_fraction": 0.2,
    "data.max_prompt_tokens": 512,
    "data.max_completion_tokens": 32,
    "data.overlong": "reject",
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 2,
    "sft.row_tokens": 640,
    "sft.samples": 2,
    "sft.sample_every": 0,
    "rl.group_size": 4,
    "rl.rows_per_pass": 32,
    # Chains of 32 tokens are never valid: what is learnt from are charges for the KL and for length, and
    # a bonus for entropy. With the defaults every loss would be 0, whoever computes it.
    "rl.advantage": "reinforce",
    "rl.kl_placement": "reward",
    "rl.kl_estimator": "k1",
    "rl.kl_weight": 0.1,
    "rl.overlong_buffer": 16,
    "rl.entropy_target": 9.0,
    "rl.eval_questions": 2,
    "rl.eval_samples": 2,
    "log.every": 1,
    "log.validate_every": 1000,
    "checkpoint.every": 1000,
}


def write_inputs(folder: Path) -> dict[str, str]:
    """Short chains and questions with answers; paths by config field."""
    chains, questions = [], []
    for index in range(RECORDS):
        feeling = FEELINGS[index % len(FEELINGS)]
        text, answer = f"我很{feeling}，第{index}天了", f"我在，{feeling}。"
        layers = {"L1": feeling, "L2": "因", "L3": "听", "L4": "陪"}
        chains.append({"question": text, **layers, "answer": answer})
        answers = [{"text": answer}, {"text": f"{feeling}会过去"}]
        questions.append({"question": text, "answers": answers})
    paths = {}
    for name, records in (("chains", chains), ("questions", questions)):
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        paths[f"data.{name}"] = str(path)
    return paths


def run(count: int, workdir: Path, values: dict) -> float:
    """Runs all phases by `count` processes; returns the seconds."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Most of the time goes into compilations.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    fields = [f"--config.{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "empathy_jax.main", "--config=configs/rl.py:tiny"]
    command += [f"--workdir={workdir}", *fields]
    began, processes = time.monotonic(), []
    for me in range(count):
        joined = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}"]
        joined = [*joined, f"--process_id={me}"] if count > 1 else []
        log = open(workdir.with_suffix(f".{me}.log"), "wb")  # noqa: SIM115
        processes.append(
            subprocess.Popen([*command, *joined], cwd=ROOT, env=environment, stdout=log, stderr=log)
        )
    if any([process.wait() for process in processes]):
        logs = [workdir.with_suffix(f".{me}.log").read_text() for me in range(count)]
        raise SystemExit(f"a run of {count} processes failed:\n" + "\n".join(logs))
    return time.monotonic() - began


def steps(folder: Path) -> dict[int, dict]:
    """The metrics of each update."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record for record in records if "loss" in record}


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of a loss, and of a gradient norm as a share of it."""
    ours, theirs = steps(one), steps(other)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{one} and {other} have taken different steps")
    pairs = [(ours[step], theirs[step]) for step in ours]
    return {
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "grad_norm": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2,4", help="numbers, the first to compare with")
    parser.add_argument("--steps", type=int, default=20, help="updates of each phase")
    parser.add_argument(
        "--workdir", default="", help="where the runs go; empty: a temporary folder"
    )
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.processes.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.workdir or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        values = {**VALUES, **write_inputs(folder), "steps": arguments.steps}
        seconds = {count: round(run(count, folder / str(count), values), 1) for count in counts}
        first = folder / str(counts[0])
        found = {
            phase: {
                count: differences(first / phase, folder / str(count) / phase)
                for count in counts[1:]
            }
            for phase in PHASES
        }
    print(json.dumps({"steps": arguments.steps, "seconds": seconds, "largest_difference": found}))


if __name__ == "__main__":
    main()
