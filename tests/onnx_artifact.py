"""A small artifact made by hand: an ONNX network that tells pictures apart by their colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csr_deploy.artifact import (
    GOLDEN,
    Artifact,
    Golden,
    read_artifact,
    record_file,
    write_golden,
    write_manifest,
)
from csr_deploy.data import Preprocessing
from csr_deploy.types import TensorSpec

SIDE = 16
CLASSES = ("blue", "green", "red")
PREPROCESSING = Preprocessing(SIDE, SIDE, (0.1, 0.1, 0.1), (0.5, 0.5, 0.5))
_BLURS = np.full((3, 3), 1 / 9, np.float32)


def make_model(path: Path, batch: int = 1, extra_channels: int = 0) -> None:
    """Conv 3×3, ReLU, global average, Gemm: the logits are the means of blue, green and red."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    channels = 3 + extra_channels
    kernel = np.zeros((channels, 3, 3, 3), np.float32)
    for channel in range(channels):
        kernel[channel, channel % 3] = _BLURS
    classifier = np.zeros((3, channels), np.float32)
    classifier[[0, 1, 2], [2, 1, 0]] = 1.0
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("Gemm", ["flat", "classifier"], ["logits"], transB=1),
        ],
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(classifier, "classifier")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def reference(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same network in NumPy: [N, H, W, 3] uint8 → [N, 3]."""
    x = np.pad(PREPROCESSING.normalize(images), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    blurred = np.einsum("nchwij,ij->nchw", windows, _BLURS)
    means = np.maximum(blurred, 0).mean(axis=(2, 3))
    return np.ascontiguousarray(means[:, ::-1], np.float32)


def pictures(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with one colour stronger: ([N, H, W, 3] uint8, [N])."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(0, 120, (count, SIDE, SIDE, 3))
    for image, label in zip(images, labels, strict=True):
        image[:, :, 2 - label] += 100
    return images.astype(np.uint8), labels.astype(np.int64)


def make_artifact(path: Path, *, name: str = "colours", batch: int = 1, extra_channels: int = 0) -> Artifact:
    """Writes the artifact and reads it back."""
    path.mkdir(parents=True)
    make_model(path / "model.onnx", batch, extra_channels)
    images, labels = pictures(6)
    logits = reference(images)
    write_golden(path / GOLDEN, Golden(images, labels, logits, logits))
    write_manifest(
        Artifact(
            path,
            name,
            "onnx",
            (record_file(path / "model.onnx"), record_file(path / GOLDEN)),
            TensorSpec("input", (batch, 3, SIDE, SIDE), "float32", "NCHW"),
            TensorSpec("logits", (batch, 3), "float32", "NC"),
            PREPROCESSING,
            CLASSES,
            model={"parameters": 90 + 30 * extra_channels, "macs": 20_745},
            ledger={"stored_bytes": 4 * (90 + 30 * extra_channels)},
            parity={"images": 6, "top1_agreement": 1.0},
        )
    )
    return read_artifact(path)


def rewrite(artifact: Artifact, **changes: object) -> Artifact:
    """Changes fields, and the records of its files where those were changed."""
    files = tuple(record_file(artifact.path / f.name) for f in artifact.files)
    write_manifest(replace(artifact, files=files, **changes))  # type: ignore[arg-type]
    return read_artifact(artifact.path)
