"""Channels that BatchNorm no longer normalises: dead in training, and an explosion when they wake up.

A state whose ReLU closed for good has no variance, and BatchNorm's gain weight / sqrt(variance + eps) grows
to weight / sqrt(eps), some hundred times the weight. In training nothing comes of it, as there is nothing to
amplify. One image that opens the ReLU again is amplified layer after layer: logits of a million, and a range
that leaves int8 no step for anything else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def silence_dead_channels(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Makes constant what BatchNorm would amplify without having seen it vary.

    A channel is dead if its running variance is below BatchNorm's eps, so that eps and not the data decide on
    its gain. Its weight becomes 0: the output is the bias, which it was on the training data but for
    less than weight / sqrt(2) in the standard deviation.

    Args:
        model: Tells which entries belong to a BatchNorm; left unchanged.
        state: Of this model; left unchanged.

    Returns:
        The state, sharing what did not change, and the number of channels that were silenced.
    """
    result = dict(state)
    count = 0
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or not module.affine or module.running_var is None:
            continue
        prefix = f"{name}." if name else ""
        weight = result[f"{prefix}weight"]
        dead = (result[f"{prefix}running_var"] < module.eps) & (weight != 0)
        if found := int(dead.sum()):
            result[f"{prefix}weight"] = torch.where(dead, torch.zeros_like(weight), weight)
            count += found
    return result, count
