r"""What stock converters make of a checkpoint.

ONNX comes from torch.onnx and ONNX Runtime's quantizer, .tflite from litert-torch and ai-edge-quantizer.
They are no dependency of this project; `make bench-peers` installs versions that work together, those of
`constraints.txt` beside this file, in an environment of their own, .venv-peers:

    PYTHONPATH=. .venv-peers/bin/python tools/peers/stock_peer.py --checkpoint model.pt \
        --calibration images.npy --out DIR [--formats onnx onnx-int8 tflite tflite-int8 …]

The torch modules come from the source tree (`PYTHONPATH`). The converters get the module as it is, as a user
would hand it over: a CSR-Conv as its Python loop, with V of all steps in one call, BatchNorm in evaluation
mode, and 200 calibration images. Nothing is rewritten before or repaired after.

| format | made by |
|---|---|
| `onnx` | torch.onnx.export(dynamo=True), the weights inside the file |
| `onnx-int8` | quant_pre_process, then quantize_static: QDQ, int8, weights per channel, min-max |
| `tflite` | litert_torch.convert; NCHW input, as it comes |
| `tflite-int8` | ai_edge_quantizer with the recipe static_wi8_ai8 |
| `tflite-nhwc`, `tflite-nhwc-int8` | the same, from litert_torch.to_channel_last_io(module, args=[0]) |

Every format is made in a process of its own, for a converter may abort, and leaves `<name>.<format>.json`
beside its file; a format that was made from the same checkpoint, images and versions is not made again. One
JSON object goes to standard output: `{"network", "parameters", "kernel_elements", "rows": […]}`, a row with
`error` where there is no model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import CsrError, DataError, ExportError, MissingDependencyError

SUFFIXES = {
    "onnx": ".onnx",
    "onnx-int8": "-int8.onnx",
    "tflite": ".tflite",
    "tflite-int8": "-int8.tflite",
    "tflite-nhwc": "-nhwc.tflite",
    "tflite-nhwc-int8": "-nhwc-int8.tflite",
}
"""Format → what its file's name ends in. A float format comes before its int8 form."""
DEFAULT_FORMATS = ("onnx", "onnx-int8", "tflite", "tflite-int8")
PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "litert-torch",
    "ai-edge-quantizer",
    "ai-edge-litert",
)
CALIBRATION_IMAGES = 200
PARITY_IMAGES = 64
_SECONDS = 1800
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
_REPOSITORY = Path(__file__).resolve().parents[2]
_SCHEMA = 1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StockModel:
    """One format of one network.

    Attributes:
        format: Key of `SUFFIXES`.
        path: The model file; empty where there is none.
        size: Bytes of the file.
        seconds: Of the conversion alone, without imports and without that of the float model under it.
        input: Shape and dtype.
        bytes_per_parameter: File bytes ÷ parameters of the checkpoint.
        kernel_elements: Values in the stored kernels of convolutions and linear layers.
        duplicated_elements: Of them, those of a kernel that is stored already with the same values.
        tied: Whether no more kernel values are stored than the module has.
        ops: Kind of operation → how many.
        parity: Top-1 agreement with the module, and the largest error in parts of the range of its logits.
        key: What the model was made from: hashes of the checkpoint and the images, versions.
        error: Why there is no model.
    """

    format: str
    path: str = ""
    size: int = 0
    seconds: float = 0.0
    input: Mapping[str, Any] = field(default_factory=dict)
    bytes_per_parameter: float = 0.0
    kernel_elements: int = 0
    duplicated_elements: int = 0
    tied: bool = False
    ops: Mapping[str, int] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    error: str = ""


# --- this project's side ---


