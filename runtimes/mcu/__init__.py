"""The mcu target's runtime: a model in C on this machine, on a board in QEMU or on a real board.

`c/` holds the kernels, `boards/` the firmware and what each board needs; `measure` says what a model costs.
"""

from csr_deploy.runtimes.mcu.measurement import McuMeasurement, measure

__all__ = ["McuMeasurement", "measure"]
