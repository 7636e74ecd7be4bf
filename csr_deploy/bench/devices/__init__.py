"""Where a group is measured: this machine, a board over SSH, an emulated Raspberry Pi, a microcontroller."""

from csr_deploy.bench.devices.base import BenchDevice, DeviceError, DeviceOptions
from csr_deploy.bench.devices.names import DeviceName, parse_device_name
from csr_deploy.bench.devices.opening import open_device

__all__ = ["BenchDevice", "DeviceError", "DeviceName", "DeviceOptions", "open_device", "parse_device_name"]
