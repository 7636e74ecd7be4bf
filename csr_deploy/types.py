"""The vocabulary that crosses module borders. Imports neither torch nor an exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ArtifactError

DTYPES = ("float32", "float16", "int8", "uint8")


@dataclass(frozen=True)
class Quantization:
    """Affine per-tensor quantisation: real = scale · (integer − zero_point)."""

    scale: float
    zero_point: int

    def quantize(self, values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """Real values to integers, rounding half away from zero as TFLite does, saturating."""
        info = np.iinfo(dtype)
        scaled = np.asarray(values, np.float32) / np.float32(self.scale)
        rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)) + self.zero_point
        integers: NDArray[Any] = np.clip(rounded, info.min, info.max).astype(dtype)
        return integers

    def dequantize(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Integers to real values."""
        return (np.float32(self.scale) * (values.astype(np.int32) - self.zero_point)).astype(np.float32)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model file.

    Attributes:
        name: Name in the model file.
        shape: Full shape, batch first.
        dtype: One of `DTYPES`.
        layout: "NCHW", "NHWC" for pictures, "NC" for logits.
        quantization: Present for integer types.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    quantization: Quantization | None = None

    def encode(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Brings NCHW (or NC) float32 values into this layout and type, keeping the batch size."""
        if self.layout == "NHWC":
            values = values.transpose(0, 2, 3, 1)
        if self.quantization is not None:
            return np.ascontiguousarray(self.quantization.quantize(values, self.dtype))
        return np.ascontiguousarray(values, dtype=self.dtype)

    def decode(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Inverse of `encode` for logits and NHWC tensors, up to rounding."""
        real = self.quantization.dequantize(values) if self.quantization else values.astype(np.float32)
        return np.ascontiguousarray(real.transpose(0, 3, 1, 2)) if self.layout == "NHWC" else real

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        q = self.quantization
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "layout": self.layout,
            "quantization": None if q is None else {"scale": q.scale, "zero_point": q.zero_point},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TensorSpec:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: If a value is missing or of the wrong kind.
        """
        try:
            q = values["quantization"]
            spec = cls(
                str(values["name"]),
                tuple(int(v) for v in values["shape"]),
                str(values["dtype"]),
                str(values["layout"]),
                None if q is None else Quantization(float(q["scale"]), int(q["zero_point"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"a tensor record is damaged: {error!r}") from error
        if spec.dtype not in DTYPES or (spec.dtype in ("int8", "uint8")) != (spec.quantization is not None):
            raise ArtifactError(f"a tensor record makes no sense: {spec}")
        return spec


@dataclass(frozen=True)
class Run:
    """One inference.

    Attributes:
        output: The raw output, as the artifact's output spec says, [N, classes].
        nanoseconds: Wall time from handing over the input to holding the output, copies included unless the
            runtime's settings say otherwise.
        gpu_nanoseconds: Time on the GPU from the first to the last kernel, without copies; None where no GPU
            ran or the runtime does not tell.
    """

    output: NDArray[Any]
    nanoseconds: int
    gpu_nanoseconds: int | None = None


@dataclass(frozen=True)
class ParityReport:
    """How an exported network compares with its checkpoint on real images.

    Attributes:
        images: Number of images.
        images_sha256: Their identity.
        runtime: What ran the exported model.
        top1_agreement: Share of images with the same top-1 class as the float checkpoint.
        max_abs_error: Largest difference of a logit.
        output_range: Largest minus smallest float logit over all images.
        relative_error: max_abs_error / output_range.
        threshold: What was demanded: {"top1_agreement": …, "relative_error": …}.
        passed: Whether it was met.
        float_top1: Accuracy of the checkpoint on these images, None without labels.
        exported_top1: Accuracy of the exported model, None without labels.
    """

    images: int
    images_sha256: str
    runtime: str
    top1_agreement: float
    max_abs_error: float
    output_range: float
    relative_error: float
    threshold: Mapping[str, float]
    passed: bool
    float_top1: float | None = None
    exported_top1: float | None = None
