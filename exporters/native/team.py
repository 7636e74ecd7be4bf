"""How the threads of an instance share a program's kernel calls.

All threads go through the same calls (`csr_team.h`) and wait for each other where one needs what another
wrote. Large calls are split; small ones, and those that have to go through memory in order, are left to the
first thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from csr_deploy.exporters.mcu.compiler import Program
from csr_deploy.exporters.mcu.emit import Team, Writer
from csr_deploy.exporters.mcu.layout import View
from csr_deploy.exporters.mcu.lower import Call
from csr_deploy.runtimes.native.sources import POOL

_LEAST = 4096
"""Instructions below which a call is not worth sharing."""
_MACS = 8
"""Multiply-accumulates an instruction."""
_CONV, _CELL = "csr_packed_conv_s8", "csr_packed_cell_s8"
_MOST_ROWS = 128
"""Of an output, whatever its stride, that `csr_team_window` splits."""
_TEAM_KERNELS = {_CONV: "csr_team_conv_s8", _CELL: "csr_team_cell_s8"}
"""Kernels that share their work themselves."""
_LOOPS = {
    "csr_packed_sum_s8": 3, "csr_add_s8": 30, "csr_sub_s8": 30, "csr_mul_s8": 15, "csr_minimum_s8": 3,
    "csr_maximum_s8": 3, "csr_prelu_s8": 15, "csr_table_s8": 3, "csr_copy_s8": 1, "csr_fill_s8": 1,
}  # fmt: skip
"""Kernels whose first argument are `csr_loops`: instructions an element, about."""
_AFFINES = {"csr_affine_s8": ("csr_affine", 4), "csr_packed_affine_s8": ("csr_packed_affine", 2)}
"""Kernels of a gain and a bias a channel: structure, and instructions an element."""
_WINDOWS = {
    "csr_depthwise_s8": ("csr_depthwise", 1), "csr_max_pool_s8": ("csr_pool", 1),
    "csr_average_pool_s8": ("csr_pool", 3),
}  # fmt: skip
"""Kernels that move a window: structure, and instructions an element and tap."""


def team_kernels(program: Program) -> tuple[str, ...]:
    """Kernels that the statements of `TEAM` call, sorted."""
    return tuple(sorted({_kernel(program, call) for call in program.calls}))


def own_bytes(program: Program) -> int:
    """Bytes that every thread has for itself where there are several."""
    scratch = (call.scratch for call in program.calls if call.kernel in _TEAM_KERNELS)
    pictures = [_target(call) for call in program.calls if call.kernel in _WINDOWS]
    # Of two threads, which have the most rows each.
    aside = (-(-view.shape[1] // 2) * view.strides[1] for view in pictures)
    return max((*scratch, *aside), default=0)


def _kernel(program: Program, call: Call) -> str:
    """What computes a call: where it is worth sharing, a kernel that shares it, if there is one."""
    is_large = _instructions(program, call) >= _LEAST
    return _TEAM_KERNELS.get(call.kernel, call.kernel) if is_large else call.kernel


def _calls(writer: Writer) -> list[str]:
    lines = []
    before: Call | None = None
    for call in writer.program.calls:
        if before is not None and not _may_overtake(writer, before, call):
            lines.append("    csr_team_wait(team);")
        lines.append(f"    /* {call.comment} */")
        lines += _shared(writer, call) or [
            "    if (!team->rank) {",
            f"        {call.kernel}({', '.join(writer.arguments(call))});",
            "    }",
        ]
        before = call
    return lines


def _may_overtake(writer: Writer, first: Call, second: Call) -> bool:
    """Whether a call may begin before other threads are through with the one before it."""
    if first.kernel == second.kernel == _CONV and first.step == second.step:
        # Groups or pictures of one operation.
        return True
    return not (_shared(writer, first) or _shared(writer, second))


def _shared(writer: Writer, call: Call) -> list[str]:
    """Statements by which all threads compute a call; none where it is for one thread."""
    if _instructions(writer.program, call) < _LEAST:
        return []
    arguments = writer.arguments(call)
    if call.kernel in _TEAM_KERNELS:
        return [f"    {_kernel(writer.program, call)}(team, {', '.join(arguments)});"]
    first, *rest = arguments
    if not _in_any_order(writer, call):
        return _aside(call, first, rest)
    if call.kernel in _LOOPS:
        return _guarded(
            "csr_loops_part part;",
            f"csr_team_loops(team, {first}, &part)",
            f"{call.kernel}({', '.join(['&part.loops', *_moved(call, rest, _operand)])});",
        )
    if call.kernel in _AFFINES:
        struct, _ = _AFFINES[call.kernel]
        return _guarded(
            f"{struct} part; ptrdiff_t at;",
            f"{struct.replace('csr_', 'csr_team_')}(team, {first}, &part, &at)",
            f"{call.kernel}({', '.join(['&part', *_moved(call, rest, lambda i, n: 'at')])});",
        )
    if call.kernel in _WINDOWS:
        struct, _ = _WINDOWS[call.kernel]
        moved = _moved(call, rest, lambda i, n: "at" if i else "")
        return _guarded(
            f"{struct} part = {first[1:]}; csr_window window; ptrdiff_t at;",
            f"csr_team_window(team, {first[1:]}.window, &window, &at)",
            "part.window = &window;",
            f"{call.kernel}({', '.join(['&part', *moved])});",
        )
    return []


def _aside(call: Call, first: str, rest: Sequence[str]) -> list[str]:
    """Statements for a window over a picture that the output partly lies on: rows wait until all are read."""
    target = _target(call)
    if call.kernel not in _WINDOWS or not target.is_contiguous or target.shape[1] > _MOST_ROWS:
        return []
    struct, _ = _WINDOWS[call.kernel]
    source, out, *scratch = rest
    arguments = ["&part", source, f"csr_team_aside(team, {out})", *scratch]
    return [
        "    {",
        f"        {struct} part = {first[1:]};",
        "        csr_window window;",
        "        ptrdiff_t at;",
        f"        const int is_there = csr_team_window(team, {first[1:]}.window, &window, &at);",
        "        if (is_there) {",
        "            part.window = &window;",
        f"            {call.kernel}({', '.join(arguments)});",
        "        }",
        f"        csr_team_put(team, is_there, &window, at, {out});",
        "    }",
    ]


def _guarded(declared: str, condition: str, *statements: str) -> list[str]:
    return [
        "    {",
        *(f"        {line.strip()};" for line in declared.split(";") if line.strip()),
        f"        if ({condition}) {{",
        *(f"            {statement}" for statement in statements),
        "        }",
        "    }",
    ]


def _moved(call: Call, expressions: Sequence[str], by: Callable[[int, int], str]) -> list[str]:
    """Arguments, their pointers moved by what `by` says of an operand's index and the number of operands."""
    views = [isinstance(argument, View) for argument in call.arguments[1:]]
    count = sum(views)
    out = []
    index = 0
    for i, expression in enumerate(expressions):
        distance = ""
        if i < len(views) and views[i]:
            distance = by(index, count)
            index += 1
        out.append(f"{expression} + {distance}" if distance else expression)
    return out


