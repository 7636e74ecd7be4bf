"""The parity gate: an exported network must compute what its checkpoint computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ParityError
from csr_deploy.targets import Tolerance
from csr_deploy.types import ParityReport


def decisions(logits: NDArray[Any]) -> NDArray[np.int64]:
    """The class of each image, [N, classes] → [N]: the greatest logit; the sign where there is only one.

    With one logit the greatest one would be the same whatever a network computes.
    """
    chosen = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
    return np.asarray(chosen, np.int64)


def compare(
    reference: NDArray[np.float32],
    exported: NDArray[np.float32],
    tolerance: Tolerance,
    *,
    runtime: str,
    images_sha256: str,
    labels: NDArray[np.int64] | None = None,
) -> ParityReport:
    """Compares logits of the same images.

    Args:
        reference: [N, classes] of the float checkpoint.
        exported: [N, classes] of the exported model, as real values.
        tolerance: What is demanded.
        runtime: What ran the exported model.
        images_sha256: Identity of the images.
        labels: [N], where the images have labels.
    """
    finite = bool(np.isfinite(exported).all())
    error = float(np.abs(reference - exported).max()) if finite else float("inf")
    spread = float(reference.max() - reference.min())
    agreement = float((decisions(reference) == decisions(exported)).mean())
    relative = error / spread if spread else float(error > 0)
    threshold = {"top1_agreement": tolerance.top1_agreement}
    passed = finite and agreement >= tolerance.top1_agreement
    if tolerance.relative_error is not None:
        threshold["relative_error"] = tolerance.relative_error
        passed = passed and relative <= tolerance.relative_error
    return ParityReport(
        images=len(reference),
        images_sha256=images_sha256,
        runtime=runtime,
        top1_agreement=agreement,
        max_abs_error=error,
        output_range=spread,
        relative_error=relative,
        threshold=threshold,
        passed=passed,
        float_top1=None if labels is None else float((reference.argmax(1) == labels).mean()),
        exported_top1=None if labels is None else float((exported.argmax(1) == labels).mean()),
    )


def check_parity(report: ParityReport, where: str) -> None:
    """Raises where the gate was not passed.

    Raises:
        ParityError: With the figures and what was demanded.
    """
    if report.passed:
        return
    if not math.isfinite(report.relative_error):
        raise ParityError(
            "the exported model gives logits that are infinite or not a number",
            where=where,
            fix="Nothing was written. Values are too large for the target's type: choose a float32 "
            "target, or scale the network's values down.",
        )
    raise ParityError(
        f"the exported model differs from the checkpoint on {report.images} images: top-1 agreement "
        f"{report.top1_agreement:.1%} (demanded {report.threshold['top1_agreement']:.1%}), largest error "
        f"{report.relative_error:.2g} of the output range"
        + (
            f" (allowed {report.threshold['relative_error']:g})"
            if "relative_error" in report.threshold
            else ""
        ),
        where=where,
        fix="Nothing was written. For int8, try more calibration images, or lower --agreement knowingly.",
    )
