"""Multiply-accumulates by the counter that torch keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csr_deploy.errors import ModelError


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward pass: convolutions and matrix products, as they are executed.

    A CSR-Conv layer counts T times V and T − 1 times U, filled channels included (h_0 = 0 is never
    multiplied). Element-wise operations, pooling and BatchNorm do not count. Nothing is computed: the network
    runs on shapes alone.

    Args:
        model: The network; left as it is.
        input_shape: [N, C, H, W] of the input.

    Raises:
        ModelError: If the network does not take such an input.
    """
    shapes_only = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.inference_mode():
            shapes_only(torch.empty(tuple(input_shape), device="meta"))
    except RuntimeError as error:
        raise ModelError(f"does not take an input of shape {list(input_shape)}: {error}") from error
    return int(counter.get_total_flops()) // 2
