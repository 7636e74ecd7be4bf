"""TFLite flatbuffers with aligned, inline buffers in which nothing is stored twice.

The generated packer writes every table and vector anew. A flatbuffer may refer to one table from many places,
which is what an unrolled recurrence needs: its T convolutions have equal shapes, options and scales, and
values of one shape and scale that have no names are one table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ALIGNMENT = 16
"""Of buffers, as the TFLite schema forces; microcontrollers read int32 biases in place."""

IDENTIFIER = b"TFL3"


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that remembers what it has written."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self._written: dict[Any, int] = {}

    def once(self, key: Any, write: Callable[[], int]) -> int:
        """The offset of what has this key; written at the first call."""
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]

    def vector(self, values: NDArray[Any]) -> int:
        """The offset of a vector with these values."""
        key = ("vector", values.dtype.str, values.tobytes())
        return self.once(key, lambda: int(self.CreateNumpyVector(values)))

    def text(self, value: str) -> int:
        """The offset of a string."""
        return self.once(("text", value), lambda: int(self.CreateString(value)))


class BufferTable:
    """Buffers by content: equal constants are stored once."""

    def __init__(self) -> None:
        # Buffer 0 is the empty one by convention.
        self.contents: list[bytes] = [b""]
        self._index: dict[bytes, int] = {b"": 0}

    def add(self, content: bytes) -> int:
        """Index of a buffer with this content; 0 is the buffer of values that are computed."""
        if content not in self._index:
            self._index[content] = len(self.contents)
            self.contents.append(content)
        return self._index[content]


def _pack_buffer(builder: _Builder, content: bytes) -> int:
    data = None
    if content:
        builder.StartVector(1, len(content), ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
    schema.BufferStart(builder)
    if data is not None:
        schema.BufferAddData(builder, data)
    return int(schema.BufferEnd(builder))


def _pack_quantization(builder: _Builder, q: schema.QuantizationParametersT) -> int:
    scale = np.asarray(q.scale, np.float32)
    zero_point = np.asarray(q.zeroPoint, np.int64)

    def write() -> int:
        scales, zeros = builder.vector(scale), builder.vector(zero_point)
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scales)
        schema.QuantizationParametersAddZeroPoint(builder, zeros)
        schema.QuantizationParametersAddQuantizedDimension(builder, q.quantizedDimension)
        return int(schema.QuantizationParametersEnd(builder))

    return builder.once(("quantization", scale.tobytes(), zero_point.tobytes(), q.quantizedDimension), write)


def _pack_tensor(builder: _Builder, tensor: schema.TensorT) -> int:
    shape = builder.vector(np.asarray(tensor.shape, np.int32))
    name = builder.text(tensor.name) if tensor.name else None
    quantization = None if tensor.quantization is None else _pack_quantization(builder, tensor.quantization)

    def write() -> int:
        schema.TensorStart(builder)
        schema.TensorAddShape(builder, shape)
        schema.TensorAddType(builder, tensor.type)
        schema.TensorAddBuffer(builder, tensor.buffer)
        if name is not None:
            schema.TensorAddName(builder, name)
        if quantization is not None:
            schema.TensorAddQuantization(builder, quantization)
        return int(schema.TensorEnd(builder))

    return builder.once(("tensor", shape, tensor.type, tensor.buffer, name, quantization), write)


def _pack_operator(builder: _Builder, operator: schema.OperatorT) -> int:
    inputs = builder.vector(np.asarray(operator.inputs, np.int32))
    outputs = builder.vector(np.asarray(operator.outputs, np.int32))
    options = operator.builtinOptions
    packed = None
    if options is not None:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(options).items()}
        key = ("options", type(options).__name__, tuple(sorted(fields.items())))
        packed = builder.once(key, lambda: int(options.Pack(builder)))
    schema.OperatorStart(builder)
    schema.OperatorAddOpcodeIndex(builder, operator.opcodeIndex)
    schema.OperatorAddInputs(builder, inputs)
    schema.OperatorAddOutputs(builder, outputs)
    if packed is not None:
        schema.OperatorAddBuiltinOptionsType(builder, operator.builtinOptionsType)
        schema.OperatorAddBuiltinOptions(builder, packed)
    return int(schema.OperatorEnd(builder))


def _offsets(builder: _Builder, start: Callable[[Any, int], Any], offsets: list[int]) -> int:
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def pack(
    subgraph: schema.SubGraphT, codes: list[schema.OperatorCodeT], buffers: BufferTable, description: str
) -> bytes:
    """Serialises a model of one subgraph."""
    builder = _Builder()
    packed_buffers = _offsets(
        builder, schema.ModelStartBuffersVector, [_pack_buffer(builder, c) for c in buffers.contents]
    )
    tensors = _offsets(
        builder, schema.SubGraphStartTensorsVector, [_pack_tensor(builder, t) for t in subgraph.tensors]
    )
    operators = _offsets(
        builder, schema.SubGraphStartOperatorsVector, [_pack_operator(builder, o) for o in subgraph.operators]
    )
    inputs = builder.vector(np.asarray(subgraph.inputs, np.int32))
    outputs = builder.vector(np.asarray(subgraph.outputs, np.int32))
    name = builder.text(subgraph.name)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    schema.SubGraphAddInputs(builder, inputs)
    schema.SubGraphAddOutputs(builder, outputs)
    schema.SubGraphAddOperators(builder, operators)
    schema.SubGraphAddName(builder, name)
    main = schema.SubGraphEnd(builder)
    subgraphs = _offsets(builder, schema.ModelStartSubgraphsVector, [main])
    packed_codes = _offsets(builder, schema.ModelStartOperatorCodesVector, [c.Pack(builder) for c in codes])
    text = builder.text(description)
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddOperatorCodes(builder, packed_codes)
    schema.ModelAddSubgraphs(builder, subgraphs)
    schema.ModelAddDescription(builder, text)
    schema.ModelAddBuffers(builder, packed_buffers)
    builder.Finish(schema.ModelEnd(builder), IDENTIFIER)
    return bytes(builder.Output())
