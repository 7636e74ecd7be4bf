"""The `mcu` target: a folder with C99 sources, from a checkpoint or from any int8 .tflite file."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy import __version__
from csr_deploy.artifact import (
    GOLDEN,
    Artifact,
    Golden,
    check_place,
    record_file,
    write_golden,
    write_manifest,
)
from csr_deploy.atomic import atomic_directory
from csr_deploy.data.preprocess import Preprocessing
from csr_deploy.errors import ExportError, LedgerError, OptionError, ParityError
from csr_deploy.exporters.base import Exporter, ModelFile, WriteRequest
from csr_deploy.exporters.mcu.compiler import Program, compile_model, compile_tflite, evaluate, optimise
from csr_deploy.exporters.mcu.emit import Team, kernel_files, labels_source, model_header, model_source
from csr_deploy.exporters.mcu.ir import Model, Tensor
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.exporters.mcu.passes.normalise import normalise
from csr_deploy.exporters.mcu.picture import memory_svg, memory_table
from csr_deploy.exporters.mcu.project import cmake, example, library_properties, makefile
from csr_deploy.exporters.mcu.reader import read_tflite
from csr_deploy.exporters.tflite import TfliteWriter
from csr_deploy.exporters.tflite_legalise import legalise
from csr_deploy.ledger import Ledger
from csr_deploy.runtimes import open_runtime
from csr_deploy.types import ParityReport, Quantization, TensorSpec

_DISTRIBUTIONS = ("ai-edge-litert", "flatbuffers")
_CHECKED_INPUTS = 16


@dataclass(frozen=True)
class CProject:
    """What is written for a program.

    Attributes:
        program: What was compiled.
        name: Name of the network.
        labels: Class names; may be empty.
        options: Prefix of the generated names.
        input: Its input, as the artifact describes it.
        output: Its output.
    """

    program: Program
    name: str
    labels: Sequence[str]
    options: McuOptions
    input: TensorSpec
    output: TensorSpec


@dataclass(frozen=True)
class CTarget:
    """A target whose model is the C of this compiler.

    Attributes:
        name: Of the target.
        options: Where none are given.
        write: Writes sources and what goes with them into a folder; gives more figures for the manifest.
        run: Raw outputs [N, classes] of an artifact for pictures [N, H, W, C], and what computed them.
    """

    name: str
    options: McuOptions
    write: Callable[[CProject, Path], Mapping[str, Any]]
    run: Callable[[Artifact, CProject, NDArray[np.uint8]], tuple[NDArray[Any], str]]


def source_files(project: CProject, team: Team | None = None) -> dict[str, str]:
    """The model and the kernels it needs, file name → text; see `model_source`."""
    program, prefix = project.program, project.options.prefix
    files = {path.name: path.read_text(encoding="utf-8") for path in kernel_files(program)}
    files[f"{prefix}.c"] = model_source(program, prefix, team)
    files[f"{prefix}.h"] = model_header(program, prefix, project.name, project.labels, team)
    if project.labels:
        files[f"{prefix}_labels.c"] = labels_source(prefix, project.labels)
    return files


def border_types(project: CProject) -> dict[str, str]:
    """C types of "input" and "output"."""
    types = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}
    return {"input": types[project.input.dtype], "output": types[project.output.dtype]}


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes texts, place in the folder → text."""
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def write_project(project: CProject, folder: Path) -> Mapping[str, Any]:
    """Writes sources and project files of a program into an existing directory; has no figures to add."""
    program, name, prefix = project.program, project.name, project.options.prefix
    texts = source_files(project)
    files = {f"src/{file}": text for file, text in texts.items()}
    sources = sorted(file for file in texts if file.endswith(".c"))
    target = identifier(name)
    files["Makefile"] = makefile(sources, name)
    files["CMakeLists.txt"] = cmake(sources, target)
    files["library.properties"] = library_properties(target, name)
    files["examples/classify/main.c"] = example(prefix, border_types(project))
    kinds = {b.name: "scratch" for b in program.buffers if b.name.startswith("scratch_")}
    files["memory.svg"] = memory_svg(
        program.buffers, program.overlaps, program.plan, program.steps, kinds, title=name
    )
    files["memory.txt"] = memory_table(program.buffers, program.plan, program.steps)
    write_files(folder, files)
    return {}


def identifier(name: str) -> str:
    """A network's name as a C identifier."""
    kept = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower()).strip("_")
    return f"net_{kept}" if not kept or kept[0].isdigit() else kept


