"""Makes equal constants one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from csr_deploy.exporters.mcu.ir import Model, Tensor, rebuild


def _key(tensor: Tensor) -> Any:
    assert tensor.data is not None
    q = None if tensor.scales is None or tensor.zero_points is None else (
        tensor.scales.tobytes(), tensor.zero_points.tobytes(), tensor.axis
    )  # fmt: skip
    return (tensor.dtype, tensor.shape, tensor.data.tobytes(), q)


def share_constants(model: Model) -> Model:
    """See the module's description."""
    first: dict[Any, str] = {}
    names: dict[str, str] = {}
    for name, tensor in model.tensors.items():
        if tensor.data is not None:
            names[name] = first.setdefault(_key(tensor), name)
    ops = [replace(op, inputs=tuple(names.get(i, i) for i in op.inputs)) for op in model.ops]
    return rebuild(model, ops)
