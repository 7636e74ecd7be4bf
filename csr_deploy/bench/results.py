"""What a benchmark gives: frozen records with the unit in every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from csr_deploy import errors
from csr_deploy.bench.plain import read_plain
from csr_deploy.bench.telemetry import Energy, Telemetry

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)

TIMED_REGION: Mapping[str, str] = {
    "inputs": "up to 16 golden pictures of an artifact in turn, seeded noise for a checkpoint",
    "load": "from a model file in the page cache to a session that is ready to run: reading, graph "
    "optimisation, kernel preparation and allocation; importing the runtime's package, starting CUDA and "
    "building an engine are not in it",
    "first": "the first inference after loading",
    "latency": "one inference: from handing an encoded input array to the runtime's Python call to holding "
    "the outputs as a NumPy array; the copies in and out are in it, decoding, resizing, normalising and "
    "quantising the picture are not, nor are Python's garbage collections; where settings.copies is false, "
    "from the input on the GPU to the end of the execution there, copies not included",
    "gpu": "the same inferences by the GPU's own clock: from before the first kernel to after the last one, "
    "without copies",
    "memory": "in a process of its own; private and mapped bytes are what loading and a few inferences added "
    "to a process that had already imported the runtime, peak_rss_bytes is that whole process at its largest",
    "microcontroller": "instructions or cycles of model_run alone, median over the golden inputs; in QEMU "
    "they are counted to within one tick of the board's counter, and nothing is timed; a latency on a real "
    "board is by its own clock and without the transfer, its load is the time to connect",
    "instructions": "instructions of the arm64 kernels retired in user emulation, all threads together, of "
    "one call in Python with the input copied in and the output copied out; exact, and no measure of time",
    "profile": "in a process of its own, whose inferences the runtime itself times operator by operator; "
    "they are slower than those of latency",
    "energy": "mean power of the whole board or module in the timed windows, idle power included, times the "
    "mean time of an inference",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes that do not depend on the machine; None where the artifact does not record one.

    Attributes:
        parameters: Parameters of the network, shared ones once.
        macs: Multiply-accumulates of one inference of one image.
        file_bytes: Size of the model file.
        weight_bytes: Bytes of stored weights, each copy counted.
        arena_bytes: Arena of a runtime that works in one.
        constant_bytes: Weights and tables of a model in C, whose text says nothing of its size.
        compressed_bytes: Size of the model file after deflate (zlib, level 9): what an update sends. None for
            a model in C.
    """

    parameters: int | None
    macs: int | None
    file_bytes: int
    weight_bytes: int | None
    arena_bytes: int | None
    constant_bytes: int | None = None
    compressed_bytes: int | None = None

    @property
    def model_bytes(self) -> int:
        """What has to be stored to run the model: its file, or the constants of one in C."""
        return self.file_bytes if self.constant_bytes is None else self.constant_bytes


