"""Replaces convolutions of any torch model by CSR-Conv."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import nn

from csr_deploy.errors import ModelError
from csr_deploy.nn.csr_conv import ChannelFill, CSRConv2d


def _check_replaceable(name: str, module: nn.Module) -> nn.Conv2d:
    if not isinstance(module, nn.Conv2d):
        raise ModelError(
            f"a {type(module).__name__} cannot become a CSR-Conv",
            where=name,
            fix="Name layers that are nn.Conv2d.",
        )
    reasons = []
    if module.groups != 1:
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
            fix="Leave it out of the layers to replace.",
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
        cell: See `CSRConv2d`.

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
    replacements: dict[nn.Module, CSRConv2d] = {}
    for name, steps in plan.items():
        if not name:
            raise ModelError(
                "the model itself cannot be replaced in place", fix="Wrap it, or build a CSRConv2d directly."
            )
        if name not in modules:
            convs = [n for n, m in modules.items() if isinstance(m, nn.Conv2d)]
            close = difflib.get_close_matches(name, convs, n=3)
            names = " or ".join(close) if close else ", ".join(convs)
            raise ModelError(
                f"the model has no layer '{name}'",
                fix=f"Did you mean {names}?" if close else f"Its convolutions: {names or 'none'}.",
            )
        conv = _check_replaceable(name, modules[name])
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
                cell=cell,
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
