"""From a .tflite file to the compiler's representation."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.flatbuffer_verify import verify_tflite
from csr_deploy.exporters.mcu.ir import Model, Op, Tensor, verify

_DTYPES = {
    schema.TensorType.INT8: "int8",
    schema.TensorType.UINT8: "uint8",
    schema.TensorType.INT16: "int16",
    schema.TensorType.INT32: "int32",
    schema.TensorType.INT64: "int64",
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.BOOL: "bool",
}
_TYPE_NAMES = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
_OP_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}


def read_tflite(content: bytes, where: str) -> Model:
    """Reads a model of one subgraph with one input and one output.

    Args:
        content: The file.
        where: Its name, for messages.

    Raises:
        ExportError: If the file is malformed, or holds what no microcontroller code can be made of.
    """
    verify_tflite(content, where)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    if len(model.subgraphs or ()) != 1:
        raise ExportError(
            f"has {len(model.subgraphs or ())} subgraphs",
            where=where,
            fix="Export a model without control flow.",
        )
    graph = model.subgraphs[0]
    for what, found in (("input", graph.inputs), ("output", graph.outputs)):
        if found is None or len(found) != 1:
            raise ExportError(
                f"has {0 if found is None else len(found)} {what}s",
                where=where,
                fix=f"Export a model with one {what}.",
            )
    tensors = [_tensor(model, graph, i, content) for i in range(len(graph.tensors))]
    ops = []
    for index, operator in enumerate(graph.operators or ()):
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode or 0, code.deprecatedBuiltinCode or 0)
        kind = _OP_NAMES.get(number, f"operator code {number}")
        if kind == "CUSTOM":
            name = code.customCode.decode() if isinstance(code.customCode, bytes) else code.customCode
            kind = f"CUSTOM:{name}"
        options = operator.builtinOptions
        attrs: dict[str, Any] = {} if options is None else dict(vars(options))
        inputs = tuple("" if i < 0 else tensors[i].name for i in _ints(operator.inputs))
        outputs = tuple(tensors[i].name for i in _ints(operator.outputs))
        ops.append(Op(kind, inputs, outputs, attrs, index))
    read = Model(
        {t.name: t for t in tensors},
        tuple(ops),
        tensors[graph.inputs[0]].name,
        tensors[graph.outputs[0]].name,
    )
    if not ops:
        raise ExportError("has no operations", where=where)
    verify(read)
    return read


def _ints(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _tensor(model: Any, graph: Any, index: int, content: bytes) -> Tensor:
    tensor = graph.tensors[index]
    text = tensor.name.decode("utf-8", "replace") if isinstance(tensor.name, bytes) else tensor.name or ""
    name = f"{index}:{text}"
    where = f"tensor {name}"
    if tensor.type not in _DTYPES:
        kind = _TYPE_NAMES.get(tensor.type, tensor.type)
        raise ExportError(
            f"has type {kind}, which has no microcontroller kernel",
            where=where,
            fix="Quantise the model to int8.",
        )
    dtype = _DTYPES[tensor.type]
    shape = tuple(_ints(tensor.shape))
    signature = _ints(getattr(tensor, "shapeSignature", None))
    # Converters leave the batch open in the signature and write 1 into the shape, which TFLite Micro goes by.
    if signature and signature[0] == -1 and shape[:1] == (1,):
        signature[0] = 1
    if any(s < 0 for s in (*shape, *signature)):
        raise ExportError(
            f"has the dynamic shape {signature or list(shape)}",
            where=where,
            fix="Export the model with a static shape (batch 1).",
        )
    scales = zero_points = None
    axis = 0
    q = tensor.quantization
    if q is not None and q.scale is not None and len(q.scale):
        scales = np.asarray(q.scale, np.float32)
        given = [] if q.zeroPoint is None else _ints(q.zeroPoint)
        zero_points = np.asarray(given or [0] * len(scales), np.int64)
        axis = int(q.quantizedDimension or 0)
        if len(zero_points) == 1 and len(scales) > 1:
            zero_points = np.repeat(zero_points, len(scales))
        if (
            len(zero_points) != len(scales)
            or not np.isfinite(scales).all()
            or (scales <= 0).any()
            or (len(scales) > 1 and not (axis < len(shape) and shape[axis] == len(scales)))
        ):
            raise ExportError(
                f"has quantisation parameters that make no sense ({len(scales)} scales, "
                f"{len(zero_points)} zero points, axis {axis} of {list(shape)})",
                where=where,
            )
    data = _content(model.buffers[tensor.buffer], content)
    if data is None:
        return Tensor(name, shape, dtype, scales, zero_points, axis)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return Tensor(name, shape, dtype, scales, zero_points, axis, values.reshape(shape))


def _content(buffer: Any, content: bytes) -> bytes | None:
    if buffer.data is not None and len(buffer.data):
        data: NDArray[np.uint8] = np.asarray(buffer.data, np.uint8)
        return data.tobytes()
    offset, size = getattr(buffer, "offset", 0) or 0, getattr(buffer, "size", 0) or 0
    # The form in which weights lie behind the flatbuffer.
    return content[offset : offset + size] if offset > 1 and size else None
