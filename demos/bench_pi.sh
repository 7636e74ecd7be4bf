#!/usr/bin/env bash
# From a fresh Raspberry Pi to a report, started on the machine with the checkpoints.
set -euo pipefail
# shellcheck source=demos/bench_lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/bench_lib.sh"

usage() {
  cat << 'END'
Usage: demos/bench_pi.sh DEVICE [CHECKPOINT...]

Exports the networks, prepares the Pi, measures LiteRT, ONNX Runtime and compiled networks (native) on it,
and writes a report.

DEVICE      ssh://pi@raspberrypi.local  a Pi that `ssh pi@raspberrypi.local` reaches without a password
            pi-emulated:pi4, :pi5       no Pi: instructions, memory and golden outputs in an emulator
CHECKPOINT  the backbone first [the packaged Fashion-MNIST ResNet-20 and its CSR-Conv network]

Variables:
  DATA     test and calibration images [fashion-mnist]
  TARGETS  [tflite-fp32 tflite-int8 onnx onnx-int8 native]
  THREADS  [1 4; in the emulator 1]
  OUT      folder for artifacts and results [out/bench-pi]
  QUICK    1: a first look
  CARRY    1: download the Pi's packages here and carry them, for a Pi without internet
  WHEELS   folder with such packages: carry these
  LIMIT    most test images [all; in the emulator 100]

Started again it goes on where it was interrupted; delete OUT to start anew.
END
}

case "${1:-}" in
  -h | --help) usage && exit ;;
  ssh://* | pi-emulated*) ;;
  *) usage >&2 && exit 2 ;;
esac

device=$1
shift
if [ $# -eq 0 ]; then
  set -- "${default_checkpoints[@]}"
fi
data=${DATA:-fashion-mnist}
out=${OUT:-$repository/out/bench-pi}
read -ra targets <<< "${TARGETS:-tflite-fp32 tflite-int8 onnx onnx-int8 native}"
setup=() options=(--device "$device" --data "$data")
if [[ $device == pi-emulated* ]]; then
  threads=${THREADS:-1}
  limit=${LIMIT:-100}
else
  threads=${THREADS:-1 4}
  limit=${LIMIT:-}
fi
for count in $threads; do
  options+=(--threads "$count")
done
if [ -n "$limit" ]; then
  options+=(--limit "$limit")
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
step "Measure on $device"
measure_and_report "$out/results.jsonl" "${options[@]}" -- "${artifacts[@]}"
