"""The processors that a network is compiled for, and the variants of the kernels that each of them has."""

from __future__ import annotations

import platform
import struct
import sys
from dataclasses import dataclass

from csr_deploy.errors import RuntimeUnavailableError

ANY_ARCHITECTURE = "any"
"""What kernels without a name of their own are for: the processor that they were compiled on."""


@dataclass(frozen=True)
class Variant:
    """Kernels for a processor with certain instructions.

    Attributes:
        name: A C identifier.
        architecture: What it is compiled for, in the compiler's words.
        flags: The compiler's.
        check: C expression that tells whether this processor can run it; empty for one that all can.
        probe: An instruction of it, in the assembler's words; empty where every compiler of the platform
            knows the flags. A compiler or an assembler that does not know it leaves the variant out.
    """

    name: str
    architecture: str
    flags: tuple[str, ...]
    check: str = ""
    probe: str = ""


@dataclass(frozen=True)
class Platform:
    """A kind of machine with Linux on it.

    Attributes:
        key: Folder of its library in an artifact.
        machines: What uname calls it, in lower case.
        macro: Of its compilers, by which C knows it.
        elf_machine: e_machine of its ELF files; None where that does not tell.
        variants: The one that every such processor can run comes first.
        compilers: That compile for it on other machines, by name; none for boards that compile themselves.
        packages: Of Debian that bring the first of them.
    """

    key: str
    machines: frozenset[str]
    macro: str
    elf_machine: int | None
    variants: tuple[Variant, ...]
    compilers: tuple[str, ...] = ()
    packages: str = ""


AARCH64 = Platform(
    "aarch64",
    frozenset({"aarch64", "arm64"}),
    "__aarch64__",
    183,
    (
        Variant("base", "armv8-a", ("-march=armv8-a",)),
        # Bit 20 of the kernel's HWCAP is "asimddp"; older headers have no name for it.
        Variant(
            "dotprod",
            "armv8.2-a+dotprod",
            ("-march=armv8.2-a+dotprod",),
            "getauxval(AT_HWCAP) >> 20 & 1",
        ),
    ),
    ("aarch64-linux-gnu-gcc",),
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
)
X86_64 = Platform(
    "x86_64",
    frozenset({"x86_64", "amd64"}),
    "__x86_64__",
    62,
    (
        Variant("base", "x86-64", ()),
        Variant("avx2", "x86-64 with AVX2", ("-mavx2",), '__builtin_cpu_supports("avx2")'),
        # Compilers that know the instructions do not all know their name in __builtin_cpu_supports; "avx2"
        # asks whether the system keeps the registers.
        Variant(
            "avxvnni",
            "x86-64 with AVX-VNNI",
            ("-mavx2", "-mavxvnni"),
            '__builtin_cpu_supports("avx2") && native_cpuid(7, 1) >> 4 & 1',
            "{vex} vpdpbusd %ymm0, %ymm1, %ymm2",
        ),
        Variant(
            "avx512vnni",
            "x86-64 with AVX-512 VNNI",
            ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
            '__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && '
            '__builtin_cpu_supports("avx512vnni")',
            "vpdpbusd %zmm0, %zmm1, %zmm2",
        ),
    ),
    ("x86_64-linux-gnu-gcc",),
    "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
)
PLATFORMS = (AARCH64, X86_64)


def this_platform() -> Platform:
    """The platform of this process, whose pointers count too: a 32-bit Python on a 64-bit kernel is another.

    Raises:
        RuntimeUnavailableError: If this is not Linux.
    """
    if sys.platform != "linux":
        raise RuntimeUnavailableError(
            f"native libraries are for Linux, this is {platform.system()}",
            fix="Run it on the board, or take another target here, tflite-int8 say.",
        )
    machine, bits = platform.machine().lower(), 8 * struct.calcsize("P")
    if bits == 64:
        for known in PLATFORMS:
            if machine in known.machines:
                return known
    key = machine if bits == 64 else f"{machine}-{bits}bit"
    return Platform(key, frozenset({machine}), "", None, (Variant("base", ANY_ARCHITECTURE, ()),))
