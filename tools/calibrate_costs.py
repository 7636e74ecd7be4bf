"""Fits the cost model that --lowering auto chooses by, to small networks measured on a processor.

    python tools/calibrate_costs.py --runtime litert --numbers int8 --processor pi5 --out mine.json
    csr-export model.pt --target tflite-int8 --optimize-for mine.json …

Chains of residual blocks of many widths, backbone, depth-wise and CSR, each lowered in several ways, and
chains of one kind of operation (tools/cost_probes.py) are exported and measured: `pi4` and `pi5` count
instructions on the emulated board (exact; see docs/emulated-pi.md), `here` takes the median time on this
machine, interleaved. Measurements are kept beside --out and are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cost_probes import Probe, probes
from torch import Tensor, nn

from csr_deploy.atomic import atomic_write
from csr_deploy.bench.emulated_pi.emulator import Job, count
from csr_deploy.data import Preprocessing
from csr_deploy.export import find_exporter
from csr_deploy.exporters.base import WriteRequest
from csr_deploy.nn import CSRConv2d
from csr_deploy.quantize import QuantizeOptions, quantize
from csr_deploy.targets import find_target
from csr_deploy.unroll.capture import capture
from csr_deploy.unroll.cost import fit
from csr_deploy.unroll.graph import Graph
from csr_deploy.unroll.lowering import Lowering
from csr_deploy.unroll.passes.unroll import unroll_stepwise, unroll_time_major

TARGETS = {
    ("litert", "int8"): "tflite-int8",
    ("litert", "float32"): "tflite-fp32",
    ("ort", "int8"): "onnx-int8",
    ("ort", "float32"): "onnx",
}
# Channels, T, side of the picture.
SHAPES = (
    (32, 4, 16), (64, 4, 8), (64, 3, 8), (32, 3, 16), (16, 2, 16), (128, 4, 4), (64, 2, 8), (16, 4, 32),
    (48, 3, 8), (24, 2, 16), (128, 5, 8), (256, 5, 4), (96, 3, 8), (40, 5, 8),
)  # fmt: skip
# Channels, side of the picture, kernel.
DEPTHWISE = ((32, 16, 3), (96, 16, 3), (144, 8, 3), (384, 4, 3), (24, 32, 3), (96, 8, 5), (240, 4, 5))


class Block(nn.Module):
    """A residual block, backbone (steps = 1) or CSR."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.first = self._conv(channels, steps)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = self._conv(channels, steps)
        self.norm2 = nn.BatchNorm2d(channels)

    @staticmethod
    def _conv(channels: int, steps: int) -> nn.Module:
        if steps == 1:
            return nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return CSRConv2d(channels, channels, 3, steps, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(out)))


class DepthwiseBlock(nn.Module):
    """A residual block of a depth-wise and a point-wise convolution, as in MobileNets."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.pointwise(torch.relu(self.norm1(self.depthwise(x)))))
        return x + out


class Chain(nn.Module):
    """A stem, blocks of one kind, pooling and a classifier."""

    def __init__(self, channels: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Sample:
    """One network and one lowering: what is measured, and what it is called."""

    channels: int
    steps: int
    side: int
    groups: bool = False
    joint: str | None = None
    pixels: int = 1
    time_major: bool = False
    folded: int = 1
    depthwise: int = 0

    @property
    def name(self) -> str:
        """Unique."""
        way = "time-major" if self.time_major else f"{'groups' if self.groups else 'whole'}-{self.joint}"
        name = f"c{self.channels}-t{self.steps}-s{self.side}-{way}-x{self.pixels}"
        name += f"-f{self.folded}" if self.folded > 1 else ""
        return name + (f"-d{self.depthwise}" if self.depthwise else "")

    def build(self) -> nn.Module:
        """The network, of two blocks."""
        if self.depthwise:
            return Chain(self.channels, [DepthwiseBlock(self.channels, self.depthwise) for _ in range(2)])
        return Chain(self.channels, [Block(self.channels, self.steps) for _ in range(2)])

    @property
    def strategy(self) -> Lowering:
        """How it is lowered."""
        unroll = unroll_time_major if self.time_major else unroll_stepwise
        joint, pixels, folded = self.joint, self.pixels, self.folded
        return Lowering(
            unroll,
            self.groups,
            (lambda *_: joint) if joint else None,  # type: ignore[arg-type]
            (lambda *_: pixels) if pixels > 1 else None,
            folded=(lambda *_: folded) if folded > 1 else None,
        )


def samples(most: int, wide: bool) -> list[Sample]:
    """The backbones, depth-wise networks, and a seeded draw of CSR networks and lowerings."""
    drawn = []
    for channels, steps, side in SHAPES:
        for groups in (False, True):
            for joint in (None, "rows", "channels"):
                for pixels in (1, 2, 4) if wide and groups else (1,):
                    for folded in (1, 4) if wide else (1,):
                        drawn.append(Sample(channels, steps, side, groups, joint, pixels, folded=folded))
        drawn.append(Sample(channels, steps, side, time_major=True))
    random.Random(0).shuffle(drawn)
    plain = list(dict.fromkeys(Sample(c, 1, s) for c, _, s in SHAPES))
    plain += [Sample(c, 1, s, depthwise=k) for c, s, k in DEPTHWISE]
    return plain + drawn[:most]


def make(sample: Sample | Probe, target_name: str, path: Path, seed: int, signed: bool = False) -> Graph:
    """Writes the sample's model and returns its graph."""
    target = find_target(target_name)
    exporter = find_exporter(target)
    torch.manual_seed(seed)
    shape = (1, 3, sample.side, sample.side)
    if isinstance(sample, Probe):
        lowered = sample.graph(seed)
    else:
        lowered = sample.strategy(capture(sample.build().eval(), shape))
    graph = exporter.legalise(lowered)
    quantized = None
    if target.quantized:
        preprocessing = Preprocessing(sample.side, sample.side, (0.5,) * 3, (0.25,) * 3)
        images = torch.randn(16, *shape[1:]).clamp(-2, 2)
        quantized = quantize(
            graph, [images], preprocessing, QuantizeOptions(bias_correction=False), exporter.scheme
        )
        graph = quantized.graph
    request = WriteRequest(graph, quantized, target.weight_bits, path, sample.name, signed_activations=signed)
    exporter.write(request)
    return graph


