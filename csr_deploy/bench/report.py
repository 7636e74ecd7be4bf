"""Shows a result: a table for the terminal, Markdown, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from csr_deploy.bench.accuracy import AT_EXPORT
from csr_deploy.bench.results import BenchResult, Measurement
from csr_deploy.bench.telemetry.summary import summarise_telemetry

_NOTHING = "–"
_MODEL_FILE = "model file"
# Beginnings of the names of rows that throttling makes void.
_TIMED_ROWS = ("load", "first inference", "latency", "GPU time", "energy")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _macs(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.2f} MiB" if abs(value) >= 2**20 else f"{value / 2**10:,.1f} KiB"


def _large_count(value: float) -> str:
    return f"{value / 1e6:,.2f} M" if value >= 1e6 else _count(value)


def _small_bytes(value: float) -> str:
    return f"{value:,.0f} B" if value < 2**13 else _bytes(value)


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:,.3f} ms"


@dataclass(frozen=True)
class Row:
    """One figure of every subject, as text."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A number of a measurement.

    Attributes:
        name: What it is called.
        part: Attribute of `Measurement` that holds it, or a path of attributes with dots.
        key: Attribute of that part.
        text: How it is written.
        relative: Whether its ratio to the baseline's is written too.
    """

    name: str
    part: str
    key: str
    text: Callable[[float], str]
    relative: bool = True

    def of(self, measurement: Measurement) -> float | None:
        """The number, None where it was not measured."""
        holder: object = measurement
        for name in self.part.split("."):
            holder = getattr(holder, name, None)
        value: float | None = getattr(holder, self.key, None)
        return value


_SIZES = (
    Figure("parameters", "sizes", "parameters", _count),
    Figure("MACs", "sizes", "macs", _macs),
    Figure("stored weights", "sizes", "weight_bytes", _bytes),
    Figure(_MODEL_FILE, "sizes", "model_bytes", _bytes),
    Figure("model file, deflated", "sizes", "compressed_bytes", _bytes),
    Figure("arena", "sizes", "arena_bytes", _bytes),
)
_MICROCONTROLLER = (
    Figure("stack, deepest", "microcontroller", "stack_bytes", _small_bytes),
    Figure("RAM: arena and stack", "microcontroller", "ram_bytes", _bytes),
    Figure("flash: constants and code", "microcontroller", "flash_bytes", _bytes),
    Figure("instructions of an inference", "microcontroller", "instructions", _large_count),
    Figure("instructions per MAC", "microcontroller", "instructions_per_mac", "{:.2f}".format),
    Figure("cycles of an inference", "microcontroller", "cycles", _large_count),
)
_INSTRUCTIONS = (
    Figure("instructions of an inference", "instructions", "per_inference", _large_count),
    Figure("instructions, busiest thread", "instructions", "busiest_thread", _large_count),
    Figure("instructions, first inference", "instructions", "first", _large_count),
    Figure("instructions, load", "instructions", "load", _large_count),
)
_TIMES = (
    Figure("load", "latency", "load_ns", _milliseconds),
    Figure("first inference", "latency", "first_ns", _milliseconds),
    Figure("latency, median of windows", "latency", "median_ns", _milliseconds, relative=False),
)
_PERCENTILES = tuple(
    Figure(f"latency p{percent}", "latency", f"p{percent}_ns", _milliseconds, relative=False)
    for percent in (50, 90, 95, 99)
)
_THROUGHPUT = Figure(
    "latency: images a second", "latency", "images_per_second", "{:,.1f}".format, relative=False
)
_GPU_TIMES = (
    Figure("GPU time, median of windows", "latency.gpu", "median_ns", _milliseconds),
    *(
        Figure(f"GPU time p{percent}", "latency.gpu", f"p{percent}_ns", _milliseconds, relative=False)
        for percent in (50, 90, 95, 99)
    ),
)
_TOP5 = Figure("top-5", "accuracy", "top5", "{:.2%}".format, relative=False)
_MEMORY = (
    Figure("private memory", "memory", "private_bytes", _bytes),
    Figure("mapped files", "memory", "mapped_bytes", _bytes),
    Figure("peak RSS, whole process", "memory", "peak_rss_bytes", _bytes),
    Figure("GPU memory", "memory", "device_bytes", _bytes),
)


def rows(result: BenchResult) -> list[Row]:
    """All figures that at least one subject has, beside those of the baseline."""
    found = [
        Row("runtime", tuple(_runtime(m) for m in result.measurements)),
        Row("run and timed", tuple(_settings(m) for m in result.measurements)),
        _accuracy_row(result),
        _figure_row(result, _TOP5),
        _agreement_row(result),
        Row("same top-1 as float, at export", tuple(_parity(m) for m in result.measurements)),
        Row("golden outputs", tuple(_golden(m) for m in result.measurements)),
        *(_figure_row(result, figure) for figure in (*_sizes(result), *_MICROCONTROLLER, *_INSTRUCTIONS)),
        Row("latency", tuple(_emulated(m) for m in result.measurements)),
        *(_figure_row(result, figure) for figure in _TIMES),
        _comparison_row(result),
        *(_figure_row(result, figure) for figure in (*_PERCENTILES, _THROUGHPUT, *_GPU_TIMES, *_MEMORY)),
        _energy_row(result),
    ]
    if result.void:
        found = [replace(r, name=f"VOID: {r.name}") if r.name.startswith(_TIMED_ROWS) else r for r in found]
    return [row for row in found if any(cell != _NOTHING for cell in row.cells)]


def table(result: BenchResult) -> Table:
    """A table for the terminal."""
    shown = Table(caption=caption(result), caption_justify="left")
    shown.add_column("")
    for measurement in result.measurements:
        shown.add_column(_heading(result, measurement), justify="right", overflow="fold")
    for row in rows(result):
        shown.add_row(row.name, *row.cells)
    return shown


def markdown(result: BenchResult) -> str:
    """A Markdown table with the environment and notes below it."""
    lines = [
        _markdown_line(["", *(_heading(result, m) for m in result.measurements)]),
        _markdown_line(["---", *("---:" for _ in result.measurements)]),
        *(_markdown_line([row.name, *row.cells]) for row in rows(result)),
        "",
        *caption(result).splitlines(),
    ]
    return "\n".join(lines) + "\n"


def to_json(result: BenchResult) -> str:
    """JSON with every sample."""
    return json.dumps(result.to_json(), indent=None, sort_keys=False, allow_nan=False) + "\n"


def overview(results: Sequence[tuple[str, BenchResult]]) -> Table:
    """A table for the terminal with a line a cell: what matters of many groups.

    Args:
        results: Devices and results.
    """
    shown = Table()
    shown.add_column("Network")
    for name in ("Target", "Runtime", "Device"):
        shown.add_column(name)
    for name in ("Top-1", "Model", "Median", "Instructions", "Ratio"):
        shown.add_column(name, justify="right")
    for device, result in results:
        for measurement in result.measurements:
            shown.add_row(*_overview_row(device, result, measurement))
        for failure in result.failures:
            shown.add_row(failure.subject, _NOTHING, _NOTHING, device, f"failed: {failure.stage}")
    return shown


def _overview_row(device: str, result: BenchResult, measurement: Measurement) -> list[str]:
    accuracy, latency = measurement.accuracy, measurement.latency
    counted = measurement.counted_instructions
    compared = {c.subject: f"×{c.ratio:.3f}" for c in result.comparisons}
    threads = f", {measurement.threads} threads" if measurement.threads > 1 else ""
    batch = f", batch {measurement.batch}" if measurement.batch > 1 else ""
    void = "VOID " if result.void else ""
    return [
        measurement.network,
        measurement.target,
        f"{measurement.runtime}{threads}{batch}",
        device,
        _NOTHING if accuracy is None else f"{accuracy.top1:.2%}",
        _bytes(measurement.sizes.model_bytes),
        _NOTHING if latency is None else void + _milliseconds(latency.median_ns),
        _NOTHING if counted is None else _large_count(counted),
        compared.get(measurement.subject, _NOTHING),
    ]


def caption(result: BenchResult) -> str:
    """The machine, how it was measured, and what a reader must know."""
    environment = result.environment
    board = f"{environment.board}, " if environment.board else ""
    versions = ", ".join(sorted({m.runtime_version for m in result.measurements}))
    lines = [
        f"{board}{environment.cpu} ({environment.machine}), {environment.cpus} CPUs; "
        f"Python {environment.python}; {versions}."
    ]
    if any(m.latency for m in result.measurements):
        lines.append(_timed_region(result))
    if result.telemetry is not None:
        lines.append(summarise_telemetry(result.telemetry))
    lines += [f"Note: {note}" for note in result.notes]
    lines += [f"Failed at {f.stage}: {f.subject}: {f.reason}" for f in result.failures]
    return "\n".join(lines)


def _timed_region(result: BenchResult) -> str:
    threads, windows = result.options["threads"], result.options["windows"]
    if any(m.microcontroller for m in result.measurements):
        return f"Latency of one inference by the board's own clock, {windows} windows; load: to connect."
    return (
        f"Latency of one inference at batch {_batches(result)} with {threads} "
        f"thread{'s' if threads > 1 else ''}: input array in, output array out, without preprocessing; "
        f"subjects in turns, {windows} windows. Private memory: what loading and "
        "running added to a process with the runtime imported."
    )


def _batches(result: BenchResult) -> str:
    return "/".join(str(b) for b in sorted({m.batch for m in result.measurements}))


def _heading(result: BenchResult, measurement: Measurement) -> str:
    is_baseline = measurement.subject == result.baseline and len(result.measurements) > 1
    return measurement.subject + (" (baseline)" if is_baseline else "")


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _baseline(result: BenchResult) -> Measurement | None:
    """None where the baseline itself failed."""
    return next((m for m in result.measurements if m.subject == result.baseline), None)


def _figure_row(result: BenchResult, figure: Figure) -> Row:
    baseline = _baseline(result)
    base = figure.of(baseline) if figure.relative and baseline is not None else None
    cells = []
    for measurement in result.measurements:
        own = figure.of(measurement)
        if own is None:
            cells.append(_NOTHING)
        elif measurement.subject == result.baseline or not base or base < 0 or own < 0:
            cells.append(figure.text(own))
        else:
            cells.append(f"{figure.text(own)} (×{own / base:.2f})")
    return Row(figure.name, tuple(cells))


def _accuracy_row(result: BenchResult) -> Row:
    baseline = _baseline(result)
    base = None if baseline is None else baseline.accuracy
    cells, counts = [], set()
    for measurement in result.measurements:
        accuracy = measurement.accuracy
        if accuracy is None:
            cells.append(_NOTHING)
            continue
        counts.add(accuracy.images)
        change = ""
        if base is not None and measurement.subject != result.baseline:
            change = f" ({100 * (accuracy.top1 - base.top1):+.2f} points)".replace("-", "−")
        cells.append(f"{accuracy.top1:.2%}{change}")
    images = "/".join(f"{count:,}" for count in sorted(counts))
    return Row(f"top-1 ({images} images)", tuple(cells))


def _agreement_row(result: BenchResult) -> Row:
    """Agreement on the test images; that on the export's has a row of its own."""
    cells = []
    for measurement in result.measurements:
        found = measurement.accuracy and measurement.accuracy.agreement_with_float
        cells.append(_NOTHING if not found or found.reference == AT_EXPORT else f"{found.share:.2%}")
    return Row("same top-1 as float, here", tuple(cells))


