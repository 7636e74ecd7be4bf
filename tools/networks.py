"""Makes checkpoints of the networks that the figures of the design document are measured on.

    python tools/networks.py OUT [--networks resnet56-t4 mobilenetv2-csr2 …]

Instructions, memory and bytes depend on shapes, and hardly on values: the weights are random and seeded, and
so are BatchNorm's gains, with the statistics that packaged Fashion-MNIST pictures give. Logits of such a
network say nothing about a picture, but they vary, so that two implementations can be compared. A file that
is there already is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csr_deploy.checkpoint import Checkpoint, save_checkpoint
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.models import Architecture, architecture

_SIZE = 32
_PICTURES = 16
_SEED = 0


def resnet56_projections(num_steps: int | None = None) -> Architecture:
    """ResNet-56 of 855,770 parameters, whose shortcuts are projections where the shape changes.

    Args:
        num_steps: T of all 36 3×3 convolutions of stages 2 and 3 (T = 4: 151,610 parameters); None leaves
            them plain.
    """
    plain = Architecture("resnet56", options={"projections": True}, name="resnet56-projections")
    if num_steps is None:
        return plain
    names = [f"layer{s}.{b}.conv{c}" for s in (2, 3) for b in range(9) for c in (1, 2)]
    return replace(plain, csr_layers=dict.fromkeys(names, num_steps), name=f"resnet56-t{num_steps}")


ARCHITECTURES: dict[str, Architecture] = {
    plan.name: plan
    for plan in (
        resnet56_projections(),
        resnet56_projections(4),
        *(
            architecture(name)
            for name in (
                "resnet56",
                "resnet56-csr2",
                "vgg16",
                "vgg16-csr4",
                "mobilenetv2",
                "mobilenetv2-csr2",
            )
        ),
    )
}
"""Name → architecture."""


def randomise(model: nn.Module, pictures: Tensor, seed: int = 0) -> nn.Module:
    """Random BatchNorm gains and biases, and the statistics that these pictures give; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0.0, 0.3, generator=generator)
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(pictures)
    return model.eval()


def make_checkpoint(name: str, out: Path) -> Path:
    """The checkpoint of an untrained network, made where it is missing.

    Args:
        name: A key of `ARCHITECTURES`.
        out: Folder of the checkpoints.

    Returns:
        `<out>/<name>.pt`.

    Raises:
        CsrError: If the file cannot be written.
    """
    path = out / f"{name}.pt"
    if path.exists():
        return path
    plan = ARCHITECTURES[name]
    preprocessing = Preprocessing(_SIZE, _SIZE, (0.5,) * 3, (0.25,) * 3)
    images = sample(open_dataset("fashion-mnist", "train"), preprocessing, _PICTURES, _SEED).images
    torch.manual_seed(_SEED)
    model = randomise(plan.build(), torch.from_numpy(preprocessing.normalize(images)), _SEED)
    labels = tuple(str(i) for i in range(plan.num_classes))
    out.mkdir(parents=True, exist_ok=True)
    record = {"untrained": True, "seed": _SEED}
    save_checkpoint(path, Checkpoint(plan, model.state_dict(), labels, preprocessing, record))
    return path


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the checkpoints")
    parser.add_argument(
        "--networks", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME"
    )
    options: Any = parser.parse_args(arguments)
    for name in options.networks:
        sys.stdout.write(f"{make_checkpoint(name, options.out)}\n")


if __name__ == "__main__":
    main()
