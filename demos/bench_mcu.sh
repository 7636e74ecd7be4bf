#!/usr/bin/env bash
# From checkpoints to a report for microcontrollers: in QEMU, or on a flashed board.
set -euo pipefail
# shellcheck source=demos/bench_lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/bench_lib.sh"

usage() {
  cat << 'END'
Usage: demos/bench_mcu.sh [DEVICE...]

Exports the networks as C, compiles them, runs them on every device, and writes a report.

DEVICE      qemu:cortex-m3, -m4, -m7 or -m55   emulated: instructions, stack, arena and flash, nothing is timed
            serial:/dev/ttyACM0@115200         a board flashed with the firmware of one network (docs/microcontrollers.md)
            [qemu:cortex-m4 qemu:cortex-m55]

Variables:
  CHECKPOINTS  the backbone first [the packaged Fashion-MNIST ResNet-20 and its CSR-Conv network]
  DATA         test and calibration images [fashion-mnist]
  OUT          folder for artifacts and results [out/bench-mcu-demo]
  QUICK        1: a first look

Started again it goes on where it was interrupted; delete OUT to start anew.
END
}

if [ $# -eq 0 ]; then
  set -- qemu:cortex-m4 qemu:cortex-m55
fi
data=${DATA:-fashion-mnist}
out=${OUT:-$repository/out/bench-mcu-demo}
options=(--data "$data")
for device in "$@"; do
  case "$device" in
    -h | --help) usage && exit ;;
    qemu:*) need qemu-system-arm arm-none-eabi-gcc ;;
    serial:*) ;;
    *) usage >&2 && exit 2 ;;
  esac
  options+=(--device "$device")
done
if [ "${QUICK:-0}" = 1 ]; then
  options+=(--quick)
fi
checkpoints=("${default_checkpoints[@]}")
if [ -n "${CHECKPOINTS:-}" ]; then
  read -ra checkpoints <<< "$CHECKPOINTS"
fi

need csr-export csr-bench
mkdir -p "$out"
step "Export"
export_all "$out/artifacts" mcu -- "${checkpoints[@]}"
step "Measure on $*"
measure_and_report "$out/results.jsonl" "${options[@]}" -- "${artifacts[@]}"
