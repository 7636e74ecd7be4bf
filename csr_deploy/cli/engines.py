"""Building engines, for csr-export. Runs on the device, where torch is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_deploy.cli.common import print_warning, stderr, stdout

if TYPE_CHECKING:
    from csr_deploy.artifact import Artifact, EngineRecord
    from csr_deploy.runtimes.trt.build import BuildOptions
    from csr_deploy.runtimes.trt.device import DeviceInfo
    from csr_deploy.runtimes.trt.library import TensorRT


@dataclass(frozen=True)
class EngineArguments:
    """What the command line says of engines; nothing is checked yet.

    Attributes:
        compute_capabilities: To build for; none for the GPU of this machine.
        level: Optimization level of the builder.
        workspace: Most scratch memory of a layer, in MiB.
        timing_cache: File that keeps measured kernels.
    """

    compute_capabilities: tuple[str, ...] = ()
    level: int | None = None
    workspace: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class EngineBuilder:
    """What builds the engines of one command."""

    library: TensorRT
    options: BuildOptions
    compute_capabilities: tuple[str, ...]
    device: DeviceInfo | None

    def build(self, artifact: Artifact) -> EngineRecord:
        """Builds the engine of an artifact and puts it there.

        Raises:
            CsrError: If it cannot be built or written.
        """
        from csr_deploy.runtimes.trt.engines import build_engine_for, engine_name, identify

        identity = identify(artifact, self.library, self.options, self.compute_capabilities, self.device)
        name = engine_name(artifact, identity)
        with stderr.status(f"{artifact.name} → {name} …") as status:

            def progress(phase: str, done: int, total: int) -> None:
                status.update(f"{artifact.name} → {name}: {phase}, {done} of {total} …")

            built = build_engine_for(artifact, self.library, identity, self.options, progress)
        record = next(e for e in built.engines if e.file.name == name)
        for warning in record.report["warnings"]:
            print_warning(f"{self.library.name}: {warning}")
        return record


def prepare(arguments: EngineArguments) -> EngineBuilder:
    """Finds the library and checks the options, before minutes are spent on an export.

    Raises:
        CsrError: If no engine can be built here, or not so.
    """
    from csr_deploy.runtimes.trt.build import BuildOptions, check_options, resolve_capabilities
    from csr_deploy.runtimes.trt.device import local_device
    from csr_deploy.runtimes.trt.engines import choose_library

    options = BuildOptions(arguments.level, arguments.workspace, arguments.timing_cache)
    device = local_device()
    library = choose_library(arguments.compute_capabilities, device)
    check_options(library, options)
    capabilities = resolve_capabilities(library, arguments.compute_capabilities, device)
    return EngineBuilder(library, options, capabilities, device)


def summary(record: EngineRecord) -> dict[str, Any]:
    """What --json says of an engine: its file and the build report, layers as a number."""
    report = {**record.report, "layers": record.report["layer_count"]}
    del report["layer_count"]
    return {"file": record.file.name, "bytes": record.file.size, "sha256": record.file.sha256, **report}


def show(records: Sequence[EngineRecord]) -> None:
    """Prints what is known of the engines."""
    from csr_deploy.runtimes.trt.report import BuildReport, report_text

    stdout.print("Engines", style="italic")
    for record in records:
        text = report_text(record.file.name, BuildReport.from_json(record.report))
        stdout.print(text, markup=False, soft_wrap=True)
