"""ONNX models and artifacts for TensorRT, and the library that builds them here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from csr_deploy.artifact import Artifact
from csr_deploy.errors import MissingDependencyError
from csr_deploy.runtimes.trt.library import RTX, TensorRT, load_tensorrt
from tests.onnx_artifact import make_artifact, rewrite

SHAPE = (1, 3, 8, 8)


def rtx() -> TensorRT:
    """TensorRT for RTX: NVIDIA's own parser and builder, without a GPU."""
    try:
        return load_tensorrt(RTX)
    except MissingDependencyError as error:
        pytest.skip(f"needs tensorrt-rtx: {error.what}")


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    shape: Sequence[int | str] = SHAPE,
    domain: str = "",
) -> bytes:
    """A model from x to y, both float32."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 19)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return content


def recurrence(steps: int, *, shared: bool, channels: int = 16) -> bytes:
    """x → conv → relu → conv → relu → … with one kernel for all steps, or one for each."""
    random = np.random.default_rng(0)
    constants = {"V": random.standard_normal((channels, 3, 3, 3)).astype(np.float32) / 5}
    nodes = [helper.make_node("Conv", ["x", "V"], ["h0"], pads=[1] * 4)]
    for step in range(steps):
        name = "U" if shared else f"U{step}"
        if name not in constants:
            kernel = random.standard_normal((channels, channels, 3, 3)) / 12
            constants[name] = kernel.astype(np.float32)
        nodes.append(helper.make_node("Relu", [f"h{step}"], [f"r{step}"]))
        nodes.append(helper.make_node("Conv", [f"r{step}", name], [f"h{step + 1}"], pads=[1] * 4))
    nodes.append(helper.make_node("Relu", [f"h{steps}"], ["y"]))
    return model(nodes, constants)


def make_trt_artifact(path: Path, **options: int | str) -> Artifact:
    """The artifact of tests/onnx_artifact.py as one of the target tensorrt-fp32."""
    return rewrite(make_artifact(path, **options), target="tensorrt-fp32")  # type: ignore[arg-type]
