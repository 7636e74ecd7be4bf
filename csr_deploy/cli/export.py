"""`csr-export`: from a checkpoint to verified artifacts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csr_deploy.cli.common import VersionOption, new_app, print_warning, run, stderr, stdout
from csr_deploy.cli.engines import EngineArguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.status import Status

    from csr_deploy.artifact import Artifact, EngineRecord
    from csr_deploy.cli.engines import EngineBuilder
    from csr_deploy.exporters.mcu.exporter import CTarget

app = new_app()


def _list_targets(as_json: bool) -> None:
    from rich.table import Table

    from csr_deploy.targets import TARGETS

    rows = [
        {
            "target": t.name,
            "summary": t.summary,
            "available": not t.missing(),
            "missing": t.missing(),
            "extra": t.extra,
        }
        for t in TARGETS.values()
    ]
    if as_json:
        stdout.print_json(json.dumps(rows))
        return
    table = Table(title="Targets")
    for column in ("Target", "What", "Can run here"):
        table.add_column(column)
    for t in TARGETS.values():
        missing = t.missing()
        state = f"no: pip install 'csr-deploy\\[{t.extra}]' ({', '.join(missing)})" if missing else "yes"
        table.add_row(t.name, t.summary, state)
    stdout.print(table)


def _summary(artifact: Artifact, seconds: float) -> dict[str, Any]:
    parity = artifact.parity
    return {
        "artifact": str(artifact.path),
        "target": artifact.target,
        "model": artifact.files[0].name,
        # Of C what counts is what ends up in flash, not the text.
        "bytes": artifact.model.get("constant_bytes", artifact.files[0].size),
        "sha256": artifact.sha256,
        "parameters": artifact.model["parameters"],
        "macs": artifact.model["macs"],
        "weight_bytes": artifact.ledger["weight_bytes"],
        "top1_agreement": parity["top1_agreement"],
        "relative_error": parity["relative_error"],
        "parity_images": parity["images"],
        "seconds": round(seconds, 2),
        **{
            k: artifact.model[k]
            for k in ("arena_bytes", "float_layers", "libraries", "not_built")
            if k in artifact.model
        },
    }


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    from rich.table import Table

    table = Table(title=f"Artifacts in {out}", title_justify="left")
    table.add_column("Artifact", overflow="fold")
    for column in ("Bytes", "B/param", "Top-1 = float", "Error/range", "Time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Path(row["artifact"]).name,
            f"{row['bytes']:,}",
            f"{row['bytes'] / row['parameters']:.2f}",
            f"{row['top1_agreement']:.1%} of {row['parity_images']}",
            f"{row['relative_error']:.1e}",
            f"{row['seconds']:.1f} s",
        )
    stdout.print(table)
    for row in rows:
        if "libraries" in row:
            built = ", ".join(f"{key} {made['bytes']:,}" for key, made in row["libraries"].items()) or "none"
            stdout.print(
                f"{Path(row['artifact']).name}: bytes of the libraries: {built}; "
                f"{row['arena_bytes']:,} bytes of arena each instance"
            )
        elif "arena_bytes" in row:
            stdout.print(
                f"{Path(row['artifact']).name}: {row['bytes']:,} bytes of constants in flash, "
                f"{row['arena_bytes']:,} bytes of arena in RAM"
            )
        if "float_layers" in row:
            stdout.print(f"{Path(row['artifact']).name}: in float: {', '.join(row['float_layers'])}")


def _report(rows: list[dict[str, Any]], out: Path, *, as_json: bool) -> None:
    """Says what was made, if anything."""
    if as_json:
        stdout.print_json(json.dumps(rows))
    elif rows:
        _show(rows, out)


def _show_drift(name: str, drift: dict[str, Any]) -> None:
    """One row a layer: its steps from h_1 to h_T."""
    from rich.table import Table

    table = Table(title=f"Drift of h_t in {name}, {drift['images']} images", title_justify="left")
    table.add_column("Layer", overflow="fold")
    for column in ("Unroll", "Conversion", "Quantisation, h₁ … h_T", "dB"):
        table.add_column(column, justify="right")
    for layer, steps in drift["layers"].items():
        worst = [max((v for v in steps[k] if v is not None), default=None) for k in ("unroll", "conversion")]
        table.add_row(
            layer,
            *("–" if v is None else f"{v:.0e}" for v in worst),
            " ".join(
                "dead" if not size else "–" if v is None else f"{v:.1%}"
                for v, size in zip(steps["quantization"], steps["rms"], strict=True)
            ),
            " ".join("–" if v is None else f"{v:.0f}" for v in steps["sqnr_db"]),
        )
    stdout.print(table)


_MODEL = typer.Argument(
    help="Checkpoint: model.pt or .safetensors. For --target mcu and native also any int8 .tflite file; with "
    "--build also an artifact that csr-export made.",
    show_default=False,
)
_TARGET = typer.Option("--target", "-t", help="Target; may be given several times.", show_default=False)
_OUT = typer.Option("--out", "-o", help="Folder that receives the artifacts.")
_CALIBRATION = typer.Option(
    "--calibration",
    "-c",
    help="Training data: folder, zip file, or 'fashion-mnist' for the packaged sample. Int8 needs it.",
    show_default=False,
)
_GOLDEN = typer.Option(
    metavar="SET",
    help="Pictures that the artifact carries as golden vectors, where those of --calibration must not be "
    "passed on: folder, zip file, or fashion-mnist.",
    show_default="16 of the parity images",
)
_AGREEMENT = typer.Option(
    help="Smallest share of images with float's top-1 class.", show_default="the target's"
)
_PROFILE = typer.Option(
    metavar="MIN:USUAL:MAX",
    help="Leave the batch size open, instead of --batch; ONNX and TensorRT only. The graph is checked with, "
    "and an engine tuned for, the usual size.",
    show_default=False,
)
_ENGINES = "TensorRT engines"
_BUILD = typer.Option(
    "--build",
    help="Build the engines of tensorrt targets: for the GPU of this machine, or ahead of time.",
    rich_help_panel=_ENGINES,
)
_CAPABILITY = typer.Option(
    help="Build ahead of time for this compute capability, e.g. 8.6; may be given several times.",
    show_default="this machine's GPU",
    rich_help_panel=_ENGINES,
)
_LEVEL = typer.Option(
    help="0 (fast build) to 5 (fast engine).", show_default="the library's", rich_help_panel=_ENGINES
)
_WORKSPACE = typer.Option(
    help="Most scratch memory of a layer, in MiB.", show_default="the library's", rich_help_panel=_ENGINES
)
_TIMING_CACHE = typer.Option(
    help="File that keeps measured kernels for the next build.",
    show_default=False,
    rich_help_panel=_ENGINES,
)
_LOWERING = typer.Option(
    help="How the recurrence is written out: auto (the cheapest), stepwise (the plain graph), time-major, "
    "grouped, stacked or wide."
)
_OPTIMIZE_FOR = typer.Option(
    metavar="NAME|FILE",
    help="Processor that --lowering auto counts costs for: pi4, pi5, or a file of tools/calibrate_costs.py. "
    "Where it is given, onnx-int8 may use types that others are slow with.",
    show_default="pi5's costs",
)
_WEIGHT_BUDGET = typer.Option(
    help="What --lowering auto may store for speed, weights and tables, in parts of the step-wise graph."
)
_INT8 = "Int8"
_JOIN_ERROR = typer.Option(
    help="Relative RMS error of the int8 logits beyond which --lowering auto makes one convolution of fewer "
    "steps of a recurrence; inf for never.",
    rich_help_panel=_INT8,
)
_EQUAL = typer.Option(
    "--equal-scales",
    help="One scale for all V terms of a CSR-Conv and one for all its U terms: fewer tables.",
    rich_help_panel=_INT8,
)
_FLOAT_LAYERS = typer.Option(
    metavar="NAMES",
    help="Modules that stay in float, with commas between; TFLite and ONNX only.",
    show_default=False,
    rich_help_panel=_INT8,
)
_KEEP_WORST = typer.Option(
    help="Also keep so many layers in float: those whose quantisation moves the logits most.",
    rich_help_panel=_INT8,
)
_DRIFT = typer.Option(
    "--drift",
    help="Show the error of every state h_t by where it arises; it is in the manifest in any case.",
)
_C_TARGETS = ("mcu", "native")
_MCU = "C (--target mcu, native)"
_FLASH = typer.Option(
    metavar="SIZE",
    help="Refuse a model whose constants take more, 512K for example.",
    show_default=False,
    rich_help_panel=_MCU,
)
_RAM = typer.Option(
    metavar="SIZE", help="Most bytes of the arena, 64K for example.", show_default=False, rich_help_panel=_MCU
)
_SCRATCH = typer.Option(
    help="Share of the arena that may be added to make convolutions faster; 0 for the smallest arena.",
    show_default="0.11",
    rich_help_panel=_MCU,
)
_FUSE = typer.Option(
    "--fuse-requantize/--no-fuse-requantize",
    help="Round a step of a recurrence once: smaller, faster, closer to float, but not TFLite Micro's bytes.",
    show_default="on for native",
    rich_help_panel=_MCU,
)
_PREFIX = typer.Option(
    help="Of the generated names, where a firmware holds several models; for .tflite files.",
    show_default="model",
    rich_help_panel=_MCU,
)


@app.command()
def export(
    model: Annotated[Path | None, _MODEL] = None,
    target: Annotated[list[str] | None, _TARGET] = None,
    out: Annotated[Path, _OUT] = Path("artifacts"),
    calibration: Annotated[str | None, _CALIBRATION] = None,
    calibration_images: Annotated[int, typer.Option(help="Images drawn from the training split.")] = 200,
    parity_images: Annotated[int, typer.Option(help="Images of the parity gate, all others.")] = 256,
    golden: Annotated[str | None, _GOLDEN] = None,
    agreement: Annotated[float | None, _AGREEMENT] = None,
    lowering: Annotated[str, _LOWERING] = "auto",
    optimize_for: Annotated[str | None, _OPTIMIZE_FOR] = None,
    weight_budget: Annotated[float, _WEIGHT_BUDGET] = 1.3,
    join_error: Annotated[float, _JOIN_ERROR] = 0.1,
    ranges: Annotated[
        str, typer.Option(help="Activation ranges: least-squares or min-max.")
    ] = "least-squares",
    bias_correction: Annotated[bool, typer.Option(help="Correct the mean error of every channel.")] = True,
    equal_scales: Annotated[bool, _EQUAL] = False,
    float_layers: Annotated[str | None, _FLOAT_LAYERS] = None,
    keep_worst: Annotated[int, _KEEP_WORST] = 0,
    drift: Annotated[bool, _DRIFT] = False,
    batch: Annotated[int, typer.Option(help="Batch size of the static graph.")] = 1,
    batch_profile: Annotated[str | None, _PROFILE] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the images drawn.")] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the artifacts.", show_default="the file's")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing artifacts.")] = False,
    build: Annotated[bool, _BUILD] = False,
    compute_capability: Annotated[list[str] | None, _CAPABILITY] = None,
    builder_optimization_level: Annotated[int | None, _LEVEL] = None,
    workspace: Annotated[int | None, _WORKSPACE] = None,
    timing_cache: Annotated[Path | None, _TIMING_CACHE] = None,
    flash: Annotated[str | None, _FLASH] = None,
    ram: Annotated[str | None, _RAM] = None,
    scratch_share: Annotated[float | None, _SCRATCH] = None,
    fuse_requantize: Annotated[bool | None, _FUSE] = None,
    prefix: Annotated[str | None, _PREFIX] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    list_targets: Annotated[bool, typer.Option("--list-targets", help="Show every target and exit.")] = False,
    version: VersionOption = False,
) -> None:
    """Exports a trained network: unrolls, quantises, writes, and proves parity on real images."""
    if list_targets:
        _list_targets(as_json)
        return
    engines = EngineArguments(
        tuple(compute_capability or ()), builder_optimization_level, workspace, timing_cache
    )
    if not build and engines != EngineArguments():
        raise typer.BadParameter("the options of TensorRT engines need --build")
    if model is not None and model.is_dir():
        _build_existing(model, target, engines, build=build, as_json=as_json)
        return
    if model is None or not target:
        raise typer.BadParameter("name a checkpoint and at least one --target (see --list-targets)")
    profile = _batch_profile(batch_profile, batch) if batch_profile else None
    mcu = {
        "flash": _size(flash), "ram": _size(ram), "scratch_share": scratch_share, "prefix": prefix,
        "fuse_requantize": fuse_requantize,
    }  # fmt: skip
    mcu = {k: v for k, v in mcu.items() if v is not None}
    if mcu and not set(target).intersection(_C_TARGETS):
        option = next(iter(mcu)).replace("_", "-")
        raise typer.BadParameter(f"--{option} needs --target {' or '.join(_C_TARGETS)}")
    if model.suffix == ".tflite":
        _export_tflite(model, target, out, name, mcu, seed, force=force, as_json=as_json)
        return
    from csr_deploy.targets import find_target

    targets = [find_target(t) for t in dict.fromkeys(target)]
    builder = _engine_builder(targets, engines) if build else None
    _export_all(
        model, targets, out, calibration, name, builder, golden=golden, force=force, as_json=as_json,
        settings={
            "calibration_images": calibration_images, "parity_images": parity_images, "agreement": agreement,
            "lowering": lowering, "optimize_for": optimize_for, "weight_budget": weight_budget,
            "join_error": join_error,
            "batch": profile[1] if profile else batch, "seed": seed,
            "batch_profile": profile,
        },
        mcu=mcu,
        drift=drift,
        quantization={
            "ranges": ranges, "bias_correction": bias_correction, "seed": seed, "equal_steps": equal_scales,
            "float_layers": tuple(n.strip() for n in (float_layers or "").split(",") if n.strip()),
            "keep_worst": keep_worst,
        },
    )  # fmt: skip


_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def _size(text: str | None) -> int | None:
    """Bytes of "65536", "64K", "64kB" or "1M"."""
    if text is None:
        return None
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = number[-1:] if number[-1:] in ("k", "m") else ""
    digits = number.removesuffix(unit) if unit else number
    if not digits.isdigit() or int(digits) < 1:
        raise typer.BadParameter(f"'{text}' is no size: give bytes, or 64K, or 1M.")
    return int(digits) * _UNITS[unit]


def _export_tflite(
    model: Path, target: list[str], out: Path, name: str | None, mcu: dict[str, Any], seed: int, *,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compiles a .tflite file. Nothing here needs torch."""
    from csr_deploy.errors import ExportError, MissingDependencyError
    from csr_deploy.targets import find_target

    targets = [find_target(t) for t in dict.fromkeys(target)]
    others = [t.name for t in targets if t.name not in _C_TARGETS]
    if others:
        raise typer.BadParameter(
            f"a .tflite file can only become {' or '.join(_C_TARGETS)}, not {', '.join(others)}"
        )
    if not model.is_file():
        raise ExportError("is not a file", where=str(model))
    for one in targets:
        missing = [p for p in one.missing() if p != "torch"]
        if missing:
            raise MissingDependencyError(", ".join(missing), one.extra, f"The target '{one.name}'")
    from csr_deploy.exporters.mcu.exporter import TfliteSource, export_tflite

    if name and (Path(name).name != name or name in (".", "..")):
        raise ExportError(f"'{name}' is no file name", where="--name")
    name = name or model.stem
    artifacts, rows = [], []
    for one in targets:
        compiled = _c_target(one.name)
        start = time.perf_counter()
        with stderr.status(f"{name} → {one.name} …"):
            artifact = export_tflite(
                TfliteSource(model, name),
                out / f"{name}-{one.name}",
                replace(compiled.options, **mcu),
                target=compiled,
                force=force,
                seed=seed,
            )
        artifacts.append(artifact)
        rows.append(_summary(artifact, time.perf_counter() - start))
    _warn_of_missing_libraries(artifacts)
    _report(rows, out, as_json=as_json)


