"""The TFLite verifier: real models pass, and what is damaged is refused with the place of the damage."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from csr_deploy.data import Preprocessing
from csr_deploy.errors import ExportError
from csr_deploy.exporters import flatbuffer_verify as verifier
from csr_deploy.exporters.base import WriteRequest
from csr_deploy.exporters.flatbuffer_verify import verify_tflite
from csr_deploy.exporters.tflite import EXPORTER
from csr_deploy.nn import CSRConv2d
from csr_deploy.quantize import QuantizeOptions, quantize
from csr_deploy.unroll.lowering import unroll
from tests.networks import OneLayer, settle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An int8 network with one CSR layer, as the exporter writes it."""
    shape = (1, 3, 8, 8)
    network = settle(OneLayer(CSRConv2d(6, 5, 3, 3, padding=1)), shape)
    graph = EXPORTER.legalise(unroll(network, shape, EXPORTER.lowering))
    images = [torch.rand(8, *shape[1:], generator=torch.Generator().manual_seed(0))]
    preprocessing = Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)
    quantized = quantize(graph, images, preprocessing, QuantizeOptions(), EXPORTER.scheme)
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    EXPORTER.write(WriteRequest(quantized.graph, quantized, 8, path, "tiny"))
    return path.read_bytes()


def read(content: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content)))


def edited(content: bytes, edit: Callable[[Any], None]) -> bytes:
    """The model after an edit, written by LiteRT's own generated packer."""
    unpacked = read(content)
    edit(unpacked)
    builder = flatbuffers.Builder()
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def refusal(content: bytes) -> str:
    with pytest.raises(ExportError) as caught:
        verify_tflite(content, "a.tflite")
    assert caught.value.fix
    assert str(caught.value).startswith("a.tflite: ")
    return str(caught.value).splitlines()[0].removeprefix("a.tflite: ")


def test_what_the_exporter_writes_is_well_formed(model: bytes) -> None:
    verify_tflite(model, "tiny.tflite")


def test_what_other_packers_write_is_well_formed(model: bytes) -> None:
    verify_tflite(edited(model, lambda m: None), "tiny.tflite")


def test_the_schema_is_that_of_litert() -> None:
    """Field by field: ids, sizes and kinds, as the generated reader has them."""
    ids = {"i8": "Int8", "u8": "Uint8", "u16": "Uint16", "i32": "Int32", "u32": "Uint32", "f32": "Float32"}
    ids |= {"i64": "Int64", "u64": "Uint64"}
    for table, fields in verifier._SCHEMA.items():
        if table == verifier._OPAQUE:
            continue
        builder = flatbuffers.Builder()
        builder.StartObject(64)
        names = [f.name.replace("_", "") for f in fields if f]
        theirs = {n.lower(): m for n, m in vars(getattr(schema, table)).items()}
        for slot, field in enumerate(fields):
            if field is None:
                continue
            accessor = theirs[field.name.replace("_", "")].__code__
            assert 4 + 2 * slot in accessor.co_consts, f"{table}.{field.name}"
            flags = {n for n in accessor.co_names if n.endswith("Flags")} - {"UOffsetTFlags"}
            expected = f"{ids[field.type]}Flags" if field.type in ids else None
            assert flags <= {expected, "BoolFlags"}, f"{table}.{field.name}: {flags}"
        accessors = {
            n for n, m in theirs.items() if "Offset" in getattr(m, "__code__", read.__code__).co_names
        }
        lengths = {n + s for n in names for s in ("length", "isnone", "asnumpy")}
        assert accessors - lengths <= set(names), table
    for union, members in verifier._MEMBERS.items():
        numbers = {
            n: v for n, v in vars(getattr(schema, union)).items() if isinstance(v, int) and n != "NONE"
        }
        assert dict(zip(members[1:], range(1, len(members)), strict=True)) == numbers
    kinds = {n: v for n, v in vars(schema.TensorType).items() if isinstance(v, int)}
    assert len(verifier._BITS) == len(kinds)
    for name, value in kinds.items():
        digits = "".join(c for c in name.split("_")[0] if c.isdigit())
        assert verifier._BITS[value] == (8 if name == "BOOL" else int(digits or 0)), name


@pytest.mark.parametrize("length", [0, 3, 7])
def test_a_stub_is_no_model(length: int) -> None:
    assert refusal(b"\0" * length) == f"is no TFLite model: it has {length} bytes"


def test_another_file_is_no_model() -> None:
    assert "b'fake'" in refusal(b"\0\0\0\0fake" + b"\0" * 64)


