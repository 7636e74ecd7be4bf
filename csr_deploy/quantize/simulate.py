"""Float simulation of an int8 graph, node by node beside the float graph."""

from __future__ import annotations

import torch
from torch import Tensor

from csr_deploy.quantize.scheme import QMAX, QMIN
from csr_deploy.types import Quantization


def fake_quantize(value: Tensor, q: Quantization) -> Tensor:
    """Rounds a float tensor to the values that the quantisation can represent."""
    integers = torch.round(value / q.scale) + q.zero_point
    return (integers.clamp_(QMIN, QMAX) - q.zero_point) * q.scale
