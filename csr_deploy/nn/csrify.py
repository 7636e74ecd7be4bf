"""Replaces convolutions of any torch model by CSR-Conv."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.nn.cells import StepCell, find_cell
from csr_deploy.nn.csr_conv import ChannelFill, CSRConv2d

_MOST_NAMES = 12


def _check_replaceable(name: str, module: nn.Module, cell: type[StepCell]) -> nn.Conv2d:
    if isinstance(module, CSRConv2d):
        raise ModelError(
            "this layer is a CSR-Conv already", where=name, fix="Replace layers of the backbone."
        )
    if not isinstance(module, nn.Conv2d):
        transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        kind = "transposed convolution" if transposed else type(module).__name__
        raise ModelError(
            f"a {kind} cannot become a CSR-Conv",
            where=name,
            fix="Name layers that are nn.Conv2d.",
        )
    reasons = []
    fix = "Leave it out of the layers to replace."
    if type(module).forward is not nn.Conv2d.forward:
        reasons.append(f"{type(module).__name__} computes more than nn.Conv2d does")
    if module.groups != 1 and module.groups == module.in_channels:
        if not cell.depthwise:
            reasons.append("it is depth-wise")
            fix = f"{fix[:-1]}, or give it the cell incremental-depthwise."
    elif module.groups != 1:
        reasons.append(f"it is grouped ({module.groups} groups)")
    if any(d != 1 for d in module.dilation):
        reasons.append(f"it is dilated {module.dilation}")
    if module.padding_mode != "zeros":
        reasons.append(f"its padding mode is '{module.padding_mode}'")
    if module.padding == "same" and not all(k % 2 for k in module.kernel_size):
        reasons.append(f"its padding is 'same' with an even kernel {module.kernel_size}")
    if reasons:
        raise ModelError(
            f"this convolution cannot become a CSR-Conv: {' and '.join(reasons)}",
            where=name,
            fix=fix,
        )
    return module


def _explicit_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        return (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    return (int(conv.padding[0]), int(conv.padding[1]))


def csrify(
    model: nn.Module,
    layers: Iterable[str] | Mapping[str, int],
    num_steps: int | None = None,
    *,
    channel_fill: ChannelFill = "zero",
    cell: str = "vanilla",
    layer_cells: Mapping[str, str] | None = None,
) -> nn.Module:
    """Replaces the named convolutions of a model by freshly initialised CSR-Convs, in place.

    A convolution's bias is kept, added to the concatenated states; the paper's networks have none, as
    a BatchNorm follows every replaced layer.

    Args:
        model: Any torch module.
        layers: Names of nn.Conv2d modules as in `model.named_modules()`, or a mapping name → T. A layer
            that the model uses in several places is replaced in all of them.
        num_steps: T for every layer, where `layers` is not a mapping.
        channel_fill: See `CSRConv2d`.
        cell: See `CSRConv2d`. A depth-wise convolution can only get a depth-wise cell.
        layer_cells: Layer name → its cell, for those of `layers` that get another one.

    Returns:
        The same model.

    Raises:
        ModelError: If a name does not exist, or that layer cannot be replaced. Nothing is changed then.
    """
    if isinstance(layers, str):
        layers = [layers]
    if isinstance(layers, Mapping):
        plan = dict(layers)
    elif num_steps is None:
        raise ModelError("csrify got layer names but no num_steps", fix="Give num_steps (T).")
    else:
        plan = dict.fromkeys(layers, num_steps)
    modules = dict(model.named_modules(remove_duplicate=False))
    cells = {name: (layer_cells or {}).get(name, cell) for name in plan}
    if unused := sorted((layer_cells or {}).keys() - plan.keys()):
        raise ModelError(f"there is a cell for '{unused[0]}', which is not replaced", fix="Give its T too.")
    replacements: dict[nn.Module, CSRConv2d] = {}
    for name, steps in plan.items():
        if not name:
            raise ModelError(
                "the model itself cannot be replaced in place", fix="Wrap it, or build a CSRConv2d directly."
            )
        if name not in modules:
            convs = [n for n, m in modules.items() if isinstance(m, nn.Conv2d)]
            close = difflib.get_close_matches(name, convs, n=3)
            more = f" and {len(convs) - _MOST_NAMES} more" if len(convs) > _MOST_NAMES else ""
            names = " or ".join(close) if close else ", ".join(convs[:_MOST_NAMES]) + more
            raise ModelError(
                f"the model has no layer '{name}'",
                fix=f"Did you mean {names}?" if close else f"Its convolutions: {names or 'none'}.",
            )
        conv = _check_replaceable(name, modules[name], find_cell(cells[name]))
        if type(steps) is not int:
            raise ModelError(f"num_steps (T) is {steps!r}", where=name, fix="Give a whole number, T ≥ 1.")
        try:
            csr = CSRConv2d(
                conv.in_channels,
                conv.out_channels,
                (conv.kernel_size[0], conv.kernel_size[1]),
                steps,
                (conv.stride[0], conv.stride[1]),
                _explicit_padding(conv),
                bias=conv.bias is not None,
                channel_fill=channel_fill,
                cell=cells[name],
            )
        except ModelError as error:
            raise ModelError(error.what, where=name, fix=error.fix) from error
        if csr.bias is not None and conv.bias is not None:
            csr.bias.data.copy_(conv.bias.data)
        csr.train(conv.training)
        replacements[conv] = csr.to(device=conv.weight.device, dtype=conv.weight.dtype)
    for name, module in modules.items():
        if module in replacements:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, replacements[module])
    return model
