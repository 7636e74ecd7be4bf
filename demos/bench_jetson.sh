#!/usr/bin/env bash
# From a fresh Jetson to a report, started on the machine with the checkpoints.
set -euo pipefail
# shellcheck source=demos/bench_lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/bench_lib.sh"

usage() {
  cat << 'END'
Usage: demos/bench_jetson.sh DEVICE [CHECKPOINT...]

Exports the networks for TensorRT, prepares the Jetson, builds the engines on it, measures them, and writes a report.
Fix the Jetson's power mode and clocks first: sudo nvpmodel -m 0; sudo jetson_clocks

DEVICE      ssh://user@jetson           a Jetson with JetPack 6 or later that ssh reaches without a password
CHECKPOINT  the backbone first [the packaged Fashion-MNIST ResNet-20 and its CSR-Conv network]

Variables:
  DATA     test and calibration images [fashion-mnist]
  TARGETS  [tensorrt-fp16 tensorrt-int8]
  OUT      folder for artifacts and results [out/bench-jetson]
  QUICK    1: a first look
  CARRY    1: download the Jetson's packages here and carry them, for a Jetson without internet
  WHEELS   folder with such packages: carry these
  GRAPH    0: without CUDA graphs

Started again it goes on where it was interrupted; delete OUT to start anew.
END
}

case "${1:-}" in
  -h | --help) usage && exit ;;
  ssh://*) ;;
  *) usage >&2 && exit 2 ;;
esac

device=$1
shift
if [ $# -eq 0 ]; then
  set -- "${default_checkpoints[@]}"
fi
data=${DATA:-fashion-mnist}
out=${OUT:-$repository/out/bench-jetson}
read -ra targets <<< "${TARGETS:-tensorrt-fp16 tensorrt-int8}"
setup=(--extra jetson) options=(--device "$device" --data "$data")
if [ "${GRAPH:-1}" = 1 ]; then
  options+=(--cuda-graph)
fi
if [ "${QUICK:-0}" = 1 ]; then
  options+=(--quick)
fi
if [ "${CARRY:-0}" = 1 ]; then
  setup+=(--download)
fi
if [ -n "${WHEELS:-}" ]; then
  setup+=(--wheels "$WHEELS")
fi

need csr-export csr-device csr-bench
mkdir -p "$out"
step "Export"
export_all "$out/artifacts" "${targets[@]}" -- "$@"
step "Prepare $device"
csr-device setup "$device" "${setup[@]}"
step "Measure on $device; the first time TensorRT builds an engine for each network, which takes minutes"
measure_and_report "$out/results.jsonl" "${options[@]}" -- "${artifacts[@]}"
