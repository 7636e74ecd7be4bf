"""The arena over time, as a picture (SVG) and as a table.

Both are written next to the generated code so that somebody who is short of RAM can see which step fills the
arena and with what. Neither depends on fonts, a clock or hash order: the same plan gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from csr_deploy.errors import GraphError
from csr_deploy.exporters.mcu.plan import Buffer, Overlap, Plan

DEFAULT_KIND = "activation"

# Fill by kind; the palette serves kinds without a colour of their own.
_FILLS = {DEFAULT_KIND: "#8fb8de", "scratch": "#f2c57c", "weights": "#a8d5a2", "input": "#b9a7d8"}
_PALETTE = ("#e7a6b5", "#9fd3cf", "#d6cfa0", "#c4c4c4")
_LIVE, _ARENA, _INK, _GRID = "#c2410c", "#1d3557", "#222222", "#dddddd"

_PLOT_HEIGHT = 440.0
_LEFT, _RIGHT, _TOP = 78.0, 24.0, 78.0
_CHARACTER = 5.9  # width in pixels of an average character at font size 10
_LONGEST_LABEL = 26
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def memory_svg(
    buffers: Sequence[Buffer],
    overlaps: Sequence[Overlap],
    plan: Plan,
    steps: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    *,
    title: str = "",
) -> str:
    """Draws each buffer as a rectangle: steps from left to right, bytes of the arena from bottom to top.

    Args:
        buffers: The buffers that were planned.
        overlaps: The pairs that may share bytes; bytes that are shared are hatched.
        plan: The plan.
        steps: Operation of each step.
        kinds: Kind of each buffer by name, for example "scratch"; absent ones are activations.
        title: Stands above the picture.

    Returns:
        A self-contained SVG document. Names and sizes are tooltips, and labels where they fit.

    Raises:
        GraphError: If the plan lacks a buffer or a buffer is live in a step that does not exist.
    """
    _require_drawable(buffers, plan, steps)
    kinds = kinds or {}
    width = min(1400.0, max(720.0, 24.0 * len(steps)))
    column = width / max(1, len(steps))
    scale = _PLOT_HEIGHT / (1.04 * max(1, plan.size, plan.lower_bound))
    bottom = _TOP + _PLOT_HEIGHT

    def x(step: int) -> float:
        return _LEFT + column * step

    def y(byte: int) -> float:
        return bottom - scale * byte

    # As many operation names as are readable side by side, turned by 60 degrees.
    every = max(1, int(-(-13.0 // column)))
    names = [_shorten(f"{number} {name}") for number, name in enumerate(steps)]
    label_height = 24.0 + _CHARACTER * 0.87 * max((len(name) for name in names[::every]), default=0)
    fills = _fills(kinds.get(buffer.name, DEFAULT_KIND) for buffer in buffers)
    shared = list(_shared(buffers, overlaps, plan))
    legend, legend_end = _legend(fills, bool(shared))
    total_width, total_height = max(_LEFT + width, legend_end) + _RIGHT, bottom + label_height

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{_number(total_width)}" height="{_number(total_height)}" '
        f'viewBox="0 0 {_number(total_width)} {_number(total_height)}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="10">',
        '<defs><pattern id="shared" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)">'
        f'<path d="M0 0V5" stroke="{_INK}" stroke-width="1.4"/></pattern></defs>',
        f'<rect width="{_number(total_width)}" height="{_number(total_height)}" fill="#ffffff"/>',
    ]
    summary = f"arena {plan.size} bytes; live at most {plan.lower_bound} bytes"
    out.append(_text(_LEFT, 24, f"{title}: {summary}" if title else summary, size=15, weight="bold"))

    for tick in _ticks(max(plan.size, plan.lower_bound)):
        out.append(_line(_LEFT, y(tick), _LEFT + width, y(tick), _GRID))
        out.append(_text(_LEFT - 6, y(tick) + 3.5, _bytes(tick), anchor="end"))
    for step in range(0, len(steps), every):
        out.append(_line(x(step), bottom, x(step), bottom + 4, _INK))
        middle = x(step) + column / 2
        out.append(
            f'<text x="{_number(middle)}" y="{_number(bottom + 12)}" text-anchor="end" fill="{_INK}" '
            f'transform="rotate(-60 {_number(middle)} {_number(bottom + 12)})">{_escape(names[step])}</text>'
        )

    by_area = sorted(
        buffers, key=lambda item: (-item.size * (item.last - item.first + 1), item.first, item.name)
    )
    for buffer in by_area:
        kind = kinds.get(buffer.name, DEFAULT_KIND)
        start = plan.offsets[buffer.name]
        tooltip = (
            f"{buffer.name}: {buffer.size} bytes at {start}..{start + buffer.size}, "
            f"steps {buffer.first} to {buffer.last} ({kind})"
        )
        out.append(
            f'<rect class="buffer" x="{_number(x(buffer.first))}" y="{_number(y(start + buffer.size))}" '
            f'width="{_number(x(buffer.last + 1) - x(buffer.first))}" '
            f'height="{_number(scale * buffer.size)}" '
            f'fill="{fills[kind]}" fill-opacity="0.85" stroke="#3d4852" stroke-width="0.7">'
            f"<title>{_escape(tooltip)}</title></rect>"
        )
    for source, target, step, start, end in shared:
        out.append(
            f'<rect class="shared" x="{_number(x(step))}" y="{_number(y(end))}" width="{_number(column)}" '
            f'height="{_number(scale * (end - start))}" fill="url(#shared)" fill-opacity="0.55">'
            f"<title>{_escape(f'{target} is written over {source}: {end - start} bytes')}</title></rect>"
        )
    live = _live_bytes(buffers, len(steps))
    if live:
        points = " ".join(
            f"{_number(x(step + side))},{_number(y(count))}"
            for step, count in enumerate(live)
            for side in (0, 1)
        )
        out.append(f'<polyline points="{points}" fill="none" stroke="{_LIVE}" stroke-width="1.6"/>')
    out.append(_line(_LEFT, y(plan.size), _LEFT + width, y(plan.size), _ARENA, width=1.8, dash="7 4"))
    sources, targets = {row[0] for row in shared}, {row[1] for row in shared}
    for buffer in by_area:
        top, base = y(plan.offsets[buffer.name] + buffer.size), y(plan.offsets[buffer.name])
        left, right = x(buffer.first), x(buffer.last + 1)
        # Beside the hatched bytes where there is room, as two labels would meet there.
        clear_left = left + column * (buffer.name in targets)
        clear_right = right - column * (buffer.name in sources)
        out.extend(
            _label(buffer, clear_left, clear_right, top, base) or _label(buffer, left, right, top, base)
        )
    out.append(_line(_LEFT, _TOP, _LEFT, bottom, _INK))
    out.append(_line(_LEFT, bottom, _LEFT + width, bottom, _INK))
    out.extend(legend)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def memory_table(buffers: Sequence[Buffer], plan: Plan, steps: Sequence[str]) -> str:
    """Lists what is live in each step and where.

    Args:
        buffers: The buffers that were planned.
        plan: The plan.
        steps: Operation of each step.

    Returns:
        Plain text, a line for each step below two lines of heading.

    Raises:
        GraphError: If the plan lacks a buffer or a buffer is live in a step that does not exist.
    """
    _require_drawable(buffers, plan, steps)
    live = _live_bytes(buffers, len(steps))
    rows = [("step", "operation", "live bytes", "buffers (offset..end, without the byte at end)")]
    for step, (name, count) in enumerate(zip(steps, live, strict=True)):
        here = sorted(
            (plan.offsets[buffer.name], buffer.name, buffer.size)
            for buffer in buffers
            if buffer.first <= step <= buffer.last
        )
        places = ", ".join(f"{_printable(name)} {start}..{start + size}" for start, name, size in here)
        rows.append((str(step), _printable(name), str(count), places))
    widths = [max(len(row[position]) for row in rows) for position in range(3)]
    lines = [f"arena {plan.size} bytes; live at most {plan.lower_bound} bytes"]
    for row in rows:
        line = f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def _require_drawable(buffers: Sequence[Buffer], plan: Plan, steps: Sequence[str]) -> None:
    for buffer in buffers:
        where = f"buffer '{buffer.name}'"
        if buffer.name not in plan.offsets:
            raise GraphError("The plan does not place it.", where=where)
        if buffer.first < 0 or buffer.last >= len(steps):
            raise GraphError(
                f"It is live in steps {buffer.first} to {buffer.last}, but there are {len(steps)} steps.",
                where=where,
                fix="Name the operation of each step.",
            )


def _live_bytes(buffers: Sequence[Buffer], count: int) -> list[int]:
    live = [0] * count
    for buffer in buffers:
        for step in range(buffer.first, buffer.last + 1):
            live[step] += buffer.size
    return live


def _shared(
    buffers: Sequence[Buffer], overlaps: Sequence[Overlap], plan: Plan
) -> Iterable[tuple[str, str, int, int, int]]:
    """Yields (source, target, step, start, end) for each pair that does share bytes."""
    named = {buffer.name: buffer for buffer in buffers}
    for source, target in sorted({(overlap.source, overlap.target) for overlap in overlaps}):
        start = max(plan.offsets[source], plan.offsets[target])
        end = min(plan.offsets[source] + named[source].size, plan.offsets[target] + named[target].size)
        if start < end:
            yield source, target, named[target].first, start, end


def _fills(kinds: Iterable[str]) -> dict[str, str]:
    """The colour of each kind, in the order of the legend."""
    present = sorted(set(kinds), key=lambda kind: (kind != DEFAULT_KIND, kind))
    others = [kind for kind in present if kind not in _FILLS]
    return {
        kind: _FILLS[kind] if kind in _FILLS else _PALETTE[others.index(kind) % len(_PALETTE)]
        for kind in present
    }


def _label(buffer: Buffer, left: float, right: float, top: float, bottom: float) -> list[str]:
    """The name (and the size below it) where it fits, turned where only that fits; otherwise nothing."""
    name, size = _shorten(buffer.name), _bytes(buffer.size)
    width, height = right - left, bottom - top
    middle, centre = (left + right) / 2, (top + bottom) / 2
    if width >= _CHARACTER * len(name) + 4 and height >= 11:
        if height >= 25 and width >= _CHARACTER * len(size) + 4:
            return [
                _text(middle, centre - 2, name, anchor="middle", halo=True),
                _text(middle, centre + 10, size, anchor="middle", halo=True),
            ]
        return [_text(middle, centre + 3.5, name, anchor="middle", halo=True)]
    if height >= _CHARACTER * len(name) + 4 and width >= 11:
        turn = f"rotate(-90 {_number(middle)} {_number(centre)})"
        return [_text(middle, centre + 3.5, name, anchor="middle", transform=turn, halo=True)]
    return []


def _legend(fills: Mapping[str, str], shared: bool) -> tuple[list[str], float]:
    """The entries, and where the last one ends."""
    out: list[str] = []
    left, middle = _LEFT, 48.0

    def entry(mark: str, name: str) -> None:
        nonlocal left
        out.append(mark)
        out.append(_text(left + 28, middle + 4, name, size=11))
        left += 28 + 6.2 * len(name) + 16

    def box(fill: str) -> str:
        return (
            f'<rect x="{_number(left)}" y="{_number(middle - 6)}" width="22" height="12" fill="{fill}" '
            'stroke="#3d4852" stroke-width="0.7"/>'
        )

    for kind, fill in fills.items():
        entry(box(fill), kind)
    if shared:
        entry(box("url(#shared)"), "bytes shared by an overlap")
    entry(_line(left, middle, left + 22, middle, _LIVE, width=1.6), "live bytes, shared ones counted twice")
    entry(_line(left, middle, left + 22, middle, _ARENA, width=1.8, dash="7 4"), "arena")
    return out, left


def _ticks(most: int) -> range:
    """At most nine byte counts from 0 upwards, a power of two apart."""
    step = 1
    while most // step > 8:
        step *= 2
    return range(0, most + 1, step)


def _bytes(count: int) -> str:
    return f"{count / 1024:.4g} KiB" if count >= 1024 else f"{count} B"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1.0, dash: str | None = None
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}" '
        f'stroke="{stroke}" stroke-width="{_number(width)}"{dashes}/>'
    )


def _text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size: int = 10,
    weight: str | None = None,
    transform: str | None = None,
    halo: bool = False,
) -> str:
    extra = "".join(
        f" {name}={quoteattr(value)}"
        for name, value in (("font-weight", weight), ("transform", transform))
        if value is not None
    )
    if halo:
        extra += ' stroke="#ffffff" stroke-width="2" stroke-opacity="0.6" paint-order="stroke"'
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{_INK}"{extra}>{_escape(content)}</text>'
    )


def _shorten(name: str) -> str:
    name = _printable(name)
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _printable(name: str) -> str:
    """The name without what XML forbids or would break a line of text."""
    return _NOT_PRINTABLE.sub("\N{REPLACEMENT CHARACTER}", name)


def _escape(content: str) -> str:
    return escape(_printable(content))
