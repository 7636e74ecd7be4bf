"""What is taken while something is timed, what makes it void, and the energy of an inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from csr_deploy.bench.measure import run_plan
from csr_deploy.bench.plan import QUICK, BenchOptions, make_plan
from csr_deploy.bench.report import markdown, rows
from csr_deploy.bench.results import BenchResult
from csr_deploy.bench.telemetry import (
    Energy,
    Monitor,
    PowerMode,
    Telemetry,
    TelemetryReading,
    TelemetrySample,
    TimedWindow,
    open_source,
)
from csr_deploy.bench.telemetry.energy import energy_per_inference
from csr_deploy.bench.telemetry.monitor import MOST_SAMPLES, thin
from csr_deploy.bench.telemetry.summary import summarise_telemetry
from csr_deploy.errors import OptionError
from tests.onnx_artifact import make_artifact
from tests.telemetry_trees import DATA, programs

ROOT = Path(__file__).parents[2]
FAST = replace(QUICK, images=9, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)
MS = 1_000_000


class Script:
    """A source that gives samples from a list, the last one for ever."""

    name = "sysfs"
    tells_throttling = True
    malformed = 0
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        samples: Sequence[TelemetrySample],
        modes: Sequence[PowerMode | None] = (None,),
        least_interval_s: float = 0.0,
    ) -> None:
        self._samples, self._modes = list(samples), list(modes)
        self.least_interval_s = least_interval_s
        self.taken = threading.Semaphore(0)
        self.closed = 0

    def sample(self) -> TelemetrySample:
        sample = self._samples.pop(0) if len(self._samples) > 1 else self._samples[0]
        self.taken.release()
        return replace(sample, time_ns=time.monotonic_ns())

    def power_mode(self) -> PowerMode | None:
        return self._modes.pop(0) if len(self._modes) > 1 else self._modes[0]

    def close(self) -> None:
        self.closed += 1


def watch(source: Script, during: int = 0) -> TelemetryReading:
    """Takes a sample before, at least that many during, and one after."""
    with Monitor(source, 0.001) as monitor:
        assert source.taken.acquire(timeout=10)
        for _ in range(during):
            assert source.taken.acquire(timeout=10)
    reading = monitor.reading()
    assert reading is not None and source.closed == 1
    return reading


def test_samples_before_during_and_after() -> None:
    reading = watch(Script([TelemetrySample(0)]), during=3)
    telemetry = reading.telemetry
    assert telemetry.sampled >= 5 and telemetry.source == "sysfs" and telemetry.void == ()
    times = [s.time_ns for s in telemetry.samples]
    assert times == sorted(times) and times[0] >= 0
    assert telemetry.sample_cost_ms >= 0 and telemetry.notes == () and reading.energy == {}


def test_a_source_may_ask_for_a_longer_pause() -> None:
    source = Script([TelemetrySample(0)], least_interval_s=60.0)
    telemetry = watch(source).telemetry
    assert telemetry.sampled == 2 and telemetry.interval_s == 60.0


def test_no_source_no_telemetry() -> None:
    with Monitor(None) as monitor, monitor.window("a") as times:
        times.append(1)
    assert monitor.reading() is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_throttling_before_during_or_after_is_void(place: int) -> None:
    hot = TelemetrySample(0, throttled=("gpu-throttle-alert",))
    samples = [TelemetrySample(0)] * 2
    samples.insert(place, hot)
    (reason,) = watch(Script([*samples, TelemetrySample(0)]), during=4).telemetry.void
    assert reason.startswith("gpu-throttle-alert, in 1 of ")


def test_an_event_between_two_samples_is_void() -> None:
    first, last = (TelemetrySample(0, events={"over-current event oc3": n}) for n in (3, 5))
    assert watch(Script([first, last])).telemetry.void == ("over-current event oc3: from 3 to 5",)


def test_another_power_mode_is_void() -> None:
    modes = [PowerMode(0, "MAXN", True), PowerMode(2, "15W", True)]
    (reason,) = watch(Script([TelemetrySample(0)], modes)).telemetry.void
    assert reason == ("the power mode changed from MAXN (0), jetson_clocks on to 15W (2), jetson_clocks on")


def test_a_mode_that_could_not_be_read_again_is_not_another_one() -> None:
    modes = [PowerMode(0, "MAXN", True), PowerMode(0, None, None)]
    assert watch(Script([TelemetrySample(0)], modes)).telemetry.void == ()
    assert watch(Script([TelemetrySample(0)], [modes[0], None])).telemetry.void == ()


def test_the_source_is_closed_whatever_happens() -> None:
    source = Script([TelemetrySample(0)])
    with pytest.raises(KeyboardInterrupt), Monitor(source, 0.001):
        raise KeyboardInterrupt
    assert source.closed == 1

    class Broken(Script):
        def power_mode(self) -> PowerMode | None:
            raise RuntimeError("a defect")

    broken = Broken([TelemetrySample(0)])
    with pytest.raises(RuntimeError, match="a defect"), Monitor(broken):
        pass
    assert broken.closed == 1
    assert not [t for t in threading.enumerate() if t.name == "telemetry"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_thread_does_not_spoil_the_run_but_is_told() -> None:
    class Breaks(Script):
        def sample(self) -> TelemetrySample:
            if threading.current_thread().name == "telemetry":
                raise RuntimeError("a defect")
            return super().sample()

    source = Breaks([TelemetrySample(0)])
    with Monitor(source, 0.001) as monitor:
        monitor._thread.join(10)
    reading = monitor.reading()
    assert reading is not None and "telemetry broke off" in reading.telemetry.notes[0]


def test_long_runs_are_thinned() -> None:
    assert thin(range(5), 10) == [0, 1, 2, 3, 4]
    kept = thin(range(10_000), MOST_SAMPLES)
    assert len(kept) == MOST_SAMPLES and (kept[0], kept[-1]) == (0, 9999)
    gaps = {b - a for a, b in zip(kept, kept[1:], strict=False)}
    assert gaps <= {41, 42}


# Energy


def powered(times_ms: Sequence[int], **rails: float) -> Iterator[TelemetrySample]:
    return (TelemetrySample(ms * MS, power_mw=rails) for ms in times_ms)


WINDOWS = [TimedWindow("net", 100 * MS, 200 * MS), TimedWindow("net", 500 * MS, 600 * MS)]


def test_energy_is_mean_power_in_the_windows_times_mean_time() -> None:
    samples = [
        *powered([50, 300], VDD_IN=99_000),
        *powered([100, 150], VDD_IN=5_000),
        *powered([550, 600], VDD_IN=7_000),
    ]
    energy = energy_per_inference(samples, WINDOWS, [10 * MS, 30 * MS])
    # 6 W for 20 ms.
    assert energy == Energy("VDD_IN", "module", 6000.0, 120.0, 4)


@pytest.mark.parametrize(
    ("rails", "name", "scope", "milliwatts"),
    [
        (
            {"VIN": 28_000, "VDD_GPU": 7_000, "VDD_CPU_SOC_MSS": 9_000, "VIN_SYS_5V0": 6_000},
            "VIN",
            "board",
            28_000,
        ),
        ({"VDD_IN": 5_000, "VDD_CPU_GPU_CV": 900, "VDD_SOC": 1_500}, "VDD_IN", "module", 5_000),
        ({"POM_5V_IN": 4_000, "POM_5V_GPU": 1_000}, "POM_5V_IN", "board", 4_000),
        (
            {"VDD_GPU_SOC": 4_000, "VDD_CPU_CV": 800, "VIN_SYS_5V0": 4_200, "VDDQ_VDD2_1V8AO": 400},
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            "module",
            9_000,
        ),
    ],
)
def test_what_is_known_to_be_a_total(
    rails: dict[str, float], name: str, scope: str, milliwatts: float
) -> None:
    energy = energy_per_inference(powered([110, 120, 130], **rails), WINDOWS, [MS])
    assert energy is not None and (energy.rail, energy.scope) == (name, scope)
    assert energy.mean_mw == pytest.approx(milliwatts) and energy.millijoules == pytest.approx(
        milliwatts / 1000
    )


@pytest.mark.parametrize(
    "rails",
    [
        {},
        {"VDD_GPU": 7_000, "VDD_CPU_SOC_MSS": 9_000, "VIN_SYS_5V0": 6_000},
        {"VDD_GPU_SOC": 4_000, "VDD_CPU_CV": 800},
        {"3V3_SYS": 300},
    ],
)
def test_parts_are_not_taken_for_a_total(rails: dict[str, float]) -> None:
    assert energy_per_inference(powered([110, 120, 130], **rails), WINDOWS, [MS]) is None


def test_too_little_is_no_energy() -> None:
    assert energy_per_inference(powered([110, 120], VDD_IN=1), WINDOWS, [MS]) is None
    assert energy_per_inference(powered([110, 120, 130], VDD_IN=1), WINDOWS, []) is None
    assert energy_per_inference(powered([10, 20, 300, 900], VDD_IN=1), WINDOWS, [MS]) is None


def test_subjects_have_their_own_windows() -> None:
    source = Script([TelemetrySample(0, power_mw={"VDD_IN": 4_000})])
    with Monitor(source, 0.001) as monitor:
        for subject in ("a", "b", "a"):
            with monitor.window(subject) as times:
                for _ in range(6):
                    assert source.taken.acquire(timeout=10)
                times.extend([2 * MS] if subject == "a" else [])
    reading = monitor.reading()
    assert reading is not None
    assert [w.subject for w in reading.telemetry.windows] == ["a", "b", "a"]
    assert all(w.start_ns < w.end_ns for w in reading.telemetry.windows)
    assert list(reading.energy) == ["a"] and reading.energy["a"].millijoules == pytest.approx(8.0)


# In words


def telemetry(**changes: object) -> Telemetry:
    samples = (
        TelemetrySample(0, {"tj": 30.0}, {}, {"cpu0": 729.0, "gpu": 306.0}),
        TelemetrySample(
            150 * MS,
            {"cpu": 44.0, "tj": 45.125, "pmic": 100.0},
            {},
            {"cpu0": 729.0, "cpu1": 1510.4, "gpu": 625.0},
        ),
        TelemetrySample(
            160 * MS, {"cpu": 44.0, "tj": 52.0}, {}, {"cpu0": 1510.4, "cpu1": 1510.4, "gpu": 625.0}
        ),
    )
    mode = PowerMode(0, "15W", False)
    plain = Telemetry("sysfs", 0.5, mode, True, (), 3, samples, tuple(WINDOWS), 0.2, 0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_line_for_the_report() -> None:
    assert summarise_telemetry(telemetry()) == (
        "Telemetry from sysfs; power mode 15W (0), jetson_clocks off; cpu 729–1,510 MHz; gpu 625 MHz; "
        "hottest zone 45.1–52.0 °C; not throttled."
    )
    bare = telemetry(power_mode=None, tells_throttling=False, samples=(TelemetrySample(0),))
    assert summarise_telemetry(bare) == "Telemetry from sysfs; throttling is not told by this machine."
    assert summarise_telemetry(telemetry(void=("hot",))).endswith("; VOID.")
    assert "power mode unnamed;" in summarise_telemetry(telemetry(power_mode=PowerMode(None, None, None)))


# The whole benchmark


def measure(path: Path, options: BenchOptions = FAST) -> BenchResult:
    return run_plan(make_plan([path], options), lambda *_: None)


def test_a_result_has_telemetry(tmp_path: Path) -> None:
    result = measure(make_artifact(tmp_path / "a").path, replace(FAST, telemetry="sysfs"))
    seen = result.telemetry
    assert seen is not None and seen.source == "sysfs" and seen.sampled >= 2
    assert [w.subject for w in seen.windows] == ["colours-onnx"] * 3
    assert seen.samples[0].time_ns < seen.windows[0].start_ns
    assert seen.windows[-1].end_ns < seen.samples[-1].time_ns
    assert result.options["telemetry"] == "sysfs" and "Telemetry from sysfs" in markdown(result)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["telemetry"]["samples"][0]["memory_total_mib"] > 0 and values["void"] == list(result.void)


def test_telemetry_can_be_left_out(tmp_path: Path, image_folder: Path) -> None:
    path = make_artifact(tmp_path / "a").path
    result = measure(path, replace(FAST, telemetry="none"))
    assert result.telemetry is None and result.void == () and "Telemetry" not in markdown(result)
    no_latency = replace(FAST, latency=False, data=str(image_folder), limit=3)
    assert measure(path, no_latency).telemetry is None


def test_a_source_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    if open_source().name != "sysfs":  # type: ignore[union-attr]
        pytest.skip("this machine has a source of its own")
    plan = make_plan([make_artifact(tmp_path / "a").path], replace(FAST, telemetry="tegrastats"))
    seen: list[str] = []
    with pytest.raises(OptionError, match="no telemetry from tegrastats here"):
        run_plan(plan, lambda stage, *_: seen.append(stage))
    assert seen == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"telemetry": "nvml"}, "unknown telemetry 'nvml'"),
        ({"telemetry_interval": 0.01}, "telemetry_interval is 0.01"),
        ({"telemetry_interval": float("nan")}, "telemetry_interval is nan"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BenchOptions(**options)  # type: ignore[arg-type]


START = "import sys; sys.path = [p for p in sys.path if p]; from csr_deploy.cli.bench import main; main()"


def bench(path: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with stand-ins for a device's programs on $PATH."""
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([path, os.environ["PATH"]]),
        },
    )


