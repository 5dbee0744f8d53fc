#!/usr/bin/env bash
# Trains on a TPU VM: makes it or takes the one of that name, copies the working tree to all its
# workers, starts the run there, and shows the log of the first one until the run ends.
#
#   launch/tpu_vm.sh start --name=a --zone=us-east5-a --type=v5p-8 --version=v2-alpha-tpuv5 \
#       -- --config=configs/rl.py:qwen3_8b --workdir=runs/a
#   launch/tpu_vm.sh logs|stop|delete --name=a --zone=us-east5-a
#   launch/tpu_vm.sh fetch --name=a --zone=us-east5-a -- --workdir=runs/a
#
# The run goes on when this script is ended; the same command then follows it again. docs/launch.md
# has every flag. --dry_run prints each command and runs none.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_vm() {
  local found
  found=$(state tpu-vm 'value(state)')
  case $found in
    READY) return ;;
    ABSENT) ;;
    PREEMPTED | TERMINATED) call gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet ;;
    *) fail "the TPU VM '$name' is $found; wait until it is READY, or choose another --name" ;;
  esac
  create gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
    --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

start() {
  local ended
  make_vm
  start_run || fail "the run did not start on '$name'; what gcloud said is above"
  follow_run || true
  [[ -z $dry_run ]] || return 0
  ended=$(run_state)
  case $ended in
    "ended 0") ;;
    "ended "*)
      echo "error: the run on '$name' ended with status ${ended#ended }; its log is above" >&2
      exit "${ended#ended }"
      ;;
    *) fail "the connection to '$name' is lost (its run is $ended); the same command follows it again" ;;
  esac
}

parse "$@"
case $action in
  start) start ;;
  logs) follow_run ;;
  stop) on_workers all bash "$WORKER" stop ;;
  fetch) fetch_run ;;
  delete) call gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet ;;
esac
