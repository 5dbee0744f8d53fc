#!/usr/bin/env bash
# Trains on spot TPUs: queues for them, starts the run when they come, and begins again when they are
# taken away, until the run ends. The run goes on from its last checkpoint each time, which is why
# `runs/` must lie in a bucket.
#
#   launch/queued_resource.sh start --name=a --zone=us-east5-a --type=v5p-64 --spot \
#       --version=v2-alpha-tpuv5 --bucket=BUCKET -- --config=configs/rl.py:qwen3_8b --workdir=runs/a
#   launch/queued_resource.sh logs|stop|delete --name=a --zone=us-east5-a
#
# The queued resource and its one TPU VM have the same name. docs/launch.md has every flag. --dry_run
# prints each command and runs none.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Times in a row that a request may fail before any machine came, or a start on a machine that stays.
MAX_FAILURES=3

queue_up() {
  create gcloud compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
}

remove() {
  call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# One life of the machine. Exits when the run has ended by itself; returns when the machine is gone.
run_once() {
  local ended
  if start_run; then
    starts=0
  else
    starts=$((starts + 1))
    ((starts < MAX_FAILURES)) ||
      fail "the run did not start on '$name' $starts times in a row; what gcloud said is above"
    sleep "$poll_seconds"
    return
  fi
  while true; do
    follow_run || true
    ended=$(run_state)
    case $ended in
      "ended 143") ;; # SIGTERM by the machine: it is about to be taken away, or was restarted
      "ended 0") exit 0 ;;
      "ended "*)
        echo "error: the run on '$name' ended with status ${ended#ended }; its log is above" >&2
        exit "${ended#ended }"
        ;;
    esac
    sleep "$poll_seconds"
    [[ $(state queued-resources 'value(state.state)') == ACTIVE &&
      $(state tpu-vm 'value(state)') == READY ]] || return 0
    [[ $ended == running || $ended == unreachable ]] || return 0 # else it is started again
  done
}

start() {
  local failures=0 found node last='' reason
  if [[ -n $dry_run ]]; then
    state queued-resources 'value(state.state)' >/dev/null
    queue_up && start_run && follow_run
    return
  fi
  while true; do
    found=$(state queued-resources 'value(state.state)')
    [[ $found == "$last" ]] || echo "queued resource '$name': $found"
    last=$found
    case $found in
      ABSENT) queue_up ;;
      ACTIVE)
        failures=0
        node=$(state tpu-vm 'value(state)')
        case $node in
          READY) run_once ;;
          ABSENT | PREEMPTED | TERMINATED)
            echo "TPU VM '$name': $node; queued for anew"
            remove
            ;;
          *) sleep "$poll_seconds" ;;
        esac
        ;;
      SUSPENDED) remove ;;
      FAILED)
        reason=$(state queued-resources 'value(state.failedData.error.message)')
        failures=$((failures + 1))
        ((failures < MAX_FAILURES)) || fail "the request for '$name' ($type in $zone) failed" \
          "$failures times in a row: $reason. Try another --zone or --type"
        remove
        ;;
      *) sleep "$poll_seconds" ;; # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING
    esac
  done
}

starts=0
parse "$@"
[[ $action != start || -n $bucket ]] || fail "--bucket is missing; a machine that is taken away takes" \
  "its disk along: name a bucket for runs/, or use launch/tpu_vm.sh"
case $action in
  start) start ;;
  logs) follow_run ;;
  stop) on_workers all bash "$WORKER" stop ;;
  fetch) fetch_run ;;
  delete) remove ;;
esac
