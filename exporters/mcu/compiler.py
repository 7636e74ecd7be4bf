"""The pipeline: .tflite file → verified graph → passes → layout → memory plan → kernel calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import ExportError
from csr_deploy.exporters.mcu.ir import Model
from csr_deploy.exporters.mcu.layout import Layout, View, lay_out
from csr_deploy.exporters.mcu.lower import Call, Constant, Lowering
from csr_deploy.exporters.mcu.ops import KINDS
from csr_deploy.exporters.mcu.options import McuOptions
from csr_deploy.exporters.mcu.passes.fold_pad import fold_pad
from csr_deploy.exporters.mcu.passes.fold_space_to_depth import fold_space_to_depth
from csr_deploy.exporters.mcu.passes.fuse_requantize import fuse_requantize
from csr_deploy.exporters.mcu.passes.group_to_depthwise import group_to_depthwise
from csr_deploy.exporters.mcu.passes.join_units import join_units
from csr_deploy.exporters.mcu.passes.normalise import normalise
from csr_deploy.exporters.mcu.passes.roll_csr import roll_csr
from csr_deploy.exporters.mcu.passes.share_constants import share_constants
from csr_deploy.exporters.mcu.plan import Buffer, Overlap, Plan, check, plan
from csr_deploy.exporters.mcu.reader import read_tflite

ALIGNMENT = 16
_SCRATCH = "scratch"

PASSES: tuple[Callable[[Model], Model], ...] = (
    share_constants,
    group_to_depthwise,
    fold_space_to_depth,
    fold_pad,
    roll_csr,
)


@dataclass(frozen=True)
class Program:
    """What the generated file says.

    Attributes:
        model: The graph after the passes.
        calls: Kernel calls in order.
        constants: Tables and weights.
        input: Where the input lies.
        output: Where the output lies.
        buffers: What was planned; step 0 is the caller writing the input.
        overlaps: What may share bytes.
        plan: Where it lies.
        steps: Names of the planner's steps.
    """

    model: Model
    calls: tuple[Call, ...]
    constants: tuple[Constant, ...]
    input: View
    output: View
    buffers: tuple[Buffer, ...]
    overlaps: tuple[Overlap, ...]
    plan: Plan
    steps: tuple[str, ...]

    @property
    def arena(self) -> int:
        """Bytes, a multiple of the alignment."""
        return -(-self.plan.size // ALIGNMENT) * ALIGNMENT

    @property
    def flash(self) -> tuple[int, int]:
        """Bytes of weights and of tables on a 32-bit processor."""
        weights = sum(c.size for c in self.constants if c.kind == "weight")
        return weights, sum(c.size for c in self.constants) - weights


def optimise(model: Model, options: McuOptions | None = None) -> Model:
    """Runs all passes on a model as read.

    Args:
        model: From `read_tflite`.
        options: Whether recurrences are rounded once.

    Raises:
        ExportError: If an operation has no kernel, or not in this form.
    """
    model = normalise(model)
    for run in PASSES:
        model = run(model)
    if options is None or not options.fuse_requantize:
        return model
    return join_units(model) if options.cpu == "aarch64" else fuse_requantize(model)


def compile_tflite(content: bytes, where: str, options: McuOptions | None = None) -> Program:
    """Compiles a .tflite file.

    Args:
        content: The file.
        where: Its name, for messages.
        options: Budgets.

    Raises:
        ExportError: If it is malformed, cannot be expressed, or breaks a budget.
    """
    options = options or McuOptions()
    return compile_model(optimise(read_tflite(content, where), options), options)


def compile_model(model: Model, options: McuOptions) -> Program:
    """Compiles a graph after the passes; see `compile_tflite`."""
    layout = lay_out(model)
    packed = options.cpu == "aarch64"
    bare = _assemble(model, layout, lambda step: 0, packed=packed)
    limit = int(bare.plan.size * (1 + options.scratch_share))
    if options.ram is not None:
        limit = min(limit, options.ram)
    used = _live(bare)
    share = 1.0
    program = bare
    # The planner may not be able to place all the scratch memory that would fit: then less is asked for.
    for _ in range(3):
        room = share

        def budget(step: int, room: float = room) -> int:
            return int(max(0, limit - used.get(step + 1, 0)) * room)

        program = _assemble(model, layout, budget, packed=packed)
        if program.plan.size <= limit:
            break
        share *= 0.8
    if program.plan.size > limit:
        program = bare
    _check_budgets(program, options)
    return program


def _assemble(model: Model, layout: Layout, budget: Callable[[int], int], *, packed: bool) -> Program:
    low = Lowering(model, layout, budget, packed)
    for step, op in enumerate(model.ops):
        if step in layout.aliases:
            continue
        low.step = step
        lower = KINDS[op.kind].lower
        if lower is None:
            raise ExportError("has no kernel where it is not a view", where=op.label)
        lower(low, op)
    buffers = [
        Buffer(name, layout.sizes[name], layout.first[name] + 1, layout.last[name] + 1)
        for name in layout.first
    ]
    known = {b.name: b for b in buffers}
    scratch: dict[int, int] = {}
    calls_of: dict[int, int] = {}
    for call in low.calls:
        scratch[call.step] = max(scratch.get(call.step, 0), call.scratch)
        calls_of[call.step] = calls_of.get(call.step, 0) + 1
    for step, size in scratch.items():
        if size:
            buffers.append(Buffer(f"{_SCRATCH}_{step}", size, step + 1, step + 1))
    overlaps = []
    for call in low.calls:
        if call.overlap is None or calls_of[call.step] > 1:
            continue
        source, target, distance = call.overlap
        if known[source].last == known[target].first == call.step + 1:
            overlaps.append(Overlap(source, target, distance))
    made = plan(buffers, overlaps, alignment=ALIGNMENT)
    check(buffers, overlaps, made, ALIGNMENT)
    steps = ("input", *(f"{op.index} {op.kind}" for op in model.ops), "output")
    return Program(
        model,
        tuple(low.calls),
        tuple(low.constants.values()),
        layout.views[model.input],
        layout.views[model.output],
        tuple(buffers),
        tuple(overlaps),
        made,
        steps,
    )


def _live(program: Program) -> dict[int, int]:
    """Planner's step → bytes of activations that are live, less those that may overlap."""
    out: dict[int, int] = {}
    sizes = {b.name: b.size for b in program.buffers}
    for b in program.buffers:
        if not b.name.startswith(f"{_SCRATCH}_"):
            for step in range(b.first, b.last + 1):
                out[step] = out.get(step, 0) + -(-b.size // ALIGNMENT) * ALIGNMENT
    starts = {b.name: b.first for b in program.buffers}
    for row in program.overlaps:
        saved = min(sizes[row.source], sizes[row.target]) - max(0, -(-row.distance // ALIGNMENT) * ALIGNMENT)
        out[starts[row.target]] -= max(0, saved)
    return out


def _check_budgets(program: Program, options: McuOptions) -> None:
    """Demands that a program fits.

    Raises:
        ExportError: Naming the operation that takes most.
    """
    if options.ram is not None and program.arena > options.ram:
        worst = max(
            range(len(program.steps)),
            key=lambda s: sum(b.size for b in program.buffers if b.first <= s <= b.last),
        )
        held = sorted(
            (b for b in program.buffers if b.first <= worst <= b.last), key=lambda b: b.size, reverse=True
        )
        raise ExportError(
            f"needs an arena of {program.arena:,} bytes, {options.ram:,} are allowed; at its largest are "
            + ", ".join(f"{b.name} ({b.size:,})" for b in held[:4]),
            where=f"operator {program.steps[worst]}",
            fix="Use smaller pictures or fewer channels there, or a larger --ram.",
        )
    weights, tables = program.flash
    if options.flash is not None and weights + tables > options.flash:
        largest = max(program.constants, key=lambda c: c.size)
        raise ExportError(
            f"needs {weights + tables:,} bytes of constants, {options.flash:,} are allowed; "
            f"the largest is {largest.name} ({largest.size:,})",
            where="flash",
            fix="Use fewer channels or more steps, or a larger --flash.",
        )


def evaluate(model: Model, x: NDArray[np.generic]) -> NDArray[np.generic]:
    """Runs a normalised graph on the NumPy reference of every operation.

    Args:
        model: After `normalise`, before or after any pass.
        x: The input, of the model's shape and dtype.
    """
    values: Mapping[str, NDArray[np.generic]] = {model.input: x.reshape(model.tensors[model.input].shape)}
    known = dict(values)
    for op in model.ops:
        inputs = []
        for name in op.inputs:
            if not name:
                continue
            data = model.tensors[name].data
            inputs.append(known[name] if data is None else data)
        known[op.output] = KINDS[op.kind].reference(op, model, inputs)
    return known[model.output]