def test_every_truncation_is_refused(model: bytes) -> None:
    for length in range(0, len(model) - 64, 64):
        refusal(model[:length])


def tensor(model: Any, index: int) -> Any:
    return model.subgraphs[0].tensors[index]


def constant(model: Any) -> int:
    """Index of a tensor with several sizes whose values are stored."""
    tensors = model.subgraphs[0].tensors
    return next(i for i, t in enumerate(tensors) if t.buffer and len(t.shape) == 4)


def test_references_are_checked(model: bytes) -> None:
    unpacked = read(model)
    main, count, at = unpacked.subgraphs[0], len(unpacked.subgraphs[0].tensors), constant(unpacked)
    buffers, codes = len(unpacked.buffers), len(unpacked.operatorCodes)
    stored = main.tensors[at].buffer

    def far_buffer(m: Any) -> None:
        tensor(m, 2).buffer = buffers

    def far_code(m: Any) -> None:
        m.subgraphs[0].operators[1].opcodeIndex = codes

    def far_input(m: Any) -> None:
        m.subgraphs[0].operators[1].inputs = [0, count]

    def low_input(m: Any) -> None:
        m.subgraphs[0].operators[1].inputs = [-2]

    def no_output(m: Any) -> None:
        m.subgraphs[0].operators[1].outputs = [-1]

    def far_end(m: Any) -> None:
        m.subgraphs[0].outputs = [0, count + 7]

    def larger(m: Any) -> None:
        tensor(m, at).shape = [9, *tensor(m, at).shape[1:]]
        tensor(m, at).quantization = None

    def huge(m: Any) -> None:
        tensor(m, at).shape = [2**31 - 1] * 40
        tensor(m, at).quantization = None

    def negative(m: Any) -> None:
        tensor(m, at).shape = [-1, *tensor(m, at).shape[1:]]

    def odd_type(m: Any) -> None:
        tensor(m, 1).type = 99

    def scales(m: Any) -> None:
        tensor(m, at).quantization.scale = tensor(m, at).quantization.scale[1:]

    def fewer_scales(m: Any) -> None:
        q = tensor(m, at).quantization
        q.scale, q.zeroPoint = [0.5, 0.5], [0, 0]

    def axis(m: Any) -> None:
        tensor(m, at).quantization.quantizedDimension = 4

    def version(m: Any) -> None:
        m.version = 4

    def empty(m: Any) -> None:
        m.subgraphs = []

    def metadata(m: Any) -> None:
        m.metadata = [schema.MetadataT()]
        m.metadata[0].name, m.metadata[0].buffer = "min_runtime_version", 1000

    def signature(m: Any) -> None:
        m.signatureDefs = [schema.SignatureDefT()]
        m.signatureDefs[0].inputs = [schema.TensorMapT()]
        m.signatureDefs[0].inputs[0].tensorIndex = count

    def far_signature(m: Any) -> None:
        m.signatureDefs = [schema.SignatureDefT()]
        m.signatureDefs[0].subgraphIndex = 1

    def beyond(m: Any) -> None:
        m.buffers[stored].data, m.buffers[stored].offset, m.buffers[stored].size = None, 8, 10**6

    def both(m: Any) -> None:
        m.buffers[stored].offset, m.buffers[stored].size = 8, 10

    size = len(unpacked.buffers[stored].data)
    for edit, expected in {
        far_buffer: f"subgraphs[0].tensors[2].buffer: is {buffers}, and there are {buffers} buffers",
        far_code: f"subgraphs[0].operators[1].opcode_index: is {codes}, and there are {codes} operator codes",
        far_input: f"subgraphs[0].operators[1].inputs[1]: is {count}, and there are {count} tensors",
        low_input: "subgraphs[0].operators[1].inputs[0]: is -2, which is no index",
        no_output: "subgraphs[0].operators[1].outputs[0]: is -1, which is no index",
        far_end: f"subgraphs[0].outputs[1]: is {count + 7}, and there are {count} tensors",
        larger: f"subgraphs[0].tensors[{at}].shape: takes ",
        huge: f"subgraphs[0].tensors[{at}].shape: takes more than any number of bytes, "
        f"and its buffer {stored} has {size}",
        negative: f"subgraphs[0].tensors[{at}].shape: has a size of -1",
        odd_type: "subgraphs[0].tensors[1].type: is 99, which names no type",
        scales: f"subgraphs[0].tensors[{at}].quantization: has ",
        fewer_scales: f"subgraphs[0].tensors[{at}].quantization: has 2 scales for axis 0, which has size",
        axis: f"subgraphs[0].tensors[{at}].quantization.quantized_dimension: is 4; the shape has 4 sizes",
        version: "version: is 4; 3 is the only one there is",
        empty: "subgraphs: is empty",
        metadata: f"metadata[0].buffer: is 1000, and there are {buffers} buffers",
        signature: f"signature_defs[0].inputs[0].tensor_index: is {count}, and there are {count} tensors",
        far_signature: "signature_defs[0].subgraph_index: is 1, and there are 1 subgraphs",
        beyond: f"buffers[{stored}]: its data lies outside the file: bytes 8 to 1000008 of ",
        both: f"buffers[{stored}]: has {size} bytes of data and refers to 10 more at byte 8",
    }.items():
        assert refusal(edited(model, edit)).startswith(expected), edit.__name__