def _operand(index: int, count: int) -> str:
    if index == count - 1:
        return "part.out"
    return ("part.a", "part.b")[index]


def _target(call: Call) -> View:
    return _views(call)[-1]


def _views(call: Call) -> list[View]:
    return [argument for argument in call.arguments if isinstance(argument, View)]


def _instructions(program: Program, call: Call) -> float:
    """Of a call that can be shared, about; 0 for others."""
    views = _views(call)
    elements = math.prod(views[-1].shape)
    kernel: tuple[int, int] = program.model.ops[call.step].attrs.get("kernel", (1, 1))
    if call.kernel == _CELL:
        return elements * 2 * views[0].shape[3]
    if call.kernel == _CONV:
        return elements * math.prod(kernel) * views[0].shape[3] / _MACS
    if call.kernel in _LOOPS:
        return elements * _LOOPS[call.kernel]
    if call.kernel in _AFFINES:
        return elements * _AFFINES[call.kernel][1]
    if call.kernel in _WINDOWS:
        return elements * math.prod(kernel) * _WINDOWS[call.kernel][1]
    return 0


def _in_any_order(writer: Writer, call: Call) -> bool:
    """Whether parts of a call may be computed in any order.

    They may where it writes where it does not read, or each value over exactly what it reads for it.
    """
    *sources, target = _views(call)
    begin, end = _range(writer, target)
    for source in sources:
        if source.constant:
            continue
        first, last = _range(writer, source)
        in_place = (
            call.kernel not in _WINDOWS
            and first == begin
            and (source.shape, source.strides) == (target.shape, target.strides)
        )
        if first < end and begin < last and not in_place:
            return False
    return True


def _range(writer: Writer, view: View) -> tuple[int, int]:
    """First byte of a view in the arena, and the one behind its last."""
    begin = writer.place(view)
    reach = sum((n - 1) * abs(s) for n, s in zip(view.shape, view.strides, strict=True))
    return begin, begin + reach + view.element


TEAM = Team(
    POOL + ".h",
    ("struct native_pool *", "pool"),
    _calls,
    lambda part: [f"    native_pool_run(model->pool, {part}, model->arena);"],
)
"""How threads share a program."""
