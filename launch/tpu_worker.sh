#!/usr/bin/env bash
# The side of a run that lies on each worker of a TPU VM; tpu_vm.sh and queued_resource.sh call it.
# ~/empathy_jax/ holds code/ (the copied tree), venv/, runs/ (a bucket, where one is named) and of the
# run: run.log, run.pid, run.arguments, and run.status once it has ended.
#
#   tpu_worker.sh setup [BUCKET] | start ARGUMENTS... | state ARGUMENTS... | follow | stop | pack WORKDIR
set -euo pipefail

# Status of a run that was asked to end: by whoever started it, or by the machine.
STOPPED=130
TERMINATED=143

home=$HOME/empathy_jax
cd "$home"

setup() {
  local uv=uv
  mkdir -p runs
  [[ -z ${1-} ]] || mount_bucket "$1"
  ln -sfn "$home/runs" code/runs
  # The Python of TPU images is older than ours.
  command -v uv >/dev/null || {
    python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
  }
  [[ -x venv/bin/python ]] || "$uv" venv --quiet --python 3.12 venv
  cd code
  "$uv" pip install --quiet --python ../venv/bin/python -c constraints.txt -e '.[tpu]'
}

# Half-renamed folders of a bucket without hierarchical namespace are told by a checkpoint's digests.
mount_bucket() {
  ! mountpoint -q runs || return 0
  command -v gcsfuse >/dev/null || install_gcsfuse
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$1" runs
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
  curl -fsSL "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
}

is_running() {
  [[ -e run.pid && ! -e run.status ]] &&
    tr '\0' ' ' 2>/dev/null <"/proc/$(<run.pid)/cmdline" | grep -q 'tpu_worker.sh supervise'
}

start() {
  ! is_running || end_left_over
  rm -f run.status run.stop
  printf '%s\0' "$@" >run.arguments
  setsid nohup bash code/launch/tpu_worker.sh supervise "$@" >run.log 2>&1 </dev/null &
  echo $! >run.pid
}

# A run whose first worker has ended already; it may hang in a collective that never comes.
end_left_over() {
  local pid
  pid=$(<run.pid)
  kill -TERM "$pid"
  timeout 60 tail --pid="$pid" -f /dev/null || kill -KILL -- "-$pid" # setsid made it a group
}

# Runs the program and notes how it ended; a SIGTERM is handed on, so that the run saves first.
supervise() {
  local child status signalled=''
  cd code
  ../venv/bin/python -u -m empathy_jax.main "$@" &
  child=$!
  trap 'signalled=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  while true; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  [[ -z $signalled ]] || status=$TERMINATED
  [[ ! -e ../run.stop ]] || status=$STOPPED
  echo "$status" >../run.status.new
  mv ../run.status.new ../run.status
}

state() {
  if is_running; then
    if printf '%s\0' "$@" | cmp -s - run.arguments; then
      echo run_state=running
    else
      echo run_state=other
    fi
  elif [[ -e run.status ]]; then
    echo "run_state=ended $(<run.status)"
  elif [[ -e run.pid ]]; then
    echo "run_state=ended $TERMINATED" # killed before it could note anything: the machine went down
  else
    echo run_state=none
  fi
}

follow() {
  [[ -e run.pid ]] || {
    echo "error: no run was started on this machine" >&2
    return 1
  }
  tail -n +1 --pid="$(<run.pid)" -F run.log 2>/dev/null
}

stop() {
  is_running || {
    echo "no run is under way"
    return 0
  }
  touch run.stop
  kill -TERM "$(<run.pid)"
  tail --pid="$(<run.pid)" -f /dev/null
}

pack() {
  tar -C "$home" --exclude=checkpoints --exclude='*.safetensors' -czf packed.tar.gz "$1"
}

action=$1
shift
case $action in
  setup | start | supervise | state | follow | stop | pack) "$action" "$@" ;;
  *)
    echo "error: action '$action' is not one of setup, start, state, follow, stop, pack" >&2
    exit 1
    ;;
esac
