"""TFLite Micro: the model of `tflite-int8` with what a firmware needs to build it in.

Beside the .tflite file stand the same bytes as a C array, the registration of exactly the operations it needs
and the size of the arena that TFLite Micro's own interpreter needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from csr_deploy.artifact import Artifact
from csr_deploy.errors import ExportError
from csr_deploy.exporters import tflite
from csr_deploy.exporters.flatbuffer import ALIGNMENT
from csr_deploy.runtimes.tflm import TflmRuntime

_BYTES_PER_LINE = 16

# The Add… methods of MicroMutableOpResolver for built-in operations (micro_mutable_op_resolver.h of 2025);
# the operations have the same names, but for underscores and case.
_METHODS = """
Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd BroadcastArgs BroadcastTo
CallOnce Cast Ceil Concatenation Conv2D Cos CumSum DepthToSpace DepthwiseConv2D Dequantize Div Elu
EmbeddingLookup Equal Exp ExpandDims Fill Floor FloorDiv FloorMod FullyConnected Gather GatherNd Greater
GreaterEqual HardSwish If L2Normalization L2Pool2D LeakyRelu Less LessEqual Log LogicalAnd LogicalNot
LogicalOr Logistic LogSoftmax Maximum MaxPool2D Mean Minimum MirrorPad Mul Neg NotEqual Pack Pad PadV2 Prelu
Quantize ReadVariable ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2
Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV Sqrt Square
SquaredDifference Squeeze StridedSlice Sub Sum Svdf Tanh Transpose TransposeConv UnidirectionalSequenceLSTM
Unpack VarHandle While ZerosLike
"""
_BY_OPERATION = {name.upper(): f"Add{name}" for name in _METHODS.split()}
_OPERATIONS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def identifier(name: str) -> str:
    """The start of C identifiers for a network's name; a keyword only as long as nothing is appended."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    plain = "_".join(words) or "network"
    return f"net_{plain}" if plain[0].isdigit() else plain


def operations(content: bytes) -> tuple[str, ...]:
    """Names of the operations a model uses, each once, in TFLite's spelling and in alphabetical order."""
    model = schema.Model.GetRootAs(content)
    codes = set()
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        codes |= {graph.Operators(i).OpcodeIndex() for i in range(graph.OperatorsLength())}
    found = set()
    for code in map(model.OperatorCodes, codes):
        # Operations from 127 on have their number in the newer field, older files only in the older one.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        found.add(_OPERATIONS.get(number, f"operation {number}"))
    return tuple(sorted(found))


