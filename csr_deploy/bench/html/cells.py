"""What a report is made of: results files taken apart into cells, each beside its backbone.

A *panel* holds the cells that can be compared: one target, runtime, number of threads and batch on one
device, measured in turns. A *cell* is one network in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from csr_deploy.bench.html.devices import device_title
from csr_deploy.bench.metrics import ratio_interval
from csr_deploy.bench.results import BenchResult, Environment, Measurement, Microcontroller


@dataclass(frozen=True)
class GroupResult:
    """One measured group as it stands in a file.

    Attributes:
        device: Name of the device, e.g. "local".
        result: What was measured.
        group: Its id; None in the older format.
        attempt: Which attempt it was.
        started: ISO 8601, UTC; None in the older format.
        finished: Likewise.
    """

    device: str
    result: BenchResult
    group: str | None = None
    attempt: int = 1
    started: str | None = None
    finished: str | None = None


@dataclass(frozen=True)
class FailureRow:
    """Something that was to be measured and could not be.

    Attributes:
        device: Title of the device.
        subject: Label of a subject; None where the group as a whole failed.
        stage: E.g. "connect" or "measure".
        reason: What is wrong.
        where: File or option concerned.
        fix: What to do.
    """

    device: str
    subject: str | None
    stage: str
    reason: str
    where: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class Interval:
    """A ratio and its confidence interval; low and high are None where there is none."""

    ratio: float
    low: float | None = None
    high: float | None = None
    confidence: float | None = None

    @property
    def holds_one(self) -> bool:
        """Whether the interval cannot tell the two apart."""
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high


@dataclass(frozen=True, eq=False)
class Cell:
    """One measurement in its panel.

    Attributes:
        panel: Where it belongs.
        values: The measurement.
    """

    panel: Panel
    values: Measurement

    @property
    def label(self) -> str:
        """Label in the benchmark."""
        return self.values.subject

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.values.network or self.label

    @property
    def is_baseline(self) -> bool:
        """Whether the others of the panel are compared with this one."""
        return self is self.panel.baseline

    def number(self, path: str) -> float | None:
        """A finite number by its path with dots, e.g. "latency.p90_ns"; None where there is none."""
        value: object = self.values
        for name in path.split("."):
            value = getattr(value, name, None)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return None
        return value

    @property
    def instructions(self) -> float | None:
        """Of one inference, in an emulator."""
        own = self.number("instructions.per_inference")
        return self.number("microcontroller.instructions") if own is None else own

    @property
    def latency_ns(self) -> float | None:
        """The headline latency; None where it is void."""
        return None if self.panel.void else self.number("latency.median_ns")

    @property
    def windows(self) -> list[list[int]]:
        """Raw samples in ns, one list a window."""
        latency = self.values.latency
        return [list(w) for w in latency.windows_ns if w] if latency else []

    @property
    def model_bytes(self) -> float | None:
        """What has to be stored to run the model: its file, or the constants of one in C."""
        constants = self.number("sizes.constant_bytes")
        return self.number("sizes.file_bytes") if constants is None else constants

    def ratio(self, own: float | None, base: float | None) -> float | None:
        """Quotient, None where either is missing or there is nothing to compare with."""
        if self.is_baseline or own is None or base is None or base <= 0 or own < 0:
            return None
        return own / base

    def ratio_of(self, path: str) -> float | None:
        """Ratio of a number to the baseline's."""
        base = self.panel.baseline
        return None if base is None else self.ratio(self.number(path), base.number(path))

    @property
    def instruction_ratio(self) -> float | None:
        """Ratio of instructions to the baseline's."""
        base = self.panel.baseline
        return None if base is None else self.ratio(self.instructions, base.instructions)

    @property
    def model_ratio(self) -> float | None:
        """Ratio of what has to be stored to the baseline's."""
        base = self.panel.baseline
        return None if base is None else self.ratio(self.model_bytes, base.model_bytes)

    @cached_property
    def latency_ratio(self) -> Interval | None:
        """Ratio of latencies with its interval; None where void or not measured in turns."""
        base = self.panel.baseline
        if base is None or self.is_baseline or self.latency_ns is None or not base.latency_ns:
            return None
        for each in self.panel.result.comparisons:
            if (each.subject, each.baseline, each.metric) == (self.label, base.label, "latency"):
                return Interval(each.ratio, each.low, each.high, each.confidence)
        ratio = self.latency_ns / base.latency_ns
        if not self.windows or len(self.windows) != len(base.windows):
            return Interval(ratio)
        low, high = ratio_interval(self.windows, base.windows)
        return Interval(ratio, low, high, 0.95)

    @property
    def accuracy_difference(self) -> float | None:
        """Top-1 minus the baseline's, in points of percent; None where the images differ."""
        base, own = self.panel.baseline, self.values.accuracy
        other = None if base is None else base.values.accuracy
        if self.is_baseline or own is None or other is None or own.images_sha256 != other.images_sha256:
            return None
        return 100 * (own.top1 - other.top1)

    @property
    def accuracy_margin(self) -> float | None:
        """Half the 95 % interval of `accuracy_difference`, in points, as if the images were not the same."""
        base, images = self.panel.baseline, self.number("accuracy.images")
        own = self.number("accuracy.top1")
        other = None if base is None else base.number("accuracy.top1")
        if own is None or other is None or not images:
            return None
        return 100 * 1.96 * math.sqrt((own * (1 - own) + other * (1 - other)) / images)


