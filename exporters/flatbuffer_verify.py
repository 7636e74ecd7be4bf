"""Verifies a .tflite file before anything reads it: a reader of a verified file never leaves it.

Python's flatbuffers package and TFLite Micro follow whatever offset they find. Here every table, vector and
string of TFLite's schema is followed once and checked, and then what refers to what: buffers, tensors,
operator codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from csr_deploy.errors import ExportError

_IDENTIFIER = b"TFL3"
_VERSION = 3

# TFLite's schema (LiteRT 2.3), one table a line as `name field:type …` in the order of the fields' ids. A
# type is a scalar, `string`, a table, a vector of scalars or tables in brackets, a union with a question mark
# (the field before it chooses) or `table`, of which nothing more is known; `_` is a field no longer in use.
_TABLES = """
Model version:u32 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:string buffers:[Buffer]
    metadata_buffer:[i32] metadata:[Metadata] signature_defs:[SignatureDef]
    external_buffer_groups:[ExternalBufferGroup] external_buffers:[ExternalBuffer]
OperatorCode deprecated_builtin_code:i8 custom_code:string version:i32 builtin_code:i32
SubGraph tensors:[Tensor] inputs:[i32] outputs:[i32] operators:[Operator] name:string
    debug_metadata_index:i32
Tensor shape:[i32] type:i8 buffer:u32 name:string quantization:QuantizationParameters is_variable:u8
    sparsity:SparsityParameters shape_signature:[i32] has_rank:u8 variant_tensors:[VariantSubType]
    external_buffer:u32
QuantizationParameters min:[f32] max:[f32] scale:[f32] zero_point:[i64] details_type:u8
    details:QuantizationDetails? quantized_dimension:i32
Operator opcode_index:u32 inputs:[i32] outputs:[i32] builtin_options_type:u8
    builtin_options:BuiltinOptions? custom_options:[u8] custom_options_format:i8
    mutating_variable_inputs:[u8] intermediates:[i32] large_custom_options_offset:u64
    large_custom_options_size:u64 builtin_options2_type:u8 builtin_options2:table debug_metadata_index:i32
Buffer data:[u8] offset:u64 size:u64
Metadata name:string buffer:u32
SignatureDef inputs:[TensorMap] outputs:[TensorMap] signature_key:string _ subgraph_index:u32
TensorMap name:string tensor_index:u32
ExternalBufferGroup name:string
ExternalBuffer id:u32 group:u32 offset:u64 length:u64 packing:string
SparsityParameters traversal_order:[i32] block_map:[i32] dim_metadata:[DimensionMetadata]
DimensionMetadata format:i8 dense_size:i32 array_segments_type:u8 array_segments:SparseIndexVector?
    array_indices_type:u8 array_indices:SparseIndexVector?
VariantSubType shape:[i32] type:i8 has_rank:u8
CustomQuantization custom:[u8]
BlockwiseQuantization scales:i32 zero_points:i32 block_size:i32 block_shape:[i32]
MultiAxisQuantization scales:i32 zero_points:i32 block_size:i32 quantized_dimensions:[i32]
Int32Vector values:[i32]
Uint16Vector values:[u16]
Uint8Vector values:[u8]
AddOptions fused_activation_function:i8 pot_scale_int16:u8
ArgMaxOptions output_type:i8
ArgMinOptions output_type:i8
BatchMatMulOptions adj_x:u8 adj_y:u8 asymmetric_quantize_inputs:u8
BidirectionalSequenceLSTMOptions fused_activation_function:i8 cell_clip:f32 proj_clip:f32 merge_outputs:u8
    time_major:u8 asymmetric_quantize_inputs:u8
BidirectionalSequenceRNNOptions time_major:u8 fused_activation_function:i8 merge_outputs:u8
    asymmetric_quantize_inputs:u8
BucketizeOptions boundaries:[f32]
CallOnceOptions init_subgraph_index:i32
CallOptions subgraph:u32
CastOptions in_data_type:i8 out_data_type:i8
ConcatEmbeddingsOptions num_channels:i32 num_columns_per_channel:[i32] embedding_dim_per_channel:[i32]
ConcatenationOptions axis:i32 fused_activation_function:i8
Conv2DOptions padding:i8 stride_w:i32 stride_h:i32 fused_activation_function:i8 dilation_w_factor:i32
    dilation_h_factor:i32 quantized_bias_type:i8