def _comparison_row(result: BenchResult) -> Row:
    comparisons = [c for c in result.comparisons if c.metric == "latency"]
    compared = {c.subject: f"{c.ratio:.3f} ({c.low:.3f}–{c.high:.3f})" for c in comparisons}
    level = f"{comparisons[0].confidence:.0%}" if comparisons else ""
    name = f"latency ratio ({level} interval)"
    return Row(name, tuple(compared.get(m.subject, _NOTHING) for m in result.measurements))


def _sizes(result: BenchResult) -> list[Figure]:
    """The sizes, the model's named after what it is."""
    in_flash = [m.sizes.constant_bytes is not None for m in result.measurements]
    name = "constants in flash" if all(in_flash) else f"{_MODEL_FILE} (mcu: constants in flash)"
    return [replace(f, name=name) if any(in_flash) and f.name == _MODEL_FILE else f for f in _SIZES]


def _emulated(measurement: Measurement) -> str:
    device = measurement.microcontroller
    is_emulated = measurement.instructions is not None or (device is not None and device.board is not None)
    return "not measured (emulated)" if is_emulated else _NOTHING


def _energy_row(result: BenchResult) -> Row:
    energies = [m.energy for m in result.measurements]
    known = [e for e in energies if e is not None]
    what = "/".join(sorted({f"whole {e.scope}, {e.rail}" for e in known}))
    return Row(
        f"energy of an inference ({what})",
        tuple(_NOTHING if e is None else f"{e.millijoules:,.3f} mJ" for e in energies),
    )


