"""Builds each ONNX artifact twice with TensorRT for RTX, weights tied and untied, and compares the plans.

    python tools/engine_sharing.py ARTIFACT… [--compute-capability 8.6]

Untied means that every use of a kernel has a copy of its own, with other bytes, as if the T steps of the
recurrence had separate weights.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from csr_deploy.artifact import read_artifact
from csr_deploy.runtimes.trt.build import BuildOptions, build_plan
from csr_deploy.runtimes.trt.library import load_tensorrt


def untie(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every use of an initializer with two or more axes has bytes of its own."""
    untied = onnx.ModelProto()
    untied.CopyFrom(model)
    initializers = {i.name: i for i in untied.graph.initializer}
    rng = np.random.default_rng(0)
    used: set[str] = set()
    for node in untied.graph.node:
        for position, name in enumerate(node.input):
            if name not in initializers or len(initializers[name].dims) < 2:
                continue
            if name in used:
                values = numpy_helper.to_array(initializers[name])
                copy = f"{name}.copy{len(untied.graph.initializer)}"
                shuffled = rng.permutation(values.reshape(-1)).reshape(values.shape)
                untied.graph.initializer.append(numpy_helper.from_array(shuffled, copy))
                node.input[position] = copy
            used.add(name)
    return untied


def main() -> None:
    """Prints one row an artifact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--compute-capability", default="8.6")
    arguments = parser.parse_args()
    library = load_tensorrt("tensorrt-rtx")
    table = Table(title=f"Plans for compute capability {arguments.compute_capability}, {library.version}")
    for column in ("Artifact", "ONNX", "ONNX untied", "plan", "plan untied", "plan grows by"):
        table.add_column(column, justify="left" if column == "Artifact" else "right")
    for path in arguments.artifacts:
        artifact = read_artifact(path)
        model = onnx.load(artifact.model_file)
        sizes, plans = [], []
        for content in (model.SerializeToString(), untie(model).SerializeToString()):
            built = build_plan(content, library, BuildOptions(), (arguments.compute_capability,))
            sizes.append(len(content))
            plans.append(len(built.plan))
        figures = [*sizes, *plans, plans[1] - plans[0]]
        table.add_row(artifact.path.name, *(f"{f:,}" for f in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