@dataclass(frozen=True)
class Golden:
    """Check of the golden vectors on the machine that measured.

    Attributes:
        images: Number of golden images.
        exact: Whether every output is equal to the stored one, bit by bit.
        max_difference: Largest difference: counts for integers, share of the outputs' range for floats.
        tolerance: What is allowed, in the same unit.
        float_agreement: Share of the images with the same top-1 class as the float checkpoint.
    """

    images: int
    exact: bool
    max_difference: float
    tolerance: float
    float_agreement: float


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the images of one class.

    Attributes:
        name: Of the class.
        images: Test images of it.
        top1: Share of them with the right class.
    """

    name: str
    images: int
    top1: float


@dataclass(frozen=True)
class Agreement:
    """How often a network gives the same top-1 class as the float network that it was made from.

    Attributes:
        share: Of the images.
        images: How many they were.
        reference: What it was compared with: the label of a float subject of the same checkpoint on the same
            test images, or "checkpoint, at export" on the images of the export's parity gate.
    """

    share: float
    images: int
    reference: str


@dataclass(frozen=True)
class Accuracy:
    """Share of correct answers.

    Attributes:
        source: The image set, as given.
        images: Images that were classified.
        images_sha256: Their identity.
        damaged: Images that could not be decoded and were left out.
        top1: Share with the right class.
        device: What classified them, as in `RuntimeOptions`; None for a runtime that has no choice. The
            golden outputs were the same bytes there and on the device that was measured.
        top5: Share with the right class among the five best; None for networks of five classes or fewer.
        agreement_with_float: None for a float network and where there is nothing to compare with.
        per_class: Classes that have test images, in the network's order.
        predictions: Top-1 class of every image in the order of the seeded draw, unsigned 16-bit little
            endian, zlib, base64: what agreements are counted from.
        reused_from: Where the same file, runtime, images and device were classified before and that result
            stands here: the id of that group, its own where a void attempt was repeated; None where it was
            measured here.
    """

    source: str
    images: int
    images_sha256: str
    damaged: int
    top1: float
    device: str | None = None
    top5: float | None = None
    agreement_with_float: Agreement | None = None
    per_class: tuple[ClassAccuracy, ...] = ()
    predictions: str | None = None
    reused_from: str | None = None


@dataclass(frozen=True)
class Microcontroller:
    """What a model takes of a microcontroller; None where the device does not tell.

    Attributes:
        device: As in `RuntimeOptions`.
        board: QEMU's name of the emulated board; None for a real one.
        instructions: Of one inference, median over the golden inputs; in QEMU only. Neither a time nor a
            measure of one.
        instructions_per_mac: The same for one multiply-accumulate.
        cycles: Of one inference, median over the golden inputs; on a real board only.
        stack_bytes: Deepest stack of an inference.
        ram_bytes: Arena and stack.
        flash_bytes: Weights, tables and code of the model, and what it needs of the C library.
        compiler: What compiled it, and its version.
        flags: How.
    """

    device: str
    board: str | None
    instructions: int | None
    instructions_per_mac: float | None
    cycles: int | None
    stack_bytes: int | None
    ram_bytes: int | None
    flash_bytes: int | None
    compiler: str | None
    flags: str | None


@dataclass(frozen=True)
class Instructions:
    """Instructions retired on an emulated Raspberry Pi: exact and repeatable, and no measure of time.

    Attributes:
        board: "pi4" or "pi5".
        per_inference: Of an inference in the steady state, all threads together, median of several.
        busiest_thread: Those of the thread that executed most.
        first: Of the first inference.
        load: Of loading.
    """

    board: str
    per_inference: int
    busiest_thread: int
    first: int
    load: int


@dataclass(frozen=True)
class OpTime:
    """Time of one operator in one inference, by the runtime's own profiler.

    Attributes:
        op: Kind of the operator, e.g. "Conv".
        name: Of the node in the model file as the runtime has it, fused ones included.
        ns: Mean over the profiled inferences.
        share: Of the sum over all operators, 0..1.
    """

    op: str
    name: str
    ns: float
    share: float


@dataclass(frozen=True)
class LayerDrift:
    """Error of every state h_1 … h_T of one recurrence, rms(error) / rms(state); found by the export.

    Each list has one entry a step, None where that was not found.

    Attributes:
        layer: Module name.
        rms: Of the state itself, in float.
        unroll: The unrolled float graph against the module.
        conversion: The file's float arithmetic against float64.
        quantization: The integer graph against the float graph; None of every step of a float target.
        sqnr_db: Signal to quantisation noise in dB.
    """

    layer: str
    rms: tuple[float | None, ...]
    unroll: tuple[float | None, ...]
    conversion: tuple[float | None, ...]
    quantization: tuple[float | None, ...]
    sqnr_db: tuple[float | None, ...]


@dataclass(frozen=True)
class Drift:
    """Drift over the steps, from the artifact's parity data.

    Attributes:
        images: Images it was found on.
        layers: One a recurrence.
    """

    images: int
    layers: tuple[LayerDrift, ...]


@dataclass(frozen=True)
class GpuTime:
    """Times of the same inferences on the GPU, see `TIMED_REGION`.

    Attributes:
        median_ns: Median of the windows' medians.
        p50_ns: 50th percentile of all samples.
        p90_ns: 90th.
        p95_ns: 95th.
        p99_ns: 99th.
        min_ns: Fastest.
        max_ns: Slowest.
        windows_ns: Every sample, one list a window, in order.
    """

    median_ns: float
    p50_ns: float
    p90_ns: float
    p95_ns: float
    p99_ns: float
    min_ns: int
    max_ns: int
    windows_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Latency:
    """Times of inferences.

    Attributes:
        load_ns: Time to load, see `TIMED_REGION`.
        first_ns: Time of the first inference.
        warmup_runs: Inferences before the first window, the first of all included.
        median_ns: Median of the windows' medians: the headline.
        p50_ns: 50th percentile of all samples.
        p90_ns: 90th.
        p95_ns: 95th.
        p99_ns: 99th.
        min_ns: Fastest.
        max_ns: Slowest.
        windows_ns: Every sample, one list a window, in order.
        gpu: None where no GPU ran or the runtime does not tell.
        images_per_second: Throughput of one inference after the other: images over the sum of all samples.
        cpu_per_wall: Processor time of the whole process over the time of the timed windows, median of the
            windows: about the number of busy threads. Below 1 where the process had to wait for a processor.
            None where another machine runs the model.
    """

    load_ns: int
    first_ns: int
    warmup_runs: int
    median_ns: float
    p50_ns: float
    p90_ns: float
    p95_ns: float
    p99_ns: float
    min_ns: int
    max_ns: int
    windows_ns: tuple[tuple[int, ...], ...]
    gpu: GpuTime | None = None
    images_per_second: float | None = None
    cpu_per_wall: float | None = None


@dataclass(frozen=True)
class Memory:
    """Memory of a process that loads the model and runs it.

    Attributes:
        private_bytes: Growth of memory that belongs to no file: heap, stacks, written copies of pages.
        mapped_bytes: Growth of resident pages of files, the model's and libraries'; the kernel can drop
            them. None where the system does not tell.
        peak_rss_bytes: Largest resident size of the whole process, Python and packages included. None on an
            emulated Pi.
        baseline_private_bytes: What `private_bytes` was subtracted from: Python with the runtime imported.
            None on an emulated Pi.
        inferences: How many were run before reading.
        source: What was read: "smaps_rollup" (anonymous + swapped) or "psutil" (unique set size); on an
            emulated Pi "pi-emulated".
        device_bytes: Memory of the GPU that loading and running took, the CUDA context not counted: fall of
            the free memory, other programs' changes included. On a Jetson it is part of the main memory.
            None without a GPU.
    """

    private_bytes: int
    mapped_bytes: int | None
    peak_rss_bytes: int | None
    baseline_private_bytes: int | None
    inferences: int
    source: str
    device_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """Everything measured of one subject; accuracy and speed are those of one file.

    Attributes:
        subject: Its label in this benchmark.
        network: Name of the network.
        target: Target of the artifact, or "checkpoint".
        file: Name of the model file.
        sha256: Its identity.
        runtime: Key of the runtime.
        runtime_version: Package and version.
        kernels: "optimized" or "reference".
        threads: Threads of the runtime.
        batch: Images an inference; latencies are of one batch.
        sizes: Sizes.
        golden: Golden check, None for a checkpoint.
        accuracy: None where no data was given.
        latency: None where it was not asked for, and in an emulator, which has no time.
        memory: Of a process on this machine; None where it was not asked for, and where another device ran
            the model.
        parity: What the export found when it compared the artifact with its checkpoint; plain values. The
            drift over the steps stands in `drift`.
        energy: Of one inference (of a batch, like the latency); None where the machine does not tell.
        settings: What else the runtime says of how it ran; plain values. Of the trt runtime: `copies`,
            `cuda_graph` and `wait` as in `RuntimeOptions`, `gpu`, `cuda_driver`, and `engine` and
            `engine_sha256`, its file name and identity. Of the mcu runtime: `device`, `timed`, how it was
            compiled, and what the device told, the flash by section and file included.
        microcontroller: What it takes of one; None where none ran it.
        instructions: Retired on an emulated Raspberry Pi; None elsewhere.
        profile: Time by operator, in the order in which they run; None where the runtime has no profiler or
            it was not asked for.
        drift: Over the steps of recurrences; None where there are none or the export did not record it.
        checkpoint_sha256: Identity of the checkpoint that it was made from, or that it is; None where the
            artifact does not tell. Subjects with the same one are forms of one network.
    """

    subject: str
    network: str
    target: str
    file: str
    sha256: str
    runtime: str
    runtime_version: str
    kernels: str
    threads: int
    batch: int
    sizes: Sizes
    golden: Golden | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    energy: Energy | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    microcontroller: Microcontroller | None = None
    instructions: Instructions | None = None
    profile: tuple[OpTime, ...] | None = None
    drift: Drift | None = None
    checkpoint_sha256: str | None = None

    @property
    def counted_instructions(self) -> int | None:
        """Instructions of an inference in an emulator; None where none counted them."""
        if self.instructions is not None:
            return self.instructions.per_inference
        return self.microcontroller.instructions if self.microcontroller else None


@dataclass(frozen=True)
class Comparison:
    """A subject over the baseline: latencies measured in turns, or counted instructions.

    Attributes:
        subject: Label.
        baseline: Label.
        ratio: Quotient of the two `median_ns`, or of the instructions of an inference.
        low: Lower end of the bootstrap confidence interval; the ratio itself where it is exact.
        high: Upper end.
        confidence: Its level, 0..1; 1 where the ratio is exact.
        metric: "latency" or "instructions".
    """

    subject: str
    baseline: str
    ratio: float
    low: float
    high: float
    confidence: float
    metric: Literal["latency", "instructions"] = "latency"


@dataclass(frozen=True)
class Environment:
    """The machine.

    Attributes:
        machine: Architecture, e.g. "x86_64".
        cpu: Name of the processor.
        cpus: Processors this process may use.
        kernel: Name and release of the operating system.
        python: Version.
        memory_bytes: Size of the main memory.
        board: Name of the board, None where there is none.
        versions: Version of every package concerned.
    """

    machine: str
    cpu: str
    cpus: int
    kernel: str
    python: str
    memory_bytes: int
    board: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class MachineState:
    """What changes on the machine; None where it does not tell.

    Attributes:
        load_average: Runnable tasks over the last minute.
        governor: Frequency governor of the first CPU.
        frequency_mhz: Current frequency, mean of the CPUs.
    """

    load_average: float
    governor: str | None
    frequency_mhz: float | None


@dataclass(frozen=True)
class Failure:
    """A subject that could not be measured to the end; what was measured before stands in its measurement.

    Attributes:
        subject: Its label.
        stage: Where it failed: "start" (reading it, importing the runtime), "build", "check" (golden
            outputs), "accuracy", "load", "latency", "memory" or "profile"; a device may have further ones.
        reason: What is wrong.
        where: File, layer or option concerned; None where nothing is to be named.
        fix: What the user can do about it; None where nothing is known.
        error: Name of the class in `csr_deploy.errors`.
    """

    subject: str
    stage: str
    reason: str
    where: str | None = None
    fix: str | None = None
    error: str = "BenchError"

    def to_error(self) -> errors.CsrError:
        """The error that it was."""
        kind = getattr(errors, self.error, errors.BenchError)
        if not (isinstance(kind, type) and issubclass(kind, errors.CsrError)):
            kind = errors.BenchError
        if kind is errors.MissingDependencyError:
            kind = errors.RuntimeUnavailableError
        made: errors.CsrError = kind(self.reason, where=self.where or self.subject, fix=self.fix)
        return made


@dataclass(frozen=True)
class BenchResult:
    """One benchmark.

    Attributes:
        quick: Whether it was shortened: such figures are for a first look only.
        options: Options it ran with; plain values.
        environment: The machine.
        before: Its state before.
        after: Its state after.
        baseline: Label of the subject the others are compared with.
        measurements: One for every subject that passed the check of its golden outputs.
        comparisons: One for every other subject, where both have what is compared.
        notes: What a reader must know, e.g. that the machine was busy.
        telemetry: The machine while latencies were taken; None where that was not asked for.
        void: Why latencies and energies are void, e.g. because the machine was throttled; empty where they
            are good.
        failures: Subjects that could not be measured to the end.
    """

    quick: bool
    options: Mapping[str, Any]
    environment: Environment
    before: MachineState
    after: MachineState
    baseline: str
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    telemetry: Telemetry | None = None
    void: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    def demand_complete(self) -> BenchResult:
        """This result, if every subject was measured to the end.

        Raises:
            CsrError: The first failure.
        """
        for failure in self.failures:
            raise failure.to_error()
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain values with the schema version first."""
        return {"schema_version": SCHEMA_VERSION, "timed_region": dict(TIMED_REGION), **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "a result") -> BenchResult:
        """Inverse of `to_json`; what later versions of the same schema add is left out.

        Args:
            values: Plain values.
            where: Their place, for messages.

        Raises:
            BenchError: If a value is missing or of the wrong kind, or the schema's version is not known.
        """
        version = values.get("schema_version")
        if version not in READABLE_VERSIONS:
            raise errors.BenchError(
                f"has schema version {version!r}; this csr-deploy reads {_listed(READABLE_VERSIONS)}",
                where=where,
                fix="Measure again, or install the csr-deploy that wrote it.",
            )
        return read_plain(cls, values, where)


def _listed(versions: tuple[int, ...]) -> str:
    return " and ".join(map(str, versions))
