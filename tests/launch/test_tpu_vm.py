"""`launch/tpu_vm.sh` as a real process, before a gcloud that runs its commands here."""

import os
import shutil
import signal
import subprocess

import psutil
import pytest

PLACE = ("--name=tpu-a", "--zone=us-east5-a")
MACHINE = (*PLACE, "--type=v5p-16", "--version=v2-alpha-tpuv5")
RUN = ("--", "--config=configs/sft.py:tiny", "--workdir=runs/launch-test")
HOSTILE = "--config.data.chains=a b;touch ~/owned $(touch ~/owned) `touch ~/owned`'\"\\ 你好"


def test_start_makes_the_machine_brings_the_tree_and_runs_on_all_workers(cloud):
    done = cloud.run(
        "tpu_vm.sh", "start", *MACHINE, "--project=my-project", "--spot", *RUN, HOSTILE
    )
    assert done.returncode == 0, done.stderr
    (create,) = cloud.calls("create")
    assert create == [
        *("compute", "tpus", "tpu-vm", "create", "tpu-a", "--zone=us-east5-a"),
        *(
            "--project=my-project",
            "--accelerator-type=v5p-16",
            "--version=v2-alpha-tpuv5",
            "--spot",
        ),
    ]
    assert all("--project=my-project" in call for call in cloud.calls())
    for worker in (0, 1):
        assert cloud.noted("ran", worker) == [["-u", "-m", "empathy_jax.main", *RUN[1:], HOSTILE]]
        home = cloud.folder / "workers" / str(worker)
        assert not (home / "owned").exists()
        code = home / "empathy_jax" / "code"
        tree = {path.name for path in code.iterdir()}
        assert tree == {"launch", "setup.py", ".gitignore", "数据 $(x).jsonl", "runs"}
        assert (code / "runs").resolve() == home / "empathy_jax" / "runs"
        install = cloud.noted("uv", worker)[-1]
        assert install[:2] == ["pip", "install"] and install[-4:] == [
            "-c",
            "constraints.txt",
            "-e",
            ".[tpu]",
        ]
    assert done.stdout.count("the run says hello") == 1  # the log of the first worker


def test_a_machine_that_is_there_is_taken_and_a_preempted_one_made_anew(cloud):
    cloud.plan(**{"tpu_vm_describe": ["READY"]})
    assert cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN).returncode == 0
    assert not cloud.calls("create")
    cloud.plan(**{"tpu_vm_describe": ["PREEMPTED"]})
    assert cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN).returncode == 0
    assert [call[3] for call in cloud.calls() if call[3] in ("create", "delete")] == [
        "delete",
        "create",
    ]
    assert len(cloud.noted("ran")) == 2  # a run that has ended is started again: it goes on


def test_the_status_of_the_run_is_that_of_the_script(cloud):
    cloud.end("3")
    done = cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 3
    assert done.stderr == "error: the run on 'tpu-a' ended with status 3; its log is above\n"


def test_a_run_goes_on_without_its_watcher_and_is_not_started_twice(cloud):
    cloud.end("wait")
    watcher = cloud.begin("tpu_vm.sh", "start", *MACHINE, *RUN)
    for line in watcher.stdout:
        if "says hello" in line:
            break
    os.killpg(watcher.pid, signal.SIGKILL)
    watcher.communicate()
    other = cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN, "--config.seed=1")
    assert other.returncode == 1 and "another run is under way on 'tpu-a'" in other.stderr
    again = cloud.begin("tpu_vm.sh", "start", *MACHINE, *RUN)
    assert "under way on 'tpu-a' already" in again.stdout.readline()
    stopped = cloud.run("tpu_vm.sh", "stop", *PLACE)
    assert stopped.returncode == 0, stopped.stderr
    out, err = again.communicate(timeout=60)
    assert "saved" in out and "ended with status 130" in err and again.returncode == 130
    assert [len(cloud.noted("ran", worker)) for worker in (0, 1)] == [1, 1]
    assert "no run is under way" in cloud.run("tpu_vm.sh", "stop", *PLACE).stdout
    logs = cloud.run("tpu_vm.sh", "logs", *PLACE)
    assert "the run says hello\nsaved\n" in logs.stdout


def test_what_is_left_of_a_run_on_other_workers_is_ended_before_the_next(cloud):
    cloud.end("wait 0")
    watcher = cloud.begin("tpu_vm.sh", "start", *MACHINE, *RUN)
    for line in watcher.stdout:
        if "says hello" in line:
            break
    first, second = (cloud.folder / "workers" / name / "empathy_jax" for name in "01")
    os.killpg(int((first / "run.pid").read_text()), signal.SIGKILL)
    watcher.communicate(timeout=60)
    left_over = int((second / "run.pid").read_text())
    assert psutil.pid_exists(left_over)
    done = cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(left_over)
    assert [len(cloud.noted("ran", worker)) for worker in (0, 1)] == [2, 2]


