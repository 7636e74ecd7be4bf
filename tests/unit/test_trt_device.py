"""Which GPU a machine has, with a driver compiled for the test where the machine has none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from csr_deploy.runtimes.trt.device import DeviceInfo, local_device

DRIVER = r"""
#include <stdio.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, size, "Orin");
  return device == 7 ? 0 : 101;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != 7) return 101;
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return 0;
}
"""
# /etc/nv_tegra_release of JetPack 6.2, and the entry of /var/lib/dpkg/status.
L4T = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
)
DPKG = """Package: nvidia-container
Status: install ok installed
Version: 6.2+b77

Package: nvidia-jetpack
Status: install ok installed
Priority: standard
Section: metapackages
Architecture: arm64
Version: 6.2+b77
Depends: nvidia-jetpack-runtime (= 6.2+b77)

Package: zlib1g
Version: 1:1.2.11
"""


def driver(folder: Path, init: int = 0) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = folder / "driver.c"
    source.write_text(DRIVER)
    library = folder / f"libcuda{init}.so"
    subprocess.run([compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", library, source], check=True)
    return str(library)


def test_no_driver(tmp_path: Path) -> None:
    assert local_device(str(tmp_path / "libcuda.so.1")) is None


def test_a_driver_without_a_gpu(tmp_path: Path) -> None:
    assert local_device(driver(tmp_path, init=100)) is None


def test_a_graphics_card(tmp_path: Path) -> None:
    found = local_device(driver(tmp_path), tmp_path / "absent", tmp_path / "absent")
    assert found == DeviceInfo("Orin", "8.7")
    assert found.description == "Orin, compute capability 8.7"


def test_a_jetson(tmp_path: Path) -> None:
    (tmp_path / "release").write_text(L4T)
    (tmp_path / "status").write_text(DPKG)
    found = local_device(driver(tmp_path), tmp_path / "release", tmp_path / "status")
    assert found == DeviceInfo("Orin", "8.7", "R36.4.3", "6.2")
    assert found.description == "Orin, compute capability 8.7, Jetson Linux R36.4.3, JetPack 6.2"


def test_a_jetson_without_the_package(tmp_path: Path) -> None:
    (tmp_path / "release").write_text("# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic\n")
    (tmp_path / "status").write_text(DPKG.replace("nvidia-jetpack\n", "nvidia-other\n"))
    found = local_device(driver(tmp_path), tmp_path / "release", tmp_path / "status")
    assert found is not None
    assert (found.jetpack, found.jetpack_package) == ("R38.2.0", None)
