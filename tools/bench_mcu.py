"""Measures what networks cost on Cortex-M in QEMU: this project's C beside its peers, in one table.

    python tools/bench_mcu.py [--networks resnet8 …] [--devices qemu:cortex-m4 …] [--peers bakenn tflm]
                              [--out DIR] [--inputs N] [--bakenn-python PYTHON] [--json FILE]

All C is compiled by the same compiler with -O2, runs in the same firmware and is counted in the same way:
instructions of one inference, exact, and no measure of time. RAM is the arena, with the input and the output
in it, and the deepest stack; flash is what the model brings: weights, tables, code, and what it takes from
libc. Outputs are compared byte for byte with TFLite Micro's own interpreter.

bakenn is installed apart: see tools/peers/bakenn_peer.py. The figures of TFLite Micro with CMSIS-NN are those
of the design document, measured elsewhere, and are marked so. The exit status is 1 where the project's own
code fails or computes something else than TFLite Micro.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mcu_networks import NETWORKS, make
from numpy.typing import NDArray
from peers import bakenn_peer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.errors import CsrError
from csr_deploy.exporters.mcu.compiler import compile_tflite
from csr_deploy.exporters.mcu.exporter import project_of, write_project
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.mcu import McuMeasurement, measure

OURS, BAKENN, TFLM = "csr-deploy", "bakenn", "tflm"
_M4, _M55 = "qemu:cortex-m4", "qemu:cortex-m55"
DEVICES = (_M4, _M55)
# 15 MB of weights are more than the flash of any of the boards.
DEFAULT_NETWORKS = tuple(name for name in NETWORKS if name != "vgg16")
_ELSEWHERE = "TFLM + CMSIS-NN*"
_CAPTION = "* From shared/design.md and issue 4, not measured here. Without a mark: measured in this run."
_GOAL = "goal"
_INTERPRETER = "tflite-micro wheel"
_NOTHING = "–"
_WIDTH = 170
"""Columns where the output is no terminal."""


@dataclass(frozen=True)
class Figures:
    """Figures to be reached, or measured elsewhere; None where there is none.

    Attributes:
        instructions: Device → instructions of one inference.
        ram_bytes: Arena and stack.
        flash_bytes: Weights, tables and code.
        rest_bytes: The same without the weights.
        compile_seconds: Of the exporter.
    """

    instructions: dict[str, float] = field(default_factory=dict)
    ram_bytes: float | None = None
    flash_bytes: float | None = None
    rest_bytes: float | None = None
    compile_seconds: float | None = None


# Issue 4, "Figures to reach".
GOALS = {
    "resnet56-t4": Figures({_M4: 125e6, _M55: 25e6}, 40e3, 190e3, compile_seconds=5),
    "vgg16-csr4": Figures({_M4: 260e6}),
    "resnet8": Figures({_M4: 21e6, _M55: 4.4e6}, rest_bytes=13e3),
    "mobilenet-025": Figures({_M4: 15e6, _M55: 5.6e6}),
}
QUOTED = {
    "resnet56": Figures({_M4: 276.2e6, _M55: 41.2e6}, 98e3),
    "resnet56-t4": Figures({_M4: 262.8e6, _M55: 66.4e6}, 171e3, 526e3),
    "vgg16-csr4": Figures({_M4: 352e6}),
    "resnet8": Figures({_M4: 30.1e6, _M55: 4.91e6}, rest_bytes=50.6e3),
    "mobilenet-025": Figures({_M4: 24.1e6, _M55: 6.56e6}),
}


@dataclass(frozen=True)
class Cell:
    """One network by one implementation on one device.

    Attributes:
        network: Key of `NETWORKS`.
        implementation: Who made the code.
        device: Where it ran.
        instructions: Of one inference, the greatest of all inputs.
        arena_bytes: With input and output.
        stack_bytes: Deepest.
        flash_bytes: What the model brings.
        weight_bytes: Of it, the network's kernels as they are in the .tflite file.
        equal: Whether the outputs are TFLite Micro's, byte for byte.
        compile_seconds: From the .tflite file to C.
        note: What a reader must know.
        error: Why there are no figures.
    """

    network: str
    implementation: str
    device: str
    instructions: int | None = None
    arena_bytes: int | None = None
    stack_bytes: int | None = None
    flash_bytes: int | None = None
    weight_bytes: int | None = None
    equal: bool | None = None
    compile_seconds: float | None = None
    note: str = ""
    error: str = ""

    @property
    def ram_bytes(self) -> int | None:
        """Arena and stack."""
        if self.arena_bytes is None:
            return None
        return self.arena_bytes + (self.stack_bytes or 0)

    @property
    def rest_bytes(self) -> int | None:
        """Flash without the weights."""
        if self.flash_bytes is None or self.weight_bytes is None:
            return None
        return self.flash_bytes - self.weight_bytes


@dataclass(frozen=True)
class Subject:
    """A network as it is measured.

    Attributes:
        artifact: Its tflite-int8 artifact.
        inputs: [N, H, W, C] int8.
        expected: [N, classes] int8 of TFLite Micro.
        interpreter_arena: Bytes that TFLite Micro's interpreter recorded.
    """

    artifact: Artifact
    inputs: NDArray[Any]
    expected: NDArray[Any]
    interpreter_arena: int | None


def open_subject(name: str, out: Path, count: int) -> Subject:
    """Makes or finds a network, and asks TFLite Micro for its outputs.

    Raises:
        CsrError: If it cannot be made or TFLite Micro is not installed.
    """
    artifact = read_artifact(make(name, out).parent)
    images = artifact.golden().images[:count]
    with open_runtime("tflm", artifact) as runtime:
        expected, arena = runtime.logits(images), runtime.arena
    return Subject(artifact, artifact.encode(images), expected, arena)


def compile_ours(model: Path, folder: Path) -> Path:
    """The one place that calls the mcu exporter: its compiler, without the check that comes here anyway.

    Returns:
        A folder with C sources and `model.h`.

    Raises:
        ExportError: If it cannot.
    """
    options = McuOptions()
    program = compile_tflite(model.read_bytes(), model.name, options)
    folder.mkdir()
    write_project(project_of(program, model.stem, (), options), folder)
    return folder


def measure_ours(subject: Subject, device: str) -> Cell:
    """This project's C."""
    with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
        start = time.perf_counter()
        made = compile_ours(subject.artifact.model_file, Path(folder) / "mcu")
        seconds = time.perf_counter() - start
        return _cell(subject, OURS, seconds, measure(made, device, subject.inputs))


