"""From a plan in a few words to its groups: models × targets × runtimes × threads × batches × devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csr_deploy.bench.devices.names import DeviceName, parse_device_name
from csr_deploy.bench.groups import LOCAL, Group, make_group
from csr_deploy.bench.plan import QUICK, BenchOptions, FoundSubject, find_subject, make_plan
from csr_deploy.data.builtin import BUILTIN
from csr_deploy.errors import ArtifactError, DataError, OptionError
from csr_deploy.runtimes import find_runtime
from csr_deploy.runtimes.mcu.devices import HOST
from csr_deploy.runtimes.native.runtime import TARGET as NATIVE
from csr_deploy.targets import find_target

_CHECKPOINT = "checkpoint"
_PI_SUFFIXES = (".onnx", ".tflite")
_MCU = "mcu"


@dataclass(frozen=True)
class PlanRequest:
    """What a user asks for.

    Attributes:
        models: Artifacts and checkpoints; with `targets`, what stands before "-<target>" in the names of
            artifacts. The first is the baseline.
        targets: Targets of the models; empty for the models as they are.
        runtimes: Keys of `csr_deploy.runtimes.RUNTIMES`; empty for each subject's own.
        threads: Threads of the runtime.
        batches: Images an inference; empty for each artifact's own.
        devices: Names of devices.
        baseline: Name or path of the model to compare with, or a subject's label; None for the first.
        together: Whether all subjects are one group, whatever their targets.
        quick: Whether the figures that `settings` leaves out are those of a quick look.
        settings: Further fields of `BenchOptions`.
    """

    models: tuple[str, ...]
    targets: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = ()
    devices: tuple[str, ...] = (LOCAL,)
    baseline: str | None = None
    together: bool = False
    quick: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def options(
        self, runtime: str | None, threads: int, batch: int | None, device: str | None
    ) -> BenchOptions:
        """How a group is measured.

        Raises:
            OptionError: If a setting is out of range.
        """
        settings: dict[str, Any] = dict(self.settings)
        # Of a plan with several devices it concerns those that are not this machine.
        if device in (None, HOST) and len(self.devices) > 1:
            settings.pop("device_images", None)
        settings |= {"runtime": runtime, "threads": threads, "batch": batch, "device": device}
        return replace(QUICK if self.quick else BenchOptions(), **settings)

    @property
    def is_single(self) -> bool:
        """Whether there is one combination of everything but models and targets."""
        return all(len(axis) <= 1 for axis in (self.runtimes, self.threads, self.batches, self.devices))


@dataclass(frozen=True)
class ExpandedPlan:
    """All groups.

    Attributes:
        groups: Device by device; on each those of float targets first, as others are compared with them.
        left_out: Combinations that mean nothing, and why; in words.
    """

    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """Number of cells."""
        return sum(group.cells for group in self.groups)


def expand(request: PlanRequest) -> ExpandedPlan:
    """Makes the groups of a plan. Every artifact is read, and its hashes are checked, once.

    A combination that cannot be, such as C for a microcontroller with two threads, is left out with a reason
    where the plan has others of the same subject; a subject that is left with none is an error.

    Raises:
        OptionError: If there is nothing to measure, or an option or name is unknown or fits no subject.
        ArtifactError: If an artifact does not exist or was changed.
        CheckpointError: If a checkpoint does not exist.
        DataError: If the test images do not exist.
    """
    paths = _paths(request)
    _check_data(request.settings.get("data"))
    for name in request.runtimes:
        find_runtime(name)
    devices = [_parse(name) for name in _unique(request.devices)]
    known: dict[Path, FoundSubject] = {}

    def find(path: Path) -> FoundSubject:
        if path not in known:
            known[path] = find_subject(path)
        return known[path]

    if request.together or request.is_single:
        single = _single(request, paths, devices, find)
        if single is not None:
            return single
    return _Expansion(request, paths, find).run(devices)


@dataclass(frozen=True)
class _Place:
    """A device of the plan.

    Attributes:
        name: What is in `Group.device`.
        parsed: The name, taken apart.
        option: What is in `BenchOptions.device`.
    """

    name: str
    parsed: DeviceName
    option: str | None


def _parse(name: str) -> _Place:
    parsed = parse_device_name(name)
    if name == HOST:
        return _Place(LOCAL, parsed, HOST)
    return _Place(parsed.text, parsed, parsed.text if parsed.kind == "mcu" else None)


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _paths(request: PlanRequest) -> list[Path]:
    if not request.models:
        raise OptionError("there is nothing to measure", fix="Name artifacts or checkpoints.")
    if not request.targets:
        return [Path(model) for model in request.models]
    for target in request.targets:
        find_target(target)
    found = []
    for target in _unique(request.targets):
        for model in request.models:
            path = Path(f"{model.rstrip('/')}-{target}")
            if Path(model).is_file():
                path = Path(model)
            elif not path.is_dir():
                raise ArtifactError(
                    f"there is no artifact of {Path(model).name} for the target {target}",
                    where=str(path),
                    fix=f"Make it: csr-export CHECKPOINT --target {target} --out {path.parent}",
                )
            if path not in found:
                found.append(path)
    return found


def _check_data(data: str | None) -> None:
    # Before anything is measured for minutes.
    if data is not None and data not in BUILTIN and not Path(data).exists():
        raise DataError(
            "does not exist",
            where=data,
            fix=f"Name a folder or zip file with images, or a packaged set: {', '.join(BUILTIN)}.",
        )


def _single(
    request: PlanRequest,
    paths: Sequence[Path],
    devices: Sequence[_Place],
    find: Callable[[Path], FoundSubject],
) -> ExpandedPlan | None:
    """The plan of one combination of everything: what does not fit is an error, nothing is left out."""
    if not request.is_single:
        raise OptionError(
            "subjects of different targets are compared together with one runtime, number of threads, batch "
            "and device only",
            fix="Leave --together out, or give one of each.",
        )
    if not request.together:
        targets = {find(path).target for path in paths}
        if len(targets) > 1:
            return None
    (place,) = devices
    options = request.options(
        next(iter(request.runtimes), None),
        next(iter(request.threads), 1),
        next(iter(request.batches), None),
        place.option,
    )
    plan = make_plan(paths, options, _label(request, paths, find), find)
    reasons = [r for s in plan.subjects if (r := _device_lack(place, s.file, s.target)) is not None]
    if reasons:
        raise OptionError(reasons[0], fix=_DEVICE_FIX)
    return ExpandedPlan((make_group(place.name, plan),))


_DEVICE_FIX = "Measure it on another device, or leave it out."


def _label(request: PlanRequest, paths: Sequence[Path], find: Callable[[Path], FoundSubject]) -> str | None:
    """The baseline as `make_plan` knows it: a model may be named without its target."""
    if request.baseline is None:
        return None
    for path in paths:
        if request.baseline in _names(path, find(path)):
            return str(path)
    return request.baseline


def _names(path: Path, found: FoundSubject) -> set[str]:
    """What a subject may be called."""
    names = {found.label, str(path), path.name}
    if found.network:
        names |= {found.network, str(path).removesuffix(f"-{found.target}")}
    return names


class _Expansion:
    """Makes groups by target.

    Args:
        request: What the user asks for.
        paths: Its subjects.
        find: Reads a subject.
    """

    def __init__(
        self, request: PlanRequest, paths: Sequence[Path], find: Callable[[Path], FoundSubject]
    ) -> None:
        self._request = request
        self._find = find
        self._by_target: dict[str, list[Path]] = {}
        for path in paths:
            self._by_target.setdefault(find(path).target, []).append(path)
        self._left_out: list[str] = []
        self._used: set[Path] = set()
        self._reasons: dict[Path, str] = {}
        self._baseline = self._baseline_network(paths)

    def _baseline_network(self, paths: Sequence[Path]) -> set[str]:
        """Names of the network that the others are compared with."""
        wanted = self._request.baseline
        if wanted is None:
            return {self._network(paths[0])}
        found = {self._network(p) for p in paths if wanted in _names(p, self._find(p))}
        if not found:
            names = sorted({self._network(p) for p in paths})
            raise OptionError(
                f"the baseline '{wanted}' is none of the models", fix=f"Use one of: {', '.join(names)}."
            )
        return found

    def _network(self, path: Path) -> str:
        found = self._find(path)
        return found.network or found.label

    def run(self, places: Sequence[_Place]) -> ExpandedPlan:
        """All groups of all devices."""
        groups: list[Group] = []
        for place in places:
            made = [group for target in self._targets() for group in self._groups(place, target)]
            if not made:
                raise OptionError(
                    f"nothing of this plan runs on {place.name}: {self._left_out[-1]}", fix=_DEVICE_FIX
                )
            groups += made
        for path, reason in self._reasons.items():
            if path not in self._used:
                raise OptionError(reason, where=self._find(path).label, fix=_DEVICE_FIX)
        return ExpandedPlan(tuple(groups), tuple(dict.fromkeys(self._left_out)))

    def _targets(self) -> list[str]:
        """The float network itself first, then float32, float16, int8."""
        return sorted(self._by_target, key=_narrowness)

    def _groups(self, place: _Place, target: str) -> list[Group]:
        request = self._request
        groups = []
        for runtime in request.runtimes or (None,):
            for threads in _unique_numbers(request.threads):
                for batch in request.batches or (None,):
                    group = self._group(place, target, runtime, threads, batch)
                    if group is not None:
                        groups.append(group)
        return groups

    def _group(
        self, place: _Place, target: str, runtime: str | None, threads: int, batch: int | None
    ) -> Group | None:
        kept = []
        for path in self._by_target[target]:
            lack = self._lack(place, self._find(path), runtime, threads, batch)
            if lack is None:
                kept.append(path)
                self._used.add(path)
            else:
                self._left_out.append(f"{self._find(path).label}: {lack}")
                self._reasons.setdefault(path, lack)
        if not kept:
            return None
        options = self._request.options(runtime, threads, batch, place.option)
        base = next((p for p in kept if self._network(p) in self._baseline), kept[0])
        return make_group(place.name, make_plan(kept, options, str(base), self._find))

    def _lack(
        self, place: _Place, found: FoundSubject, runtime: str | None, threads: int, batch: int | None
    ) -> str | None:
        """Why a cell cannot be; None where it can."""
        name = runtime or found.runtime
        kind = find_runtime(name)
        if Path(found.file).suffix not in kind.suffixes:
            return f"the {name} runtime runs {' and '.join(kind.suffixes)} files, this is {found.file}"
        if threads > 1 and not kind.threaded:
            return f"the {name} runtime has one thread, {threads} were asked for"
        if batch is not None and found.batch not in (None, batch):
            return (
                f"an artifact of batch {found.batch}, and {batch} was asked for (csr-export --batch {batch})"
            )
        return _device_lack(place, found.file, found.target)


def _narrowness(target: str) -> int:
    return -64 if target == _CHECKPOINT else -find_target(target).weight_bits


def _unique_numbers(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers)) or [1]


def _device_lack(place: _Place, file: str, target: str) -> str | None:
    kind = place.parsed.kind
    if kind == "mcu" and target != _MCU:
        return f"{place.name} runs artifacts of the {_MCU} target only, this is {target}"
    runs_on_pi = target == NATIVE or (Path(file).suffix in _PI_SUFFIXES and target not in ("tflm",))
    if kind == "pi-emulated" and not runs_on_pi:
        return f"an emulated Raspberry Pi runs .onnx and .tflite files and native libraries, this is {target}"
    if kind == "ssh" and target == _CHECKPOINT:
        return "a checkpoint needs torch, which is not installed on a device"
    return None
