"""Lines of tegrastats, and the program as a process: it starts, dies, falls silent and is ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr_deploy.bench.telemetry import open_source
from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.tegrastats import TegrastatsLine, TegrastatsSource, parse_line
from tests.telemetry_trees import DATA, machine, plant, programs

LOGS = sorted((DATA / "tegrastats").glob("*.txt"))
ORIN = (DATA / "tegrastats" / "agx-orin-jetpack6.txt").read_text().strip()


def lines(name: str) -> list[TegrastatsLine]:
    parsed = [parse_line(line) for line in (DATA / "tegrastats" / f"{name}.txt").read_text().splitlines()]
    assert all(line is not None for line in parsed)
    return [line for line in parsed if line is not None]


def test_orin_nano_with_jetpack_5() -> None:
    idle, busy = lines("orin-nano-jetpack5")
    assert busy.power_mw == {"VDD_IN": 9876, "VDD_CPU_GPU_CV": 3921, "VDD_SOC": 2010}
    assert busy.temperatures_c == {
        "cpu": 49.125, "soc2": 47.5, "soc0": 48, "gpu": 48.75, "tj": 49.125, "soc1": 47.25,
    }  # fmt: skip
    assert "gpu" not in idle.temperatures_c, "a sensor that is off says -256"
    assert busy.clocks_mhz == {**{f"cpu{n}": 1510 for n in range(4)}, "emc": 2133, "gpu": 624}
    assert busy.load_percent == {"cpu0": 61, "cpu1": 12, "cpu2": 9, "cpu3": 7, "emc": 21, "gpu": 96}
    assert (busy.memory_used_mib, busy.memory_total_mib) == (2819, 7471)


def test_agx_orin_with_jetpack_6() -> None:
    (line,) = lines("agx-orin-jetpack6")
    assert line.power_mw == {
        "VDD_GPU_SOC": 11205, "VDD_CPU_CV": 2405, "VIN_SYS_5V0": 5767, "VDDQ_VDD2_1V8AO": 1004,
    }  # fmt: skip
    assert line.clocks_mhz["gpu"] == 1300 and line.load_percent["gpu"] == 71
    assert line.clocks_mhz["cpu5"] == 2201 and "cpu11" not in line.clocks_mhz
    assert line.temperatures_c["tj"] == 51.062


def test_agx_orin_without_root() -> None:
    (line,) = lines("agx-orin-jetpack6-user")
    assert "gpu" not in line.clocks_mhz and "emc" not in line.clocks_mhz
    assert line.load_percent["gpu"] == 0 and line.power_mw["VIN_SYS_5V0"] == 2544


def test_thor_with_jetpack_7_0() -> None:
    (line,) = lines("thor-jetpack7.0")
    assert line.power_mw == {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 7484, "VIN_SYS_5V0": 6309, "VIN": 28548}
    assert line.temperatures_c == {"cpu": 43.75, "tj": 44.25, "soc012": 42.5, "gpu": 43.968, "soc345": 44.25}
    assert "gpu" not in line.load_percent and line.clocks_mhz["cpu8"] == 1566


def test_thor_with_jetpack_7_2() -> None:
    loaded, idle = lines("thor-jetpack7.2")
    assert loaded.power_mw["VIN"] == 124000 and loaded.temperatures_c["tj"] == 66.5
    assert loaded.clocks_mhz["gpu"] == 1574 and "gpu" not in loaded.load_percent
    assert loaded.load_percent["emc"] == 33 and loaded.clocks_mhz["emc"] == 4266
    assert idle.load_percent == {"cpu0": 0, "cpu1": 5}
    assert idle.clocks_mhz == {"cpu0": 2601, "cpu1": 2601, "emc": 4266, "gpu": 1574}


def test_a_tx2_gives_powers_without_a_unit() -> None:
    (line,) = lines("tx2-jetpack4")
    assert line.power_mw["VDD_IN"] == 5297 and len(line.power_mw) == 6
    assert line.clocks_mhz["gpu"] == 114 and line.temperatures_c["pmic"] == 50


@pytest.mark.parametrize("text", ["", "tegrastats: permission denied", "RAM", "CPU [", "cpu@C VDD_IN mW/mW"])
def test_other_text_is_not_a_line(text: str) -> None:
    assert parse_line(text) is None


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_the_parser_fail(text: str) -> None:
    parse_line(text)


@settings(deadline=None)
@given(st.sampled_from(LOGS), st.data())
def test_no_damaged_line_makes_the_parser_fail(log: Path, data: st.DataObject) -> None:
    line = log.read_text().splitlines()[0]
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    parse_line(line[:start] + data.draw(st.text(max_size=12)) + line[end:])


WORDS = ("RAM", "CPU", "EMC_FREQ", "GR3D_FREQ", "VDD_IN", "tj@", "C", "MB", "mW", "off", "9", "-1", *"[]%@/,")


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS)))
def test_no_shuffled_words_make_the_parser_fail(words: list[str]) -> None:
    parse_line("".join(words))
    parse_line(" ".join(words))


# A stand-in that prints what the real one prints, at once and then every 50 ms.
SPEAKS = f"while :; do echo '{ORIN}'; sleep 0.05; done"


def test_lines_are_joined_with_what_only_sysfs_tells(tmp_path: Path) -> None:
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats=SPEAKS), 0.1)
    try:
        assert source.answers()
        before = time.monotonic_ns()
        first, second = source.sample(), source.sample()
        assert first.time_ns < second.time_ns <= time.monotonic_ns() and second.time_ns > before
        assert first.power_mw["VDD_GPU_SOC"] == 11205 and first.clocks_mhz["gpu"] == 1300
        assert first.fan_rpm == 1205 and first.events["over-current event oc3"] == 3
        assert first.memory_used_mib == 9120
        assert source.tells_throttling
        mode = source.power_mode()
        assert mode is not None and mode.name == "MODE_30W"
    finally:
        source.close()
    assert not psutil.pid_exists(source.pid)
    source.close()
    assert source.notes == () and source.malformed == 0


def test_the_interval_is_passed_on(tmp_path: Path) -> None:
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats='echo "RAM $2/9MB"'), 0.25)
    try:
        assert source.sample().memory_used_mib == 250
    finally:
        source.close()


def test_what_a_line_lacks_comes_from_sysfs(tmp_path: Path) -> None:
    script = "echo 'RAM 5/9MB'; exec sleep 60"
    source = TegrastatsSource(machine("orin-nano", tmp_path, tegrastats=script), 0.1)
    try:
        sample = source.sample()
    finally:
        source.close()
    assert sample.memory_used_mib == 5 and sample.clocks_mhz["gpu"] == 918
    assert sample.temperatures_c["tj"] == 51.687 and sample.load_percent["gpu"] == 98.4
    assert sample.power_mw["VDD_IN"] == pytest.approx(4984 * 1856 / 1000)


def test_it_dies_midway_and_sysfs_takes_over(tmp_path: Path) -> None:
    script = f"echo '{ORIN}'; printf 'RAM 9120/62841MB VDD_GPU_SOC 11'; exit 3"
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats=script), 0.1)
    try:
        assert source.sample().power_mw["VDD_GPU_SOC"] == 11205
        later = source.sample()
    finally:
        source.close()
    assert later.power_mw["VDD_GPU_SOC"] == pytest.approx(3998.4), "not the cut-off line, but /sys"
    assert source.malformed == 1
    ended, counted = source.notes
    assert ended == "tegrastats ended with status 3 after 2 lines; /sys was read instead"
    assert "1 reading could not be understood" in counted


def test_a_killed_one_is_named(tmp_path: Path) -> None:
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats=f"echo '{ORIN}'; kill -9 $$"), 0.1)
    try:
        for _ in range(2):
            source.sample()
    finally:
        source.close()
    assert source.notes == ("tegrastats was ended by signal 9 after 1 line; /sys was read instead",)


def test_it_falls_silent(tmp_path: Path) -> None:
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats=f"echo '{ORIN}'; exec sleep 60"), 0.02)
    try:
        source.sample()
        assert source.sample().power_mw["VDD_GPU_SOC"] == pytest.approx(3998.4)
    finally:
        source.close()
    assert source.notes == ("tegrastats fell silent after 1 line; /sys was read instead",)
    assert not psutil.pid_exists(source.pid)


def test_one_that_ignores_being_asked_is_killed(tmp_path: Path) -> None:
    source = TegrastatsSource(machine("agx-orin", tmp_path, tegrastats=f"trap '' TERM; {SPEAKS}"), 0.1)
    assert source.answers()
    source.close()
    assert not psutil.pid_exists(source.pid)


@pytest.mark.parametrize("script", ["exit 1", "echo nothing of interest", "echo 'RAM 1/2MB' >&2"])
def test_one_that_says_nothing_is_passed_over_with_a_note(tmp_path: Path, script: str) -> None:
    source = open_source(machine=machine("agx-orin", tmp_path, tegrastats=script))
    assert source is not None and source.name == "sysfs"
    assert source.notes[0] == "tegrastats prints nothing that can be understood"


def test_one_that_cannot_be_run_is_passed_over_with_a_note(tmp_path: Path) -> None:
    found = machine("agx-orin", tmp_path, tegrastats="")
    (tmp_path / "bin" / "tegrastats").write_text("no program")
    source = open_source(machine=found)
    assert source is not None and source.name == "sysfs"
    assert source.notes == ("tegrastats cannot be started: Exec format error",)


SCRIPT = """
import sys, time
from pathlib import Path
from csr_deploy.bench.telemetry import Monitor
from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.tegrastats import TegrastatsSource
source = TegrastatsSource(Machine(Path(sys.argv[1]), sys.argv[2]), 0.1)
with Monitor(source, 0.1):
    print(source.pid, flush=True)
    time.sleep(60)
"""


def test_ctrl_c_ends_the_program_too(tmp_path: Path) -> None:
    tree, path = plant("agx-orin", tmp_path / "tree"), programs(tmp_path / "bin", tegrastats=SPEAKS)
    python = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tree), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert python.stdout is not None
    pid = int(python.stdout.readline())
    assert psutil.pid_exists(pid)
    python.send_signal(2)
    _, messages = python.communicate(timeout=30)
    assert "KeyboardInterrupt" in messages
    assert not psutil.pid_exists(pid)


def test_a_machine_without_it_has_none() -> None:
    assert not Machine(search_path="").has_program("tegrastats")