def convert(
    checkpoint: Path,
    calibration: Path,
    out: Path,
    python: str,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> list[StockModel]:
    """Makes models with the converters of another interpreter.

    Args:
        checkpoint: A `model.pt`.
        calibration: .npy, [N, H, W, C] uint8.
        out: Folder of the models.
        python: Interpreter that the converters are installed in.
        formats: Keys of `SUFFIXES`.

    Raises:
        MissingDependencyError: If there is no such interpreter, or it lacks what every format needs.
        ExportError: If it fails as a whole; a single format that fails is a row with its reason.
    """
    command = [
        python, str(Path(__file__).resolve()), "--checkpoint", str(checkpoint),
        "--calibration", str(calibration), "--out", str(out), "--formats", *formats,
    ]  # fmt: skip
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    except (FileNotFoundError, PermissionError) as error:
        raise _missing(python) from error
    if "ModuleNotFoundError" in ran.stderr and ran.returncode:
        raise _missing(python)
    if ran.returncode not in (0, 1) or not ran.stdout.strip():
        raise ExportError(f"stock converters: {_last_line(ran.stderr)}", where=str(checkpoint))
    return [StockModel(**row) for row in json.loads(ran.stdout)["rows"]]


def _missing(python: str) -> MissingDependencyError:
    return MissingDependencyError(
        "litert-torch",
        "",
        "Comparing with stock converters",
        fix=f"Run make bench-peers, or: {python} -m pip install {' '.join(PACKAGES)} psutil",
    )


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(_REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# --- the converters' side ---


def _versions() -> dict[str, str]:
    installed = {
        d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in PACKAGES if name in installed}


def _key(checkpoint: Path, calibration: Path, images: int) -> str:
    """Identity of what a model is made from."""
    digest = hashlib.sha256(json.dumps([_SCHEMA, images, _versions()]).encode())
    for path in (checkpoint, calibration):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_images(path: Path) -> NDArray[np.uint8]:
    try:
        images: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), fix="Give a .npy file.") from error
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
        raise DataError(
            f"holds {images.dtype} {list(images.shape)}", where=str(path), fix="Give [N, H, W, C] uint8."
        )
    return images


class _Network:
    """A checkpoint's module and its calibration images, and what becomes of them."""

    def __init__(self, checkpoint: Path, calibration: Path, images: int, out: Path) -> None:
        from csr_deploy.checkpoint import load_checkpoint
        from csr_deploy.models import count_parameters

        read = load_checkpoint(checkpoint)
        self.name = checkpoint.stem if checkpoint.stem != "model" else read.architecture.name
        self.module = read.build()
        p = read.preprocessing
        self.shape = (1, p.channels, p.height, p.width)
        pictures = _read_images(calibration)[:images]
        if pictures.shape[1:] != (p.height, p.width, p.channels):
            raise DataError(
                f"holds pictures of {list(pictures.shape[1:])}; the network takes "
                f"{[p.height, p.width, p.channels]}",
                where=str(calibration),
            )
        self.inputs: Floats = p.normalize(pictures)
        self.parameters = count_parameters(self.module)
        self.kernel_elements = sum(v.numel() for v in self.module.parameters() if v.ndim > 1)
        self.out = out

    def file(self, kind: str) -> Path:
        return self.out / f"{self.name}{SUFFIXES[kind]}"

    def record(self, kind: str) -> Path:
        return self.out / f"{self.name}.{kind}.json"

    def logits(self, inputs: Floats) -> Floats:
        import torch

        with torch.no_grad():
            out: Floats = self.module(torch.from_numpy(inputs)).numpy()
        return out


def _to_onnx(network: _Network, path: Path) -> None:
    import torch

    example = (torch.zeros(network.shape),)
    torch.onnx.export(
        network.module, example, str(path), dynamo=True, external_data=False, verbose=False,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip


class _Reader:
    """Calibration images one by one, as ONNX Runtime's quantizer reads them."""

    def __init__(self, name: str, inputs: Floats) -> None:
        self.name = name
        self.images = iter(inputs)

    def get_next(self) -> dict[str, Floats] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image[None]}


def _to_onnx_int8(network: _Network, path: Path) -> None:
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(_Reader, quantization.CalibrationDataReader):  # type: ignore[misc]
        pass

    with tempfile.TemporaryDirectory(prefix="csr-stock-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantization.quant_pre_process(str(network.file("onnx")), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(path),
            Reader("image", network.inputs),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def _to_tflite(network: _Network, path: Path, *, channels_last: bool = False) -> None:
    import torch

    litert_torch: Any = importlib.import_module("litert_torch")
    module, example = network.module, torch.zeros(network.shape)
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=[0]).eval()
        example = example.permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(module, (example,)).export(str(path))


def _to_tflite_int8(network: _Network, path: Path, *, channels_last: bool = False) -> None:
    quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    recipe: Any = importlib.import_module("ai_edge_quantizer.recipe")
    source = network.file("tflite-nhwc" if channels_last else "tflite")
    inputs = network.inputs.transpose(0, 2, 3, 1) if channels_last else network.inputs
    signature, name = _signature(source)
    made = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    ranges = made.calibrate({signature: [{name: np.ascontiguousarray(image[None])} for image in inputs]})
    made.quantize(ranges).export_model(str(path), overwrite=True)