def timed_here(runtime: str, paths: Sequence[Path], rounds: int = 200) -> Iterator[float]:
    """Median nanoseconds of each model, one thread, in turns."""
    runs = [_opened(runtime, path) for path in paths]
    times: list[list[int]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter_ns()
            run()
            kept.append(time.perf_counter_ns() - start)
    return (float(statistics.median(t)) for t in times)


def _opened(runtime: str, path: Path) -> Callable[[], object]:
    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.invoke()
        return interpreter.invoke  # type: ignore[no-any-return]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    feed = {source.name: np.zeros(source.shape, np.float32)}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def main() -> None:
    """Measures what is not measured yet, fits, writes."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--runtime", choices=["litert", "ort"], required=True)
    parser.add_argument("--numbers", choices=["int8", "float32"], required=True)
    parser.add_argument("--processor", choices=["pi4", "pi5", "here"], required=True)
    parser.add_argument(
        "--signed", action="store_true", help="int8 activations where the format has uint8 as well"
    )
    parser.add_argument("--name", help="how the model is called; by default runtime, numbers and processor")
    parser.add_argument("--samples", type=int, default=46)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = TARGETS[args.runtime, args.numbers]
    kept = args.out.with_suffix(".measured.json")
    measured: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    channels_last = args.runtime == "litert" or args.numbers == "int8"
    chosen: list[Sample | Probe] = [*samples(args.samples, channels_last), *probes()]
    graphs = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for index, sample in enumerate(chosen):
            path = Path(folder) / f"{index}{'.tflite' if args.runtime == 'litert' else '.onnx'}"
            graphs.append(make(sample, target, path, index, args.signed))
            paths[sample.name] = path
        missing = [s.name for s in chosen if s.name not in measured]

        def keep(name: str, cost: float) -> None:
            measured[name] = cost
            with atomic_write(kept) as temporary:
                temporary.write_text(json.dumps(measured, indent=1))

        if args.processor == "here":
            for name, cost in zip(
                missing, timed_here(args.runtime, [paths[n] for n in missing]), strict=True
            ):
                keep(name, cost)
        elif missing:
            jobs = [Job(name, paths[name], args.runtime) for name in missing]
            failed = count(
                jobs, args.processor, on_done=lambda c: None if c.error else keep(c.name, c.instructions)
            )
            for each in failed:
                if each.error:
                    raise SystemExit(f"{each.name}: {each.error}")
    costs = [measured[s.name] for s in chosen]
    name = args.name or f"{args.runtime} {args.numbers} {args.processor}"
    model = fit(name, graphs, costs, channels_last=channels_last)
    model = replace(model, signed_activations=args.signed)
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(model.record(), indent=1) + "\n")
    print(json.dumps(model.record(), indent=1))


if __name__ == "__main__":
    main()
