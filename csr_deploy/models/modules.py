"""What Table 2 of the paper counts as a "CSR-Conv module", and parts that several backbones share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from csr_deploy.errors import ModelError


@runtime_checkable
class CountsModules(Protocol):
    """A backbone whose convolutions can be named by a number of modules."""

    def csr_layers(self, modules: int) -> list[str]:
        """Names of the convolutions in the last `modules` modules.

        Raises:
            ModelError: If the backbone has fewer.
        """


@runtime_checkable
class NamesKinds(Protocol):
    """A backbone in which a layer's name does not end in its kind."""

    def csr_kind(self, layer: str) -> str:
        """What a layer of `csr_layers` is in its module: "expand", "project", …."""


def layer_kind(model: nn.Module, layer: str) -> str:
    """What a layer is in its module, as in the `layer_steps` of a preset."""
    return model.csr_kind(layer) if isinstance(model, NamesKinds) else layer.rpartition(".")[2]


def last_modules(names: Sequence[str], modules: int) -> Sequence[str]:
    """The last `modules` of a backbone's modules.

    Raises:
        ModelError: If there are not that many, or none is asked for.
    """
    if not 1 <= modules <= len(names):
        raise ModelError(
            f"{modules} CSR-Conv modules asked for, of {len(names)} in the backbone",
            fix=f"Give a number from 1 to {len(names)}.",
        )
    return names[len(names) - modules :]


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution without bias, padded by half its kernel, BatchNorm and an activation: names 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


def scaled_width(channels: float, divisor: int = 8) -> int:
    """The multiple of 8 nearest to a number of channels, never more than a tenth below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class DropPath(nn.Module):
    """Leaves a residual branch out for some images of a batch, in training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, …] → [N, …], whole images zero and the others scaled up."""
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
