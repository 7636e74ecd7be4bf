"""Trees of other machines, and the real one of this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csr_deploy.bench.telemetry import CHOICES, PowerMode, TelemetrySample, check_available, open_source
from csr_deploy.bench.telemetry.machine import Machine
from csr_deploy.bench.telemetry.power_mode import (
    are_clocks_pinned,
    parse_models,
    parse_query,
    parse_status,
    read_power_mode,
)
from csr_deploy.bench.telemetry.raspberry_pi import (
    VcgencmdSource,
    parse_clock,
    parse_temperature,
    parse_throttled,
    parse_volts,
)
from csr_deploy.bench.telemetry.sysfs import SysfsSource
from csr_deploy.bench.telemetry.throttling import firmware_bits, firmware_throttling, throttle_reasons
from csr_deploy.errors import OptionError
from tests.telemetry_trees import machine, plant, put

STAT_LATER = "cpu  2600 0 1200 18200 200 0\\ncpu0 1600 0 700 9200 100 0\\ncpu1 1000 0 500 9000 100 0"


def sample(name: str, root: Path) -> TelemetrySample:
    source = SysfsSource(machine(name, root), clock=lambda: 7)
    taken = source.sample()
    assert source.notes == ()
    return taken


def test_agx_orin(tmp_path: Path) -> None:
    taken = sample("agx-orin", tmp_path)
    assert taken.time_ns == 7
    # One zone cannot be read, another says that its sensor is off.
    assert taken.temperatures_c == {"cpu": 47.25, "gpu": 45.5, "soc0": 46.0, "tj": 47.25}
    assert taken.power_mw == pytest.approx(
        {"VDD_GPU_SOC": 3998.4, "VDD_CPU_CV": 784.0, "VIN_SYS_5V0": 4024.08, "VDDQ_VDD2_1V8AO": 397.44}
    )
    assert taken.clocks_mhz == {
        **{f"cpu{n}": 1113.6 if 4 <= n < 8 else 729.6 for n in range(12)},
        "gpu": 306.0,
    }
    assert taken.load_percent == {"gpu": 3.7}
    # The alert of a hot surface is on, but slows nothing down.
    assert taken.throttled == ()
    assert taken.events == {f"over-current event oc{n}": count for n, count in ((1, 0), (2, 0), (3, 3))}
    assert (taken.fan_percent, taken.fan_rpm) == (25.1, 1205)
    assert taken.memory_total_mib == 62839.8 and taken.memory_used_mib == 4246.1


def test_orin_nano(tmp_path: Path) -> None:
    taken = sample("orin-nano", tmp_path)
    assert taken.power_mw["VDD_IN"] == pytest.approx(9250.304)
    assert taken.load_percent["gpu"] == 98.4 and taken.clocks_mhz["gpu"] == 918


def test_thor(tmp_path: Path) -> None:
    taken = sample("thor", tmp_path)
    assert "gpu" not in taken.temperatures_c and taken.temperatures_c["soc012"] == 55.125
    assert taken.power_mw["VIN"] == 27700 and taken.power_mw["VDD_GPU"] == pytest.approx(7705.6)
    assert taken.clocks_mhz == {
        "cpu0": 972.0, "cpu1": 972.0, "cpu2": 2601.0, "gpu": 315.0, "nvd": 702.0, "emc": 3200.0,
    }  # fmt: skip
    assert "gpu" not in taken.load_percent
    # The second event does not throttle here.
    assert list(taken.events) == ["over-current event oc1", "over-current event oc3"]


def test_raspberry_pi_4(tmp_path: Path) -> None:
    taken = sample("pi4", tmp_path)
    assert taken.throttled == ()
    assert taken.events == {
        "firmware: under-voltage since boot": 1,
        "firmware: ARM frequency capped since boot": 0,
        "firmware: throttled since boot": 1,
        "firmware: soft temperature limit since boot": 0,
    }
    assert taken.temperatures_c == {"cpu": 48.312} and taken.power_mw == {}


def test_raspberry_pi_5(tmp_path: Path) -> None:
    taken = sample("pi5", tmp_path)
    assert (taken.fan_percent, taken.fan_rpm) == (29.4, 2913)
    assert taken.clocks_mhz["cpu3"] == 2400 and taken.throttled == ()


def test_pc(tmp_path: Path) -> None:
    taken = sample("pc", tmp_path)
    assert taken.temperatures_c == {"acpitz": 27.8, "acpitz#2": 29.8, "x86_pkg_temp": 61.0}
    assert taken.clocks_mhz == {"cpu0": 3600.123, "cpu1": 800.0}
    # A display at half its brightness is a cooling device too, and a power clamp that is off says -1.
    assert taken.throttled == () and sum(taken.events.values()) == 16
    assert taken.power_mw == {} and taken.fan_percent is None


def test_loads_are_those_since_the_last_sample(tmp_path: Path) -> None:
    found = machine("pc", tmp_path)
    source = SysfsSource(found)
    put(tmp_path / "tree", "proc/stat", STAT_LATER)
    # cpu0 was busy for 800 of 1000 ticks; cpu1, being off, counted none.
    assert source.sample().load_percent == {"cpu": 80.0, "cpu0": 80.0}
    assert source.sample().load_percent == {}


def test_many_cpus_are_told_together(tmp_path: Path) -> None:
    def stat(busy: int) -> str:
        return "\\n".join(f"cpu{n} {busy} 0 0 1000 0 0 0 0" for n in [" ", *range(64)])

    put(tmp_path, "proc/stat", stat(0))
    for cpu in range(64):
        put(tmp_path, f"sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_cur_freq", "1000000")
    source = SysfsSource(Machine(tmp_path, ""))
    put(tmp_path, "proc/stat", stat(500))
    taken = source.sample()
    assert taken.load_percent == {"cpu": 100.0} and len(taken.clocks_mhz) == 16


@pytest.mark.parametrize(
    ("tree", "path", "text", "expected"),
    [
        ("agx-orin", "sys/class/thermal/cooling_device6/cur_state", "1", "gpu-throttle-alert"),
        ("thor", "sys/class/thermal/cooling_device4/cur_state", "2", "soc012-throttle-alert"),
        ("orin-nano", "sys/class/thermal/cooling_device1/cur_state", "3", "cpufreq-cpu0"),
        ("thor", "sys/class/thermal/cooling_device6/cur_state", "18", "devfreq-gpu-gpc-0"),
        ("pc", "sys/class/thermal/cooling_device1/cur_state", "1", "thermal limit of processor 1"),
        ("pi5", "sys/class/hwmon/hwmon3/in0_lcrit_alarm", "1", "under-voltage (rpi_volt)"),
        ("pi4", "sys/devices/platform/soc/soc:firmware/get_throttled", "50004", "firmware: throttled"),
        (
            "pi4",
            "sys/devices/platform/soc/soc:firmware/get_throttled",
            "0x8",
            "firmware: soft temperature limit",
        ),
    ],
)
def test_throttling_is_seen(tmp_path: Path, tree: str, path: str, text: str, expected: str) -> None:
    source = SysfsSource(machine(tree, tmp_path))
    assert source.tells_throttling and source.sample().throttled == ()
    put(tmp_path / "tree", path, text)
    assert source.sample().throttled == (expected,)


def test_events_between_two_samples_are_not_missed(tmp_path: Path) -> None:
    source = SysfsSource(machine("agx-orin", tmp_path))
    samples = [source.sample()]
    put(tmp_path / "tree", "sys/class/hwmon/hwmon5/oc3_event_cnt", "9")
    samples.append(source.sample())
    assert throttle_reasons(samples) == ("over-current event oc3: from 3 to 9",)


def test_reasons_say_how_often() -> None:
    quiet, hot = TelemetrySample(0), TelemetrySample(1, throttled=("gpu-throttle-alert",))
    assert throttle_reasons([quiet, quiet]) == ()
    assert throttle_reasons([quiet, hot, hot]) == ("gpu-throttle-alert, in 2 of 3 samples",)
    # What was there before the run is not its fault.
    old = TelemetrySample(0, events={"firmware: throttled since boot": 1})
    assert throttle_reasons([old, old]) == ()


def test_malformed_text_is_counted_and_not_fatal(tmp_path: Path) -> None:
    found = machine("agx-orin", tmp_path)
    tree = tmp_path / "tree"
    source = SysfsSource(found)
    put(tree, "sys/class/thermal/thermal_zone0/temp", "warm")
    put(tree, "sys/class/hwmon/hwmon3/in1_input", "")
    put(tree, "proc/stat", "cpu x y z w")
    put(tree, "proc/meminfo", "MemTotal: much kB")
    taken = source.sample()
    assert "cpu" not in taken.temperatures_c and "VDD_GPU_SOC" not in taken.power_mw
    assert taken.memory_total_mib is None and taken.temperatures_c["tj"] == 47.25
    assert source.malformed == 4
    assert source.notes == (
        "4 readings could not be understood, among them proc/meminfo, sys/class/thermal/thermal_zone0/temp, "
        "sys/class/hwmon/hwmon3/in1_input",
    )


def test_an_empty_machine_tells_nothing_and_nothing_fails(tmp_path: Path) -> None:
    source = SysfsSource(Machine(tmp_path, ""))
    taken = source.sample()
    assert taken == TelemetrySample(taken.time_ns)
    assert not source.tells_throttling and source.power_mode() is None and source.notes == ()


@pytest.mark.parametrize("tree", ["agx-orin", "thor", "pi4", "pi5", "pc"])
def test_files_that_vanish_are_left_out(tmp_path: Path, tree: str) -> None:
    source = SysfsSource(machine(tree, tmp_path))
    for path in sorted((tmp_path / "tree").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    taken = source.sample()
    assert taken == TelemetrySample(taken.time_ns) and source.notes == ()


def test_this_machine_can_be_read() -> None:
    source = open_source("sysfs")
    assert source is not None
    taken = source.sample()
    assert taken.memory_total_mib is not None and taken.memory_used_mib is not None
    assert 0 < taken.memory_used_mib <= taken.memory_total_mib
    assert all(0 <= load <= 100 for load in source.sample().load_percent.values())
    assert all(math.isfinite(v) for v in (*taken.temperatures_c.values(), *taken.clocks_mhz.values()))
    json.dumps(asdict(taken), allow_nan=False)
    source.power_mode()
    source.close()


@settings(deadline=None, max_examples=30)
@example(b"\n", "stat")
@example(b"cpu 1 2 3", "stat")
@given(st.binary(max_size=40), st.sampled_from(["temp", "stat", "meminfo", "throttled", "oc", "cur_freq"]))
def test_no_file_makes_a_sample_fail(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, which: str
) -> None:
    files = {
        "temp": "sys/class/thermal/thermal_zone0/temp",
        "stat": "proc/stat",
        "meminfo": "proc/meminfo",
        "throttled": "sys/devices/platform/soc/soc:firmware/get_throttled",
        "oc": "sys/class/hwmon/hwmon5/oc1_event_cnt",
        "cur_freq": "sys/class/devfreq/17000000.gpu/cur_freq",
    }
    root = tmp_path_factory.mktemp("any")
    plant("agx-orin", root)
    put(root, files["throttled"], "0")
    source = SysfsSource(Machine(root, ""))
    (root / files[which]).write_bytes(text)
    json.dumps(asdict(source.sample()), allow_nan=False)
    json.dumps(asdict(SysfsSource(Machine(root, "")).sample()), allow_nan=False)


# Power mode


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NV Power Mode: MAXN\n0\n", (0, "MAXN")),
        ("NV Power Mode: 25W\n1\n", (1, "25W")),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n", (2, "MODE_15W_6CORE")),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W_ALL\n3\n", (3, "MODE_30W_ALL")),
        ("NVPM VERB: Current mode: NV Power Mode: MAXN_SUPER\n2\nNVPM VERB: PARAM", (2, "MAXN_SUPER")),
        ("NV Power Mode: 15W", (None, "15W")),
        ("NVPM ERROR: Failed to read", (None, None)),
        ("", (None, None)),
    ],
)
def test_what_nvpmodel_prints(text: str, expected: tuple[int | None, str | None]) -> None:
    assert parse_query(text) == expected


def test_nvpmodel_s_files() -> None:
    assert parse_status("pmode:0002\n") == 2 and parse_status("pmode:0001 fmode:quiet") == 1
    assert parse_status("fmode:quiet") is None
    models = "# < POWER_MODEL ID=9 NAME=OLD >\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    models += "<POWER_MODEL ID=1 NAME=MODE_15W>"
    assert parse_models(models) == {0: "MAXN", 1: "MODE_15W"}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("agx-orin", PowerMode(2, "MODE_30W", False)),
        ("orin-nano", PowerMode(1, "25W", True)),
        ("thor", PowerMode(1, "120W", False)),
        ("pi4", None),
        ("pc", None),
    ],
)
def test_the_mode_from_files(tmp_path: Path, tree: str, expected: PowerMode | None) -> None:
    assert read_power_mode(machine(tree, tmp_path)) == expected


def test_the_program_knows_better_than_the_files(tmp_path: Path) -> None:
    found = machine(
        "orin-nano", tmp_path, nvpmodel='[ "$1" = -q ] && printf "NV Power Mode: MAXN_SUPER\\n2\\n"'
    )
    assert read_power_mode(found) == PowerMode(2, "MAXN_SUPER", True)


def test_a_program_that_fails_leaves_the_files(tmp_path: Path) -> None:
    found = machine("orin-nano", tmp_path, nvpmodel="echo must be root; exit 1")
    assert read_power_mode(found) == PowerMode(1, "25W", True)


def test_a_jetson_that_tells_nothing(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/compatible", "nvidia,p3768\0nvidia,tegra234")
    put(tmp_path, "var/lib/nvpmodel/status", "???")
    found = Machine(tmp_path, "")
    assert read_power_mode(found) == PowerMode(None, None, None) and found.problems.malformed == 1


def test_one_clock_that_is_not_pinned_is_enough(tmp_path: Path) -> None:
    found = machine("orin-nano", tmp_path)
    assert are_clocks_pinned(found) is True
    put(tmp_path / "tree", "sys/class/devfreq/17000000.gpu/min_freq", "306000000")
    assert are_clocks_pinned(found) is False


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_a_parser_fail(text: str) -> None:
    for parse in (
        parse_query, parse_status, parse_models, parse_throttled, parse_clock, parse_temperature,
        parse_volts, firmware_bits,
    ):  # fmt: skip
        parse(text)
        parse("throttled=" + text)
        parse("pmode:" + text)


# Raspberry Pi

VCGENCMD = """case "$*" in
  get_throttled) echo throttled=0xd0008 ;;
  "measure_clock arm") echo "frequency(48)=1500398464" ;;
  measure_temp) echo "temp=80.3'C" ;;
  "measure_volts core") echo volt=0.8600V ;;
  *) exit 2 ;;
