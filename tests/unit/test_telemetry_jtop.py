"""jetson-stats as its documentation describes it: it is not installed here, and runs on a Jetson only."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from csr_deploy.bench.telemetry import PowerMode, open_source
from csr_deploy.bench.telemetry.jtop import JtopSource, JtopUnavailableError
from tests.telemetry_trees import machine


class JtopException(Exception):
    pass


class Jtop:
    """Properties and units as documented: kHz, KiB, mW, °C, %."""

    started = True
    answering = True

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.closed = False
        self.cpu: Any = {
            "total": {"idle": 90.0},
            "cpu": [
                {"online": True, "freq": {"min": 729600, "max": 1510400, "cur": 1510400}, "idle": 38.5},
                {"online": False},
            ],
        }
        self.gpu: Any = {"gpu": {"type": "integrated", "status": {"load": 96.4}, "freq": {"cur": 624750}}}
        self.memory: Any = {
            "RAM": {"tot": 7650000, "used": 2886656},
            "EMC": {"cur": 2133000, "val": 21, "online": True},
        }
        self.temperature: Any = {
            "CPU": {"temp": 49.125, "online": True},
            "cv0": {"temp": -256, "online": False},
            "tj": {"temp": 49.5, "online": True},
        }
        self.power: Any = {
            "rail": {"VDD_CPU_GPU_CV": {"volt": 4984, "curr": 700, "power": 3489, "avg": 3000}},
            "tot": {"name": "VDD_IN", "volt": 4984, "curr": 1900, "power": 9470, "avg": 9000},
        }
        self.fan: Any = {"pwmfan": {"speed": [45.0], "rpm": [2100]}}
        self.nvpmodel: Any = SimpleNamespace(id=1, name="25W")
        self.jetson_clocks: Any = True

    def start(self) -> None:
        if not self.started:
            raise JtopException("The jtop.service is not active")

    def ok(self, spin: bool = False) -> bool:
        return self.answering

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("jtop")
    module.JtopException = JtopException  # type: ignore[attr-defined]
    module.jtop = type("jtop", (Jtop,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)
    return module


def test_it_comes_first_and_throttling_comes_from_sysfs(package: Any, tmp_path: Path) -> None:
    source = open_source(machine=machine("orin-nano", tmp_path, tegrastats="echo RAM 1/2MB"), interval_s=0.5)
    assert isinstance(source, JtopSource) and source.name == "jtop"
    assert source._jetson.interval == 0.5
    sample = source.sample()
    assert sample.power_mw == {"VDD_CPU_GPU_CV": 3489, "VDD_IN": 9470}
    assert sample.temperatures_c == {"cpu": 49.125, "tj": 49.5}
    assert sample.clocks_mhz["cpu0"] == 1510.4 and sample.clocks_mhz["gpu"] == 624.75
    assert sample.clocks_mhz["emc"] == 2133
    assert sample.load_percent == {"cpu0": 61.5, "gpu": 96.4, "emc": 21.0}
    assert sample.memory_used_mib == 2819 and (sample.fan_percent, sample.fan_rpm) == (45, 2100)
    assert sample.events["over-current event oc3"] == 37 and source.tells_throttling
    assert source.power_mode() == PowerMode(1, "25W", True)
    source.close()
    assert source._jetson.closed and source.notes == ()


def test_a_service_that_does_not_run_is_passed_over_with_a_note(package: Any, tmp_path: Path) -> None:
    package.jtop.started = False
    source = open_source(machine=machine("orin-nano", tmp_path))
    assert source is not None and source.name == "sysfs"
    assert source.notes == ("the service of jetson-stats does not answer: The jtop.service is not active",)
    package.jtop.started, package.jtop.answering = True, False
    source = open_source(machine=machine("orin-nano", tmp_path / "other"))
    assert source is not None and source.notes == ("the service of jetson-stats does not answer",)


def test_a_service_that_stops_leaves_sysfs(package: Any, tmp_path: Path) -> None:
    source = JtopSource(machine("orin-nano", tmp_path), 0.5)
    package.jtop.answering = False
    assert source.sample().power_mw["VDD_IN"] == pytest.approx(9250.304)
    assert source.notes == ("the service of jetson-stats ended: it has stopped; /sys was read instead",)


def test_readings_that_make_no_sense_are_counted(package: Any, tmp_path: Path) -> None:
    source = JtopSource(machine("orin-nano", tmp_path), 0.5)
    jetson = source._jetson
    jetson.cpu = {"cpu": [{"online": True, "freq": {"cur": "fast"}, "idle": float("nan")}, None]}
    jetson.gpu, jetson.fan, jetson.memory, jetson.temperature = None, {"pwmfan": {"speed": []}}, [], "hot"
    jetson.power = {"rail": {"VDD_SOC": {"power": True}}}
    sample = source.sample()
    assert source.malformed == 3 and sample.power_mw == {} and "tj" not in sample.temperatures_c
    json.dumps(asdict(sample), allow_nan=False)


def test_a_board_without_modes(package: Any, tmp_path: Path) -> None:
    source = JtopSource(machine("orin-nano", tmp_path), 0.5)
    source._jetson.nvpmodel = None
    assert source.power_mode() == PowerMode(1, "25W", True)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(JtopUnavailableError, match="jetson-stats is not installed"):
        JtopSource(machine("orin-nano", tmp_path), 0.5)


def test_no_extra_brings_it() -> None:
    # Its licence, AGPL-3.0, would bind whoever installs us.
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert "jetson-stats" not in project + constraints and "jtop" not in constraints
