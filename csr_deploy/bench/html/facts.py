"""What a report says beside its figures: title, warnings, environments, how it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from csr_deploy.bench.html.cells import GroupResult, Report
from csr_deploy.bench.results import TIMED_REGION, BenchResult
from csr_deploy.bench.telemetry.summary import summarise_telemetry

_MOST_NAMES = 3


@dataclass(frozen=True)
class Caution:
    """Something that a reader must see first.

    Attributes:
        kind: "void", "failed", "quick", "missing" or "note".
        text: The sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Machine:
    """A device's environment.

    Attributes:
        title: Of the device.
        rows: Name and value.
    """

    title: str
    rows: tuple[tuple[str, str], ...]


def title(report: Report) -> str:
    """What was compared."""
    baselines = list(dict.fromkeys(p.baseline.network for p in report.panels if p.baseline and p.others))
    others = list(dict.fromkeys(c.network for p in report.panels for c in p.others))
    if not others:
        return _names(report.networks, "networks") if report.networks else "Nothing was measured"
    return f"{_names(others, 'networks')} against {_names(baselines, 'baselines')}"


def dates(report: Report) -> str:
    """From the first start to the last end; empty where the files do not tell."""
    days = sorted({t[:10] for g in report.groups for t in (g.started, g.finished) if t})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def cautions(report: Report) -> list[Caution]:
    """What makes figures worth less, the worst first."""
    found: list[Caution] = []
    for panel in report.panels:
        if panel.void:
            found.append(Caution("void", f"Times are void on {panel.title}: {'; '.join(panel.void)}."))
    if report.failures:
        found.append(
            Caution("failed", f"{_count(len(report.failures), 'measurement')} failed, see “Failures” below.")
        )
    quick = [p for p in report.panels if p.quick]
    if quick:
        which = "All" if len(quick) == len(report.panels) else f"{len(quick)} of {len(report.panels)}"
        found.append(
            Caution("quick", f"{which} comparisons were shortened: for a first look, not to rely on.")
        )
    if report.missing:
        found.append(
            Caution(
                "missing",
                f"{_count(len(report.missing), 'planned comparison')} not measured yet; csr-bench --resume "
                "does what is missing.",
            )
        )
    found += [Caution("note", note) for note in report.notes]
    return list(dict.fromkeys(found))


def notes(report: Report) -> list[str]:
    """What the benchmarks noted about how they ran, and what was left out of the plan."""
    found = [f"Left out of the plan: {text}" for text in report.left_out]
    for group, device in zip(report.groups, report.titles, strict=True):
        settings = dict.fromkeys(p.setting for p in report.panels if p.source is group)
        # That it was shortened is among the cautions.
        own = [n for n in group.result.notes if not n.startswith("Shortened by --quick")]
        found += [f"{device}, {' and '.join(settings)}: {note}" for note in own]
    return list(dict.fromkeys(found))


def machines(report: Report) -> list[Machine]:
    """The environment of every device."""
    by_title: dict[str, list[GroupResult]] = {}
    for group, device in zip(report.groups, report.titles, strict=True):
        by_title.setdefault(device, []).append(group)
    return [Machine(device, tuple(_environment(groups))) for device, groups in by_title.items()]


def _environment(groups: list[GroupResult]) -> Iterable[tuple[str, str]]:
    results = [g.result for g in groups]
    environment = results[0].environment
    yield "device", ", ".join(dict.fromkeys(g.device for g in groups))
    # An emulated microcontroller is told about by its name alone; the machine is the one that emulates it.
    host = "host's " if any(m.microcontroller for r in results for m in r.measurements) else ""
    if environment.board:
        yield f"{host}board", environment.board
    yield f"{host}processor", f"{environment.cpu} ({environment.machine}), {_count(environment.cpus, 'CPU')}"
    yield f"{host}memory", f"{environment.memory_bytes / 2**30:,.1f} GiB"
    yield f"{host}system", environment.kernel
    yield "Python", environment.python
    versions: dict[str, list[str]] = {}
    for result in results:
        for package, version in result.environment.versions.items():
            versions.setdefault(package, [])
            if version not in versions[package]:
                versions[package].append(version)
    yield "packages", ", ".join(f"{name} {' / '.join(found)}" for name, found in versions.items())
    for micro in dict.fromkeys(
        (m.microcontroller.compiler, m.microcontroller.flags)
        for r in results
        for m in r.measurements
        if m.microcontroller is not None
    ):
        yield "compiler", " ".join(part for part in micro if part) or "not told"
    loads = [s.load_average for r in results for s in (r.before, r.after)]
    yield "load average", f"{min(loads):.2f} to {max(loads):.2f} before and after"
    governors = {s.governor for r in results for s in (r.before, r.after) if s.governor}
    if governors:
        yield "governor", ", ".join(sorted(governors))
    clocks = [s.frequency_mhz for r in results for s in (r.before, r.after) if s.frequency_mhz]
    if clocks:
        yield "CPU clock", f"{min(clocks):,.0f} to {max(clocks):,.0f} MHz before and after"
    for text in dict.fromkeys(summarise_telemetry(r.telemetry) for r in results if r.telemetry is not None):
        yield "telemetry", text
    for text in dict.fromkeys(_measured(r) for r in results):
        if text:
            yield "measured", text


