"""What a model costs on a microcontroller, for anything that has the `model.h` of the mcu target."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.errors import OptionError
from csr_deploy.runtimes.mcu.build import (
    Built,
    CompileOptions,
    Sources,
    build_firmware,
    build_library,
    find_sources,
)
from csr_deploy.runtimes.mcu.devices import Device, parse_device
from csr_deploy.runtimes.mcu.session import (
    Inference,
    LibrarySession,
    QemuSession,
    SerialSession,
    Session,
)

DEFAULT_TIMEOUT = 300.0


@dataclass(frozen=True)
class McuMeasurement:
    """What a model costs on a device.

    Attributes:
        device: As typed.
        outputs: One row an input, in the type that was asked for.
        instructions: Of `model_run`, for each input; None but in QEMU. Never a time, and no measure of one.
        cycles: The same on a real board; None elsewhere.
        stack_bytes: Deepest stack of `model_run`; None on this machine. Where each inference takes more than
            671 million instructions, up to 104 bytes of it are an interrupt's.
        arena_bytes: Size of the arena; None where a board does not tell.
        flash: See `runtimes.mcu.build.read_flash`; empty but in QEMU.
        calibration: Length of the loop whose length is known, and what was counted, in instructions; None but
            in QEMU. A count that is off by more than two ticks of the counter is refused.
        compiler: What compiled it, empty for a serial port.
        flags: How, include paths and macros left out.
    """

    device: str
    outputs: NDArray[Any]
    instructions: tuple[int, ...] | None
    cycles: tuple[int, ...] | None
    stack_bytes: int | None
    arena_bytes: int | None
    flash: Mapping[str, Any]
    calibration: tuple[int, float] | None
    compiler: str
    flags: tuple[str, ...]


def measure(
    model: Artifact | str | os.PathLike[str],
    device: str,
    inputs: NDArray[Any],
    *,
    opt: str = "-O2",
    standard: str = "c99",
    flags: Iterable[str] = (),
    extra_sources: Iterable[str | os.PathLike[str]] = (),
    include_dirs: Iterable[str | os.PathLike[str]] = (),
    defines: Iterable[str] = (),
    output_dtype: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> McuMeasurement:
    """Compiles a model, runs it on a device and measures it.

    Args:
        model: An mcu artifact, or a folder with C sources and a `model.h` in it or in its `src`.
        device: "host", "qemu:PROCESSOR" or "serial:PORT[@BAUD]"; for a serial port nothing is compiled.
        inputs: [N, …] as the model takes them: each row as many bytes as its input.
        opt: Level of optimisation of the model, the extra sources included; the firmware is always the same.
        standard: Language, as after -std=.
        flags: More compiler flags for the model.
        extra_sources: More C files.
        include_dirs: More folders with headers.
        defines: Macros, "NAME" or "NAME=VALUE".
        output_dtype: Type of the outputs; None for the artifact's own, int8 for a folder.
        timeout: Seconds that one inference may take.

    Raises:
        OptionError: If the device is unknown, or the inputs do not fit the model.
        ArtifactError: If there is no model, or the board runs another.
        RuntimeUnavailableError: If a tool is missing, the sources do not compile, or the device fails.
        BenchError: If the count of instructions cannot be trusted.
    """
    place = parse_device(device)
    sources = find_sources(
        model if isinstance(model, Artifact) else Path(model),
        extra=[Path(p) for p in extra_sources],
        include_dirs=[Path(p) for p in include_dirs],
        defines=defines,
    )
    dtype = np.dtype(output_dtype or (model.output.dtype if isinstance(model, Artifact) else "int8"))
    options = CompileOptions(opt, standard, tuple(flags))
    with tempfile.TemporaryDirectory(prefix="csr-mcu-") as folder:
        built = build(place, sources, Path(folder), options)
        session = open_session(place, built, sources, timeout)
        try:
            sizes = session.sizes()
            rows = [np.ascontiguousarray(row).tobytes() for row in inputs]
            for row in rows[:1]:
                if sizes and len(row) != sizes.input_bytes:
                    raise OptionError(
                        f"a row of the inputs has {len(row):,} bytes, "
                        f"the input of the model {sizes.input_bytes:,}",
                        where=str(sources.files[0].parent),
                    )
            inferences = [session.infer(row) for row in rows]
            calibration = session.calibration() if isinstance(session, QemuSession) and rows else None
        finally:
            session.close()
    stacks = [i.stack_bytes for i in inferences if i.stack_bytes is not None]
    return McuMeasurement(
        place.text,
        _outputs(inferences, dtype),
        _column(inferences, "instructions"),
        _column(inferences, "cycles"),
        # The device keeps the deepest; a later one can be smaller where an earlier had an interrupt in it.
        stacks[-1] if stacks else None,
        sizes.arena_bytes if sizes else None,
        built.flash if built else {},
        calibration,
        built.compiler if built else "",
        built.flags if built else (),
    )


def build(device: Device, sources: Sources, folder: Path, options: CompileOptions) -> Built | None:
    """Compiles a model for a device; None for a real board, which has its firmware already.

    Raises:
        RuntimeUnavailableError: If a tool is missing, or the sources do not compile.
    """
    if device.board is not None:
        return build_firmware(sources, device.board, folder, options)
    return build_library(sources, folder, options) if device.is_host else None


def open_session(device: Device, built: Built | None, sources: Sources, timeout: float) -> Session:
    """Starts what `build` made, or connects to the board.

    Raises:
        CsrError: If the device does not come up, or runs another model.
    """
    if device.port is not None:
        return SerialSession(device.port, device.baud, timeout, sources.identity)
    assert built is not None
    if device.board is not None:
        return QemuSession(built.file, device.board, timeout)
    return LibrarySession(built.file)


def _outputs(inferences: list[Inference], dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = [
        np.frombuffer(i.output, dtype) if i.output is not None else np.asarray(i.results, np.float32)
        for i in inferences
    ]
    return np.stack(rows) if rows else np.empty((0, 0), dtype)


def _column(inferences: list[Inference], name: str) -> tuple[int, ...] | None:
    values = [getattr(i, name) for i in inferences]
    return None if not values or None in values else tuple(values)
