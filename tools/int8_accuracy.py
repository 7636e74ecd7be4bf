"""Top-1 of float and int8 on the same test images, for several ways to quantise.

    python tools/int8_accuracy.py CHECKPOINT… --data cifar10.zip [--images 2000] [--variant equal-scales …]

Every variant is exported to a .tflite file by the ordinary export and run in LiteRT; the interval is that of
the drop, 95 %, from the images on which the two differ.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from csr_deploy.data import class_map, open_dataset, sample
from csr_deploy.export import ExportOptions, Network, export, load_export_data
from csr_deploy.quantize import QuantizeOptions
from csr_deploy.runtimes import open_runtime
from csr_deploy.targets import find_target

VARIANTS = {
    "default": QuantizeOptions(),
    "equal-scales": QuantizeOptions(equal_steps=True),
    "keep-worst-1": QuantizeOptions(keep_worst=1),
    "keep-worst-4": QuantizeOptions(keep_worst=4),
    "min-max": QuantizeOptions(ranges="min-max"),
    "no-bias-correction": QuantizeOptions(bias_correction=False),
}


def main() -> None:
    """Prints one row a checkpoint and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: default")
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images")
    arguments = parser.parse_args()
    table = Table(title=f"int8 against float, {arguments.data}")
    for column in ("Network", "Variant", "Images", "Float", "int8", "Drop", "Same top-1", "Bytes"):
        table.add_column(column, justify="left" if column in ("Network", "Variant") else "right")
    target = find_target("tflite-int8")
    for checkpoint in arguments.checkpoints:
        network = Network.from_checkpoint(checkpoint)
        test = open_dataset(arguments.data, "test")
        drawn = sample(test, network.preprocessing, arguments.images, 0)
        expected = class_map(test, network.labels)[drawn.labels]
        real = network.logits(drawn.images).argmax(1)
        for variant in arguments.variant or ["default"]:
            options = ExportOptions(
                quantization=VARIANTS[variant],
                lowering=arguments.lowering,
                seed=arguments.seed,
                agreement=0.0,
            )
            data = load_export_data(network, arguments.data, options, quantized=True)
            with tempfile.TemporaryDirectory() as folder:
                artifact = export(network, target, data, Path(folder) / "artifact", options)
                with open_runtime(target.verifier, artifact) as runtime:
                    integer = runtime.logits(drawn.images).argmax(1)
                size = artifact.files[0].size
            change = (integer == expected).astype(float) - (real == expected)
            spread = 1.96 * change.std() / math.sqrt(len(change))
            table.add_row(
                network.name,
                variant,
                f"{len(drawn):,}",
                f"{(real == expected).mean():.2%}",
                f"{(integer == expected).mean():.2%}",
                f"{-100 * change.mean():.2f} ± {100 * spread:.2f}",
                f"{np.mean(integer == real):.2%}",
                f"{size:,}",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