Conv3DOptions padding:i8 stride_d:i32 stride_w:i32 stride_h:i32 fused_activation_function:i8
    dilation_d_factor:i32 dilation_w_factor:i32 dilation_h_factor:i32
CumsumOptions exclusive:u8 reverse:u8
DepthToSpaceOptions block_size:i32
DepthwiseConv2DOptions padding:i8 stride_w:i32 stride_h:i32 depth_multiplier:i32
    fused_activation_function:i8 dilation_w_factor:i32 dilation_h_factor:i32
DivOptions fused_activation_function:i8
EmbeddingLookupSparseOptions combiner:i8
FakeQuantOptions min:f32 max:f32 num_bits:i32 narrow_range:u8
FullyConnectedOptions fused_activation_function:i8 weights_format:i8 keep_num_dims:u8
    asymmetric_quantize_inputs:u8 quantized_bias_type:i8 quant_spec:[u8]
GatherOptions axis:i32 batch_dims:i32
GeluOptions approximate:u8
HashtableOptions table_id:i32 key_dtype:i8 value_dtype:i8
IfOptions then_subgraph_index:i32 else_subgraph_index:i32
L2NormOptions fused_activation_function:i8
LSHProjectionOptions type:i8
LSTMOptions fused_activation_function:i8 cell_clip:f32 proj_clip:f32 kernel_type:i8
    asymmetric_quantize_inputs:u8
LeakyReluOptions alpha:f32
LocalResponseNormalizationOptions radius:i32 bias:f32 alpha:f32 beta:f32
MirrorPadOptions mode:i8
MulOptions fused_activation_function:i8
OneHotOptions axis:i32
PackOptions values_count:i32 axis:i32
Pool2DOptions padding:i8 stride_w:i32 stride_h:i32 filter_width:i32 filter_height:i32
    fused_activation_function:i8
RNNOptions fused_activation_function:i8 asymmetric_quantize_inputs:u8
RandomOptions seed:i64 seed2:i64
ReducerOptions keep_dims:u8
ReshapeOptions new_shape:[i32]
ResizeBilinearOptions _ _ align_corners:u8 half_pixel_centers:u8
ResizeNearestNeighborOptions align_corners:u8 half_pixel_centers:u8
ReverseSequenceOptions seq_dim:i32 batch_dim:i32
SVDFOptions rank:i32 fused_activation_function:i8 asymmetric_quantize_inputs:u8
SequenceRNNOptions time_major:u8 fused_activation_function:i8 asymmetric_quantize_inputs:u8
ShapeOptions out_type:i8
SkipGramOptions ngram_size:i32 max_skip_size:i32 include_all_ngrams:u8
SoftmaxOptions beta:f32
SpaceToDepthOptions block_size:i32
SparseToDenseOptions validate_indices:u8
SplitOptions num_splits:i32
SplitVOptions num_splits:i32
SqueezeOptions squeeze_dims:[i32]
StridedSliceOptions begin_mask:i32 end_mask:i32 ellipsis_mask:i32 new_axis_mask:i32 shrink_axis_mask:i32
    offset:u8
SubOptions fused_activation_function:i8 pot_scale_int16:u8
TransposeConvOptions padding:i8 stride_w:i32 stride_h:i32 fused_activation_function:i8
    quantized_bias_type:i8
UnidirectionalSequenceLSTMOptions fused_activation_function:i8 cell_clip:f32 proj_clip:f32 time_major:u8
    asymmetric_quantize_inputs:u8 diagonal_recurrent_tensors:u8