esac"""


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_throttled, "throttled=0x50005\n", 0x50005),
        (parse_throttled, "throttled=0x0", 0),
        (parse_throttled, "0x0", None),
        (parse_clock, "frequency(48)=1800404352\n", 1800.404352),
        (parse_clock, "frequency(48)=", None),
        (parse_temperature, "temp=48.7'C\n", 48.7),
        (parse_temperature, "temp=-300'C", None),
        (parse_volts, "volt=0.8600V\n", 0.86),
        (parse_volts, 'error=1 error_msg="Command not registered"', None),
    ],
)
def test_what_vcgencmd_prints(
    parse: Callable[[str], float | None], text: str, expected: float | None
) -> None:
    assert parse(text) == expected


def test_every_documented_bit() -> None:
    for bit, words in enumerate(
        ("under-voltage", "ARM frequency capped", "throttled", "soft temperature limit")
    ):
        now, since = firmware_throttling(1 << bit)
        assert now == (f"firmware: {words}",) and not any(since.values())
        now, since = firmware_throttling(1 << bit + 16)
        assert now == () and [name for name, count in since.items() if count] == [
            f"firmware: {words} since boot"
        ]


def test_the_firmware_of_a_pi(tmp_path: Path) -> None:
    source = VcgencmdSource(machine("pi4", tmp_path, vcgencmd=VCGENCMD))
    assert source.answers() and source.tells_throttling and source.least_interval_s >= 1
    taken = source.sample()
    assert taken.throttled == ("firmware: soft temperature limit",)
    assert taken.events["firmware: throttled since boot"] == 1
    assert taken.events["firmware: ARM frequency capped since boot"] == 0
    # The kernel believes that the CPU runs faster than it does.
    assert taken.clocks_mhz["cpu0"] == 1800 and taken.clocks_mhz["arm"] == 1500.398464
    assert taken.temperatures_c == {"cpu": 48.312, "soc": 80.3} and taken.voltages_v == {"core": 0.86}
    assert source.power_mode() is None and source.notes == ()


def test_a_firmware_that_stops_answering_is_noted(tmp_path: Path) -> None:
    source = VcgencmdSource(machine("pi4", tmp_path, vcgencmd="echo VCHI initialization failed; exit 255"))
    taken = source.sample()
    assert taken.throttled == () and taken.voltages_v == {} and taken.temperatures_c == {"cpu": 48.312}
    assert source.malformed == 4 and "vcgencmd get_throttled" in source.notes[0]


# Choice


@pytest.mark.parametrize(
    ("tree", "scripts", "expected"),
    [
        ("agx-orin", {"tegrastats": "while echo RAM 1/2MB; do sleep 0.05; done"}, "tegrastats"),
        ("agx-orin", {}, "sysfs"),
        ("pi4", {"vcgencmd": VCGENCMD}, "vcgencmd"),
        ("pi4", {}, "sysfs"),
        ("pc", {}, "sysfs"),
    ],
)
def test_the_best_source_is_taken(tmp_path: Path, tree: str, scripts: dict[str, str], expected: str) -> None:
    source = open_source(machine=machine(tree, tmp_path, **scripts), interval_s=0.1)
    assert source is not None and source.name == expected and expected in CHOICES
    assert source.notes == ()
    source.close()


def test_a_firmware_that_may_not_be_asked_is_noted(tmp_path: Path) -> None:
    source = open_source(machine=machine("pi4", tmp_path, vcgencmd="exit 255"))
    assert source is not None and source.name == "sysfs"
    assert source.notes == ("vcgencmd may not ask the firmware; members of the group video may",)


@pytest.mark.parametrize("choice", ["jtop", "tegrastats", "vcgencmd"])
def test_a_source_that_is_not_there_is_refused_if_asked_for(tmp_path: Path, choice: str) -> None:
    with pytest.raises(OptionError, match=f"there is no telemetry from {choice} here: .* is not installed"):
        open_source(choice, machine=machine("pc", tmp_path))


def test_unknown_and_none() -> None:
    with pytest.raises(OptionError, match="unknown telemetry 'nvml'"):
        check_available("nvml")
    assert open_source("none") is None
    for choice in ("auto", "none", "sysfs"):
        check_available(choice)