def _measured(result: BenchResult) -> str:
    """The options that say how long and how often, in words."""
    options: Mapping[str, object] = result.options
    if not any(m.latency for m in result.measurements):
        return ""
    return (
        f"{options.get('windows')} windows in turns, at least {options.get('images')} inferences and "
        f"{options.get('seconds')} s a network, after {options.get('warmup_runs')} inferences and "
        f"{options.get('warmup_seconds')} s to warm up"
    )


def how_to_read(report: Report) -> list[tuple[str, str]]:
    """Terms and what is inside each figure; only of figures that are there."""
    cells = report.cells
    has_latency = any(c.values.latency for c in cells)
    texts = []
    if has_latency:
        texts += [(key, TIMED_REGION[key]) for key in ("latency", "load", "first", "inputs")]
    if any(c.values.latency and c.values.latency.gpu for c in cells):
        texts.append(("GPU time", TIMED_REGION["gpu"]))
    if any(c.latency_ratio for c in cells):
        texts.append(
            (
                "latency ratio",
                "quotient of the two medians of windows; the interval behind it is a 95 % bootstrap "
                "interval that draws windows, the same for both, then blocks of consecutive samples; where "
                "it holds 1, no difference was found",
            )
        )
    if any(c.instructions is not None for c in cells):
        texts.append(
            (
                "instructions",
                "counted in an emulator, exact, and never a time: how long an instruction takes depends "
                "on caches, memory and clock, none of which is emulated; a ratio of counts on one board with "
                "one runtime is a hint at a ratio of latencies, not that ratio",
            )
        )
    if any(c.values.instructions for c in cells):
        texts.append(("emulated Raspberry Pi", TIMED_REGION["instructions"]))
    if any(c.values.memory for c in cells):
        texts.append(("memory", TIMED_REGION["memory"]))
    if any(c.values.microcontroller for c in cells):
        texts.append(("microcontroller", TIMED_REGION["microcontroller"]))
    if any(c.values.profile for c in cells):
        texts.append(("time by operator", TIMED_REGION["profile"]))
    if any(c.values.energy for c in cells):
        texts.append(("energy", TIMED_REGION["energy"]))
    if any(c.values.accuracy for c in cells):
        texts.append(
            (
                "accuracy difference",
                "in points of percent on the same test images; ± is the 95 % interval of a difference of "
                "two shares counted on so many images each, wider than needed as the images are the same",
            )
        )
    if any(c.values.accuracy and c.values.accuracy.agreement_with_float for c in cells):
        texts.append(
            ("same as float", "share of the images that get the same top-1 class as from the float network")
        )
    texts.append(
        (
            "golden outputs",
            "the exported model's outputs for a few images, compared on the device before anything was "
            "measured",
        )
    )
    texts.append(("VOID", "the machine was slowed down or disturbed meanwhile: such times count for nothing"))
    return texts


def commands(report: Report) -> list[str]:
    """Command lines as a shell takes them."""
    # Where the program lies on someone's disk is of no use to a reader.
    return [shlex.join([Path(c[0]).name, *c[1:]]) for c in report.commands if c]


def _names(names: list[str], many: str) -> str:
    if len(names) > _MOST_NAMES:
        return f"{len(names)} {many}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
