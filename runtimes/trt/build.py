"""From ONNX to a TensorRT engine, through the library's own parser and builder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from csr_deploy.atomic import atomic_write
from csr_deploy.errors import ExportError, OptionError, RuntimeUnavailableError
from csr_deploy.runtimes.trt.device import DeviceInfo, local_device
from csr_deploy.runtimes.trt.library import Message, TensorRT, dimensions
from csr_deploy.runtimes.trt.program import read_program
from csr_deploy.runtimes.trt.report import INSPECTOR, PROGRAM, BuildReport, inspected_layers
from csr_deploy.runtimes.trt.weights import count_copies, read_initializers

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, its steps done and its steps in all; from another thread."""

_MIB = 1 << 20
_LEVELS = range(6)
_DYNAMIC = -1
_MEMORY_FIX = (
    "End other programs that use the GPU, lower --workspace or --builder-optimization-level, or export with "
    "a smaller --batch. On a Jetson the GPU shares the main memory with everything else."
)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built; None leaves a choice to the library.

    Attributes:
        optimization_level: 0 (fast build) to 5 (slow build, fast engine).
        workspace_mib: Most memory that a layer may use for scratch, in MiB.
        timing_cache: File that keeps measured kernels, so that the next build is faster.
        batch_profile: Smallest, usual and largest batch, for a model with a dynamic batch.
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    batch_profile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise OptionError(
                f"the builder optimization level is {self.optimization_level}",
                fix="Give a level from 0 to 5.",
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise OptionError(f"the workspace is {self.workspace_mib} MiB", fix="Give at least 1.")
        if self.batch_profile is not None:
            least, usual, most = self.batch_profile
            if not 1 <= least <= usual <= most:
                raise OptionError(
                    f"the batch profile is {least}, {usual}, {most}",
                    fix="Give the smallest, the usual and the largest batch, from 1 up.",
                )

    def identity(self) -> dict[str, Any]:
        """Those that change the engine and were given, as plain values."""
        values: dict[str, Any] = {}
        if self.optimization_level is not None:
            values["optimization_level"] = self.optimization_level
        if self.workspace_mib is not None:
            values["workspace_mib"] = self.workspace_mib
        if self.batch_profile is not None:
            values["batch_profile"] = list(self.batch_profile)
        return values


@dataclass(frozen=True)
class BuiltPlan:
    """An engine as bytes, and what is known of it."""

    plan: bytes
    report: BuildReport


def build_plan(
    onnx: bytes,
    library: TensorRT,
    options: BuildOptions | None = None,
    compute_capabilities: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> BuiltPlan:
    """Builds an engine. Ctrl-C ends it at the builder's next step.

    Args:
        onnx: The model file's bytes; weights inside.
        library: What to build with.
        options: How.
        compute_capabilities: What for, e.g. ("8.6",); none for the GPU of this machine. TensorRT for RTX
            builds for any that it knows, without a GPU; TensorRT for that GPU alone.
        on_progress: Told of the builder's steps.

    Raises:
        OptionError: If the library cannot build for such a GPU or with such options.
        ExportError: If the model cannot be parsed or built.
        RuntimeUnavailableError: If there is no GPU where one is needed, or not enough memory.
    """
    options = options or BuildOptions()
    check_options(library, options)
    device = local_device()
    capabilities = resolve_capabilities(library, compute_capabilities, device)
    cancelled = threading.Event()
    work = _Build(library, options, capabilities, on_progress, cancelled)
    with ThreadPoolExecutor(1, "engine-build") as pool:
        # In a thread of its own: Python handles Ctrl-C in the main thread only, which must not be inside the
        # builder then.
        running = pool.submit(work.run, onnx)
        try:
            return running.result()
        finally:
            cancelled.set()


def check_options(library: TensorRT, options: BuildOptions) -> None:
    """Checks that the library has these options.

    Raises:
        OptionError: If not.
    """
    if options.timing_cache is not None and library.is_rtx:
        raise OptionError(
            "TensorRT for RTX times nothing while it builds, so it has no timing cache",
            fix="Leave --timing-cache out.",
        )


def resolve_capabilities(
    library: TensorRT, wanted: Sequence[str], device: DeviceInfo | None
) -> tuple[str, ...]:
    """What to build for, in ascending order and each once.

    Raises:
        OptionError: If the library cannot build for one of them.
        RuntimeUnavailableError: If none is named and there is no GPU.
    """
    own = (device.compute_capability,) if device else ()
    capabilities = tuple(sorted(set(wanted), key=_order)) or own
    if not library.is_rtx:
        if device is None:
            raise RuntimeUnavailableError(
                f"{library.name} builds engines for the GPU of this machine, and there is none",
                fix="Run the same command on the device. To build without a GPU, install TensorRT for RTX: "
                "pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings, and give "
                "--compute-capability.",
            )
        if capabilities != own:
            raise OptionError(
                f"{library.name} builds for the GPU of this machine only ({device.gpu}, compute capability "
                f"{device.compute_capability}), not for {', '.join(capabilities)}",
                fix="Leave --compute-capability out, or build with TensorRT for RTX.",
            )
        return capabilities
    known = _known_capabilities(library)
    if not capabilities:
        raise RuntimeUnavailableError(
            "there is no GPU here to build for, and no other was named",
            fix=f"Give --compute-capability: {', '.join(known)}.",
        )
    for capability in capabilities:
        if capability not in known:
            raise OptionError(
                f"{library.name} cannot build for compute capability '{capability}'",
                fix=f"It knows {', '.join(known)}.",
            )
    return capabilities


def _known_capabilities(library: TensorRT) -> list[str]:
    names = library.module.ComputeCapability.__members__
    digits = [name[2:] for name in names if name.startswith("SM")]
    return sorted((f"{d[:-1]}.{d[-1]}" for d in digits), key=_order)


def _order(capability: str) -> tuple[int, str]:
    major = capability.split(".")[0]
    return (int(major) if major.isdigit() else 0, capability)


class _Build:
    """One build; everything in it happens in one thread, but for the progress."""

    def __init__(
        self,
        library: TensorRT,
        options: BuildOptions,
        capabilities: tuple[str, ...],
        on_progress: Progress | None,
        cancelled: threading.Event,
    ) -> None:
        self._library = library
        self._options = options
        self._capabilities = capabilities
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._messages: list[Message] = []

    def run(self, onnx: bytes) -> BuiltPlan:
        module = self._library.module
        weight_bytes = sum({i.content: len(i.content) for i in read_initializers(onnx)}.values())
        start = time.perf_counter()
        with self._library.messages() as self._messages:
            builder: trt.Builder | None = self._attempt(module.Builder, self._library.logger)
            if builder is None:
                self._fail("the builder cannot start")
            network = self._parse(builder, onnx)
            config = builder.create_builder_config()
            self._configure(config)
            self._add_profile(builder, network, config)
            monitor = _monitor(module, self._on_progress, self._cancelled)
            config.progress_monitor = monitor
            with self._timing_cache(config):
                memory = self._attempt(builder.build_serialized_network, network, config)
                if memory is None:
                    self._fail("the network was parsed, but no engine could be built from it")
            plan = bytes(memory)
            seconds = time.perf_counter() - start
            warnings = [m.text.strip() for m in self._messages if m.level == "WARNING"]
            report = self._report(onnx, plan, weight_bytes, seconds, warnings)
        return BuiltPlan(plan, report)

    def _attempt(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """Calls what gives None, or in some versions raises, where it fails."""
        try:
            return make(*arguments)
        except (RuntimeError, TypeError) as error:
            self._messages.append(Message("ERROR", str(error)))
            return None

    # Network

    def _parse(self, builder: trt.Builder, onnx: bytes) -> trt.INetworkDefinition:
        module = self._library.module
        flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # Where the flag is gone, every network is strongly typed.
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser: trt.OnnxParser = module.OnnxParser(network, self._library.logger)
        if not parser.parse(onnx):
            raise _refusal([parser.get_error(i) for i in range(parser.num_errors)], self._library)
        # The network refers to memory of the parser.
        self._parser = parser
        return network

    def _add_profile(
        self, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
    ) -> None:
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        dynamic = [t for t in inputs if _DYNAMIC in dimensions(t.shape)]
        batches = self._options.batch_profile
        if not dynamic:
            if batches is not None:
                raise OptionError(
                    f"a batch profile was given, but the model's batch is fixed at {inputs[0].shape[0]}",
                    fix="Leave the profile out, or export with a dynamic batch.",
                )
            return
        if batches is None:
            raise OptionError(
                f"the batch of input '{dynamic[0].name}' is dynamic, and no batch profile was given",
                fix="Give the smallest, the usual and the largest batch.",
            )
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            _, *rest = dimensions(tensor.shape)
            if _DYNAMIC in rest:
                raise ExportError(
                    f"input '{tensor.name}' is dynamic beyond its batch: {list(dimensions(tensor.shape))}",
                    fix="Export with fixed height, width and channels.",
                )
            profile.set_shape(tensor.name, *(self._library.module.Dims((b, *rest)) for b in batches))
        config.add_optimization_profile(profile)

    # Configuration

    def _configure(self, config: trt.IBuilderConfig) -> None:
        module, options = self._library.module, self._options
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
        if self._library.is_rtx:
            self._set_capabilities(config)

    def _set_capabilities(self, config: Any) -> None:
        # TensorRT has no such settings, and the stubs are TensorRT's.
        capability = self._library.module.ComputeCapability
        config.num_compute_capabilities = len(self._capabilities)
        for index, name in enumerate(self._capabilities):
            config.set_compute_capability(getattr(capability, f"SM{name.replace('.', '')}"), index)

    @contextmanager
    def _timing_cache(self, config: trt.IBuilderConfig) -> Iterator[None]:
        """Reads the timing cache before a build, and writes it after one that was successful."""
        path = self._options.timing_cache
        if path is None:
            yield
            return
        try:
            kept = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise OptionError(f"cannot be read: {error.strerror}", where=str(path)) from error
        cache = config.create_timing_cache(kept)
        if cache is None or not config.set_timing_cache(cache, False):
            raise OptionError(
                f"is no timing cache of {self._library.name} on this GPU",
                where=str(path),
                fix="Name another file with --timing-cache; it is made if it does not exist.",
            )
        yield
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))

    # Outcome

    def _fail(self, what: str) -> NoReturn:
        if self._cancelled.is_set():
            raise ExportError("the build was interrupted")
        raise failure(self._library, what, self._messages)

    def _report(
        self, onnx: bytes, plan: bytes, weight_bytes: int, seconds: float, warnings: Sequence[str]
    ) -> BuildReport:
        copies = count_copies(onnx, plan)
        program = read_program(plan) if self._library.is_rtx else None
        notes: list[str] = []
        device = None if self._library.is_rtx else local_device()
        layers, memory = self._inspect(plan) if device else (None, None)
        source = INSPECTOR if layers else None
        if device is None:
            notes.append("GPU memory: only an engine that is loaded on a GPU tells it")
        if layers is None and program is not None:
            layers, source = program.layers, PROGRAM
        if layers is None:
            notes.append("layers: neither the engine inspector nor the plan itself lists them")
        return BuildReport(
            library=self._library.name,
            compute_capabilities=self._capabilities,
            device=device.description if device else None,
            seconds=round(seconds, 2),
            plan_bytes=len(plan),
            weight_bytes=weight_bytes,
            weights_searched=copies.searched,
            weights_once=copies.once,
            weights_several=copies.several,
            constant_bytes=program.constant_bytes if program else None,
            device_memory_bytes=memory,
            layers=layers,
            layers_from=source,
            weighted_calls=program.weighted_calls if program else None,
            distinct_weights=program.distinct_weights if program else None,
            sources=program.sources if program else None,
            source_bytes=program.source_bytes if program else None,
            notes=tuple(notes),
            warnings=tuple(dict.fromkeys(warnings)),
        )

    def _inspect(self, plan: bytes) -> tuple[Any, int | None]:
        """Layers and memory of the engine, which must be for the GPU of this machine."""
        module = self._library.module
        runtime: trt.Runtime | None = self._attempt(module.Runtime, self._library.logger)
        engine: trt.ICudaEngine | None = (
            self._attempt(runtime.deserialize_cuda_engine, plan) if runtime is not None else None
        )
        if engine is None:
            self._fail("the engine was built, but cannot be loaded")
        inspector = engine.create_engine_inspector()
        information = inspector.get_engine_information(module.LayerInformationFormat.JSON)
        return inspected_layers(information), int(engine.device_memory_size_v2)


def _monitor(module: Any, on_progress: Progress | None, cancelled: threading.Event) -> Any:
    """A progress monitor. The builder calls it from several threads."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            if on_progress is not None and not cancelled.is_set():
                on_progress(phase, done, self._steps.get(phase, done))

    return Monitor()


def failure(
    library: TensorRT, what: str, messages: Sequence[Message]
) -> ExportError | RuntimeUnavailableError:
    """The error for a step that failed, from what the library said meanwhile."""
    errors = [m.text.strip() for m in messages if m.is_error]
    said = "; ".join(dict.fromkeys(errors)) or "the library gives no reason"
    text = said.lower()
    if "out of memory" in text or "outofmemory" in text or "insufficient memory" in text:
        return RuntimeUnavailableError(
            f"there is not enough memory to build the engine: {said}", fix=_MEMORY_FIX
        )
    if "cuda" in text:
        return RuntimeUnavailableError(
            f"{library.name} cannot use the GPU: {said}",
            fix="The driver must be one that this version works with: update it (on a Jetson, with JetPack).",
        )
    return ExportError(
        f"{what}: {said}",
        where=library.name,
        fix="Try another --builder-optimization-level or a larger --workspace; else export with other layers "
        "or another precision.",
    )


def _refusal(errors: Sequence[trt.ParserError], library: TensorRT) -> ExportError:
    """What the parser objects to, and what to change."""
    if not errors:
        return ExportError(f"{library.name} cannot parse the model and gives no reason")
    error = errors[0]
    operator = error.node_operator()
    kind = str(error.code()).rsplit(".", 1)[-1].replace("_", " ").lower()
    # A machine without a GPU is no reason: it is only heard of because something else went wrong.
    lines = [line for line in error.desc().splitlines() if "catchCudaError" not in line]
    said = " ".join(" ".join(lines).split())
    reason = kind if said in ("", "false") else f"{kind}: {said}"
    named = f"node '{error.node_name()}' ({operator})" if operator else "the model"
    more = f" ({len(errors) - 1} more nodes are refused)" if len(errors) > 1 else ""
    return ExportError(
        f"{library.name} refuses {named}: {reason}{more}",
        fix=_advice(operator, reason.lower()),
    )


def _advice(operator: str, reason: str) -> str:
    if not operator:
        return "The file is damaged or no ONNX model: export it again."
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        return (
            "TensorRT takes symmetric int8 only: zero points of 0, and biases in floating point. Export with "
            "the target tensorrt-int8."
        )
    if reason.startswith("unsupported node") or "plugin" in reason:
        return f"TensorRT has no such operation: replace {operator} by operations that it has."
    if "type" in reason:
        return (
            "Types must match in a strongly typed network: cast one of the inputs, or export with another "
            "tensorrt target."
        )
    return "Change the layer that this node comes from, or export it with fixed shapes and constant weights."
