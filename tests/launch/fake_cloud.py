"""Stand-ins for gcloud, uv, gcsfuse and the Python of a worker: they note what they are told.

`gcloud ... ssh` really runs its command, with the folder of a worker as its home, as sshd would.
What the others answer is the plan: `{"tpu-vm describe": ["READY"], ...}`; of several answers the last
stays. An answer that begins with ERROR goes to stderr, with exit status 1.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import ROOT

GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
words = sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
kind, verb = words[2:4]
flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
what = "reason" if "failedData" in flags.get("format", "") else f"{kind} {verb}"
plan = json.loads((cloud / "plan.json").read_text())
answers = plan.get(what, [""])
answer = answers.pop(0) if len(answers) > 1 else answers[0]
left = cloud / f"plan.json.{os.getpid()}"
left.write_text(json.dumps(plan))
left.replace(cloud / "plan.json")  # another gcloud may read it now
if answer.startswith("ERROR"):
    sys.exit(answer)
print(answer)
workers = sorted((cloud / "workers").iterdir())
if flags.get("worker", "all") != "all":
    workers = [workers[int(flags["worker"])]]
status = 0
for home in workers:
    if verb == "ssh":
        done = subprocess.run(
            ["bash", "-c", flags["command"]], cwd=home, env={**os.environ, "HOME": str(home)}
        )
        status = max(status, done.returncode)
    elif verb == "scp":
        source, target = words[4:6]
        if ":" in target:
            shutil.copy(source, home / target.partition(":")[2])
        else:
            shutil.copy(home / source.partition(":")[2], target)
sys.exit(status)
"""

UV = """
import json, os, pathlib, shutil, sys
with open(pathlib.Path(os.environ["HOME"]) / "uv.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    target = pathlib.Path(sys.argv[-1]) / "bin"
    target.mkdir(parents=True)
    shutil.copy(pathlib.Path(os.environ["FAKE_CLOUD"]) / "python", target / "python")
"""

# A run: says what it was told, then ends as the file `end` of the cloud says.
PYTHON = """
import json, os, pathlib, signal, sys, time
cloud, home = pathlib.Path(os.environ["FAKE_CLOUD"]), pathlib.Path(os.environ["HOME"])
with open(home / "ran.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
workdir = next(word[10:] for word in sys.argv if word.startswith("--workdir="))
out = pathlib.Path(workdir) / "sft"
(out / "checkpoints").mkdir(parents=True, exist_ok=True)
(out / "checkpoints" / "3").write_text("large")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True) or 0))
print("the run says hello", flush=True)
ends = (cloud / "end").read_text().split()
end = ends[min(len((home / "ran.jsonl").read_text().splitlines()), len(ends)) - 1]
while end == "wait":
    time.sleep(0.02)
if end == "terminated":
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(5)
(out / "summary.json").write_text('{"seconds": 1.0, "figures": []}')
sys.exit(int(end))
"""


class Cloud:
    """A folder with a small checkout, the stand-ins on its PATH, and what they noted."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.checkout = folder, folder / "checkout"
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        for name in ("setup.py", ".gitignore"):
            shutil.copy(ROOT / name, self.checkout / name)
        (self.checkout / "gone.py").touch()
        for words in (["init", "--quiet"], ["add", "."]):
            subprocess.run(["git", *words], cwd=self.checkout, check=True)
        (self.checkout / "gone.py").unlink()
        (self.checkout / "数据 $(x).jsonl").write_text("{}", encoding="utf-8")
        for index in range(workers):
            (folder / "workers" / str(index)).mkdir(parents=True)
        (folder / "bin").mkdir()
        self.program("gcloud", GCLOUD)
        self.program("uv", UV)
        self.program("mountpoint", "raise SystemExit(1)")
        self.program("gcsfuse", UV.replace("uv.jsonl", "gcsfuse.jsonl").partition("if sys")[0])
        self.program("python", PYTHON, folder)
        self.plan()
        self.end("0")

    def program(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.folder / "bin") / name
        path.write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
        path.chmod(0o755)

    def plan(self, **answers: list[str] | str) -> None:
        """What gcloud answers, by `<kind>_<verb>`."""
        vm = {"tpu-vm describe": ["ERROR: NOT_FOUND", "READY"]}
        named = {key.replace("tpu_vm_", "tpu-vm ").replace("qr_", "queued-resources "): value
                 for key, value in answers.items()}  # fmt: skip
        (self.folder / "plan.json").write_text(json.dumps({**vm, **named}), encoding="utf-8")

    def end(self, how: str) -> None:
        """How the runs of a worker end, one word each: a status, `wait` (until SIGTERM) or `terminated`."""
        (self.folder / "end").write_text(how, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "FAKE_CLOUD": str(self.folder)}

    def run(self, script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run a script of the checkout to its end."""
        options = {"env": self.environment(), "cwd": self.checkout, "timeout": 120, **options}
        return subprocess.run(
            [str(self.checkout / "launch" / script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            **options,
        )

    def begin(self, script: str, *arguments: str) -> subprocess.Popen:
        """Start a script in a process group of its own."""
        return subprocess.Popen(
            [str(self.checkout / "launch" / script), *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def shut_down(self) -> None:
        """End the runs that a failed test has left behind."""
        for process in psutil.process_iter(["cwd"]):
            if Path(process.info["cwd"] or "/").is_relative_to(self.folder / "workers"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def calls(self, verb: str = "") -> list[list[str]]:
        """The arguments of every call of gcloud, or of those with one verb."""
        path = self.folder / "calls.jsonl"
        if not path.exists():
            return []
        calls = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [call for call in calls if verb in ("", call[3])]

    def noted(self, name: str, worker: int = 0) -> list[list[str]]:
        """What a worker's uv, gcsfuse or run (`ran`) was told."""
        path = self.folder / "workers" / str(worker) / f"{name}.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