def test_what_is_unusual_is_not_refused(model: bytes) -> None:
    at = constant(read(model))
    stored = tensor(read(model), at).buffer

    def optional(m: Any) -> None:
        m.subgraphs[0].operators[0].inputs = [*m.subgraphs[0].operators[0].inputs, -1]

    def dynamic(m: Any) -> None:
        tensor(m, 0).shape = [-1, 8, 8, 3]

    def text(m: Any) -> None:
        tensor(m, at).type, tensor(m, at).quantization = schema.TensorType.STRING, None

    def nibbles(m: Any) -> None:
        t = tensor(m, at)
        t.type, t.shape, t.quantization = schema.TensorType.INT4, [len(m.buffers[stored].data) * 2 - 1], None

    def marked(m: Any) -> None:
        # Place holders that LiteRT's converter leaves where data stays inside.
        m.buffers[stored].offset = m.buffers[stored].size = 1

    for edit in (optional, dynamic, text, nibbles, marked):
        verify_tflite(edited(model, edit), edit.__name__)


def test_weights_beyond_the_flatbuffer_are_known(model: bytes) -> None:
    stored = tensor(read(model), constant(read(model))).buffer
    size = len(read(model).buffers[stored].data)

    def moved(m: Any) -> None:
        m.buffers[stored].data, m.buffers[stored].offset, m.buffers[stored].size = None, start, size

    start = len(model) + 4096
    short = edited(model, moved)
    assert refusal(short).startswith(f"buffers[{stored}]: its data lies outside the file")
    verify_tflite(short + b"\0" * (start + size - len(short)), "a.tflite")


def placed(content: bytes, name: str, field: str) -> tuple[int, int]:
    """Where some table of a kind has a field: positions of the table and of the field."""
    structure = verifier._Structure(content, "")
    structure.model()
    fields = verifier._SCHEMA[name]
    slot = next(i for i, f in enumerate(fields) if f and f.name == field)
    for kind, position in structure._tables:
        offsets = structure._vtable(position)[1]
        if kind == name and len(offsets) > slot and offsets[slot]:
            return position, position + offsets[slot]
    raise AssertionError(f"no {name} has a {field}")


def overwritten(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + struct.pack("<I", value & 0xFFFFFFFF) + content[at + 4 :]


@pytest.mark.parametrize(
    ("table", "field", "value", "expected"),
    [
        ("SubGraph", "tensors", 1 << 31, r"subgraphs\[0\].tensors: lies outside the file"),
        ("Tensor", "shape", 0, r"subgraphs\[0\].tensors\[\d+\].shape: its offset is 0"),
        ("Tensor", "name", 2, r"subgraphs\[0\].tensors\[\d+\].name: is not aligned"),
        (
            "Operator",
            "builtin_options",
            0x7FFFFFFF,
            r"operators\[\d+\].builtin_options: lies outside the file",
        ),
        ("Buffer", "data", 0x00FFFFFC, r"buffers\[\d+\].data: lies outside the file"),
    ],
)
def test_offsets_are_checked(model: bytes, table: str, field: str, value: int, expected: str) -> None:
    with pytest.raises(ExportError, match=expected):
        verify_tflite(overwritten(model, placed(model, table, field)[1], value), "a.tflite")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-(1 << 30), "its vtable lies outside the file"),
        (1 << 30, "its vtable lies outside the file"),
        (1, "its vtable is not aligned"),
    ],
)
def test_vtables_are_checked(model: bytes, value: int, expected: str) -> None:
    position = placed(model, "SubGraph", "name")[0]
    odd = value if abs(value) > 1 else struct.unpack_from("<i", model, position)[0] + 1
    assert expected in refusal(overwritten(model, position, odd))


