"""The boards that are emulated, and what a program running on them finds out about the processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csr_deploy.errors import OptionError

_IMPLEMENTER_ARM = 0x41


@dataclass(frozen=True)
class Board:
    """A Raspberry Pi.

    Attributes:
        key: Its name on the command line, e.g. "pi4".
        name: Its full name.
        cpu: The processor, in QEMU's words; it decides which instructions the emulation has.
        part: The processor's part number in MIDR_EL1; kernels are chosen by it too.
        variant: Major revision in MIDR_EL1.
        revision: Minor revision in MIDR_EL1.
        features: The line "Features" of /proc/cpuinfo on the board.
        kilohertz: The lowest and the highest clock; read by libraries that look for fast and slow cores.
        cores: Number of cores.
    """

    key: str
    name: str
    cpu: str
    part: int
    variant: int
    revision: int
    features: str
    kilohertz: tuple[int, int]
    cores: int = 4

    def cpuinfo(self) -> str:
        """/proc/cpuinfo."""
        return "".join(
            f"processor\t: {core}\n"
            "BogoMIPS\t: 108.00\n"
            f"Features\t: {self.features}\n"
            f"CPU implementer\t: 0x{_IMPLEMENTER_ARM:x}\n"
            "CPU architecture: 8\n"
            f"CPU variant\t: 0x{self.variant:x}\n"
            f"CPU part\t: 0x{self.part:x}\n"
            f"CPU revision\t: {self.revision}\n\n"
            for core in range(self.cores)
        )

    def files(self) -> Mapping[str, str]:
        """Files below / that tell the processor, path → content."""
        everything = f"0-{self.cores - 1}\n"
        cpus = "sys/devices/system/cpu"
        files = {"proc/cpuinfo": self.cpuinfo()}
        files |= {f"{cpus}/{name}": everything for name in ("possible", "present", "online")}
        midr = _IMPLEMENTER_ARM << 24 | self.variant << 20 | 0xF << 16 | self.part << 4 | self.revision
        for core in range(self.cores):
            files |= {
                f"{cpus}/cpu{core}/{name}": f"{value}\n"
                for name, value in {
                    "cpufreq/cpuinfo_min_freq": self.kilohertz[0],
                    "cpufreq/cpuinfo_max_freq": self.kilohertz[1],
                    "topology/physical_package_id": 0,
                    "topology/core_id": core,
                    "topology/core_siblings_list": everything.strip(),
                    "topology/thread_siblings_list": core,
                    "regs/identification/midr_el1": f"0x{midr:016x}",
                }.items()
            }
        return files


# The Pi 4 has the Cortex-A72 without its cryptography. The emulated processor has it; nothing here uses it.
BOARDS: Mapping[str, Board] = {
    board.key: board
    for board in (
        Board(
            "pi4",
            "Raspberry Pi 4",
            "cortex-a72",
            0xD08,
            0,
            3,
            "fp asimd evtstrm crc32 cpuid",
            (600_000, 1_800_000),
        ),
        Board(
            "pi5",
            "Raspberry Pi 5",
            "cortex-a76",
            0xD0B,
            4,
            1,
            "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
            "asimddp",
            (1_500_000, 2_400_000),
        ),
    )
}


def find_board(key: str) -> Board:
    """The board of that name.

    Raises:
        OptionError: If there is none.
    """
    if key not in BOARDS:
        raise OptionError(f"there is no board '{key}' to emulate", fix=f"Use one of: {', '.join(BOARDS)}.")
    return BOARDS[key]