def _spec(tensor: Tensor, name: str) -> TensorSpec:
    """A border tensor as an artifact describes it: pictures [1, H, W, C] and rows of values [1, N]."""
    shape = tensor.shape
    q = None if tensor.scales is None else Quantization(float(tensor.scale), tensor.zero_point)
    if name == "logits":
        return TensorSpec(name, (1, math.prod(shape)), tensor.dtype, "NC", q)
    if len(shape) != 4 or shape[0] != 1 or shape[3] not in (1, 3):
        # No picture: a row of values.
        shape = (1, 1, math.prod(shape), 1)
    return TensorSpec(name, shape, tensor.dtype, "NHWC", q)


def project_of(program: Program, name: str, labels: Sequence[str], options: McuOptions) -> CProject:
    """What is written for a program of a .tflite file, whose border tensors say what they are."""
    model = program.model
    source, sink = model.tensors[model.input], model.tensors[model.output]
    return CProject(program, name, labels, options, _spec(source, "image"), _spec(sink, "logits"))


def write_c(target: CTarget, request: WriteRequest) -> ModelFile:
    """Writes a checkpoint's graph as C.

    Raises:
        ExportError: If it cannot be expressed, or breaks a budget.
        LedgerError: If tied weights were duplicated.
        OptionError: If a prefix was given.
    """
    options = request.options if isinstance(request.options, McuOptions) else target.options
    if options.prefix != McuOptions.prefix:
        raise OptionError(
            f"the prefix '{options.prefix}' was given for a checkpoint",
            fix="Export to tflite-int8 first, and compile that file with the prefix.",
        )
    content, described = TfliteWriter(request).write()
    program = compile_tflite(content, request.name, options)
    _check_tied(program, described.ledger, request.name)
    project = CProject(program, request.name, request.labels, options, described.input, described.output)
    more = target.write(project, request.path.parent.parent)
    return replace(described, figures={**_figures(program), **more})


def _check_tied(program: Program, ledger: Ledger, where: str) -> None:
    """Demands that the C has no more arrays of weights than the file it comes from.

    Arrays and not bytes, as packing fills them up.
    """
    stored = sum(c.is_array and c.kind == "weight" for c in program.constants)
    given = sum(s.kind in ("weight", "gain", "bias") and s.elements > 1 for s in ledger.stored)
    if stored > given:
        raise LedgerError(
            f"the C holds {stored} arrays of weights, the network {given}: tied weights were duplicated",
            where=where,
            fix="This is a defect of the compiler: please report it.",
        )


def _figures(program: Program) -> dict[str, int]:
    weights, tables = program.flash
    return {"constant_bytes": weights + tables, "table_bytes": tables, "arena_bytes": program.arena}


def companions(artifact: Artifact) -> tuple[Path, ...]:
    """Everything beside the model file."""
    return tuple(sorted(p for p in artifact.path.rglob("*") if p.is_file() and p != artifact.model_file))


def _run_on_this_machine(
    artifact: Artifact, project: CProject, images: NDArray[np.uint8]
) -> tuple[NDArray[Any], str]:
    with tempfile.TemporaryDirectory() as name:
        # The runtime knows the usual names only: another prefix is checked on a twin.
        twin = Path(name)
        write_project(replace(project, options=McuOptions()), twin)
        main = twin / "src" / "model.c"
        files = (
            record_file(main, twin),
            *(record_file(f, twin) for f in twin.rglob("src/*") if f != main),
        )
        with open_runtime("mcu", replace(artifact, path=twin, files=files)) as runtime:
            return runtime.logits(images), f"{runtime.name} {runtime.version}"


MCU = CTarget("mcu", McuOptions(), write_project, _run_on_this_machine)


def exporter_of(target: CTarget) -> Exporter:
    """The exporter of checkpoints to a target."""
    write = partial(write_c, target)
    return Exporter(
        ".c", "stepwise", legalise, write, _DISTRIBUTIONS, file="src/model.c", companions=companions
    )


EXPORTER = exporter_of(MCU)


@dataclass(frozen=True)
class TfliteSource:
    """A .tflite file and what is known of it.

    Attributes:
        path: The file.
        name: Of the artifact.
        labels: Class names, if known.
        preprocessing: From a picture to the input, if known; otherwise pixels 0…255 become the integers
            from the smallest on.
    """

    path: Path
    name: str
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