def _runtime(measurement: Measurement) -> str:
    kernels = ", reference kernels" if measurement.kernels == "reference" else ""
    device = f" on {measurement.microcontroller.device}" if measurement.microcontroller else ""
    return f"{measurement.runtime}{kernels}{device}"


def _settings(measurement: Measurement) -> str:
    """The settings that a reader must know to compare, in words."""
    settings = measurement.settings
    parts = []
    if "copies" in settings:
        parts.append("with copies" if settings["copies"] else "without copies")
    if "cuda_graph" in settings:
        parts.append("CUDA graph" if settings["cuda_graph"] else "no CUDA graph")
    if "wait" in settings:
        parts.append("CPU blocks" if settings["wait"] == "block" else "CPU spins")
    return ", ".join(parts) or _NOTHING


def _parity(measurement: Measurement) -> str:
    agreement, images = measurement.parity.get("top1_agreement"), measurement.parity.get("images")
    # C made from a .tflite file was compared with that file, for equal bytes, not with a network in float.
    is_of_file = "equal_bytes" in measurement.parity.get("threshold", {})
    if agreement is None or images is None or is_of_file:
        return _NOTHING
    return f"{agreement:.1%} of {images:,}"


def _golden(measurement: Measurement) -> str:
    golden = measurement.golden
    if golden is None:
        return _NOTHING
    if golden.exact:
        return f"{golden.images} equal"
    if golden.tolerance >= 1:
        unit = "count" if golden.max_difference == 1 else "counts"
        return f"{golden.images} within {golden.max_difference:.0f} {unit}"
    return f"{golden.images} within {golden.max_difference:.0e} of the range"