def test_lengths_are_checked(model: bytes) -> None:
    at = placed(model, "Tensor", "shape")[1]
    length = at + struct.unpack_from("<I", model, at)[0]
    assert "elements end outside the file" in refusal(overwritten(model, length, 0x3FFFFFFF))


def test_names_are_text(model: bytes) -> None:
    at = model.index(b"logits")
    assert "name: is no text in UTF-8" in refusal(model[:at] + b"\xff" + model[at + 1 :])
    assert "name: has no zero byte at its end" in refusal(model[: at + 6] + b"x" + model[at + 7 :])


EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 30),
        st.one_of(
            st.binary(min_size=1, max_size=1),
            st.sampled_from([0, 1, 3, 4, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC]).map(
                lambda v: struct.pack("<I", v)
            ),
            st.integers(0, 1 << 12).map(lambda v: struct.pack("<H", v)),
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS)
def test_a_mutated_model_is_refused_or_can_be_read(model: bytes, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(model)
    for place, value in edits:
        at = place % (len(content) - 4)
        content[at : at + len(value)] = value
    try:
        verify_tflite(bytes(content), "mutated")
    except ExportError:
        return
    found = schema.Model.GetRootAs(content)
    for subgraph in map(found.Subgraphs, range(found.SubgraphsLength())):
        # Of these options the verifier sees the table only.
        assume(
            not any(subgraph.Operators(i).BuiltinOptions2Type() for i in range(subgraph.OperatorsLength()))
        )
    read(bytes(content))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(content: bytes) -> None:
    refusal(content)
    refusal(struct.pack("<I", 8) + b"TFL3" + content)


@pytest.mark.parametrize("word", [1, 4, 8, 16, 0x00080004, 0x00100010, 0x01000100])
def test_hostile_files_take_no_time(word: int) -> None:
    started = time.process_time()
    content = struct.pack("<I", 8) + b"TFL3" + struct.pack("<I", word) * 250_000
    refusal(content)
    noise = random.Random(word).choices([word, 4, 8, 1000, 0x00080004], k=250_000)
    refusal(struct.pack("<I", 8) + b"TFL3" + struct.pack(f"<{len(noise)}I", *noise))
    assert time.process_time() - started < 5


def nested(count: int) -> bytes:
    """A model of that many tensors whose shapes are vectors within each other, each with as many sizes."""
    body = bytearray(struct.pack("<I", 0) + b"TFL3")

    def put(code: str, *values: int) -> int:
        body.extend(struct.pack(f"<{code}", *values))
        return len(body) - struct.calcsize(f"<{code}")

    # Vtables: version, subgraphs and buffers of a model; tensors of a subgraph, or shape of a tensor.
    fields_of_model = put("8H", 14, 16, 4, 0, 8, 0, 12, 0)
    one_field = put("4H", 6, 8, 4, 0)
    root = put("iIII", len(body) - fields_of_model, 3, 8, 12)
    struct.pack_into("<I", body, 0, root)
    put("II", 1, 8)
    put("I", 0)
    subgraph = put("iI", len(body) - one_field, 4)
    assert subgraph == root + 28
    vector = put("I", count)
    first = vector + 4 + 4 * count
    run = first + 8 * count
    for index in range(count):
        put("I", first + 8 * index - len(body))
    for index in range(count):
        put("iI", len(body) - one_field, run + 4 * index - len(body) - 4)
    put(f"{2 * count}I", *[count] * (2 * count))
    return bytes(body)


def test_vectors_within_vectors_are_refused() -> None:
    started = time.process_time()
    assert "overlaps other parts of the file" in refusal(nested(20_000))
    assert time.process_time() - started < 2


def test_a_large_model_is_fast(model: bytes) -> None:
    def many(m: Any) -> None:
        main, at = m.subgraphs[0], constant(m)
        for index in range(2_000 - len(main.tensors)):
            main.tensors.append(main.tensors[at if index % 2 else 0])
        main.operators *= 2_000 // len(main.operators)
        m.buffers.append(schema.BufferT())
        m.buffers[-1].data = list(bytes(1 << 20))

    content = edited(model, many)
    assert len(read(content).subgraphs[0].tensors) == 2_000
    started = time.process_time()
    verify_tflite(content, "large")
    assert time.process_time() - started < 0.5


def test_the_shipped_fixture_of_another_tool_is_well_formed() -> None:
    tflite_micro = pytest.importorskip("tflite_micro", reason="needs tflite-micro")
    found = list(Path(next(iter(tflite_micro.__path__))).rglob("*.tflite"))
    assert found
    for path in found:
        verify_tflite(path.read_bytes(), path.name)
