"""What a plan of TensorRT for RTX says of itself.

Without a GPU such a plan cannot be loaded, so the engine inspector cannot be asked. But the plan carries its
program as text: descriptors of all tensors, then one line a kernel call. Calls of library kernels carry no
code; the others carry CUDA C++ source that is compiled on the device, one source for all equal calls.
The format is not documented: whatever is not found as expected is given as None, never guessed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_START = b"header {\n"
_TENSOR = re.compile(r"^ *tensor=\{ (.*) \}$", re.MULTILINE)
_CALL = re.compile(r"^ *(\w+)=\{ (?=.*\boutput(?:_args)?=\{)(.*) \}$", re.MULTILINE)
_NAME = re.compile(r'\bname="?([^" ]+)')
_TYPE = re.compile(r"\btype=(\w+)")
_CONSTANT = re.compile(r"\bconst_payload_size=(\d+) .*\boffset=(\d+)")
_OUTPUT = re.compile(r'\boutput(?:_args)?=\{ ?"([^"]+)"')
_INPUTS = re.compile(r"\binput=\{([^}]*)\}")
_KINDS = {"function": "generated", "runtime_function": "generated", "corrltn": "convolution"}
_LIBRARY = ("corrltn", "fully_connected")
_TYPES = {"float": "float32", "half": "float16"}
_SOURCE = b"#undef __HAS_FP8\n"


@dataclass(frozen=True)
class Layer:
    """What runs as one kernel call, or one layer of the engine.

    Attributes:
        name: As the library calls it.
        kind: For example "convolution"; "generated" for a kernel made for this network.
        precision: Data type of the weights of a convolution or matrix product, of the output of any other
            layer, e.g. "int8"; None where the library does not tell.
    """

    name: str
    kind: str
    precision: str | None


@dataclass(frozen=True)
class Program:
    """The program in a plan.

    Attributes:
        layers: Its kernel calls, in order.
        weighted_calls: Convolutions and matrix products among them.
        distinct_weights: Weights that these use; fewer than calls where weights are shared.
        constant_bytes: Weights and other constants.
        sources: Generated kernels, each counted once.
        source_bytes: Bytes of their source code in the plan.
    """

    layers: tuple[Layer, ...]
    weighted_calls: int
    distinct_weights: int
    constant_bytes: int
    sources: int
    source_bytes: int


def read_program(plan: bytes) -> Program | None:
    """The program in a plan, or None where there is none that can be read."""
    start = plan.find(_START)
    if start < 0:
        return None
    end = plan.find(b"\0", start)
    text = plan[start : end if end >= 0 else len(plan)].decode("utf-8", "replace")
    types: dict[str, str] = {}
    # Descriptors of equal constants share one place in the plan.
    places: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for match in _TENSOR.finditer(text):
        tensor = match.group(1)
        name, kind = _NAME.search(tensor), _TYPE.search(tensor)
        if name is None or kind is None:
            continue
        types[name.group(1)] = _TYPES.get(kind.group(1), kind.group(1))
        if constant := _CONSTANT.search(tensor):
            size, place = constant.groups()
            sizes[place] = int(size)
            places[name.group(1)] = place
    layers: list[Layer] = []
    weights: list[str] = []
    for match in _CALL.finditer(text):
        kind_name, call = match.groups()
        name, output = _NAME.search(call), _OUTPUT.search(call)
        typed = output.group(1) if output else ""
        if kind_name in _LIBRARY and (weight := _weight(call)):
            weights.append(places.get(weight, weight))
            typed = weight
        kind_text = _KINDS.get(kind_name, kind_name)
        layers.append(Layer(name.group(1) if name else kind_name, kind_text, types.get(typed)))
    if not layers:
        return None
    sources = _source_sizes(plan)
    return Program(
        tuple(layers), len(weights), len(set(weights)), sum(sizes.values()), len(sources), sum(sources)
    )


def _weight(call: str) -> str | None:
    """The second operand of a library kernel."""
    found = _INPUTS.search(call)
    operands = re.findall(r'"([^"]+)"', found.group(1)) if found else []
    return operands[1] if len(operands) > 1 else None


def _source_sizes(plan: bytes) -> list[int]:
    """Sizes of the source codes; each is preceded by its size, 32 bits, little-endian."""
    sizes = []
    at = plan.find(_SOURCE)
    while at >= 4:
        (size,) = struct.unpack_from("<I", plan, at - 4)
        if len(_SOURCE) < size <= len(plan) - at:
            sizes.append(size)
        at = plan.find(_SOURCE, at + len(_SOURCE))
    return sizes