def _interpreter(path: Path) -> Any:
    return importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(path), num_threads=1)


def _signature(path: Path) -> tuple[str, str]:
    """Name of a .tflite file's one signature, and of its input."""
    ((signature, borders),) = _interpreter(path).get_signature_list().items()
    return str(signature), str(borders["inputs"][0])


_CONVERTERS: dict[str, Callable[[_Network, Path], None]] = {
    "onnx": _to_onnx,
    "onnx-int8": _to_onnx_int8,
    "tflite": _to_tflite,
    "tflite-int8": _to_tflite_int8,
    "tflite-nhwc": lambda network, path: _to_tflite(network, path, channels_last=True),
    "tflite-nhwc-int8": lambda network, path: _to_tflite_int8(network, path, channels_last=True),
}


# --- what is in the files ---


@dataclass(frozen=True)
class Contents:
    """What a model file holds.

    Attributes:
        kernels: One entry a stored kernel: number of values, and a hash of them.
        ops: Kind of operation → how many.
    """

    kernels: tuple[tuple[int, str], ...]
    ops: Mapping[str, int]

    @property
    def elements(self) -> int:
        """Values in stored kernels."""
        return sum(count for count, _ in self.kernels)

    @property
    def duplicates(self) -> int:
        """Values in kernels whose values are stored already."""
        return self.elements - sum(count for count, _ in set(self.kernels))


def read_onnx(content: bytes) -> Contents:
    """Kernels and operations of an ONNX model."""
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load_from_string(content).graph
    stored = {i.name: i for i in graph.initializer}
    made = {o: n for n in graph.node for o in n.output}
    kernels: dict[str, tuple[int, str]] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        # Behind a weight may stand DequantizeLinear, or a Transpose that was not folded.
        while name not in stored and name in made:
            name = made[name].input[0]
        if name in stored:
            values = onnx.numpy_helper.to_array(stored[name])
            kernels[name] = (int(values.size), hashlib.sha256(values.tobytes()).hexdigest())
    return Contents(tuple(kernels.values()), dict(Counter(n.op_type for n in graph.node).most_common()))


def read_tflite(content: bytes) -> Contents:
    """Kernels and operations of a .tflite model."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = schema.Model.GetRootAs(content, 0)
    ops: Counter[str] = Counter()
    kernels: dict[int, tuple[int, str]] = {}
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            kind = names[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]
            ops[kind] += 1
            if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"):
                continue
            tensor = graph.Tensors(operator.Inputs(1))
            values = _buffer(model, content, tensor.Buffer())
            if values:
                count = math.prod(int(n) for n in tensor.ShapeAsNumpy())
                kernels[tensor.Buffer()] = (count, hashlib.sha256(values).hexdigest())
    return Contents(tuple(kernels.values()), dict(ops.most_common()))


def _buffer(model: Any, content: bytes, index: int) -> bytes:
    buffer = model.Buffers(index)
    # Since 2024 the bytes may stand behind the flatbuffer, at an offset of the file.
    if buffer.Offset() > 1:
        return content[buffer.Offset() : buffer.Offset() + buffer.Size()]
    return bytes(buffer.DataAsNumpy().tobytes()) if buffer.DataLength() else b""


def _run_onnx(path: Path, inputs: Floats) -> tuple[Floats, dict[str, Any]]:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    border = session.get_inputs()[0]
    logits = np.concatenate([session.run(None, {border.name: image[None]})[0] for image in inputs])
    return logits, {"shape": list(border.shape), "dtype": border.type.removeprefix("tensor(").rstrip(")")}


def _run_tflite(path: Path, inputs: Floats) -> tuple[Floats, dict[str, Any]]:
    interpreter = _interpreter(path)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shape = [int(n) for n in source["shape"]]
    if shape[1:] != list(inputs.shape[1:]):
        inputs = inputs.transpose(0, 2, 3, 1)
    logits = []
    for image in inputs:
        interpreter.set_tensor(source["index"], _encode(image[None], source))
        interpreter.invoke()
        logits.append(_decode(interpreter.get_tensor(sink["index"]), sink))
    return np.concatenate(logits), {"shape": shape, "dtype": np.dtype(source["dtype"]).name}


def _encode(values: Floats, border: Mapping[str, Any]) -> NDArray[Any]:
    kind = np.dtype(border["dtype"])
    if kind.kind == "f":
        return np.ascontiguousarray(values)
    scale, zero = border["quantization"]
    limits = np.iinfo(kind)
    encoded: NDArray[Any] = np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(kind)
    return encoded


def _decode(values: NDArray[Any], border: Mapping[str, Any]) -> Floats:
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    scale, zero = border["quantization"]
    decoded: Floats = ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return decoded


def parity(expected: Floats, made: Floats) -> dict[str, Any]:
    """Top-1 agreement, and the largest error in parts of the range of the module's logits."""
    spread = float(expected.max() - expected.min())
    error = float(np.abs(expected - made).max())
    return {
        "images": len(expected),
        "top1_agreement": float((expected.argmax(1) == made.argmax(1)).mean()),
        "relative_error": error / spread if spread else error,
    }


