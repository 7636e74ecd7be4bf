# What the three demos share. Sourced by bench_pi.sh, bench_jetson.sh and bench_mcu.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # default_checkpoints and data are of the scripts that source this.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Networks of the demos: a backbone first, then its CSR-Conv network.
default_checkpoints=("$repository/demos/models/fashion-resnet20.pt" "$repository/demos/models/fashion-resnet20-csr.pt")

# The programs of the checkout's environment where there is one, else those on the search path.
if [ -x "$repository/.venv/bin/csr-bench" ]; then
  PATH="$repository/.venv/bin:$PATH"
fi

fail() {
  echo "Error: $*" >&2
  exit 1
}

step() {
  echo
  echo "== $*"
}

need() {
  local program
  for program in "$@"; do
    command -v "$program" > /dev/null || fail "$program is not there. In the checkout: make venv"
  done
}

# export_all OUT TARGET... -- CHECKPOINT...: exports each checkpoint for each target; fills the array `artifacts`.
export_all() {
  local out=$1 targets=() options=() checkpoint target
  shift
  while [ "$1" != -- ]; do
    targets+=("$1")
    options+=(--target "$1")
    shift
  done
  shift
  artifacts=()
  for checkpoint in "$@"; do
    csr-export "$checkpoint" "${options[@]}" --calibration "$data" --out "$out" --force
  done
  for target in "${targets[@]}"; do
    for checkpoint in "$@"; do
      artifacts+=("$out/$(network_of "$checkpoint")-$target")
    done
  done
}

# network_of CHECKPOINT: the name that csr-export gives a network.
network_of() {
  local name
  name=$(basename "$1" .pt)
  if [ "$name" = model ]; then
    name=$(basename "$(cd "$(dirname "$1")" && pwd)")
  fi
  echo "$name"
}

# measure_and_report RESULTS OPTION... -- ARTIFACT...: measures what is missing and writes the report beside it.
measure_and_report() {
  local results=$1 options=() status=0
  shift
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  # With an earlier results file only what is missing is measured: the script may be started again at any time.
  if [ -s "$results" ]; then
    options+=(--resume)
  fi
  csr-bench "$@" --by-target "${options[@]}" --results "$results" || status=$?
  [ -s "$results" ] || exit "$status"
  step "Report"
  csr-bench report "$results" --out "${results%.jsonl}.html" --markdown "${results%.jsonl}.md"
  return "$status"
}
