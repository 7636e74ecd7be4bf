"""Compiles a .tflite file to C with bakenn; run by the interpreter that bakenn is installed in.

    python bakenn_compile.py model.tflite OUT

Prints one JSON object, which `bakenn_peer.py` reads. Needs `pip install "bakenn[tflite]"` and nothing of
csr-deploy.

bakenn's own importer knows nine operations. What it refuses is read here and handed to bakenn's compiler
through its public graph types, which know more: SLICE, CONCATENATION, MEAN and the padding of channels. So
the peer is measured at what its compiler and its kernels can do, not at what its importer reads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

bakenn: Any = importlib.import_module("bakenn")
ir: Any = importlib.import_module("bakenn.ir")
schema: Any = importlib.import_module("tflite")

_MVE_LANES = 8
_MVE_DEPTHWISE_BLOCK = 124
_FULL = (-128, 127)


class _Refused(Exception):
    """The graph has something that bakenn's graph types cannot say."""


class _Reader:
    """A .tflite file as bakenn's graph."""

    def __init__(self, content: bytes) -> None:
        self.model = schema.Model.GetRootAsModel(content, 0)
        self.graph = self.model.Subgraphs(0)
        self.values: dict[str, Any] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.ops: list[Any] = []
        self.blocks: dict[int, tuple[str, int]] = {}
        """SPACE_TO_DEPTH outputs: what they are made of, and the block size."""

    def read(self) -> Any:
        """The whole graph."""
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        for position in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(position)
            kind = names[self.model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]
            reader = _READERS.get(kind)
            if reader is None:
                raise _Refused(f"operator {position}: bakenn has no {kind}")
            reader(self, operator, f"op{position}_{kind.lower()}")
        return ir.QuantizedGraph(
            name="model",
            values=self.values,
            constants=self.constants,
            ops=tuple(self.ops),
            inputs=(self.activation(self.graph.Inputs(0)),),
            outputs=(self.activation(self.graph.Outputs(0)),),
        )

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.graph.Tensors(index).ShapeAsNumpy())

    def data(self, index: int, dtype: str) -> NDArray[Any]:
        content = self.model.Buffers(self.graph.Tensors(index).Buffer()).DataAsNumpy()
        return np.frombuffer(np.asarray(content, np.uint8).tobytes(), dtype).reshape(self.shape(index))

    def scales(self, index: int) -> tuple[float, ...]:
        return tuple(float(s) for s in self.graph.Tensors(index).Quantization().ScaleAsNumpy())

    def per_tensor(self, index: int) -> Any:
        return ir.PerTensorQParams(
            self.scales(index)[0], int(self.graph.Tensors(index).Quantization().ZeroPoint(0))
        )

    def activation(self, index: int) -> str:
        name = f"t{index}"
        if name not in self.values:
            shape = self.shape(index)
            layout = ir.Layout.NHWC if len(shape) == 4 else ir.Layout.NC
            self.values[name] = ir.TensorType(shape, ir.DType.INT8, layout, self.per_tensor(index))
        return name

    def like(self, name: str, shape: tuple[int, ...], source: str) -> str:
        """Declares a value with the quantisation of another."""
        kind = self.values[source]
        self.values[name] = ir.TensorType(shape, ir.DType.INT8, kind.layout, kind.qparams)
        return name

    def bounds(self, activation: int, output: str) -> tuple[int, int]:
        qparams = self.values[output].qparams
        kinds = schema.ActivationFunctionType
        if activation == kinds.NONE:
            return _FULL
        if activation not in (kinds.RELU, kinds.RELU6):
            raise _Refused(f"bakenn fuses no activation {activation}")
        top = 127 if activation == kinds.RELU else round(6 / qparams.scale) + qparams.zero_point
        return max(-128, qparams.zero_point), min(127, top)

    def constant(self, name: str, value: NDArray[Any], dtype: Any, layout: Any, qparams: Any) -> str:
        self.values[name] = ir.TensorType(value.shape, dtype, layout, qparams)
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def conv(self, operator: Any, name: str) -> None:
        """CONV_2D."""
        self._conv(operator, name, _options(operator, schema.Conv2DOptions), depthwise=False)

    def depthwise(self, operator: Any, name: str) -> None:
        """DEPTHWISE_CONV_2D."""
        self._conv(operator, name, _options(operator, schema.DepthwiseConv2DOptions), depthwise=True)

    def _conv(self, operator: Any, name: str, options: Any, *, depthwise: bool) -> None:
        x, weight, bias = (int(i) for i in operator.InputsAsNumpy())
        source, out = self.activation(x), self.activation(operator.Outputs(0))
        kernel = self.data(weight, "i1")
        scales = self.scales(weight)
        if depthwise:
            kernel, layout, axis = kernel[0], ir.Layout.HWO, 2
        else:
            layout, axis = ir.Layout.OHWI, 0
        window = kernel.shape[:2] if depthwise else kernel.shape[1:3]
        w = self.constant(
            f"t{weight}", kernel, ir.DType.INT8, layout, ir.PerAxisQParams(scales, (0,) * len(scales), axis)
        )
        products = tuple(float(np.float32(self.values[source].qparams.scale * s)) for s in scales)
        b = self.constant(
            f"{name}_bias",
            self.data(bias, "<i4").astype(np.int32),
            ir.DType.INT32,
            ir.Layout.C,
            ir.PerAxisQParams(products, (0,) * len(scales), 0),
        )
        stride = (options.StrideH(), options.StrideW())
        dilation = (options.DilationHFactor(), options.DilationWFactor())
        padding: list[int] = []
        for i in (0, 1):
            reach = (window[i] - 1) * dilation[i] + 1
            total = (self.values[out].shape[1 + i] - 1) * stride[i] + reach - self.values[source].shape[1 + i]
            total = max(0, total) if options.Padding() == schema.Padding.SAME else 0
            padding += [total // 2, total - total // 2]
        low, high = self.bounds(options.FusedActivationFunction(), out)
        common = {
            "stride": stride, "dilation": dilation, "padding": tuple(padding),
            "activation_min": low, "activation_max": high,
        }  # fmt: skip
        if depthwise:
            common["depth_multiplier"] = options.DepthMultiplier()
        make = ir.DepthwiseConv2DOp if depthwise else ir.Conv2DOp
        self.ops.append(make(name, source, w, b, out, **common))

    def add(self, operator: Any, name: str) -> None:
        """ADD."""
        a, b = (self.activation(int(i)) for i in operator.InputsAsNumpy())
        out = self.activation(operator.Outputs(0))
        low, high = self.bounds(_options(operator, schema.AddOptions).FusedActivationFunction(), out)
        self.ops.append(ir.AddOp(name, a, b, out, activation_min=low, activation_max=high))

    def max_pool(self, operator: Any, name: str) -> None:
        """MAX_POOL_2D without padding."""
        source, out = self.activation(operator.Inputs(0)), self.activation(operator.Outputs(0))
        options = _options(operator, schema.Pool2DOptions)
        kernel = (options.FilterHeight(), options.FilterWidth())
        stride = (options.StrideH(), options.StrideW())
        for i in (0, 1):
            if (self.values[out].shape[1 + i] - 1) * stride[i] + kernel[i] > self.values[source].shape[1 + i]:
                raise _Refused(f"{name}: a padded pool is not read here")
        low, high = self.bounds(options.FusedActivationFunction(), out)
        self.ops.append(
            ir.MaxPool2DOp(name, source, out, kernel, stride, activation_min=low, activation_max=high)
        )

    def mean(self, operator: Any, name: str) -> None:
        """MEAN."""
        source, out = self.activation(operator.Inputs(0)), self.activation(operator.Outputs(0))
        axes = tuple(int(a) for a in self.data(operator.Inputs(1), "<i4").reshape(-1))
        keep = bool(_options(operator, schema.ReducerOptions).KeepDims())
        self.ops.append(ir.ReduceMeanOp(name, source, out, axes, keep))

    def reshape(self, operator: Any, name: str) -> None:
        """RESHAPE."""
        source, out = self.activation(operator.Inputs(0)), self.activation(operator.Outputs(0))
        flat = self.values[source].layout is ir.Layout.NHWC and self.values[out].layout is ir.Layout.NC
        self.ops.append((ir.FlattenOp if flat else ir.ReshapeOp)(name, source, out))

    def slice(self, operator: Any, name: str) -> None:
        """SLICE along one axis, or of a SPACE_TO_DEPTH down to each block's first pixel."""
        if operator.Inputs(0) in self.blocks:
            self._subsample(operator, name)
            return
        source, out = self.activation(operator.Inputs(0)), self.activation(operator.Outputs(0))
        begin = [int(n) for n in self.data(operator.Inputs(1), "<i4").reshape(-1)]
        before, after = self.values[source].shape, self.values[out].shape
        axes = [i for i in range(len(before)) if before[i] != after[i]]
        if len(axes) != 1:
            raise _Refused(f"{name}: a slice along {len(axes)} axes is not read here")
        axis = axes[0]
        self.ops.append(ir.SliceOp(name, source, out, axis, begin[axis], begin[axis] + after[axis]))

    def space_to_depth(self, operator: Any, name: str) -> None:
        """SPACE_TO_DEPTH: kept until a SLICE says which pixels of each block are wanted."""
        size = _options(operator, schema.SpaceToDepthOptions).BlockSize()
        self.blocks[operator.Outputs(0)] = (self.activation(operator.Inputs(0)), size)

    def _subsample(self, operator: Any, name: str) -> None:
        source, step = self.blocks[operator.Inputs(0)]
        out = self.activation(operator.Outputs(0))
        (_, rows, columns, channels), wanted = self.values[source].shape, self.values[out].shape
        if self.data(operator.Inputs(1), "<i4").any() or wanted[3] != channels:
            raise _Refused(f"{name}: this part of a SPACE_TO_DEPTH is not read here")
        middle = self.like(f"{name}_rows", (1, wanted[1], columns, channels), source)
        self.ops.append(ir.SliceOp(f"{name}_rows", source, middle, 1, 0, rows, step))
        self.ops.append(ir.SliceOp(f"{name}_columns", middle, out, 2, 0, columns, step))

    def concat(self, operator: Any, name: str) -> None:
        """CONCATENATION."""
        sources = tuple(self.activation(int(i)) for i in operator.InputsAsNumpy())
        out = self.activation(operator.Outputs(0))
        axis = _options(operator, schema.ConcatenationOptions).Axis()
        self.ops.append(ir.ConcatenateOp(name, sources, out, axis))

    def pad(self, operator: Any, name: str) -> None:
        """PAD of rows and columns, or of channels by joining constants."""
        source, out = self.activation(operator.Inputs(0)), self.activation(operator.Outputs(0))
        (_, rows, columns, channels) = (
            tuple(int(n) for n in pair) for pair in self.data(operator.Inputs(1), "<i4")
        )
        if not any(channels):
            self.ops.append(ir.Pad2DOp(name, source, out, (*rows, *columns)))
            return
        if any((*rows, *columns)):
            raise _Refused(f"{name}: padding channels and pixels at once is not read here")
        kind = self.values[source]
        parts = [source]
        for width, at in ((channels[0], 0), (channels[1], 2)):
            if width:
                zeros = np.full((*kind.shape[:3], width), kind.qparams.zero_point, np.int8)
                made = self.constant(f"{name}_{at}", zeros, ir.DType.INT8, kind.layout, kind.qparams)
                parts = [made, *parts] if at == 0 else [*parts, made]
        self.ops.append(ir.ConcatenateOp(name, tuple(parts), out, 3))


def _options(operator: Any, kind: Any) -> Any:
    table, options = operator.BuiltinOptions(), kind()
    options.Init(table.Bytes, table.Pos)
    return options


_READERS: dict[str, Callable[[_Reader, Any, str], None]] = {
    "CONV_2D": _Reader.conv,
    "DEPTHWISE_CONV_2D": _Reader.depthwise,
    "ADD": _Reader.add,
    "MAX_POOL_2D": _Reader.max_pool,
    "MEAN": _Reader.mean,
    "RESHAPE": _Reader.reshape,
    "SLICE": _Reader.slice,
    "SPACE_TO_DEPTH": _Reader.space_to_depth,
    "CONCATENATION": _Reader.concat,
    "PAD": _Reader.pad,
}


def _mve_scratch(plan: Any, kernels: list[str]) -> int:
    """Scratch that the Helium paths of CMSIS-NN 4.0.0 need, in bytes; bakenn plans that of the DSP paths.

    After `arm_convolve_s8_get_buffer_size` and `arm_depthwise_conv_s8_opt_get_buffer_size`.
    """
    most = 0
    for step, kernel in zip(plan.steps, kernels, strict=True):
        if kernel.startswith("cmsis_nn.conv2d"):
            elements = int(np.prod(plan.constants[step.weight].shape[1:]))
            most = max(most, 4 * -(-elements // _MVE_LANES) * _MVE_LANES)
        elif kernel.startswith("cmsis_nn.depthwise"):
            rows, columns = plan.constants[step.weight].shape[:2]
            most = max(most, 4 * _MVE_DEPTHWISE_BLOCK * rows * columns)
    return most


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments: Any = parser.parse_args()
    content = arguments.model.read_bytes()
    refusal = ""
    try:
        graph = bakenn.import_tflite(content, name="model")
    except bakenn.BakeNNError as error:
        refusal = str(error)
        try:
            graph = _Reader(content).read()
        except _Refused as second:
            sys.exit(f"{refusal}; {second}")
    chosen = bakenn.CBackendOptions(
        kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True, target=bakenn.CORTEX_M4
    )
    try:
        compiled = bakenn.compile(graph, arguments.out, model_name="model", backend_options=chosen)
    except bakenn.BakeNNError as error:
        sys.exit(str(error))
    made = compiled.artifacts
    kernels = [selection.kernel_id for selection in made.backend_plan.selections]
    sources = [made.model_source, made.weights_source, made.kernels_source, *made.support_sources]
    manifest = json.loads(made.manifest.read_text())
    result = {
        "version": bakenn.__version__,
        "refusal": refusal,
        "sources": [str(p) for p in sources],
        "includes": [str(p) for p in (made.output_dir, *made.support_include_dirs)],
        "defines": ["BAKENN_CMSIS_NN_BUILTIN_MEMORY"] if made.support_sources else [],
        "licences": [str(p) for p in made.third_party_licenses],
        "kernels": dict(sorted(Counter(kernels).items())),
        "arena_bytes": made.backend_plan.arena_size,
        "scratch_bytes": made.backend_plan.scratch_size,
        "mve_scratch_bytes": _mve_scratch(compiled.plan, kernels),
        "alignment": made.backend_plan.arena_alignment,
        "constant_bytes": manifest["constant_payload_bytes"],
        "input": manifest["input"],
        "output": manifest["output"],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
