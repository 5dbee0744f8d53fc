# shellcheck shell=bash disable=SC2034
# What the scripts that drive TPU VMs share: arguments, printing of commands, and the life of a run.
# Sourced by tpu_vm.sh and queued_resource.sh; needs bash 4.4.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ACTIONS="start, logs, stop, fetch, delete"
FLAGS="--name, --zone, --project, --type, --version, --bucket, --spot, --poll_seconds, --dry_run"
WORKER=empathy_jax/code/launch/tpu_worker.sh
UNPACK="mkdir -p empathy_jax && cd empathy_jax && rm -rf new && mkdir new &&
 tar -xzf ../empathy_jax.tar.gz -C new && rm -rf code && mv new code"
UNPACK=${UNPACK//$'\n'/}

exec 3>&1 # what a function prints whose output is taken as its value

fail() {
  echo "error: $*" >&2
  exit 1
}

# Reads the command line into: action, name, zone, project, type, version, bucket, spot, poll_seconds,
# dry_run, arguments (what comes after --) and place (the flags that every gcloud command takes).
parse() {
  name='' zone='' project='' type='' version='' bucket='' spot='' poll_seconds=30 dry_run=''
  action=${1-}
  case $action in
    start | logs | stop | fetch | delete) shift ;;
    *) fail "the first argument is '$action'; it must be one of $ACTIONS" ;;
  esac
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --bucket=*) bucket=${1#*=} ;;
      --poll_seconds=*) poll_seconds=${1#*=} ;;
      --spot) spot=yes ;;
      --dry_run) dry_run=yes ;;
      --) break ;;
      *) fail "'$1' is not one of $FLAGS (each as --flag=value); what empathy_jax.main takes comes after --" ;;
    esac
    shift
  done
  shift $(($# > 0))
  arguments=("$@")
  check_values
  place=(--zone="$zone")
  [[ -z $project ]] || place+=(--project="$project")
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail "gcloud is not on PATH; install the Google Cloud CLI, or look with --dry_run"
}

check_values() {
  check --name "$name" '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$' "lower-case letters, digits and hyphens"
  check --zone "$zone" '^[a-z]+-[a-z]+[0-9]+-[a-z]$' "a zone such as us-east5-a"
  [[ -z $project ]] ||
    check --project "$project" '^[a-z][-a-z0-9.:]*$' "the id of a project, such as my-project"
  [[ -z $bucket ]] ||
    check --bucket "$bucket" '^[a-z0-9][-_.a-z0-9]*$' "the bare name of a bucket, without gs://"
  check --poll_seconds "$poll_seconds" '^[0-9]+(\.[0-9]+)?$' "a number of seconds"
  if [[ $action == start ]]; then
    check --type "$type" '^[a-z0-9]+-[0-9]+$' "an accelerator type such as v5p-8"
    check --version "$version" '^[a-z0-9][-.a-z0-9]*$' "a runtime version such as v2-alpha-tpuv5"
  fi
  [[ $action != start && $action != fetch ]] || check_workdir
}

# check FLAG VALUE PATTERN WHAT
check() {
  [[ -n $2 ]] || fail "$1 is missing; give $1=VALUE, $4"
  [[ $2 =~ $3 ]] || fail "$1 is '$2'; it must be $4"
}

# The run's folder must be one that outlives a sync, and with --bucket the machine.
check_workdir() {
  local argument workdir=''
  for argument in "${arguments[@]}"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#*=}
  done
  [[ -n $workdir ]] || fail "--workdir is missing; give -- --workdir=runs/NAME ... at the end"
  [[ $workdir =~ ^runs/[A-Za-z0-9._/-]+$ && /$workdir/ != */../* ]] || fail "--workdir is" \
    "'$workdir'; on TPU VMs it must be runs/NAME, of letters, digits and . _ - /"
  run_folder=$workdir
}

# Prints a command as a shell would read it.
show() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line:1}"
}

# Runs a command; with --dry_run only prints it.
call() {
  if [[ -n $dry_run ]]; then show "$@"; else "$@"; fi
}

# state KIND FORMAT: what gcloud says of `tpu-vm` or `queued-resources`; ABSENT where there is none.
# An answer that does not come is asked for again, so that a passing failure ends no watch.
state() {
  local attempt answer problem
  if [[ -n $dry_run ]]; then
    show gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="$2" >&3
    echo ABSENT
    return
  fi
  problem=$(mktemp)
  for attempt in 1 2 3 4 5; do
    if answer=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="$2" 2>"$problem"); then
      break
    elif grep -q NOT_FOUND "$problem"; then
      answer=ABSENT
      break
    elif ((attempt == 5)); then
      answer=$(tail -n 1 "$problem")
      rm -f "$problem"
      fail "gcloud cannot describe '$name' in $zone: $answer"
    fi
    sleep "$poll_seconds"
  done
  rm -f "$problem"
  echo "$answer"
}

# create COMMAND...: asks for a machine; gcloud's reason for a refusal is the last line of what it says.
create() {
  local said
  show "$@"
  [[ -z $dry_run ]] || return 0
  if ! said=$("$@" 2>&1); then
    fail "'$name' ($type) was not created in $zone: $(tail -n 1 <<<"$said")." \
      "Try another --zone or --type, or ask for quota"
  fi
}

# on_workers WHICH COMMAND...: runs a command, each word quoted, on one worker or on `all`.
on_workers() {
  local which=$1 line
  shift
  printf -v line ' %q' "$@"
  call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$which" --command="${line:1}"
}

# Copies the working tree (tracked files, and those that git does not ignore) to every worker.
sync_tree() {
  local archive copied=0
  archive=$(mktemp -u)
  if [[ -z $dry_run ]]; then
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        [[ ! -f $ROOT/$file ]] || printf '%s\0' "$file"
      done | tar -C "$ROOT" --null --files-from=- -czf "$archive" || return 1
  fi
  call gcloud compute tpus tpu-vm scp "$archive" "$name:empathy_jax.tar.gz" "${place[@]}" \
    --worker=all || copied=1
  rm -f "$archive"
  ((copied == 0)) && on_workers all bash -c "$UNPACK"
}

# Prints the state of the run on worker 0: none, running, other (a run with other arguments), or
# `ended STATUS`; unreachable where there is no answer.
run_state() {
  local answer
  answer=$(on_workers 0 bash -c "if [ -e $WORKER ]; then bash $WORKER state \"\$@\"; else echo run_state=none; fi" \
    bash "${arguments[@]}" 2>/dev/null) || true
  answer=$(sed -n 's/^run_state=//p' <<<"$answer" | tail -n 1)
  echo "${answer:-unreachable}"
}

# Brings the run to every worker and starts it; a run with these arguments that is under way stays.
start_run() {
  local found=none
  [[ -n $dry_run ]] || found=$(run_state)
  case $found in
    running) echo "the run is under way on '$name' already" ;;
    other) fail "another run is under way on '$name'; stop it first: $(show "$0" stop --name="$name" "${place[@]}")" ;;
    *)
      sync_tree && on_workers all bash "$WORKER" setup ${bucket:+"$bucket"} &&
        on_workers all bash "$WORKER" start "${arguments[@]}"
      ;;
  esac
}

# Shows the log of worker 0 until the run or the connection ends.
follow_run() {
  on_workers 0 bash "$WORKER" follow
}

# Copies what the run has written, all but weights, from worker 0 to the same folder here.
fetch_run() {
  local archive
  archive=$(mktemp -u)
  on_workers 0 bash "$WORKER" pack "$run_folder" || fail "'$name' has no $run_folder to fetch"
  call gcloud compute tpus tpu-vm scp "$name:empathy_jax/packed.tar.gz" "$archive" "${place[@]}" --worker=0
  call tar -xzf "$archive" -C "$ROOT"
  rm -f "$archive"
}