def _c_target(name: str) -> CTarget:
    """What a target of the C compiler is."""
    if name == "native":
        from csr_deploy.exporters.native.exporter import NATIVE

        return NATIVE
    from csr_deploy.exporters.mcu.exporter import MCU

    return MCU


def _warn_of_missing_libraries(artifacts: list[Artifact]) -> None:
    """Says which boards will have to compile a native artifact themselves."""
    from csr_deploy.runtimes.native.platforms import PLATFORMS

    packages = {platform.key: platform.packages for platform in PLATFORMS}
    for artifact in artifacts:
        for key in artifact.model.get("not_built", ()):
            print_warning(
                f"{artifact.path.name} has no library for {key}, as there is no compiler for it here. A "
                "board compiles it at the first load, which needs gcc there."
                + (f" To have it inside: apt-get install {packages[key]}" if packages.get(key) else "")
            )


def _batch_profile(text: str, batch: int) -> tuple[int, int, int]:
    sizes = text.split(":")
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise typer.BadParameter(f"'{text}' is no batch profile: give three sizes, as in 1:8:32.")
    least, usual, most = (int(size) for size in sizes)
    if batch not in (1, usual):
        raise typer.BadParameter("give --batch or --batch-profile, not both")
    return least, usual, most


def _engine_builder(targets: list[Any], arguments: EngineArguments) -> EngineBuilder:
    from csr_deploy.cli.engines import prepare
    from csr_deploy.errors import OptionError
    from csr_deploy.runtimes.trt.engines import has_engine
    from csr_deploy.targets import TARGETS

    if not any(has_engine(t) for t in targets):
        raise OptionError(
            f"--build builds TensorRT engines, and {', '.join(t.name for t in targets)} has none",
            fix=f"Add --target {' or '.join(t.name for t in TARGETS.values() if has_engine(t))}.",
        )
    return prepare(arguments)