UniqueOptions idx_out_type:i8
UnpackOptions num:i32 axis:i32
VarHandleOptions container:string shared_name:string
WhileOptions cond_subgraph_index:i32 body_subgraph_index:i32
"""

# Members of the unions in the order of their numbers, from 1; of BuiltinOptions without that ending.
_UNIONS = """
BuiltinOptions Conv2D DepthwiseConv2D ConcatEmbeddings LSHProjection Pool2D SVDF RNN FullyConnected
    Softmax Concatenation Add L2Norm LocalResponseNormalization LSTM ResizeBilinear Call Reshape SkipGram
    SpaceToDepth EmbeddingLookupSparse Mul Pad Gather BatchToSpaceND SpaceToBatchND Transpose Reducer Sub
    Div Squeeze SequenceRNN StridedSlice Exp TopKV2 Split LogSoftmax Cast Dequantize MaximumMinimum ArgMax
    Less Neg PadV2 Greater GreaterEqual LessEqual Select Slice TransposeConv SparseToDense Tile ExpandDims
    Equal NotEqual Shape Pow ArgMin FakeQuant Pack LogicalOr OneHot LogicalAnd LogicalNot Unpack FloorDiv
    Square ZerosLike Fill BidirectionalSequenceLSTM BidirectionalSequenceRNN UnidirectionalSequenceLSTM
    FloorMod Range ResizeNearestNeighbor LeakyRelu SquaredDifference MirrorPad Abs SplitV Unique ReverseV2
    AddN GatherNd Cos Where Rank ReverseSequence MatrixDiag Quantize MatrixSetDiag HardSwish If While
    DepthToSpace NonMaxSuppressionV4 NonMaxSuppressionV5 ScatterNd SelectV2 Densify SegmentSum BatchMatMul
    Cumsum CallOnce BroadcastTo Rfft2d Conv3D Hashtable HashtableFind HashtableImport HashtableSize
    VarHandle ReadVariable AssignVariable Random Bucketize Gelu DynamicUpdateSlice UnsortedSegmentProd
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentSum ATan2 Sign Bitcast BitwiseXor RightShift
QuantizationDetails CustomQuantization BlockwiseQuantization MultiAxisQuantization
SparseIndexVector Int32Vector Uint16Vector Uint8Vector
"""

_SCALARS = {
    name: struct.Struct(f"<{code}")
    for name, code in {
        "i8": "b", "u8": "B", "u16": "H", "i32": "i", "u32": "I", "f32": "f", "i64": "q", "u64": "Q",
    }.items()
}  # fmt: skip
_U16, _I32, _U32 = struct.Struct("<H"), _SCALARS["i32"], _SCALARS["u32"]
_ALIGNMENT = 4
"""Of numbers: files whose 64-bit vectors lie at multiples of 4 are about, and every reader takes them."""

_BITS = (32, 16, 32, 8, 64, 0, 8, 16, 64, 8, 64, 128, 64, 0, 0, 32, 16, 4, 16, 2, 4, 8, 8)
"""Bits an element by TensorType; 0 where a value has no fixed size (strings, resources, variants)."""

_COUNT_LIMIT = 1 << 62
"""More elements than any file can hold; keeps products of hostile shapes small."""

Record = dict[str, Any]
"""Fields that a table has: a number for a scalar, a `_Vector` for scalars, a list for a vector of tables."""


@dataclass(frozen=True)
class _Vector:
    """Where a vector's first element lies, in bytes from the start of the file, and how many it has."""

    start: int
    count: int


_NO_VALUES = _Vector(0, 0)


@dataclass(frozen=True)
class _Field:
    """One field of a table.

    Attributes:
        name: As in TFLite's schema.
        read: Reads the field at a position.
        size: Bytes it takes in the table, which is its alignment too.
        type: Name of the scalar, table or union, of the element for a vector.
    """

    name: str
    read: Callable[[_Structure, _Field, int, Record], Any]
    size: int
    type: str


