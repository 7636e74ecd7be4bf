"""The one table of targets: what makes them, what runs them, what they need, how close they must be."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from csr_deploy.errors import OptionError


@dataclass(frozen=True)
class Tolerance:
    """How close an exported network must be to its float checkpoint on real images.

    Attributes:
        top1_agreement: Smallest share of images with the same top-1 class.
        relative_error: Largest |difference of a logit| / range of the float logits; None for no limit.
    """

    top1_agreement: float
    relative_error: float | None


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        name: As typed after --target.
        summary: One line for --list-targets.
        exporter: "module:object" of an `Exporter`, imported only when used.
        runtime: Key of `csr_deploy.runtimes.RUNTIMES` that runs it here.
        extra: Extra of csr-deploy that brings what it needs, or several with commas between.
        packages: Import name → distribution, needed to export.
        tolerance: Default of the parity gate.
        weight_bits: Width of stored weights: 32, 16 or 8.
        checked_with: Runtime of the parity gate where `runtime` needs the device; None for `runtime`.
    """

    name: str
    summary: str
    exporter: str
    runtime: str
    extra: str
    packages: Mapping[str, str]
    tolerance: Tolerance
    weight_bits: int
    checked_with: str | None = None

    @property
    def verifier(self) -> str:
        """Runtime of the parity gate."""
        return self.checked_with or self.runtime

    @property
    def quantized(self) -> bool:
        """Whether it needs calibration data."""
        return self.weight_bits == 8

    def missing(self) -> list[str]:
        """Distributions that are needed to export and not installed."""
        return [dist for module, dist in self.packages.items() if importlib.util.find_spec(module) is None]


_TORCH = {"torch": "torch"}
_ONNX = {**_TORCH, "onnx": "onnx", "onnxruntime": "onnxruntime"}
_TFLITE = {**_TORCH, "flatbuffers": "flatbuffers", "ai_edge_litert": "ai-edge-litert"}
_TFLM = {**_TFLITE, "tflite_micro": "tflite-micro"}
_TENSORRT = "csr_deploy.exporters.tensorrt"
_FLOAT = Tolerance(1.0, 1e-4)
_HALF = Tolerance(0.99, 1e-2)
_INT8 = Tolerance(0.95, None)

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "onnx", "ONNX, float32",
            "csr_deploy.exporters.onnx:EXPORTER", "ort", "export", _ONNX, _FLOAT, 32,
        ),
        Target(
            "onnx-int8", "ONNX, static int8: QLinearConv and Q/DQ, per-channel weights",
            "csr_deploy.exporters.onnx:EXPORTER", "ort", "export", _ONNX, _INT8, 8,
        ),
        Target(
            "tflite-fp32", "TFLite, float32",
            "csr_deploy.exporters.tflite:EXPORTER", "litert", "export", _TFLITE, _FLOAT, 32,
        ),
        Target(
            "tflite-fp16", "TFLite, float16 weights, float32 arithmetic",
            "csr_deploy.exporters.tflite:EXPORTER", "litert", "export", _TFLITE, _HALF, 16,
        ),
        Target(
            "tflite-int8", "TFLite, full integer, int8 input and output; also runs in TFLite Micro",
            "csr_deploy.exporters.tflite:EXPORTER", "litert", "export", _TFLITE, _INT8, 8,
        ),
        Target(
            "tflm", "TFLite Micro: the int8 model as a C array, its op resolver and arena",
            "csr_deploy.exporters.tflm:EXPORTER", "tflm", "export,mcu", _TFLM, _INT8, 8,
        ),
        Target(
            "mcu", "C99 for microcontrollers, without a runtime; from .tflite files too",
            "csr_deploy.exporters.mcu.exporter:EXPORTER", "mcu", "export,mcu", _TFLITE, _INT8, 8,
        ),
        Target(
            "native", "C as a shared library for Linux boards, int8; from .tflite files too",
            "csr_deploy.exporters.native.exporter:EXPORTER", "native", "export", _TFLITE, _INT8, 8,
        ),
        Target(
            "tensorrt-fp32", "TensorRT 10 and 11: strongly typed ONNX, float32",
            f"{_TENSORRT}:FLOAT32", "trt", "export", _ONNX, _FLOAT, 32, "ort",
        ),
        Target(
            "tensorrt-fp16", "TensorRT 10 and 11: strongly typed ONNX, float16",
            f"{_TENSORRT}:FLOAT16", "trt", "export", _ONNX, _HALF, 16, "ort",
        ),
        Target(
            "tensorrt-int8", "TensorRT 10 and 11: strongly typed ONNX with symmetric int8 Q/DQ",
            f"{_TENSORRT}:INT8", "trt", "export", _ONNX, _INT8, 8, "ort",
        ),
    )
}  # fmt: skip


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        OptionError: If there is none, with the closest names.
    """
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, n=2)
    raise OptionError(
        f"unknown target '{name}'",
        fix=f"Did you mean {' or '.join(close)}?" if close else f"Targets: {', '.join(TARGETS)}.",
    )
