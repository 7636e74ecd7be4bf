"""What a benchmark gives: frozen records with the unit in every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from csr_deploy.bench.telemetry import Energy, Telemetry

SCHEMA_VERSION = 1

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
    """

    parameters: int | None
    macs: int | None
    file_bytes: int
    weight_bytes: int | None
    arena_bytes: int | None
    constant_bytes: int | None = None

    @property
    def model_bytes(self) -> int:
        """What has to be stored to run the model: its file, or the constants of one in C."""
        return self.file_bytes if self.constant_bytes is None else self.constant_bytes


@dataclass(frozen=True)
class Golden:
    """Check of the golden vectors on this machine, see `csr_deploy.runtimes.golden.GoldenReport`."""

    images: int
    exact: bool
    max_difference: float
    tolerance: float
    float_agreement: float


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
    """

    source: str
    images: int
    images_sha256: str
    damaged: int
    top1: float
    device: str | None = None


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
class GpuTime:
    """Times of the same inferences on the GPU, see `TIMED_REGION`; fields as in `Latency`."""

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
        p50_ns: Percentiles of all samples.
        p90_ns: 90th.
        p95_ns: 95th.
        p99_ns: 99th.
        min_ns: Fastest.
        max_ns: Slowest.
        windows_ns: Every sample, one list a window, in order.
        gpu: None where no GPU ran or the runtime does not tell.
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


@dataclass(frozen=True)
class Memory:
    """Memory of a process that loads the model and runs it.

    Attributes:
        private_bytes: Growth of memory that belongs to no file: heap, stacks, written copies of pages.
        mapped_bytes: Growth of resident pages of files, the model's and libraries'; the kernel can drop
            them. None where the system does not tell.
        peak_rss_bytes: Largest resident size of the whole process, Python and packages included.
        baseline_private_bytes: What `private_bytes` was subtracted from: Python with the runtime imported.
        inferences: How many were run before reading.
        source: What was read: "smaps_rollup" (anonymous + swapped) or "psutil" (unique set size).
        device_bytes: Memory of the GPU that loading and running took, the CUDA context not counted: fall of
            the free memory, other programs' changes included. On a Jetson it is part of the main memory.
            None without a GPU.
    """

    private_bytes: int
    mapped_bytes: int | None
    peak_rss_bytes: int
    baseline_private_bytes: int
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
        parity: What the export found when it compared the artifact with its checkpoint; plain values.
        energy: Of one inference (of a batch, like the latency); None where the machine does not tell.
        settings: What else the runtime says of how it ran; plain values. Of the trt runtime: `copies`,
            `cuda_graph` and `wait` as in `RuntimeOptions`, `gpu`, `cuda_driver`, and `engine` and
            `engine_sha256`, its file name and identity. Of the mcu runtime: `device`, `timed`, how it was
            compiled, and what the device told, the flash by section and file included.
        microcontroller: What it takes of one; None where none ran it.
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


@dataclass(frozen=True)
class Comparison:
    """Latency of a subject over that of the baseline, measured in turns.

    Attributes:
        subject: Label.
        baseline: Label.
        ratio: Quotient of the two `median_ns`.
        low: Lower end of the bootstrap confidence interval.
        high: Upper end.
        confidence: Its level, 0..1.
    """

    subject: str
    baseline: str
    ratio: float
    low: float
    high: float
    confidence: float


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
class BenchResult:
    """One benchmark.

    Attributes:
        quick: Whether it was shortened: such figures are for a first look only.
        options: Options it ran with; plain values.
        environment: The machine.
        before: Its state before.
        after: Its state after.
        baseline: Label of the subject the others are compared with.
        measurements: One a subject.
        comparisons: One for every other subject.
        notes: What a reader must know, e.g. that the machine was busy.
        telemetry: The machine while latencies were taken; None where that was not asked for.
        void: Why latencies and energies are void, e.g. because the machine was throttled; empty where they
            are good.
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

    def to_json(self) -> dict[str, Any]:
        """Plain values with the schema version first."""
        return {"schema_version": SCHEMA_VERSION, "timed_region": dict(TIMED_REGION), **asdict(self)}