class _Structure:
    """Follows every offset of a file once, and keeps what it found.

    Args:
        content: The file.
        where: What messages call it.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self.content = content
        self.where = where
        self._path: list[str] = []
        self._tables: dict[tuple[str, int], Record] = {}
        self._table_vectors: dict[tuple[str, int], list[Record]] = {}
        self._vtables: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._extents: dict[int, int] = {}
        self._strings: set[int] = set()
        self._extent = 0

    def model(self) -> Record:
        """The root table.

        Raises:
            ExportError: If something lies outside the file, or not as its type must.
        """
        content = self.content
        if len(content) < 8:
            self.fail("", f"is no TFLite model: it has {len(content)} bytes")
        if content[4:8] != _IDENTIFIER:
            self.fail("", f"is no TFLite model: bytes 4 to 8 are {content[4:8]!r} instead of {_IDENTIFIER!r}")
        return self._table("Model", self._follow(0))

    def fail(self, path: str, what: str) -> NoReturn:
        """Raises the error of a place in the file."""
        raise ExportError(
            what, where=f"{self.where}: {path}" if path else self.where, fix="Export or copy the model again."
        )

    def _stop(self, what: str) -> NoReturn:
        self.fail("".join(self._path).lstrip("."), what)

    def integers(self, vector: _Vector) -> tuple[int, ...]:
        """The values of a vector of int32."""
        return struct.unpack_from(f"<{vector.count}i", self.content, vector.start)

    # Places

    def _follow(self, at: int) -> int:
        """The place that the offset at a place refers to; at least 4 bytes of it are in the file."""
        offset = _U32.unpack_from(self.content, at)[0]
        target: int = at + offset
        if offset == 0:
            self._stop("its offset is 0")
        if target + 4 > len(self.content):
            self._stop(f"lies outside the file: at byte {target} of {len(self.content)}")
        if target % 4:
            self._stop(f"is not aligned: it starts at byte {target}, which is no multiple of 4")
        return target

    def _claim(self, start: int, size: int) -> None:
        """Counts bytes that are looked at one by one.

        What is shared counts once, so that no file of a real writer reaches its own length. A hostile one,
        with vectors inside vectors, would keep the verifier busy for hours.
        """
        known = self._extents.get(start, 0)
        if size > known:
            self._extents[start] = size
            self._extent += size - known
            if self._extent > len(self.content):
                self._stop("overlaps other parts of the file")

    def _vtable(self, position: int) -> tuple[int, tuple[int, ...]]:
        """Size of the table at a position and offsets of its fields, 0 for those it has not."""
        content = self.content
        vtable = position - _I32.unpack_from(content, position)[0]
        if vtable not in self._vtables:
            if vtable < 0 or vtable + 4 > len(content):
                self._stop(f"its vtable lies outside the file: at byte {vtable} of {len(content)}")
            if vtable % 2:
                self._stop(f"its vtable is not aligned: it starts at byte {vtable}, which is odd")
            size, extent = _U16.unpack_from(content, vtable)[0], _U16.unpack_from(content, vtable + 2)[0]
            if size < 4 or size % 2:
                self._stop(f"its vtable has {size} bytes, which cannot be")
            if vtable + size > len(content):
                self._stop(f"its vtable ends outside the file: at byte {vtable + size} of {len(content)}")
            self._claim(vtable, size)
            offsets = struct.unpack_from(f"<{size // 2 - 2}H", content, vtable + 4)
            if extent < 4:
                self._stop(f"its vtable gives it {extent} bytes; a table has at least 4")
            odd = [o for o in offsets if o and not 4 <= o < extent]
            if odd:
                self._stop(f"a field lies outside of it: at byte {odd[0]} of {extent}")
            self._vtables[vtable] = extent, offsets
        extent, offsets = self._vtables[vtable]
        if position + extent > len(content):
            self._stop(f"ends outside the file: at byte {position + extent} of {len(content)}")
        return extent, offsets

    def _table(self, name: str, position: int) -> Record:
        key = (name, position)
        if key in self._tables:
            return self._tables[key]
        extent, offsets = self._vtable(position)
        record: Record = {}
        for field, offset in zip(_SCHEMA[name], offsets, strict=False):
            if not offset or field is None:
                continue
            at = position + offset
            self._path.append(f".{field.name}")
            if offset + field.size > extent:
                self._stop(f"ends outside its table: at byte {offset + field.size} of {extent}")
            if at % min(field.size, _ALIGNMENT):
                self._stop(f"is not aligned: it lies at byte {at}, which is no multiple of {field.size}")
            record[field.name] = field.read(self, field, at, record)
            self._path.pop()
        self._tables[key] = record
        return record

    # Kinds of fields

    def read_scalar(self, field: _Field, at: int, _: Record) -> Any:
        """A number."""
        return _SCALARS[field.type].unpack_from(self.content, at)[0]

    def read_vector(self, field: _Field, at: int, _: Record) -> _Vector:
        """A vector of numbers."""
        return self._vector(at, _SCALARS[field.type].size)

    def _vector(self, at: int, size: int) -> _Vector:
        position = self._follow(at)
        count, start = _U32.unpack_from(self.content, position)[0], position + 4
        end = start + count * size
        if end > len(self.content):
            self._stop(f"its {count} elements end outside the file: at byte {end} of {len(self.content)}")
        if count and start % min(size, _ALIGNMENT):
            self._stop(f"is not aligned: it starts at byte {start}, which is no multiple of {size}")
        self._claim(position, 4 + count * size)
        return _Vector(start, count)

    def read_string(self, field: _Field, at: int, _: Record) -> _Vector:
        """A text in UTF-8."""
        vector = self._vector(at, 1)
        if vector.start in self._strings:
            return vector
        end = vector.start + vector.count
        if end >= len(self.content) or self.content[end]:
            self._stop("has no zero byte at its end")
        try:
            self.content[vector.start : end].decode()
        except UnicodeDecodeError as error:
            self._stop(f"is no text in UTF-8: {error.reason} at byte {error.start} of it")
        self._strings.add(vector.start)
        return vector

    def read_table(self, field: _Field, at: int, _: Record) -> Record:
        """A table."""
        return self._table(field.type, self._follow(at))

    def read_tables(self, field: _Field, at: int, _: Record) -> list[Record]:
        """A vector of tables."""
        vector = self._vector(at, 4)
        key = (field.type, vector.start)
        if key not in self._table_vectors:
            found = []
            self._path.append("")
            for index in range(vector.count):
                self._path[-1] = f"[{index}]"
                found.append(self._table(field.type, self._follow(vector.start + 4 * index)))
            self._path.pop()
            self._table_vectors[key] = found
        return self._table_vectors[key]

    def read_union(self, field: _Field, at: int, record: Record) -> Record:
        """The table that the type before it names; of an unknown one no field is known."""
        members = _MEMBERS[field.type]
        chosen = record.get(f"{field.name}_type", 0)
        name = members[chosen] if chosen < len(members) else _OPAQUE
        return self._table(name, self._follow(at))


_OPAQUE = "table"


def _read_schema(text: str) -> dict[str, tuple[_Field | None, ...]]:
    """Table → fields by id."""
    return {
        name: tuple(None if f == "_" else _read_field(*f.split(":")) for f in fields)
        for name, *fields in map(str.split, _lines(text))
    }


def _lines(text: str) -> list[str]:
    return text.strip().replace("\n    ", " ").splitlines()


def _read_field(name: str, kind: str) -> _Field:
    element = kind.strip("[]?")
    if kind in _SCALARS:
        return _Field(name, _Structure.read_scalar, _SCALARS[kind].size, kind)
    if kind == "string":
        return _Field(name, _Structure.read_string, 4, kind)
    if kind.endswith("?"):
        return _Field(name, _Structure.read_union, 4, element)
    if kind == element:
        return _Field(name, _Structure.read_table, 4, element)
    vector = _Structure.read_vector if element in _SCALARS else _Structure.read_tables
    return _Field(name, vector, 4, element)


def _read_members(text: str) -> dict[str, tuple[str, ...]]:
    """Union → tables by number; number 0 stands for none."""
    return {
        union: (_OPAQUE, *(f"{n}Options" if union == "BuiltinOptions" else n for n in names))
        for union, *names in map(str.split, _lines(text))
    }


_SCHEMA = _read_schema(_TABLES)
_MEMBERS = _read_members(_UNIONS)
# Options without a field, and whatever is not known.
_SCHEMA.update({name: () for names in _MEMBERS.values() for name in names if name not in _SCHEMA})


class _References:
    """Checks what the parts of a model say of each other.

    Lists that several parts share are looked at once.
    """

    def __init__(self, structure: _Structure) -> None:
        self._structure = structure
        self._fail = structure.fail
        self._length = len(structure.content)
        self._ranges: dict[int, tuple[int, int]] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        self._tensors: set[int] = set()
        self._highest: dict[int, int] = {}
        self._maps: dict[int, int] = {}

    def check(self, model: Record) -> None:
        """Checks all of a model.

        Raises:
            ExportError: If an index refers to nothing, or sizes contradict each other.
        """
        if model.get("version", 0) != _VERSION:
            self._fail("version", f"is {model.get('version', 0)}; {_VERSION} is the only one there is")
        subgraphs = model.get("subgraphs", [])
        if not subgraphs:
            self._fail("subgraphs", "is empty: there is nothing to compute")
        codes = len(model.get("operator_codes", []))
        sizes = [self._buffer(f"buffers[{i}]", b) for i, b in enumerate(model.get("buffers", []))]
        for index, subgraph in enumerate(subgraphs):
            self._subgraph(f"subgraphs[{index}]", subgraph, sizes, codes)
        self._indices("metadata_buffer", model.get("metadata_buffer", _NO_VALUES), 0, len(sizes), "buffers")
        for index, metadata in enumerate(model.get("metadata", [])):
            self._index(f"metadata[{index}].buffer", metadata.get("buffer", 0), len(sizes), "buffers")
        for index, signature in enumerate(model.get("signature_defs", [])):
            self._signature(f"signature_defs[{index}]", signature, subgraphs)

    def _index(self, path: str, value: int, count: int, of: str) -> None:
        if not 0 <= value < count:
            self._fail(path, f"is {value}, and there are {count} {of}")

    def _indices(self, path: str, vector: _Vector, least: int, count: int, of: str) -> int:
        """Checks a vector of indices and returns the highest, -1 if it has none."""
        if vector.start not in self._ranges:
            values = self._structure.integers(vector)
            self._ranges[vector.start] = min(values, default=0), max(values, default=-1)
        low, high = self._ranges[vector.start]
        if low < least or high >= count:
            values = self._structure.integers(vector)
            at = next(i for i, v in enumerate(values) if not least <= v < count)
            known = "which is no index" if values[at] < least else f"and there are {count} {of}"
            self._fail(f"{path}[{at}]", f"is {values[at]}, {known}")
        return high

    # Buffers

    def _buffer(self, path: str, buffer: Record) -> int:
        """Size of a buffer in bytes; its data may lie beyond the flatbuffer, in the same file."""
        inside: int = buffer.get("data", _NO_VALUES).count
        offset, size = buffer.get("offset", 0), buffer.get("size", 0)
        # Converters write 1 as a place holder.
        if offset <= 1:
            return inside
        if inside and size:
            self._fail(path, f"has {inside} bytes of data and refers to {size} more at byte {offset}")
        self._beyond(path, offset, size)
        return inside or size

    def _beyond(self, path: str, offset: int, size: int) -> None:
        if offset + size > self._length:
            self._fail(
                path,
                f"its data lies outside the file: bytes {offset} to {offset + size} of {self._length}",
            )

    # Subgraphs

    def _subgraph(self, path: str, subgraph: Record, sizes: Sequence[int], codes: int) -> None:
        tensors, operators = subgraph.get("tensors", []), subgraph.get("operators", [])
        if id(tensors) not in self._tensors:
            self._tensors.add(id(tensors))
            for index, tensor in enumerate(tensors):
                self._tensor(f"{path}.tensors[{index}]", tensor, sizes)
        for name in ("inputs", "outputs"):
            self._indices(f"{path}.{name}", subgraph.get(name, _NO_VALUES), 0, len(tensors), "tensors")
        if id(operators) not in self._highest:
            self._highest[id(operators)] = self._operators(path, operators, _COUNT_LIMIT, codes)
        if self._highest[id(operators)] >= len(tensors):
            self._operators(path, operators, len(tensors), codes)

    def _operators(self, path: str, operators: list[Record], tensors: int, codes: int) -> int:
        """Checks operators and returns the highest tensor they name, -1 if they name none."""
        each = (self._operator(f"{path}.operators[{i}]", o, tensors, codes) for i, o in enumerate(operators))
        return max(each, default=-1)

    def _operator(self, path: str, operator: Record, tensors: int, codes: int) -> int:
        self._index(f"{path}.opcode_index", operator.get("opcode_index", 0), codes, "operator codes")
        offset, size = (
            operator.get("large_custom_options_offset", 0),
            operator.get("large_custom_options_size", 0),
        )
        if offset > 1:
            self._beyond(f"{path}.large_custom_options_offset", offset, size)
        # An input of -1 is one that was left out.
        return max(
            self._indices(f"{path}.{name}", operator.get(name, _NO_VALUES), least, tensors, "tensors")
            for name, least in (("inputs", -1), ("outputs", 0), ("intermediates", -1))
        )

    def _signature(self, path: str, signature: Record, subgraphs: Sequence[Record]) -> None:
        index = signature.get("subgraph_index", 0)
        self._index(f"{path}.subgraph_index", index, len(subgraphs), "subgraphs")
        count = len(subgraphs[index].get("tensors", []))
        for name in ("inputs", "outputs"):
            maps = signature.get(name, [])
            if id(maps) not in self._maps:
                self._maps[id(maps)] = max((m.get("tensor_index", 0) for m in maps), default=-1)
            if self._maps[id(maps)] >= count:
                at = next(i for i, m in enumerate(maps) if m.get("tensor_index", 0) >= count)
                value = maps[at].get("tensor_index", 0)
                self._fail(f"{path}.{name}[{at}].tensor_index", f"is {value}, and there are {count} tensors")

    # Tensors

    def _tensor(self, path: str, tensor: Record, sizes: Sequence[int]) -> None:
        buffer, kind = tensor.get("buffer", 0), tensor.get("type", 0)
        self._index(f"{path}.buffer", buffer, len(sizes), "buffers")
        if not 0 <= kind < len(_BITS):
            self._fail(f"{path}.type", f"is {kind}, which names no type")
        shape = tensor.get("shape", _NO_VALUES)
        smallest, elements = self._elements(shape)
        constant = sizes[buffer] > 0
        # In a value that is computed, -1 says that the size is not fixed.
        if smallest < (0 if constant else -1):
            self._fail(f"{path}.shape", f"has a size of {smallest}")
        if constant and _BITS[kind] and "sparsity" not in tensor:
            wanted = -(-elements * _BITS[kind] // 8)
            if sizes[buffer] != wanted:
                self._fail(
                    f"{path}.shape",
                    f"takes {wanted if elements < _COUNT_LIMIT else 'more than any number of'} bytes, "
                    f"and its buffer {buffer} has {sizes[buffer]}",
                )
        self._quantization(f"{path}.quantization", tensor.get("quantization", {}), shape)

    def _elements(self, shape: _Vector) -> tuple[int, int]:
        """Smallest size of a shape and number of its elements, at most `_COUNT_LIMIT`."""
        if shape.start not in self._counts:
            values = self._structure.integers(shape)
            self._counts[shape.start] = min(values, default=1), _product(values)
        return self._counts[shape.start]

    def _quantization(self, path: str, quantization: Record, shape: _Vector) -> None:
        scales = quantization.get("scale", _NO_VALUES).count
        zeros = quantization.get("zero_point", _NO_VALUES).count
        if scales and scales != zeros:
            self._fail(path, f"has {scales} scales and {zeros} zero points")
        if scales < 2:
            return
        axis = quantization.get("quantized_dimension", 0)
        if not 0 <= axis < shape.count:
            self._fail(f"{path}.quantized_dimension", f"is {axis}; the shape has {shape.count} sizes")
        size = _I32.unpack_from(self._structure.content, shape.start + 4 * axis)[0]
        if size != scales:
            self._fail(path, f"has {scales} scales for axis {axis}, which has size {size}")


def _product(values: Iterable[int]) -> int:
    product = 1
    for value in values:
        # Past the limit only a zero changes anything.
        product = value * min(product, _COUNT_LIMIT)
    return min(product, _COUNT_LIMIT)


def verify_tflite(content: bytes, where: str) -> None:
    """Checks that a TFLite model is well formed, so that reading it cannot leave the file.

    Fields that TFLite's schema got after LiteRT 2.3, options of StableHLO operations and custom options are
    checked only as far as their table goes.

    Args:
        content: The file.
        where: What messages call it, such as its path.

    Raises:
        ExportError: If it is not, with the place, such as `subgraphs[0].tensors[12].shape`.
    """
    structure = _Structure(content, where)
    _References(structure).check(structure.model())
