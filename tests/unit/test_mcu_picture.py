"""The picture and the table of a microcontroller's arena."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from csr_deploy.errors import GraphError
from csr_deploy.exporters.mcu.picture import memory_svg, memory_table
from csr_deploy.exporters.mcu.plan import Buffer, Overlap, Plan, plan

SVG = "{http://www.w3.org/2000/svg}"
BUFFERS = [
    Buffer("image", 3072, 0, 0),
    Buffer("a<b&c>", 16384, 0, 1),
    Buffer("patch", 288, 1, 1),
    Buffer("out", 16384, 1, 2),
]
OVERLAPS = [Overlap("a<b&c>", "out", 1024)]
STEPS = ["CONV_2D", "CONV_2D <same>", "ADD"]


def rectangles(svg: str, kind: str) -> dict[str, ElementTree.Element]:
    found = [item for item in ElementTree.fromstring(svg).iter(f"{SVG}rect") if item.get("class") == kind]
    return {item.findtext(f"{SVG}title", ""): item for item in found}


def test_each_buffer_is_a_rectangle_to_scale() -> None:
    result = plan(BUFFERS, OVERLAPS)
    drawn = rectangles(memory_svg(BUFFERS, OVERLAPS, result, STEPS), "buffer")
    assert len(drawn) == len(BUFFERS)
    by_name = {title.partition(": ")[0]: rectangle for title, rectangle in drawn.items()}
    heights = {name: float(rectangle.attrib["height"]) for name, rectangle in by_name.items()}
    assert heights["a<b&c>"] == heights["out"]
    assert heights["out"] / heights["image"] == pytest.approx(16384 / 3072, rel=1e-3)
    widths = {name: float(rectangle.attrib["width"]) for name, rectangle in by_name.items()}
    assert widths["out"] == 2 * widths["patch"]
    lifted = float(by_name["out"].attrib["y"]) - float(by_name["a<b&c>"].attrib["y"])
    distance = result.offsets["a<b&c>"] - result.offsets["out"]
    assert lifted / heights["out"] == pytest.approx(distance / 16384, abs=1e-3)


def test_tooltips_and_labels_name_everything() -> None:
    result = plan(BUFFERS, OVERLAPS)
    svg = memory_svg(BUFFERS, OVERLAPS, result, STEPS, {"patch": "scratch"}, title="R&D")
    start = result.offsets["patch"]
    assert f"patch: 288 bytes at {start}..{start + 288}, steps 1 to 1 (scratch)" in rectangles(svg, "buffer")
    assert list(rectangles(svg, "shared")) == ["out is written over a<b&c>: 15360 bytes"]
    texts = [item.text for item in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for expected in ("1 CONV_2D <same>", "a<b&c>", "16 KiB", "scratch", "activation", "arena"):
        assert expected in texts
    assert f"R&D: arena {result.size} bytes; live at most {result.lower_bound} bytes" in texts


def test_kinds_differ_in_colour() -> None:
    kinds = {"patch": "scratch", "image": "frame", "out": "table"}
    drawn = rectangles(memory_svg(BUFFERS, [], plan(BUFFERS), STEPS, kinds), "buffer")
    assert len({rectangle.attrib["fill"] for rectangle in drawn.values()}) == 4


def test_the_curve_is_the_live_bytes() -> None:
    svg = memory_svg(BUFFERS, OVERLAPS, plan(BUFFERS, OVERLAPS), STEPS)
    (curve,) = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in curve.attrib["points"].split()]
    assert heights[0::2] == heights[1::2]
    first, second, third = heights[0::2]
    # The y axis of SVG points down; two activations and the patch fill the second step most.
    assert second < first < third
    assert (first - second) / (third - second) == pytest.approx(
        (16384 + 288 - 3072) / (16384 + 288), rel=1e-3
    )


def test_many_steps_are_named_in_part() -> None:
    steps = [f"op{number}" for number in range(400)]
    buffers = [Buffer(f"b{number}", 64, number, min(399, number + 1)) for number in range(400)]
    svg = memory_svg(buffers, [], plan(buffers), steps)
    named = [item for item in ElementTree.fromstring(svg).iter(f"{SVG}text") if item.get("transform")]
    assert 50 < len(named) < 150
    assert len(rectangles(svg, "buffer")) == 400


def test_names_that_xml_forbids_are_replaced() -> None:
    buffers = [Buffer("bad\x00\n\ud800name", 64, 0, 0)]
    svg = memory_svg(buffers, [], plan(buffers), ["op\x1b"])
    ElementTree.fromstring(svg.encode())
    assert "bad\ufffd\ufffd\ufffdname" in svg
    assert len(memory_table(buffers, plan(buffers), ["op\n"]).splitlines()) == 3


def test_the_same_plan_gives_the_same_picture() -> None:
    result = plan(BUFFERS, OVERLAPS)
    again = memory_svg(BUFFERS[::-1], OVERLAPS[::-1], result, STEPS)
    assert memory_svg(BUFFERS, OVERLAPS, result, STEPS) == again
    assert memory_table(BUFFERS, result, STEPS) == memory_table(BUFFERS[::-1], result, STEPS)


def test_the_table_lists_each_step() -> None:
    result = Plan({"image": 17408, "a<b&c>": 1024, "patch": 17408, "out": 0}, 20480, 33056)
    assert memory_table(BUFFERS, result, STEPS).splitlines() == [
        "arena 20480 bytes; live at most 33056 bytes",
        "step  operation       live bytes  buffers (offset..end, without the byte at end)",
        "   0  CONV_2D              19456  a<b&c> 1024..17408, image 17408..20480",
        "   1  CONV_2D <same>       33056  out 0..16384, a<b&c> 1024..17408, patch 17408..17696",
        "   2  ADD                  16384  out 0..16384",
    ]


def test_nothing_to_draw_is_an_empty_picture() -> None:
    ElementTree.fromstring(memory_svg([], [], plan([]), []))
    assert memory_table([], plan([]), []).startswith("arena 0 bytes")


@pytest.mark.parametrize(
    ("offsets", "steps", "message"),
    [
        ({"image": 0}, STEPS, "buffer 'a<b&c>': The plan does not place it"),
        (
            {buffer.name: 0 for buffer in BUFFERS},
            STEPS[:2],
            "buffer 'out': It is live in steps 1 to 2, but there",
        ),
    ],
)
def test_a_plan_that_does_not_belong_to_the_buffers_is_refused(
    offsets: dict[str, int], steps: list[str], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        memory_svg(BUFFERS, [], Plan(offsets, 40000, 0), steps)
    with pytest.raises(GraphError, match=message):
        memory_table(BUFFERS, Plan(offsets, 40000, 0), steps)
