"""A stock converter's file as an artifact, so that it is checked and measured like all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.analysis import count_macs
from csr_deploy.artifact import GOLDEN, Artifact, Golden, record_file, write_golden, write_manifest
from csr_deploy.export import Network
from csr_deploy.models import count_parameters
from csr_deploy.runtimes import open_runtime
from csr_deploy.targets import Target
from csr_deploy.types import Quantization, TensorSpec

_GOLDEN_IMAGES = 16
_ORT_TYPES = {"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}


def wrap(model: Path, target: Target, network: Network, images: NDArray[np.uint8], folder: Path) -> Artifact:
    """Writes an artifact around a model file; its golden outputs are what the file itself gives here.

    Args:
        model: The file.
        target: Of this project, with the same runtime and numbers.
        network: What the file was made from.
        images: [N, H, W, C]; the first ones become golden.
        folder: Where to.

    Raises:
        CsrError: If the runtime cannot run it.
    """
    file = folder / model.name
    file.write_bytes(model.read_bytes())
    read = _read_tflite if target.runtime == "litert" else _read_onnx
    source, result = read(file, network)
    artifact = Artifact(
        path=folder,
        name=network.name,
        target=target.name,
        files=(record_file(file),),
        input=source,
        output=result,
        preprocessing=network.preprocessing,
        labels=network.labels,
        options={"made_by": "stock converters"},
        model={
            "macs": count_macs(network.model, network.input_shape(1)),
            "parameters": count_parameters(network.model),
        },
        source=network.source,
    )
    golden = images[:_GOLDEN_IMAGES]
    with open_runtime(target.runtime, artifact) as runtime:
        outputs = runtime.logits(golden)
    labels = np.full(len(golden), -1, np.int64)
    write_golden(folder / GOLDEN, Golden(golden, labels, network.logits(golden), outputs))
    artifact = replace(artifact, files=(*artifact.files, record_file(folder / GOLDEN)))
    write_manifest(artifact)
    return artifact


def _read_tflite(file: Path, network: Network) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a .tflite file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape = tuple(int(n) for n in source["shape"])
    layout = "NCHW" if shape == network.input_shape(shape[0]) else "NHWC"
    return _spec(source, layout), _spec(result, "NC")


def _spec(tensor: dict[str, Any], layout: str) -> TensorSpec:
    dtype = np.dtype(tensor["dtype"]).name
    scale, zero_point = tensor["quantization"]
    quantization = None if dtype.startswith("float") else Quantization(float(scale), int(zero_point))
    shape = tuple(int(n) for n in tensor["shape"])
    return TensorSpec(str(tensor["name"]), shape, dtype, layout, quantization)


def _read_onnx(file: Path, network: Network) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of an ONNX file, whose borders are float."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    return (
        TensorSpec(source.name, tuple(source.shape), _ORT_TYPES[source.type], "NCHW"),
        TensorSpec(result.name, tuple(result.shape), _ORT_TYPES[result.type], "NC"),
    )