@dataclass(frozen=True, eq=False)
class Panel:
    """Cells that can be compared.

    Attributes:
        device: Title of the device.
        target: Of its artifacts.
        runtime: Key of the runtime, and its settings where they are not the usual ones.
        threads: Of the runtime.
        batch: Images an inference.
        source: The group that it comes from.
        cells: In the order of the benchmark.
    """

    device: str
    target: str
    runtime: str
    threads: int
    batch: int
    source: GroupResult
    cells: list[Cell] = field(default_factory=list)

    @property
    def result(self) -> BenchResult:
        """The whole result that it is a part of."""
        return self.source.result

    @property
    def void(self) -> tuple[str, ...]:
        """Why its times are void."""
        return self.result.void

    @property
    def quick(self) -> bool:
        """Whether it was shortened."""
        return self.result.quick

    @property
    def setting(self) -> str:
        """Target, runtime, threads and batch in words."""
        parts = [self.target]
        if self.runtime not in ("", self.target):
            parts.append(self.runtime)
        if self.threads != 1:
            parts.append(f"{self.threads} threads")
        if self.batch != 1:
            parts.append(f"batch {self.batch}")
        return ", ".join(parts)

    @property
    def title(self) -> str:
        """Device and setting."""
        return f"{self.device}: {self.setting}"

    @cached_property
    def baseline(self) -> Cell | None:
        """What the others are compared with: the result's baseline, or the same network in this panel."""
        name = self.result.baseline
        named = [c for c in self.cells if c.label == name]
        if named:
            return named[0]
        networks = [m.network for m in self.result.measurements if m.subject == name]
        return next((c for c in self.cells if c.values.network in networks), None)

    @property
    def others(self) -> list[Cell]:
        """All but the baseline; none where there is no baseline."""
        return [c for c in self.cells if not c.is_baseline] if self.baseline else []


@dataclass(frozen=True)
class Report:
    """Everything that the results files tell.

    Attributes:
        panels: In order of devices, then as measured.
        failures: What could not be measured.
        groups: The results that the panels come from, one a group.
        titles: Title of the device of each of `groups`.
        commands: Commands that were given, as lists of arguments.
        missing: Planned groups without a result, as (id, device, labels of the subjects).
        notes: What a reader of the files must know, e.g. that one was cut off.
        left_out: Combinations of the plan that mean nothing, in words.
        versions: Versions of csr-deploy.
    """

    panels: tuple[Panel, ...]
    failures: tuple[FailureRow, ...]
    groups: tuple[GroupResult, ...]
    titles: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...] = ()
    missing: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """All cells."""
        return [cell for panel in self.panels for cell in panel.cells]

    @property
    def networks(self) -> list[str]:
        """Names of the networks, baselines first: the order of their colours."""
        baselines = [p.baseline.network for p in self.panels if p.baseline]
        return list(dict.fromkeys([*baselines, *(c.network for c in self.cells)]))

    @property
    def devices(self) -> list[str]:
        """Titles of all devices, in order, of those without a result too."""
        return list(dict.fromkeys([*self.devices_of_cells, *(f.device for f in self.failures)]))

    @property
    def devices_of_cells(self) -> list[str]:
        """Titles of the devices that measured something, in order."""
        return list(dict.fromkeys(p.device for p in self.panels))


def make_panels(groups: Sequence[GroupResult]) -> tuple[list[Panel], list[str]]:
    """Takes results apart.

    Returns:
        The panels, those of one device together; the title of the device of every group.
    """
    titles = unique_titles(groups)
    found: list[Panel] = []
    for group, title in zip(groups, titles, strict=True):
        panels: dict[tuple[str, str, str, int, int], Panel] = {}
        for values in group.result.measurements:
            micro = values.microcontroller
            # In the older format a microcontroller's measurements were those of the machine it hung on.
            device = title if micro is None else _micro_title(micro)
            key = (device, values.target, _runtime(values), values.threads, values.batch)
            panel = panels.setdefault(key, Panel(*key, source=group))
            panel.cells.append(Cell(panel, values))
        found += panels.values()
    order = {device: number for number, device in enumerate(dict.fromkeys(p.device for p in found))}
    return sorted(found, key=lambda p: order[p.device]), titles


def unique_titles(groups: Sequence[GroupResult]) -> list[str]:
    """A title for the device of each group: different machines never share one."""
    titles = [_title(g) for g in groups]
    keys = [(g.device, *_identity(g.result.environment)) for g in groups]
    by_title: dict[str, list[tuple[str, ...]]] = {}
    for title, key in zip(titles, keys, strict=True):
        same = by_title.setdefault(title, [])
        if key not in same:
            same.append(key)
    return [
        title if len(by_title[title]) == 1 else f"{title}, machine {by_title[title].index(key) + 1}"
        for title, key in zip(titles, keys, strict=True)
    ]


def _runtime(values: Measurement) -> str:
    """Key of the runtime and what else tells one way to run from another."""
    settings = values.settings
    parts = [
        values.runtime,
        "reference kernels" if values.kernels == "reference" else "",
        "CUDA graph" if settings.get("cuda_graph") is True else "",
        "without copies" if settings.get("copies") is False else "",
        "CPU blocks" if settings.get("wait") == "block" else "",
    ]
    return ", ".join(part for part in parts if part)


def _title(group: GroupResult) -> str:
    for each in group.result.measurements:
        if each.microcontroller is not None:
            return _micro_title(each.microcontroller)
    environment = group.result.environment
    return device_title(group.device, environment.board or environment.cpu)


def _micro_title(micro: Microcontroller) -> str:
    return device_title(micro.device, micro.board or "")


def _identity(environment: Environment) -> tuple[str, ...]:
    return environment.machine, environment.cpu, str(environment.cpus), environment.board or ""


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are not None."""
    return [v for v in values if v is not None]
