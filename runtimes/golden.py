"""Golden vectors: proof that a runtime on this machine computes what the export recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ArtifactError, OptionError, ParityError
from csr_deploy.parity import decisions
from csr_deploy.runtimes.base import Runtime
from csr_deploy.targets import find_target

_SAME_KERNELS_COUNTS = 2
# XNNPACK against the reference kernels gave up to 4 on the logits of 600 images of trained CSR networks.
_OTHER_KERNELS_COUNTS = 8
_FLOAT_SHARE_OF_RANGE = 1e-4
# Where a GPU runs what a CPU wrote the golden vectors for, by width of the weights: float32 convolutions use
# TF32 (10 bits of mantissa), float16 ones add up in another order, and int8 ones round a count up or down now
# and then, which the next layers carry on. Bounds, not measurements.
_GPU_SHARE_OF_RANGE = {32: 5e-3, 16: 2e-2, 8: 5e-2}


@dataclass(frozen=True)
class GoldenReport:
    """How a runtime's outputs compare with an artifact's golden vectors.

    Attributes:
        images: Number of golden images.
        exact: Whether every output is equal to the stored one, bit by bit.
        max_difference: Largest difference: counts for integers, share of the outputs' range for floats.
        tolerance: What is allowed, in the same unit.
        float_agreement: Share of the images with the same top-1 class as the float checkpoint.
    """

    images: int
    exact: bool
    max_difference: float
    tolerance: float
    float_agreement: float


def verify_golden(runtime: Runtime) -> GoldenReport:
    """Runs an artifact's golden images and compares the raw outputs with the stored ones.

    On the kernels that wrote them they are equal. Other processors round differently now and then: integer
    outputs may differ by 2 counts, floats by 1e-4 of their range, floats that come out of int8 arithmetic
    (ONNX) by 8/255 of it. Other kernels than the export's (LiteRT's
    reference kernels, TFLite Micro) round at other places: 8 counts. TensorRT on a GPU, whose artifacts are
    checked with ONNX Runtime at export: 0.5, 2 or 5 per cent of the range for float32, float16 or int8. The
    top-1 class must be the same unless the stored outputs of the two classes are that close themselves.

    Args:
        runtime: Open, with an artifact as its subject.

    Raises:
        ParityError: If the outputs differ by more.
        ArtifactError: If the golden vectors do not fit the artifact.
        OptionError: If the subject is no artifact: only artifacts have golden vectors.
    """
    artifact = runtime.subject
    if not isinstance(artifact, Artifact):
        raise OptionError("only an artifact has golden vectors", where=artifact.name)
    golden = artifact.golden()
    stored = golden.outputs
    spec = artifact.output
    if not len(stored) or len(stored) != len(golden.images) or stored.dtype != np.dtype(spec.dtype):
        raise ArtifactError(
            f"its golden vectors hold {len(golden.images)} images "
            f"and {stored.dtype}{list(stored.shape)} outputs",
            where=str(artifact.path),
            fix="Export it again.",
        )
    outputs = runtime.logits(golden.images)
    if outputs.shape != stored.shape:
        raise _differs(artifact, runtime, f"gives outputs of shape {outputs.shape}, not {stored.shape}")
    tolerance = _tolerance(runtime, artifact)
    unit = 1.0 if spec.quantization else float(np.ptp(stored)) or 1.0
    wide = stored.astype(np.float64)
    differences = np.abs(outputs.astype(np.float64) - wide) / unit
    largest = float(differences.max())
    # NaN compares as false: it must fail.
    if not largest <= tolerance:
        image = int(np.nan_to_num(differences, nan=np.inf).max(axis=1).argmax())
        kind = "counts" if spec.quantization else "of the output range"
        raise _differs(
            artifact, runtime, f"differs by {largest:.3g} {kind} on image {image}, {tolerance:g} allowed"
        )
    rows = np.arange(len(stored))
    lead = (wide[rows, stored.argmax(1)] - wide[rows, outputs.argmax(1)]) / unit
    if np.any(lead > tolerance):
        raise _differs(artifact, runtime, f"gives another top-1 class on image {int(lead.argmax())}")
    return GoldenReport(
        len(stored),
        bool(np.array_equal(outputs, stored)),
        largest,
        tolerance,
        _agreement(outputs, golden.float_logits),
    )


def _tolerance(runtime: Runtime, artifact: Artifact) -> float:
    target = find_target(artifact.target)
    if artifact.output.quantization is None:
        same_arithmetic = runtime.name == target.verifier or target.verifier == target.runtime
        if not same_arithmetic:
            return _GPU_SHARE_OF_RANGE[target.weight_bits]
        # ONNX Runtime takes other int8 kernels on every processor: 0.8 per cent were seen, x86 to AArch64.
        return _OTHER_KERNELS_COUNTS / 255 if target.weight_bits == 8 else _FLOAT_SHARE_OF_RANGE
    same_runtime = runtime.name == target.runtime
    same_kernels = same_runtime and runtime.kernels == runtime.available_kernels[0]
    return float(_SAME_KERNELS_COUNTS if same_kernels else _OTHER_KERNELS_COUNTS)


def _agreement(outputs: NDArray[Any], float_logits: NDArray[np.float32]) -> float:
    return float((decisions(outputs) == decisions(float_logits)).mean())


def _differs(artifact: Artifact, runtime: Runtime, what: str) -> ParityError:
    return ParityError(
        f"the {runtime.name} runtime ({runtime.version}, {runtime.kernels} kernels) {what}",
        where=str(artifact.path),
        fix="It does not compute here what the export recorded. Export it again, or use "
        "another version of the runtime.",
    )
