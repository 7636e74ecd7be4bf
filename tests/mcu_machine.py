"""The kernels as a library with the undefined-behaviour sanitizer, called as the compiler's calls say.

`check` demands the same bytes of TFLite Micro, LiteRT, the NumPy reference and the C kernels, on buffers with
guards around them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csr_deploy.exporters.mcu.ir import Model
from csr_deploy.exporters.mcu.layout import View, lay_out
from csr_deploy.exporters.mcu.lower import Call, Lowering
from csr_deploy.exporters.mcu.ops import KINDS
from csr_deploy.exporters.mcu.passes.normalise import normalise
from csr_deploy.exporters.mcu.reader import read_tflite
from tests.mcu_tflite import run_litert, run_tflm

Array = NDArray[Any]

KERNELS = Path(__file__).resolve().parents[1] / "runtimes" / "mcu" / "c"
SOURCES = (
    "csr_add", "csr_convert", "csr_copy", "csr_fill", "csr_mean", "csr_min_max", "csr_mul", "csr_pool",
    "csr_prelu", "csr_softmax", "csr_sub", "csr_table",
)  # fmt: skip
GUARD = 64


def _struct(fields: str) -> type[ctypes.Structure]:
    """A C structure from `type name name, …`."""
    made = []
    for part in fields.split(","):
        ctype, *names = part.split()
        made += [(name, getattr(ctypes, f"c_{ctype}")) for name in names]
    return type("Struct", (ctypes.Structure,), {"_fields_": made})


STRUCTS = {
    "csr_add_quant": _struct("int32 ma mb mo, int8 sa sb so za zb zo low high"),
    "csr_mul_quant": _struct("int32 multiplier, int8 shift za zb zo low high"),
    "csr_prelu_quant": _struct("int32 positive negative, int8 sp sn za zs zo"),
    "csr_loops": _struct("uint16 rows pixels, uint32 span, int32 ar ap br bp or op, uint8 element"),
    "csr_mean": _struct(
        "int32 multiplier bias, uint32 outer channels rows pixels, int32 io ic row pixel oo oc, int8 left z"
    ),
    "csr_pool": _struct("void_p window, int8 low high"),
    "csr_softmax": _struct("void_p exponential, uint16 known classes, uint32 rows, int32 in_row out_row"),
    "csr_window": _struct(
        "uint16 ih iw c oh ow, int16 top left, uint8 kh kw sh sw dh dw, int32 in_row in_pixel o_row o_pixel"
    ),
}


def build_library(folder: Path) -> ctypes.CDLL:
    """The kernels that need no scratch memory."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = folder / "kernels.so"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    command = [compiler, *flags, "-o", str(path), *(str(KERNELS / f"{s}.c") for s in SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))


class Machine:
    """Runs the calls of a program on one block of memory.

    Args:
        library: The kernels.
        model: After `normalise`.
        overlapped: Lets the output overlap the input as far as the only call allows.
    """

    def __init__(self, library: ctypes.CDLL, model: Model, *, overlapped: bool = False) -> None:
        self.library = library
        self.model = model
        self.layout = lay_out(model)
        self.low = Lowering(model, self.layout)
        for step, op in enumerate(model.ops):
            if step not in self.layout.aliases:
                lower = KINDS[op.kind].lower
                assert lower is not None
                self.low.step = step
                lower(self.low, op)
        self.places = self._apart()
        if overlapped:
            (call,) = self.low.calls
            assert call.overlap is not None
            source, target, distance = call.overlap
            start = GUARD + max(0, -distance)
            self.places = {target: start, source: start + distance}
        ends = [self.places[b] + self.layout.sizes[b] for b in self.places]
        self.memory = np.full(max(ends) + GUARD, 0x5A, np.uint8)
        # ctypes frees what nobody refers to.
        self.kept: dict[str, Any] = {}

    def _apart(self) -> dict[str, int]:
        places, at = {}, GUARD
        for name, size in self.layout.sizes.items():
            places[name] = at
            at += -(-size // 16) * 16 + GUARD
        return places

    def _constant(self, name: str) -> Any:
        if name not in self.kept:
            constant = next(c for c in self.low.constants.values() if c.name == name)
            if constant.is_array:
                element = {"int8_t": ctypes.c_int8, "int32_t": ctypes.c_int32}[constant.ctype]
                self.kept[name] = (element * len(constant.values))(*constant.values)
            else:
                fields = [self._field(v) for v in constant.values]
                self.kept[name] = STRUCTS[constant.ctype](*fields)
        return self.kept[name]

    def _field(self, value: Any) -> Any:
        return ctypes.addressof(self._constant(value.removeprefix("&"))) if isinstance(value, str) else value

    def _argument(self, value: str | View) -> Any:
        if isinstance(value, View) and value.constant:
            return ctypes.c_void_p(ctypes.addressof(self._constant(value.buffer)) + value.offset)
        if isinstance(value, View):
            return ctypes.c_void_p(self.memory.ctypes.data + self.places[value.buffer] + value.offset)
        if value.startswith("&"):
            return ctypes.byref(self._constant(value[1:]))
        if value.endswith("f"):
            return ctypes.c_float(float(value[:-1]))
        if value.lstrip("-").rstrip("u").isdigit():
            return int(value.rstrip("u"))
        return self._constant(value)

    def _bytes(self, view: View) -> Array:
        start = self.places[view.buffer] + view.offset
        assert view.is_contiguous
        return self.memory[start : start + int(np.prod(view.shape)) * view.element]

    def _call(self, call: Call) -> None:
        getattr(self.library, call.kernel)(*(self._argument(a) for a in call.arguments))

    def run(self, x: Array) -> Array:
        """The output; asserts that guards are as they were."""
        self.memory[:] = 0x5A
        self._bytes(self.layout.views[self.model.input])[:] = x.reshape(-1).view(np.uint8)
        for call in self.low.calls:
            self._call(call)
        out = self.model.tensors[self.model.output]
        result = self._bytes(self.layout.views[out.name]).copy().view(out.dtype).reshape(out.shape)
        free = np.ones(len(self.memory), bool)
        for name, place in self.places.items():
            free[place : place + self.layout.sizes[name]] = False
        assert (self.memory[free] == 0x5A).all()
        return result


def reference(model: Model, x: Array) -> Array:
    values: dict[str, Array] = {model.input: x}
    for op in model.ops:
        inputs = [values[n] if n in values else model.tensors[n].data for n in op.inputs]
        values[op.output] = KINDS[op.kind].reference(op, model, inputs)  # type: ignore[arg-type]
    return values[model.output]


def check(
    library: ctypes.CDLL,
    content: bytes,
    *pictures: Array,
    litert: bool = True,
    tflm: bool = True,
    overlapped: bool = False,
) -> None:
    """Demands the same bytes of all."""
    model = normalise(read_tflite(content, "test"))
    machine = Machine(library, model, overlapped=overlapped)
    wanted = [reference(model, x) for x in pictures]
    for run in ([run_tflm] if tflm else []) + ([run_litert] if litert else []):
        for theirs, ours in zip(run(content, *pictures), wanted, strict=True):
            np.testing.assert_array_equal(theirs, ours)
    for x, ours in zip(pictures, wanted, strict=True):
        np.testing.assert_array_equal(machine.run(x), ours)
