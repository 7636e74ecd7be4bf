"""The TFLite packer: what is equal is stored once, and every reader finds the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from csr_deploy.exporters.flatbuffer import ALIGNMENT, BufferTable, pack
from csr_deploy.exporters.flatbuffer_verify import verify_tflite
from csr_deploy.exporters.mcu.reader import read_tflite

SIDE, CHANNELS, ADDITIONS = 4, 8, 6


def quantization(scales: Sequence[float]) -> schema.QuantizationParametersT:
    q = schema.QuantizationParametersT()
    q.scale, q.zeroPoint = np.asarray(scales, np.float32), np.zeros(len(scales), np.int64)
    return q


def tensor(name: str | None, buffer: int = 0) -> schema.TensorT:
    made = schema.TensorT()
    made.shape, made.type, made.buffer = [1, SIDE, SIDE, CHANNELS], schema.TensorType.INT8, buffer
    made.name, made.quantization = name, quantization([0.5])
    return made


def chain() -> tuple[schema.SubGraphT, list[schema.OperatorCodeT], BufferTable]:
    """x + c + c + …: values of one shape and scale without names between input and output."""
    buffers = BufferTable()
    constant = buffers.add(bytes(range(SIDE * SIDE * CHANNELS)))
    names = ["image", *[None] * (ADDITIONS - 1), "logits"]
    graph = schema.SubGraphT()
    graph.tensors = [tensor("c", constant), *map(tensor, names)]
    graph.operators = []
    for index in range(ADDITIONS):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [index + 1, 0], [index + 2]
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
        graph.operators.append(operator)
    graph.inputs, graph.outputs, graph.name = [1], [len(graph.tensors) - 1], "main"
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 2
    return graph, [code], buffers


@pytest.fixture(scope="module")
def content() -> bytes:
    return pack(*chain(), "a chain")


def _positions(content: bytes) -> tuple[Any, list[int]]:
    """The subgraph, and where each of its tensors' tables starts."""
    graph = schema.Model.GetRootAs(bytearray(content)).Subgraphs(0)
    assert graph is not None
    return graph, [graph.Tensors(i)._tab.Pos for i in range(graph.TensorsLength())]


def test_values_without_a_name_are_one_table(content: bytes) -> None:
    graph, positions = _positions(content)
    # Constant, input and output have names; what lies between differs in nothing.
    assert len(positions) == ADDITIONS + 2
    assert len(set(positions[2:-1])) == 1
    assert len(set(positions)) == 4
    assert graph.Tensors(2).Name() is None
    options = {graph.Operators(i).BuiltinOptions().Pos for i in range(ADDITIONS)}
    scales = {graph.Tensors(i).Quantization()._tab.Pos for i in range(len(positions))}
    assert len(options) == len(scales) == 1


def test_the_generated_packer_writes_more_and_says_the_same(content: bytes) -> None:
    unpacked = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content)))
    builder = flatbuffers.Builder()
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    plain = bytes(builder.Output())
    assert len(content) < 0.7 * len(plain)
    x = np.arange(-64, 64, dtype=np.int8).reshape(1, SIDE, SIDE, CHANNELS)
    outputs = []
    for each in (content, plain):
        interpreter = Interpreter(model_content=each)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*outputs)
    assert len(np.unique(outputs[0])) > 1


def test_readers_of_other_targets_take_it(content: bytes) -> None:
    verify_tflite(content, "chain.tflite")
    read = read_tflite(content, "chain.tflite")
    assert [op.kind for op in read.ops] == ["ADD"] * ADDITIONS
    assert len(read.tensors) == ADDITIONS + 2
    micro = pytest.importorskip("tflite_micro", reason="needs the tflite-micro wheel")
    interpreter = micro.runtime.Interpreter.from_bytes(content, arena_size=1 << 17)
    interpreter.set_input(np.zeros((1, SIDE, SIDE, CHANNELS), np.int8), 0)
    interpreter.invoke()
    total = np.minimum(ADDITIONS * np.arange(SIDE * SIDE * CHANNELS), 127)
    np.testing.assert_array_equal(interpreter.get_output(0).ravel(), total)


def test_it_is_the_same_every_time_and_aligned(content: bytes) -> None:
    assert pack(*chain(), "a chain") == content
    model = schema.Model.GetRootAs(bytearray(content))
    data = model.Buffers(1)._tab
    assert data.Vector(data.Offset(4)) % ALIGNMENT == 0