def export_tflite(
    source: TfliteSource,
    out: Path,
    options: McuOptions | None = None,
    *,
    target: CTarget = MCU,
    force: bool = False,
    seed: int = 0,
) -> Artifact:
    """Compiles a .tflite file into an artifact, and proves that the C computes what TFLite Micro computes.

    Args:
        source: The file.
        out: The artifact's directory, written whole or not at all.
        options: How C is generated.
        target: Which one.
        force: Replace an existing directory.
        seed: Of the random inputs of the check.

    Returns:
        The artifact.

    Raises:
        ExportError: If the file cannot be read, is malformed or not expressible, or `out` cannot be written.
        ParityError: If the C gives other bytes than the oracle.
    """
    options = options or target.options
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot be read: {error.strerror or error}", where=str(source.path)) from error
    model = read_tflite(content, str(source.path))
    program = compile_model(optimise(model, options), options)
    project = project_of(program, source.name, source.labels, options)
    parameters = _parameters(model)
    preprocessing = source.preprocessing or _plain_preprocessing(project.input)
    check_place(out, replace=force)
    with atomic_directory(out, replace=force) as folder:
        more = target.write(project, folder)
        main = folder / "src" / f"{options.prefix}.c"
        artifact = Artifact(
            path=folder,
            name=source.name,
            target=target.name,
            files=(record_file(main, folder),),
            input=project.input,
            output=project.output,
            preprocessing=preprocessing,
            labels=source.labels,
            options={target.name: asdict(options), "seed": seed},
            model={"parameters": parameters, "macs": model.macs(), **_figures(program), **more},
            source={"tflite_sha256": record_file(source.path).sha256},
            tools=_versions(),
            ledger=Ledger(()).summary(parameters) | {"weight_bytes": program.flash[0]},
        )
        artifact = replace(
            artifact, files=(*artifact.files, *(record_file(p, folder) for p in companions(artifact)))
        )
        artifact = _checked(artifact, project, target, model, seed)
        write_manifest(artifact)
    return replace(artifact, path=out)


def _plain_preprocessing(spec: TensorSpec) -> Preprocessing:
    """Pixels become the integers of the input's type in order, whatever their scale."""
    _, height, width, channels = spec.shape
    q = spec.quantization
    if q is None:
        return Preprocessing(height, width, (0.0,) * channels, (1.0,) * channels)
    low = int(np.iinfo(spec.dtype).min)
    std = 1 / (255 * q.scale)
    return Preprocessing(height, width, ((q.zero_point - low) / 255,) * channels, (std,) * channels)


def _parameters(model: Model) -> int:
    """Values of a file's weights and biases, each shared one once."""
    found = {}
    for name in {name for op in model.ops for name in op.inputs if name}:
        tensor = model.tensors[name]
        if tensor.data is not None and tensor.scales is not None and tensor.data.size > 1:
            found[tensor.dtype, tensor.data.tobytes()] = tensor.data.size
    return sum(found.values())


def _versions() -> dict[str, str]:
    versions = {"csr-deploy": __version__, "python": platform.python_version()}
    for name in ("numpy", *_DISTRIBUTIONS):
        versions[name] = importlib.metadata.version(name)
    return versions


def _checked(artifact: Artifact, project: CProject, target: CTarget, model: Model, seed: int) -> Artifact:
    """Runs random inputs through the C on this machine and through TFLite's integer arithmetic in NumPy.

    Adds the report and golden vectors.

    Args:
        artifact: All files written.
        project: What they say.
        target: What runs them.
        model: The file's graph as read.
        seed: Of the inputs.
    """
    p = artifact.preprocessing
    shape = (_CHECKED_INPUTS, p.height, p.width, p.channels)
    images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    raw, ran = target.run(artifact, project, images)
    inputs = artifact.encode(images).reshape(_CHECKED_INPUTS, *artifact.input.shape[1:])
    # What is rounded once has no other oracle than its own reference.
    graph = project.program.model if project.options.fuse_requantize else normalise(model)
    expected = np.stack([evaluate(graph, x[None]).reshape(-1) for x in inputs]).reshape(raw.shape)
    reference, exported = artifact.output.decode(expected), artifact.output.decode(raw)
    equal = bool((expected == raw).all())
    report = ParityReport(
        images=len(images),
        images_sha256="",
        runtime=ran,
        top1_agreement=float((reference.argmax(1) == exported.argmax(1)).mean()),
        max_abs_error=float(np.abs(reference - exported).max()),
        output_range=float(reference.max() - reference.min()),
        relative_error=0.0 if equal else 1.0,
        threshold={"equal_bytes": 1.0},
        passed=equal,
    )
    if not equal:
        raise ParityError(
            f"the C differs from TFLite's integer arithmetic in {int((expected != raw).sum())} of {raw.size} "
            "outputs",
            where=artifact.name,
            fix="This is a defect of the compiler: please report it with the file.",
        )
    labels = np.full(len(images), -1, np.int64)
    write_golden(artifact.path / GOLDEN, Golden(images, labels, reference, raw))
    return replace(
        artifact,
        files=(*artifact.files, record_file(artifact.path / GOLDEN)),
        parity=asdict(report),
    )