def measure_bakenn(subject: Subject, device: str, python: str) -> Cell:
    """The C of bakenn, with CMSIS-NN."""
    with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
        start = time.perf_counter()
        made = bakenn_peer.compile_model(subject.artifact.model_file, Path(folder), python)
        seconds = time.perf_counter() - start
        measured = measure(
            made.folder,
            device,
            subject.inputs,
            standard=bakenn_peer.STANDARD,
            extra_sources=made.sources,
            include_dirs=made.include_dirs,
            defines=made.defines,
        )
        note = "not through its own importer" if made.note else ""
        return _cell(subject, f"{BAKENN} {made.version}", seconds, measured, note)


def _cell(
    subject: Subject, implementation: str, seconds: float, measured: McuMeasurement, note: str = ""
) -> Cell:
    return Cell(
        subject.artifact.name,
        implementation,
        measured.device,
        max(measured.instructions) if measured.instructions else None,
        measured.arena_bytes,
        measured.stack_bytes,
        measured.flash.get("model_flash_bytes"),
        int(subject.artifact.ledger["weight_bytes"]),
        bool(np.array_equal(measured.outputs.reshape(subject.expected.shape), subject.expected)),
        seconds,
        note,
    )


def measure_all(options: Any, say: Callable[[str], None]) -> Iterator[Cell]:
    """All cells; one that fails says why.

    Args:
        options: Of the command line.
        say: Told what is measured next.
    """
    for name in options.networks:
        say(name)
        try:
            subject = open_subject(name, options.out, options.inputs)
        except CsrError as error:
            yield Cell(name, OURS, _NOTHING, error=_first_lines(error))
            continue
        if TFLM in options.peers:
            arena = subject.interpreter_arena
            yield Cell(
                name,
                _INTERPRETER,
                "host",
                arena_bytes=arena,
                note="arena only, with a 64-bit host's bookkeeping",
            )
        for device in options.devices:
            ways: dict[str, Callable[[], Cell]] = {OURS: partial(measure_ours, subject, device)}
            if BAKENN in options.peers:
                ways[BAKENN] = partial(measure_bakenn, subject, device, options.bakenn_python)
            for implementation, way in ways.items():
                say(f"{name}: {implementation} on {device}")
                try:
                    yield way()
                except CsrError as error:
                    yield Cell(name, implementation, device, error=_first_lines(error))


def _first_lines(error: CsrError) -> str:
    return "\n".join(str(error).splitlines()[:2])


# --- the table ---


def _millions(value: float | None) -> str:
    return _NOTHING if value is None else f"{value / 1e6:,.2f} M"


def _kilobytes(value: float | None) -> str:
    return _NOTHING if value is None else f"{value / 1e3:,.1f}"


def _ratio(value: float | None, other: float | None) -> str:
    return f"{value / other:.2f}" if value and other else _NOTHING


def _judged(text: str, value: float | None, goal: float | None) -> str:
    if value is None or goal is None:
        return text
    return f"[green]{text}[/]" if value <= goal else f"[red]{text}[/]"