# --- one format after the other ---


def _work(network: _Network, kind: str, key: str) -> StockModel:
    """Converts, reads back and compares; whatever a converter raises is left to the caller."""
    path = network.file(kind)
    temporary = path.with_name(f".{path.name}")
    start = time.perf_counter()
    _CONVERTERS[kind](network, temporary)
    seconds = time.perf_counter() - start
    os.replace(temporary, path)
    content = path.read_bytes()
    contents = read_onnx(content) if kind.startswith("onnx") else read_tflite(content)
    inputs = network.inputs[:PARITY_IMAGES]
    logits, border = (_run_onnx if kind.startswith("onnx") else _run_tflite)(path, inputs)
    return StockModel(
        kind,
        str(path),
        len(content),
        round(seconds, 2),
        border,
        round(len(content) / network.parameters, 3),
        contents.elements,
        contents.duplicates,
        contents.elements <= network.kernel_elements,
        contents.ops,
        parity(network.logits(inputs), logits),
        key,
    )


def _made(network: _Network, kind: str, key: str) -> StockModel | None:
    """A format's row of an earlier run, where it still holds."""
    try:
        row = StockModel(**json.loads(network.record(kind).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return row if row.key == key and not row.error and network.file(kind).is_file() else None


def _row(network: _Network, kind: str, key: str, options: Any, errors: Mapping[str, str]) -> StockModel:
    """A format's row: of an earlier run, or made now by a process of its own."""
    if (row := _made(network, kind, key)) is not None:
        return row
    under = kind.removesuffix("-int8")
    if errors.get(under):
        return StockModel(kind, key=key, error=f"needs {under}, which failed: {errors[under]}")
    network.file(kind).unlink(missing_ok=True)
    network.record(kind).unlink(missing_ok=True)
    command = [
        sys.executable, str(Path(__file__).resolve()), "--checkpoint", str(options.checkpoint),
        "--calibration", str(options.calibration), "--out", str(options.out),
        "--images", str(options.images), "--worker", kind,
    ]  # fmt: skip
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return StockModel(kind, key=key, error=f"took more than {_SECONDS} s")
    if ran.returncode:
        return StockModel(kind, key=key, error=f"status {ran.returncode}: {_last_line(ran.stderr)[:400]}")
    return StockModel(**json.loads(network.record(kind).read_text()))


def parse(arguments: list[str] | None = None) -> Any:
    """The command line's options; formats in the order of `SUFFIXES`, each int8 one behind its float one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--calibration", type=Path, required=True, metavar="NPY", help="[N, H, W, C] uint8")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=list(DEFAULT_FORMATS))
    parser.add_argument("--images", type=int, default=CALIBRATION_IMAGES, help="calibration images")
    # What `_row` starts for itself.
    parser.add_argument("--worker", choices=SUFFIXES, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.images < 1:
        parser.error("--images must be at least 1")
    wanted = {*options.formats, *(f.removesuffix("-int8") for f in options.formats)}
    options.formats = [f for f in SUFFIXES if f in wanted]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 1 where a format failed, 2 where nothing could be tried.
    """
    options = parse(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        network = _Network(options.checkpoint, options.calibration, options.images, options.out)
    except CsrError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    key = _key(options.checkpoint, options.calibration, options.images)
    if options.worker:
        row = _work(network, options.worker, key)
        network.record(options.worker).write_text(json.dumps(asdict(row), indent=1) + "\n")
        return 0
    rows: list[StockModel] = []
    for kind in options.formats:
        sys.stderr.write(f"{network.name}: {kind}\n")
        rows.append(_row(network, kind, key, options, {r.format: r.error for r in rows}))
    report = {
        "network": network.name,
        "parameters": network.parameters,
        "kernel_elements": network.kernel_elements,
        "versions": _versions(),
        "rows": [asdict(r) for r in rows],
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if any(r.error for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
