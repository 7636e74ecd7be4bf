"""Parameters and multiply-accumulates layer by layer, from shapes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.errors import ModelError
from csr_deploy.nn import CSRConv2d, parameter_ratio

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Recurrence:
    """What makes a layer a CSR-Conv.

    Attributes:
        num_steps: T.
        group_in: d, channels of an input group.
        group_out: D, channels of a hidden state.
        cell: Name of the step cell.
        plain_parameters: Parameters of the convolution in its place.
        plain_macs: Multiply-accumulates of the convolution in its place.
        prop1: λ_M of Prop. 1, parameters of Eq. 2 over those of the convolution where C_in = dT, C_out = DT.
        prop2: λ_F of Prop. 2, FLOPs likewise.
    """

    num_steps: int
    group_in: int
    group_out: int
    cell: str
    plain_parameters: int
    plain_macs: int
    prop1: float
    prop2: float


@dataclass(frozen=True)
class LayerFigures:
    """One module with parameters of its own.

    Attributes:
        name: As in `model.named_modules()`.
        kind: Class of the module; "CSRConv2d" for a CSR-Conv.
        parameters: Its parameters, BatchNorm's gain and bias included.
        nonzero: Those that are not zero; None where the weights are not trained.
        macs: Multiply-accumulates for one image; 0 for a module that computes no products of matrices.
        shape: Of its output without the batch axis; None if it did not run.
        kernel: Kernel size of a convolution.
        depth: Convolutions and matrix products one after another on the longest way through this layer, a
            CSR-Conv counting its steps; None where the network cannot be captured.
        recurrence: Of a CSR-Conv with T > 1.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int | None
    macs: int
    shape: tuple[int, ...] | None = None
    kernel: tuple[int, ...] | None = None
    depth: int | None = None
    recurrence: Recurrence | None = None

    @property
    def is_batch_norm(self) -> bool:
        """Whether it only scales and shifts channels."""
        return self.kind.startswith("BatchNorm")


def flop_ratio(group_in: int, group_out: int, num_steps: int) -> float:
    """λ_F of Prop. 2: CSR FLOPs over those of the plain convolution, C_in = dT and C_out = DT."""
    return (1 + 2 * group_out + 2 * group_in) / (1 + 2 * group_in * num_steps)


def layer_figures(
    model: nn.Module, input_shape: Sequence[int], *, trained: bool = False
) -> tuple[LayerFigures, ...]:
    """Every module with parameters of its own, in the order in which they first run.

    Nothing is computed: the network runs on shapes alone. A module that the network uses several times has
    one row, with the multiply-accumulates of all uses; modules that never run come last.

    Args:
        model: The network; left as it is.
        input_shape: [N, C, H, W] of the input; figures are for one image.
        trained: Whether its weights mean something, so that zeros in them are counted.

    Raises:
        ModelError: If the network does not take such an input.
    """
    rows = {
        name: _describe(name, module, trained)
        for name, module in model.named_modules()
        if _is_layer(module) and not _inside_csr(model, name)
    }
    shapes_only = copy.deepcopy(model).to("meta").eval()
    for name, row in rows.items():
        if row.is_batch_norm and name:
            # It keeps the shape, and what torch does to find that out takes most of the time.
            shapes_only.set_submodule(name, nn.Identity())
    order: list[str] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if name not in order:
                order.append(name)
            rows[name] = _with_use(rows[name], module, inputs[0], output, int(input_shape[0]))

        return hook

    for name in rows:
        shapes_only.get_submodule(name).register_forward_hook(note(name))
    try:
        with torch.inference_mode():
            shapes_only(torch.empty(tuple(input_shape), device="meta"))
    except RuntimeError as error:
        raise ModelError(f"does not take an input of shape {list(input_shape)}: {error}") from error
    return tuple(rows[name] for name in [*order, *(n for n in rows if n not in order)])


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CSRConv2d) or any(True for _ in module.parameters(recurse=False))


def _inside_csr(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    parents = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(isinstance(model.get_submodule(parent), CSRConv2d) for parent in parents)


def _describe(name: str, module: nn.Module, trained: bool) -> LayerFigures:
    parameters = list(module.parameters(recurse=isinstance(module, CSRConv2d)))
    nonzero = sum(int(torch.count_nonzero(p)) for p in parameters) if trained else None
    kernel = getattr(module, "kernel_size", None)
    return LayerFigures(
        name,
        type(module).__name__,
        sum(p.numel() for p in parameters),
        nonzero,
        0,
        kernel=tuple(kernel) if isinstance(kernel, tuple) else None,
    )


def _with_use(row: LayerFigures, module: nn.Module, x: Tensor, y: Any, batch: int) -> LayerFigures:
    """A row after the module ran on `x` and gave `y`."""
    if not isinstance(y, Tensor):
        return row
    macs = _macs(module, x, y) // batch
    made = replace(row, macs=row.macs + macs, shape=tuple(y.shape[1:]))
    if isinstance(module, CSRConv2d) and module.num_steps > 1:
        made = replace(made, recurrence=_recurrence(module, math.prod(y.shape[2:])))
    return made


def _macs(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, CSRConv2d):
        area = y.shape[0] * math.prod(y.shape[2:])
        if module.num_steps == 1:
            return module.conv.weight.numel() * area
        kernels = {n: p.numel() for n, p in module.cell.named_parameters() if p.ndim == 4}
        first = kernels.pop("v")
        # V meets every group, filled channels included; U meets every state but h_0 = 0.
        return (module.num_steps * first + (module.used_steps - 1) * sum(kernels.values())) * area
    if isinstance(module, _CONVOLUTIONS):
        return math.prod(module.weight.shape[1:]) * y.numel()
    if isinstance(module, _TRANSPOSED):
        return math.prod(module.weight.shape[1:]) * x.numel()
    if isinstance(module, nn.Linear):
        return module.in_features * y.numel()
    return 0


def _recurrence(module: CSRConv2d, area: int) -> Recurrence:
    filters = 1 if module.cell.depthwise else module.in_channels
    plain = module.out_channels * filters * math.prod(module.kernel_size)
    d, big_d, steps = module.group_in, module.group_out, module.num_steps
    return Recurrence(
        steps,
        d,
        big_d,
        module.cell_name,
        plain + (0 if module.bias is None else module.out_channels),
        plain * area,
        parameter_ratio(d, big_d, steps),
        flop_ratio(d, big_d, steps),
    )
