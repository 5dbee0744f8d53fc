"""`launch/queued_resource.sh` as a real process: machines come, are taken away, and come again."""

MACHINE = (
    *("--name=spot-a", "--zone=us-east5-a", "--type=v5p-16", "--version=v2-alpha-tpuv5", "--spot"),
    *("--bucket=my-bucket", "--poll_seconds=0.05"),
)
RUN = ("--", "--config=configs/sft.py:tiny", "--workdir=runs/a", "--config.data.chains=$(x) y")
WAITING = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]


def test_it_queues_waits_and_runs(cloud):
    cloud.plan(qr_describe=["ERROR: NOT_FOUND", *WAITING, "ACTIVE"], tpu_vm_describe=["READY"])
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 0, done.stderr
    (create,) = cloud.calls("create")
    assert create == [
        *("compute", "tpus", "queued-resources", "create", "spot-a", "--node-id=spot-a"),
        *("--zone=us-east5-a", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5"),
        "--spot",
    ]
    assert [cloud.noted("ran", worker)[0][3:] for worker in (0, 1)] == [list(RUN[1:])] * 2
    assert cloud.noted("gcsfuse")[0][-2:] == ["my-bucket", "runs"]
    said = [line for line in done.stdout.splitlines() if line.startswith("queued resource")]
    assert [line.split()[-1] for line in said] == ["ABSENT", *WAITING, "ACTIVE"]
    assert not cloud.calls("delete")


def test_a_preempted_run_is_queued_for_anew_and_given_the_same_command(cloud):
    cloud.end("terminated 0")  # the machine's SIGTERM: the run saves and exits with status 0
    cloud.plan(
        # as: create, run, gone, delete, create, run
        qr_describe=[
            *("ERROR: NOT_FOUND", "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED"),
            *("ERROR: NOT_FOUND", "ACTIVE"),
        ],
        tpu_vm_describe=["READY"],
    )
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 0, done.stderr
    changes = [call[3] for call in cloud.calls() if call[3] in ("create", "delete")]
    assert changes == ["create", "delete", "create"]
    (delete,) = cloud.calls("delete")
    assert delete[2] == "queued-resources" and {"--force", "--quiet"} <= set(delete)
    first, second = cloud.noted("ran")
    assert first == second and first[3:] == list(RUN[1:])


def test_a_machine_that_vanishes_under_an_active_request_is_replaced(cloud):
    cloud.plan(
        qr_describe=["ACTIVE", "ERROR: NOT_FOUND", "ACTIVE"],
        tpu_vm_describe=["PREEMPTED", "READY"],
    )
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 0, done.stderr
    changes = [call[3] for call in cloud.calls() if call[3] in ("create", "delete")]
    assert changes == ["delete", "create"] and len(cloud.noted("ran")) == 1


def test_a_run_that_fails_by_itself_is_not_begun_again(cloud):
    cloud.end("3")
    cloud.plan(qr_describe=["ACTIVE"], tpu_vm_describe=["READY"])
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 3 and "ended with status 3" in done.stderr
    assert len(cloud.noted("ran")) == 1


def test_failures_before_any_machine_end_with_their_reason(cloud):
    cloud.plan(qr_describe=["FAILED"], reason=["Quota exceeded"])
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: the request for 'spot-a' (v5p-16 in us-east5-a) failed 3 times in a row: Quota "
        "exceeded. Try another --zone or --type"
    )
    cloud.plan(qr_describe=["ERROR: NOT_FOUND"], qr_create=["ERROR: PERMISSION_DENIED"])
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert (
        done.returncode == 1 and "was not created in us-east5-a: ERROR: PERMISSION" in done.stderr
    )


def test_a_run_that_cannot_be_started_ends_the_watch(cloud):
    cloud.plan(qr_describe=["ACTIVE"], tpu_vm_describe=["READY"], tpu_vm_scp=["ERROR: no route"])
    done = cloud.run("queued_resource.sh", "start", *MACHINE, *RUN)
    assert done.returncode == 1
    assert "did not start on 'spot-a' 3 times in a row" in done.stderr.splitlines()[-1]


def test_a_machine_without_a_bucket_is_refused(cloud):
    arguments = [argument for argument in MACHINE if "bucket" not in argument]
    done = cloud.run("queued_resource.sh", "start", *arguments, *RUN)
    assert done.returncode == 1 and done.stderr.startswith("error: --bucket is missing;")
    assert not cloud.calls()


def test_a_dry_run_calls_nothing(cloud):
    done = cloud.run("queued_resource.sh", "start", *MACHINE, "--dry_run", *RUN)
    assert done.returncode == 0 and not cloud.calls(), done.stderr
    assert [line.split()[3:5] for line in done.stdout.splitlines()] == [
        ["queued-resources", "describe"],
        ["queued-resources", "create"],
        *(["tpu-vm", verb] for verb in ("scp", "ssh", "ssh", "ssh", "ssh")),
    ]