def test_a_throttled_run_is_void_everywhere(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", vcgencmd="echo throttled=0x80008")
    file = tmp_path / "result.json"
    run = bench(path, make_artifact(tmp_path / "a").path, "--quick", "--seconds", 0, "--json", file)
    assert run.returncode == 1
    assert "the latencies are void: firmware: soft temperature limit, in " in run.stderr
    assert "cool down" in run.stderr
    assert "VOID: latency, median of windows" in run.stdout and "Note: VOID" in run.stdout
    values = json.loads(file.read_text())
    count = values["telemetry"]["sampled"]
    assert values["void"] == [f"firmware: soft temperature limit, in {count} of {count} samples"]
    assert values["telemetry"]["void"] == values["void"] and values["telemetry"]["source"] == "vcgencmd"
    assert values["measurements"][0]["latency"]["median_ns"] > 0


def test_energy_of_a_device_that_tells_its_input(tmp_path: Path) -> None:
    line = (DATA / "tegrastats" / "orin-nano-jetpack5.txt").read_text().splitlines()[1]
    path = programs(tmp_path / "bin", tegrastats=f"while echo '{line}'; do sleep 0.05; done")
    file = tmp_path / "result.json"
    run = bench(
        path, make_artifact(tmp_path / "a").path, "--quick", "--seconds", 4, "--json", file,
        "--telemetry", "tegrastats",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "energy of an inference (whole module, VDD_IN)" in run.stdout
    assert "Telemetry from tegrastats" in run.stdout
    (measurement,) = json.loads(file.read_text())["measurements"]
    energy, latency = measurement["energy"], measurement["latency"]
    times = [t for window in latency["windows_ns"] for t in window]
    assert (energy["rail"], energy["scope"], energy["mean_mw"]) == ("VDD_IN", "module", 9876)
    assert energy["millijoules"] == pytest.approx(9876 * sum(times) / len(times) / 1e9)


def test_void_rows_and_energies_in_the_report(tmp_path: Path) -> None:
    result = measure(make_artifact(tmp_path / "a").path)
    energy = Energy("VIN", "board", 30_000.0, 12.3456, 9)
    measured = tuple(replace(m, energy=energy) for m in result.measurements)
    good = replace(result, measurements=measured, void=())
    shown = {row.name: row.cells for row in rows(good)}
    assert shown["energy of an inference (whole board, VIN)"] == ("12.346 mJ",)
    names = [row.name for row in rows(replace(good, void=("hot",)))]
    for timed in (
        "load",
        "latency, median of windows",
        "latency p99",
        "energy of an inference (whole board, VIN)",
    ):
        assert f"VOID: {timed}" in names and timed not in names
    assert "model file" in names and "private memory" in names
    assert not [row for row in rows(result) if row.name.startswith("energy")]


def test_a_record_can_be_written_as_json() -> None:
    json.dumps(asdict(telemetry()), allow_nan=False)