def table(cells: Sequence[Cell]) -> Table:
    """Cells by network and device, with what is to be reached and what was measured elsewhere."""
    drawn = Table(
        title="One inference on Cortex-M in QEMU, gcc -O2", caption=_CAPTION,
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    for column in ("network", "device", "code"):
        drawn.add_column(column, no_wrap=True)
    for column in (
        "instructions", "a MAC", "RAM, kB\n(arena + stack)", "flash, kB\n(weights + rest)", "compile,\ns",
        "÷\nbakenn", "÷ back-\nbone", "bytes as\nTFLM",
    ):  # fmt: skip
        drawn.add_column(column, justify="right", no_wrap=True)
    drawn.add_column("note")
    for network, device in dict.fromkeys((c.network, c.device) for c in cells):
        here = [c for c in cells if (c.network, c.device) == (network, device)]
        for cell in here:
            drawn.add_row(*_row(cell, cells))
        for name, figures in ((_ELSEWHERE, QUOTED.get(network)), (_GOAL, GOALS.get(network))):
            if figures and device in figures.instructions:
                drawn.add_row(*_reference_row(network, device, name, figures), style="dim")
        drawn.add_section()
    return drawn


def failures(cells: Sequence[Cell]) -> list[str]:
    """Why there are rows without figures, each reason once."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.error:
            reasons.setdefault(cell.error, []).append(f"{cell.network} {cell.implementation} {cell.device}")
    return [f"{', '.join(where)}: {reason}" for reason, where in reasons.items()]


def _row(cell: Cell, cells: Sequence[Cell]) -> tuple[str, ...]:
    network = NETWORKS[cell.network]
    goal = GOALS.get(cell.network, Figures()) if cell.implementation == OURS else Figures()

    def instructions(of: str, by: str) -> int | None:
        same = (
            c for c in cells if (c.network, c.device) == (of, cell.device) and c.implementation.startswith(by)
        )
        return next((c.instructions for c in same), None)

    ram, flash = _kilobytes(cell.ram_bytes), _kilobytes(cell.flash_bytes)
    if cell.stack_bytes is not None:
        ram += f"\n({_kilobytes(cell.arena_bytes)} + {_kilobytes(cell.stack_bytes)})"
    rest = _judged(_kilobytes(cell.rest_bytes), cell.rest_bytes, goal.rest_bytes)
    if cell.rest_bytes is not None:
        flash += f"\n({_kilobytes(cell.weight_bytes)} + {rest})"
    backbone = (
        instructions(network.backbone, cell.implementation) if network.backbone != cell.network else None
    )
    seconds = _NOTHING if cell.compile_seconds is None else f"{cell.compile_seconds:.1f}"
    return (
        cell.network,
        cell.device.removeprefix("qemu:"),
        cell.implementation,
        _judged(_millions(cell.instructions), cell.instructions, goal.instructions.get(cell.device)),
        _ratio(cell.instructions, network.macs),
        _judged(ram, cell.ram_bytes, goal.ram_bytes),
        _judged(flash, cell.flash_bytes, goal.flash_bytes),
        _judged(seconds, cell.compile_seconds, goal.compile_seconds),
        _ratio(cell.instructions, instructions(cell.network, BAKENN)),
        _ratio(cell.instructions, backbone),
        _NOTHING if cell.equal is None else "yes" if cell.equal else "[red]NO[/]",
        "[red]failed, see below[/]" if cell.error else escape(cell.note),
    )


def _reference_row(network: str, device: str, name: str, figures: Figures) -> tuple[str, ...]:
    least = "≤ " if name == _GOAL else ""
    backbone = QUOTED.get(NETWORKS[network].backbone)
    other = backbone.instructions.get(device) if backbone and name != _GOAL else None
    count = figures.instructions[device]

    def kilobytes(value: float | None) -> str:
        return _NOTHING if value is None else f"{least}{value / 1e3:,.1f}"

    flash = kilobytes(figures.flash_bytes)
    if figures.rest_bytes is not None:
        flash = f"(… + {kilobytes(figures.rest_bytes)})"
    return (
        network,
        device.removeprefix("qemu:"),
        name,
        f"{least}{_millions(count)}",
        _ratio(count, NETWORKS[network].macs),
        kilobytes(figures.ram_bytes),
        flash,
        _NOTHING if figures.compile_seconds is None else f"{least}{figures.compile_seconds:g}",
        _NOTHING,
        _ratio(count, other) if NETWORKS[network].backbone != network else _NOTHING,
        _NOTHING,
        "",
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(DEFAULT_NETWORKS), metavar="NAME"
    )
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), metavar="DEVICE")
    parser.add_argument("--peers", nargs="*", choices=(BAKENN, TFLM), default=[BAKENN, TFLM])
    parser.add_argument("--out", type=Path, default=Path("out/bench-mcu"), help="folder of the networks")
    parser.add_argument("--inputs", type=int, default=1, help="inferences a cell, at most 16")
    parser.add_argument("--bakenn-python", default=sys.executable, help="interpreter with bakenn[tflite]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures too")
    options: Any = parser.parse_args(arguments)
    progress = Console(stderr=True)
    cells = list(measure_all(options, lambda text: progress.print(text, style="dim", highlight=False)))
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(table(cells))
    for text in failures(cells):
        console.print(text, style="red", markup=False, highlight=False)
    if options.json:
        rows = [dataclasses.asdict(c) | {"macs": NETWORKS[c.network].macs} for c in cells]
        options.json.write_text(
            json.dumps({"schema": 1, "inputs": options.inputs, "cells": rows}, indent=2) + "\n"
        )
    failed = [c for c in cells if c.implementation == OURS and (c.error or c.equal is False)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
