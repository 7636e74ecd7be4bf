"""What a search optimises: counts, and costs measured on a target through the export and the benchmark."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csr_deploy.errors import OptionError
from csr_deploy.targets import TARGETS, find_target

ACCURACY = "accuracy"
_COUNTED = {"parameters": "", "macs": ""}
_BOARDS = ("pi4", "pi5")
_UNITS = {"latency": "× backbone", "instructions": "", "size": "bytes", "flash": "bytes", "ram": "bytes"}
_MCU = "mcu"


@dataclass(frozen=True)
class Objective:
    """One thing to optimise.

    Attributes:
        text: As it was given.
        kind: "accuracy", "parameters", "macs", "latency", "instructions", "size", "flash" or "ram".
        target: Target of the artifact that is measured; empty where none is.
        device: Where it runs: empty for this machine, "pi4" or "pi5" for an emulated Pi, or a Cortex-M in
            QEMU.
        unit: Of the value; empty for a count.
    """

    text: str
    kind: str
    target: str = ""
    device: str = ""
    unit: str = ""

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.kind == ACCURACY

    @property
    def timed(self) -> bool:
        """Whether it is a time or a process's memory, which other processes disturb."""
        return self.kind in ("latency", "ram") and not self.device and self.target != _MCU

    @property
    def show(self) -> Callable[[float], str]:
        """How a value is written."""
        if self.kind == ACCURACY:
            return "{:.2%}".format
        return "{:.3f}×".format if self.kind == "latency" else "{:,.0f}".format


def parse_objectives(texts: Sequence[str]) -> tuple[Objective, ...]:
    """Reads objectives as they are given on the command line; accuracy is always the first.

    Args:
        texts: `accuracy`, `parameters`, `macs`, `latency:TARGET`, `size:TARGET`, `ram:TARGET`,
            `instructions:pi4[:TARGET]` (or pi5), `instructions:PROCESSOR`, `flash:PROCESSOR` and
            `ram:PROCESSOR` of a Cortex-M in QEMU, `flash` and `ram` of the mcu target's tables and arena.

    Raises:
        OptionError: If one is none of these, is given twice, or accuracy is the only one.
    """
    found = [_parse(text) for text in texts if text != ACCURACY]
    if not found:
        raise OptionError(
            "accuracy alone has one answer: the network that is largest",
            where="--objective",
            fix="Add a cost, such as parameters or latency:tflite-int8.",
        )
    names = [o.text for o in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise OptionError(f"{', '.join(twice)} is given twice", where="--objective")
    return (Objective(ACCURACY, ACCURACY, unit="top-1"), *found)


def _parse(text: str) -> Objective:
    kind, *rest = text.split(":")
    known = [ACCURACY, *_COUNTED, *_UNITS]
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=2)
        raise OptionError(
            f"unknown objective '{text}'",
            where="--objective",
            fix=f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}.",
        )
    if kind in _COUNTED:
        if rest:
            raise OptionError(f"'{kind}' needs no target", where=f"--objective {text}")
        return Objective(text, kind)
    unit = _UNITS[kind]
    if kind in ("flash", "ram") and rest in ([], [_MCU]):
        return Objective(text, kind, _MCU, "", unit)
    if not rest:
        raise OptionError(
            f"'{kind}' needs a target",
            where=f"--objective {text}",
            fix=f"Write {kind}:pi4 or {kind}:cortex-m4."
            if kind == "instructions"
            else f"Write {kind}:TARGET, such as {kind}:tflite-int8.",
        )
    place = rest[0]
    if kind == "instructions" and place in _BOARDS:
        target = rest[1] if len(rest) > 1 else "tflite-int8"
        if find_target(target).runtime not in ("litert", "ort"):
            raise OptionError(
                f"an emulated Pi does not run the target '{target}'",
                where=f"--objective {text}",
                fix="Use an onnx… or tflite… target.",
            )
        return Objective(text, kind, target, place, unit)
    if len(rest) > 1:
        raise OptionError(f"'{text}' has too many parts", where="--objective")
    if kind in ("instructions", "flash", "ram") and place not in TARGETS:
        from csr_deploy.runtimes.mcu.devices import parse_device

        device = parse_device(f"qemu:{place}")
        return Objective(text, kind, _MCU, device.text, unit)
    if kind in ("instructions", "flash"):
        raise OptionError(
            f"'{kind}' is counted on a device, not on a target",
            where=f"--objective {text}",
            fix="Write instructions:pi4, instructions:pi5 or instructions:cortex-m4."
            if kind == "instructions"
            else "Write flash for the tables of the mcu target, or flash:cortex-m4 for all of it.",
        )
    target = find_target(place).name
    if kind in ("latency", "ram") and find_target(target).runtime in ("mcu", "tflm", "trt"):
        raise OptionError(
            f"'{target}' is not run on this machine's processor",
            where=f"--objective {text}",
            fix="Use an onnx… or tflite… target, or instructions:cortex-m4.",
        )
    return Objective(text, kind, target, "", unit)