def resolver_methods(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Methods of MicroMutableOpResolver that register operations.

    Args:
        names: In TFLite's spelling, such as "CONV_2D".
        where: What a message calls the network.

    Raises:
        ExportError: If TFLite Micro's resolver has none for an operation.
    """
    missing = [name for name in names if name.replace("_", "") not in _BY_OPERATION]
    if missing:
        raise ExportError(
            f"TFLite Micro has no operation {', '.join(missing)}",
            where=where,
            fix="Export to tflite-int8 for LiteRT, or replace the layer that needs it.",
        )
    return tuple(_BY_OPERATION[name.replace("_", "")] for name in names)


# Every size is tried in a process of its own, because TFLite Micro may end it where its arena is too small.
_PROBE = """
import os
import sys
from tflite_micro import runtime

content, size, step, most = sys.stdin.buffer.read(), *map(int, sys.argv[1:])

def is_enough(size):
    trial = os.fork()
    if trial == 0:
        try:
            runtime.Interpreter.from_bytes(content, arena_size=size).invoke()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(trial, 0)[1] == 0

low = size - step
while not is_enough(size):
    if size > most:
        sys.exit(f"{size} bytes are not enough")
    low, size = size, size + 2 * (size - low)
while size - low > step:
    middle = (low + size) // (2 * step) * step
    low, size = (low, middle) if is_enough(middle) else (middle, size)
print(size)
"""


# Planning takes more than what stays in use, but never by this much.
_MOST_TIMES = 16


def least_arena(artifact: Artifact) -> int:
    """Bytes of the smallest arena in which TFLite Micro's interpreter on this machine loads and runs a model.

    Its own record tells what stays in use; planning a small model can take more for a moment.

    Raises:
        ExportError: If it cannot be found out.
        RuntimeUnavailableError: If TFLite Micro cannot load the model at all.
    """
    with TflmRuntime(artifact) as runtime:
        recorded = runtime.arena or 0
    start = -(-recorded // ALIGNMENT) * ALIGNMENT
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE, str(start), str(ALIGNMENT), str(_MOST_TIMES * max(start, 4096))],
        input=artifact.model_file.read_bytes(),
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        raise ExportError(
            f"TFLite Micro ended with code {probe.returncode} while its arena was measured: "
            f"{probe.stderr.decode(errors='replace').strip()[-200:]}",
            where=artifact.name,
        )
    return int(probe.stdout)


def _guarded(name: str, lines: Sequence[str]) -> str:
    guard = f"{name.upper()}_H_"
    return "\n".join([f"#ifndef {guard}", f"#define {guard}", "", *lines, "", f"#endif  // {guard}", ""])


def _header(name: str, size: int, arena: int) -> str:
    camel = "".join(word.capitalize() for word in name.split("_"))
    return _guarded(
        f"{name}_model",
        [
            "#include <cstddef>",
            "",
            "// A .tflite file with all its weights inside, for tflite::GetModel().",
            f"constexpr std::size_t k{camel}ModelBytes = {size};",
            f"alignas({ALIGNMENT}) extern const unsigned char {name}_model[k{camel}ModelBytes];",
            "",
            "// The least arena in which TFLite Micro loads and runs this model on a 64-bit machine: for",
            "// activations, the interpreter's structures, those of its record, and planning. With 32-bit",
            "// pointers structures are smaller, but optimised kernels such as CMSIS-NN may ask for scratch",
            "// buffers on top; MicroInterpreter::arena_used_bytes() tells what stays in use on the device.",
            f"// The arena must be aligned to {ALIGNMENT} bytes.",
            f"constexpr std::size_t k{camel}ArenaBytes = {arena};",
        ],
    )


def _source(name: str, content: bytes) -> str:
    lines = [
        f'#include "{name}_model.h"',
        "",
        f"alignas({ALIGNMENT}) const unsigned char {name}_model[] = {{",
    ]
    for start in range(0, len(content), _BYTES_PER_LINE):
        row = content[start : start + _BYTES_PER_LINE]
        lines.append("    " + ",".join(f"0x{value:02x}" for value in row) + ",")
    return "\n".join([*lines, "};", ""])


def _resolver(name: str, methods: Sequence[str]) -> str:
    calls = []
    for method in methods:
        calls += [f"  status = resolver.{method}();", "  if (status != kTfLiteOk) return status;"]
    return _guarded(
        f"{name}_ops",
        [
            '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"',
            "",
            "// The resolver is in tflite, in newer versions of TFLite Micro in tflite::micro.",
            "namespace tflite {",
            "namespace micro {}",
            "}  // namespace tflite",
            "",
            f"namespace {name}_ops {{",
            "namespace lookup {",
            "using namespace tflite;",
            "using namespace tflite::micro;",
            f"using Resolver = MicroMutableOpResolver<{len(methods)}>;",
            "}  // namespace lookup",
            "using lookup::Resolver;",
            "",
            "// Registers the operations of this model and no others.",
            "inline TfLiteStatus RegisterOps(Resolver& resolver) {",
            "  TfLiteStatus status;",
            *calls,
            "  return kTfLiteOk;",
            "}",
            f"}}  // namespace {name}_ops",
        ],
    )


def write_sources(artifact: Artifact) -> tuple[Path, ...]:
    """Writes the C++ sources for a .tflite model beside it.

    Raises:
        ExportError: If TFLite Micro lacks an operation, or its arena cannot be measured.
        RuntimeUnavailableError: If TFLite Micro cannot load the model.
    """
    content = artifact.model_file.read_bytes()
    methods = resolver_methods(operations(content), artifact.name)
    arena = least_arena(artifact)
    name = identifier(artifact.name)
    texts = {
        f"{name}_model.h": _header(name, len(content), arena),
        f"{name}_model.cc": _source(name, content),
        f"{name}_ops.h": _resolver(name, methods),
    }
    paths = []
    for file, text in texts.items():
        paths.append(artifact.path / file)
        paths[-1].write_text(text, encoding="ascii")
    return tuple(paths)


EXPORTER = replace(
    tflite.EXPORTER,
    distributions=(*tflite.EXPORTER.distributions, "tflite-micro"),
    companions=write_sources,
    # A microcontroller is no processor that costs are known of.
    costs="",
)
