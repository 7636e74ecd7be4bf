"""What is compared: networks, formats, and the ways in which a network becomes a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BACKBONES = {
    "resnet56-t4": "resnet56-projections",
    "resnet56-csr2": "resnet56",
    "vgg16-csr4": "vgg16",
    "mobilenetv2-csr2": "mobilenetv2",
}
"""CSR network → the backbone it is compared with, both keys of `networks.ARCHITECTURES`."""
STEPWISE, STOCK, LOWERED = "step by step", "stock", "lowered for "
BOARDS = {"pi4": "Pi 4", "pi5": "Pi 5"}
"""Emulated board → what tables call it."""


@dataclass(frozen=True)
class Format:
    """A runtime and the numbers it computes with.

    Attributes:
        runtime: "litert", "ort" or "native".
        numbers: "int8" or "float32".
        target: Key of `csr_deploy.targets.TARGETS`.
        package: Distribution whose version the measurements belong to.
        sources: Files of this project that its exports depend on besides the shared ones: patterns below
            the package.
        stock: Key of `stock_peer.SUFFIXES`; None where there are no stock converters.
        is_lowered: Whether there are costs to choose a lowering by.
    """

    runtime: str
    numbers: str
    target: str
    package: str
    sources: tuple[str, ...]
    stock: str | None = None
    is_lowered: bool = True

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.runtime} {self.numbers}"


_LITERT = ("exporters/tflite*.py", "exporters/flatbuffer*.py")
_ORT = ("exporters/onnx*.py",)
_NATIVE = (*_LITERT, "exporters/native/*", "exporters/mcu/**/*.py", "runtimes/mcu/c/*", "runtimes/native/*")
FORMATS = (
    Format("litert", "int8", "tflite-int8", "ai-edge-litert", _LITERT, "tflite-int8"),
    Format("litert", "float32", "tflite-fp32", "ai-edge-litert", _LITERT, "tflite"),
    Format("ort", "int8", "onnx-int8", "onnxruntime", _ORT, "onnx-int8"),
    Format("ort", "float32", "onnx", "onnxruntime", _ORT, "onnx"),
    Format("native", "int8", "native", "csr-deploy", _NATIVE, is_lowered=False),
)


def litert_of(form: Format) -> Format:
    """LiteRT with the same numbers: one scale for all runtimes."""
    return next(f for f in FORMATS if (f.runtime, f.numbers) == ("litert", form.numbers))


@dataclass(frozen=True)
class Variant:
    """A network made for a format in one way.

    Attributes:
        network: Key of `networks.ARCHITECTURES`.
        format: The format.
        way: `STEPWISE`, `STOCK`, or `LOWERED` and a board.
        boards: Emulated boards that it is counted on.
    """

    network: str
    format: Format
    way: str
    boards: tuple[str, ...]

    @property
    def is_csr(self) -> bool:
        """Whether it is compared with a backbone, and is none."""
        return self.network in BACKBONES

    @property
    def optimized_for(self) -> str | None:
        """The board it is lowered for."""
        return self.way.removeprefix(LOWERED) if self.way.startswith(LOWERED) else None

    @property
    def shown_way(self) -> str:
        """For tables."""
        return f"{LOWERED}{BOARDS[self.optimized_for]}" if self.optimized_for else self.way

    @property
    def name(self) -> str:
        """For messages; unique."""
        return f"{self.network} {self.format.label}, {self.shown_way}"

    def work(self, kind: str) -> str:
        """A kind of work on it; what has the same name takes about as long."""
        return f"{kind}:{self.network}:{self.format.label}"

    @property
    def folder(self) -> str:
        """Of the artifact, below that of all models."""
        return f"{self.way.replace(' ', '-')}/{self.network}-{self.format.target}"


@dataclass(frozen=True)
class Model:
    """A variant as a file.

    Attributes:
        variant: Which.
        path: Its artifact's directory.
        file: What a device loads: the model file, or the library for AArch64.
        macs: Multiply-accumulates of its graph, zeros of wide filters included.
        parameters: Of the checkpoint.
        size: Bytes of the file.
        digest: Identity of its content.
    """

    variant: Variant
    path: Path
    file: Path
    macs: int
    parameters: int
    size: int
    digest: str

    @classmethod
    def read(cls, variant: Variant, path: Path, file: Path, macs: int, parameters: int) -> Model:
        """With size and identity of the file as it is now."""
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return cls(variant, path, file, macs, parameters, len(content), digest)


def variants_of(
    network: str, formats: Sequence[Format], boards: Sequence[str], *, stock: bool
) -> Iterator[Variant]:
    """All variants of a network, the step-wise one of each format first.

    Every one is made by this project step by step; a CSR network is also lowered for each board, and counted
    on that board only.
    """
    for each in formats:
        yield Variant(network, each, STEPWISE, tuple(boards))
        if network in BACKBONES and each.is_lowered:
            for board in boards:
                yield Variant(network, each, f"{LOWERED}{board}", (board,))
        if stock and each.stock is not None:
            yield Variant(network, each, STOCK, tuple(boards))


def plan_variants(
    networks: Sequence[str], formats: Sequence[Format], boards: Sequence[str], *, stock: bool
) -> list[Variant]:
    """Variants of CSR networks and of their backbones, each backbone in front of its first network."""
    both = dict.fromkeys(n for name in networks for n in (BACKBONES[name], name))
    return [v for n in both for v in variants_of(n, formats, boards, stock=stock)]


def groups(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Variants that are compared: of one CSR network and its backbone, in one format; the backbone first."""
    found = []
    for network, backbone in BACKBONES.items():
        for each in dict.fromkeys(v.format for v in variants if v.network == network):
            found.append(
                [v for n in (backbone, network) for v in variants if (v.network, v.format) == (n, each)]
            )
    return found