def _build_existing(
    path: Path, target: list[str] | None, arguments: EngineArguments, *, build: bool, as_json: bool
) -> None:
    """Builds the engine of an artifact. Nothing here needs torch."""
    if not build:
        raise typer.BadParameter(f"{path} is a folder: name a checkpoint, or an artifact and --build")
    if target:
        raise typer.BadParameter("an artifact has its target: leave --target out")
    from csr_deploy.artifact import read_artifact
    from csr_deploy.cli.engines import prepare, show, summary
    from csr_deploy.runtimes.trt.engines import check_buildable

    artifact = read_artifact(path)
    check_buildable(artifact)
    record = prepare(arguments).build(artifact)
    if as_json:
        rows = [{"artifact": str(path), "target": artifact.target, "engine": summary(record)}]
        stdout.print_json(json.dumps(rows))
    else:
        show([record])


def _stage_shower(status: Status, what: str) -> Callable[[str], None]:
    def show(stage: str) -> None:
        status.update(f"{what}: {stage} …")

    return show


def _export_all(
    model: Path, targets: list[Any], out: Path, calibration: str | None, name: str | None,
    builder: EngineBuilder | None, *,
    golden: str | None, force: bool, as_json: bool, settings: dict[str, Any], mcu: dict[str, Any],
    quantization: dict[str, Any], drift: bool,
) -> None:  # fmt: skip
    from csr_deploy.cli.common import require

    require("torch", "export", "Exporting")
    with stderr.status("Loading torch …"):
        from csr_deploy.artifact import check_place
        from csr_deploy.errors import CsrError, ExportError
        from csr_deploy.export import (
            ExportOptions,
            Network,
            artifact_directory,
            find_exporter,
            load_export_data,
        )
        from csr_deploy.export import export as export_one
        from csr_deploy.quantize import QuantizeOptions

    for target in targets:
        find_exporter(target)
    own: dict[str, Any] = {}
    if mcu:
        for target in targets:
            if target.name in _C_TARGETS:
                own[target.name] = replace(_c_target(target.name).options, **mcu)
    options = ExportOptions(
        **settings,
        quantization=QuantizeOptions(**quantization),
        target_options=own,
    )
    network = Network.from_checkpoint(model)
    if name:
        if Path(name).name != name or name in (".", ".."):
            raise ExportError(f"'{name}' is no file name", where="--name")
        network = replace(network, name=name)
    for target in targets:
        check_place(artifact_directory(out, network, target), replace=force)
    rows: list[dict[str, Any]] = []
    artifacts: list[Artifact] = []
    with stderr.status("Reading images …") as status:
        data = load_export_data(
            network, calibration, options, quantized=any(t.quantized for t in targets), golden=golden
        )
        if data.damaged:
            shown = "".join(f"\n  {d}" for d in data.damaged[:5])
            print_warning(f"{len(data.damaged)} damaged images were left out:{shown}")
        for target in targets:
            start = time.perf_counter()
            try:
                artifact = export_one(
                    network,
                    target,
                    data,
                    artifact_directory(out, network, target),
                    options,
                    force=force,
                    on_stage=_stage_shower(status, f"{network.name} → {target.name}"),
                )
            except CsrError:
                # What was made before it stays.
                _report(rows, out, as_json=as_json)
                raise
            rows.append(_summary(artifact, time.perf_counter() - start))
            artifacts.append(artifact)
    _warn_of_missing_libraries(artifacts)
    engines = _build_engines(builder, artifacts, rows) if builder else []
    _report(rows, out, as_json=as_json)
    if as_json:
        return
    for artifact in artifacts if drift else ():
        if "drift" in artifact.parity:
            _show_drift(artifact.path.name, artifact.parity["drift"])
    if engines:
        from csr_deploy.cli.engines import show

        show(engines)


def _build_engines(
    builder: EngineBuilder, artifacts: list[Artifact], rows: list[dict[str, Any]]
) -> list[EngineRecord]:
    """Builds the engines of the artifacts that have one, and adds them to the rows of --json."""
    from csr_deploy.cli.engines import summary
    from csr_deploy.runtimes.trt.engines import has_engine
    from csr_deploy.targets import find_target

    records = []
    for artifact, row in zip(artifacts, rows, strict=True):
        if has_engine(find_target(artifact.target)):
            record = builder.build(artifact)
            row["engine"] = summary(record)
            records.append(record)
    return records


def main() -> None:
    """Entry point."""
    run(app)