def test_fetch_brings_all_but_weights(cloud, tmp_path):
    assert cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN).returncode == 0
    done = cloud.run("tpu_vm.sh", "fetch", *PLACE, "--", RUN[-1])
    assert done.returncode == 0, done.stderr
    folder = cloud.checkout / "runs" / "launch-test"
    assert sorted(path.name for path in folder.rglob("*")) == ["sft", "summary.json"]
    done = cloud.run("tpu_vm.sh", "fetch", *PLACE, "--", "--workdir=runs/absent")
    assert done.returncode == 1 and "has no runs/absent to fetch" in done.stderr


def test_a_bucket_is_mounted_where_runs_lie(cloud):
    assert cloud.run("tpu_vm.sh", "start", *MACHINE, "--bucket=my-bucket", *RUN).returncode == 0
    (mount,) = cloud.noted("gcsfuse", 1)
    assert mount[-2:] == ["my-bucket", "runs"]


@pytest.mark.parametrize(
    "plan, error",
    [
        (
            {"tpu_vm_create": ["ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit reached"]},
            "'tpu-a' (v5p-16) was not created in us-east5-a: ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota "
            "limit reached. Try another --zone or --type, or ask for quota",
        ),
        (
            {"tpu_vm_describe": ["ERROR: the network is down"]},
            "gcloud cannot describe 'tpu-a' in us-east5-a: ERROR: the network is down",
        ),
        ({"tpu_vm_describe": ["REPAIRING"]}, "the TPU VM 'tpu-a' is REPAIRING; wait until it is"),
        ({"tpu_vm_scp": ["ERROR: no route"]}, "the run did not start on 'tpu-a'"),
    ],
)  # fmt: skip
def test_what_gcloud_refuses_is_one_clear_line(cloud, plan, error):
    cloud.plan(**plan)
    done = cloud.run("tpu_vm.sh", "start", *MACHINE, "--poll_seconds=0.01", *RUN)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {error}")
    assert not cloud.noted("ran")


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((), "the first argument is ''; it must be one of start, logs, stop, fetch, delete"),
        (("begin",), "the first argument is 'begin'; it must be one of start,"),
        (("logs", "--name"), "'--name' is not one of --name, --zone,"),
        (("logs", "--nmae=a"), "'--nmae=a' is not one of --name, --zone,"),
        (("logs", "--zone=us-east5-a"), "--name is missing; give --name=VALUE"),
        (("logs", "--name=a b;touch x", PLACE[1]), "--name is 'a b;touch x'; it must be lower-case"),
        (("logs", PLACE[0], "--zone=$(x)"), "--zone is '$(x)'; it must be a zone such as us-east5-a"),
        (("start", *PLACE, "--version=v2", *RUN), "--type is missing; give --type=VALUE"),
        (("start", *MACHINE, "--bucket=gs://b", *RUN), "--bucket is 'gs://b'; it must be the bare name"),
        (("start", *MACHINE, "--config=x"), "'--config=x' is not one of --name"),
        (("start", *MACHINE), "--workdir is missing; give -- --workdir=runs/NAME"),
        (("start", *MACHINE, "--", "--workdir=/tmp/a"), "--workdir is '/tmp/a'; on TPU VMs it must be runs/"),
        (("start", *MACHINE, "--", "--workdir=runs/../a"), "--workdir is 'runs/../a'; on TPU VMs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("script", ["tpu_vm.sh", "queued_resource.sh"])
def test_bad_arguments_are_one_line_and_nothing_is_called(cloud, script, arguments, error):
    done = cloud.run(script, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {error}") and done.stderr.count("\n") == 1
    assert not cloud.calls()


def test_without_gcloud_one_line_says_so(cloud, tmp_path):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = {**cloud.environment(), "PATH": str(tmp_path)}
    done = cloud.run("tpu_vm.sh", "logs", *PLACE, env=environment)
    assert done.returncode == 1
    assert done.stderr == (
        "error: gcloud is not on PATH; install the Google Cloud CLI, or look with --dry_run\n"
    )


def test_a_dry_run_prints_what_would_be_called_and_calls_nothing(cloud):
    done = cloud.run("tpu_vm.sh", "start", *MACHINE, "--dry_run", *RUN, HOSTILE)
    assert done.returncode == 0 and not cloud.calls(), done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[3:5] for line in lines] == [
        ["tpu-vm", verb] for verb in ("describe", "create", "scp", "ssh", "ssh", "ssh", "ssh")
    ]
    # Given to a shell, the printed lines are the calls of a real run.
    subprocess.run(["bash", "-c", lines[-2]], env=cloud.environment(), check=False)
    (printed,) = cloud.calls("ssh")
    cloud.run("tpu_vm.sh", "start", *MACHINE, *RUN, HOSTILE)
    assert printed in cloud.calls("ssh")[1:]
    for action in ("logs", "stop", "delete"):
        (line,) = cloud.run("tpu_vm.sh", action, *PLACE, "--dry_run").stdout.splitlines()
        assert line.startswith("gcloud compute tpus tpu-vm ")
