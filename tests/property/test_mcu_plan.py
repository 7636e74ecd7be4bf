"""The arena planner: what it places, how small, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr_deploy.errors import GraphError
from csr_deploy.exporters.mcu.plan import Buffer, Overlap, Plan, check, plan, smallest_possible

EFFORT = 4000


@st.composite
def networks(draw: st.DrawFn, most: int = 9) -> tuple[list[Buffer], list[Overlap]]:
    buffers = []
    for number in range(draw(st.integers(0, most))):
        first = draw(st.integers(0, 7))
        size = draw(st.integers(1, 40))
        buffers.append(Buffer(f"b{number}", size, first, first + draw(st.integers(0, 3))))
    pairs = [
        (one.name, two.name)
        for one in buffers
        for two in buffers
        if one is not two and one.last == two.first and draw(st.booleans())
    ]
    return buffers, [Overlap(source, target, draw(st.integers(-12, 30))) for source, target in pairs]


def shared_bytes(
    buffers: Sequence[Buffer], overlaps: Sequence[Overlap], offsets: dict[str, int]
) -> list[str]:
    """Fills an arena byte by byte in each step; names what finds its bytes taken."""
    faults = []
    for step in range(max((buffer.last for buffer in buffers), default=-1) + 1):
        owners: dict[int, list[str]] = {}
        for buffer in buffers:
            if not buffer.first <= step <= buffer.last:
                continue
            for byte in range(offsets[buffer.name], offsets[buffer.name] + buffer.size):
                for other in owners.setdefault(byte, []):
                    permitted = any(
                        {row.source, row.target} == {buffer.name, other}
                        and offsets[row.target] + row.distance <= offsets[row.source]
                        for row in overlaps
                    )
                    if not permitted:
                        faults.append(f"{step}: {other} and {buffer.name}")
                owners[byte].append(buffer.name)
    return faults


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from([1, 4, 16]))
def test_a_plan_shares_bytes_only_where_allowed(
    network: tuple[list[Buffer], list[Overlap]], alignment: int
) -> None:
    buffers, overlaps = network
    result = plan(buffers, overlaps, alignment=alignment, effort=EFFORT)
    offsets = dict(result.offsets)
    assert shared_bytes(buffers, overlaps, offsets) == []
    check(buffers, overlaps, result, alignment)
    assert list(offsets) == [buffer.name for buffer in buffers]
    assert all(offset >= 0 and offset % alignment == 0 for offset in offsets.values())
    assert result.size == max((offsets[b.name] + b.size for b in buffers), default=0)
    assert result.size >= smallest_possible(buffers, overlaps, alignment=alignment)
    live = [sum(b.size for b in buffers if b.first <= step <= b.last) for step in range(11)]
    assert result.lower_bound == max(live)
    if not overlaps:
        assert result.size >= result.lower_bound


@settings(max_examples=25, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_the_same_network_in_any_order_has_the_same_plan(
    network: tuple[list[Buffer], list[Overlap]], shuffler: random.Random
) -> None:
    buffers, overlaps = network
    first = plan(buffers, overlaps, effort=EFFORT)
    assert plan(buffers, overlaps, effort=EFFORT) == first
    shuffler.shuffle(buffers)
    shuffler.shuffle(overlaps)
    assert plan(buffers, overlaps, effort=EFFORT) == first


def smallest_by_trying(buffers: Sequence[Buffer], overlaps: Sequence[Overlap], limit: int) -> int:
    """The smallest arena at alignment 1, by trying every offset of every buffer."""

    def fits(placed: dict[str, int], size: int) -> bool:
        if len(placed) == len(buffers):
            return True
        buffer = buffers[len(placed)]
        known = buffers[: len(placed) + 1]
        for offset in range(size - buffer.size + 1):
            here = {**placed, buffer.name: offset}
            if not shared_bytes(known, overlaps, here) and fits(here, size):
                return True
        return False

    return next((size for size in range(limit) if fits({}, size)), limit)


@st.composite
def tiny_networks(draw: st.DrawFn) -> tuple[list[Buffer], list[Overlap]]:
    buffers = []
    for number in range(draw(st.integers(2, 5))):
        first = draw(st.integers(0, 3))
        buffers.append(Buffer(f"b{number}", draw(st.integers(1, 3)), first, first + draw(st.integers(0, 2))))
    overlaps = [
        Overlap(one.name, two.name, draw(st.integers(-1, 2)))
        for one in buffers
        for two in buffers
        if one is not two and one.last == two.first
    ]
    return buffers, overlaps


@settings(max_examples=30, deadline=None)
@given(tiny_networks())
def test_tiny_networks_reach_the_optimum(network: tuple[list[Buffer], list[Overlap]]) -> None:
    buffers, overlaps = network
    size = plan(buffers, overlaps, alignment=1, effort=EFFORT).size
    assert size == smallest_by_trying(buffers, overlaps, size)


def residual_chain(blocks: int, size: int, distance: int, scratch: int) -> tuple[list[Buffer], list[Overlap]]:
    """x, y1 = conv(x), y2 = conv(y1) over y1, z = y2 + x over either; z is the next block's x."""
    buffers, overlaps, begin = [], [], 0
    for block in range(blocks):
        step = 3 * block + 1
        x, y1, y2, z = f"x{block}", f"y1_{block}", f"y2_{block}", f"x{block + 1}"
        buffers += [
            Buffer(x, size, begin, step + 2),
            Buffer(y1, size, step, step + 1),
            Buffer(y2, size, step + 1, step + 2),
            Buffer(f"scratch{block}", scratch, step + 1, step + 1),
        ]
        overlaps += [Overlap(y1, y2, distance), Overlap(y2, z, 0), Overlap(x, z, 0)]
        begin = step + 2
    return [*buffers, Buffer(f"x{blocks}", size, begin, begin + 1)], overlaps


def test_an_in_place_chain_takes_the_room_of_one_buffer() -> None:
    buffers = [Buffer(f"b{number}", 3000, number, number + 1) for number in range(50)]
    overlaps = [Overlap(f"b{number}", f"b{number + 1}", 0) for number in range(49)]
    result = plan(buffers, overlaps)
    check(buffers, overlaps, result)
    assert (result.size, result.lower_bound) == (3000, 6000)


def test_sources_are_lifted_so_that_targets_fit_below_them() -> None:
    buffers = [Buffer(f"b{number}", 3008, number, number + 1) for number in range(20)]
    overlaps = [Overlap(f"b{number}", f"b{number + 1}", 20) for number in range(19)]
    result = plan(buffers, overlaps)
    check(buffers, overlaps, result)
    # Each of 19 targets lies 20 bytes, rounded up to the alignment, below its source.
    assert result.size == 3008 + 19 * 32


@pytest.mark.parametrize("distance", [0, 100, 512])
@pytest.mark.parametrize("scratch", [7, 1200])
def test_a_residual_network_takes_two_activations_and_a_distance(distance: int, scratch: int) -> None:
    buffers, overlaps = residual_chain(27, 16384, distance, scratch)
    result = plan(buffers, overlaps)
    check(buffers, overlaps, result)
    ideal = 2 * 16384 + distance + scratch
    assert ideal <= result.size <= 1.05 * ideal
    assert result.lower_bound == 3 * 16384 + scratch


def test_growing_and_shrinking_layers_pack_without_overlap() -> None:
    sizes = [3072, 16384, 16384, 8192, 8192, 4096, 4096, 64, 10]
    buffers = [Buffer(f"b{number}", size, number, number + 1) for number, size in enumerate(sizes)]
    result = plan(buffers)
    check(buffers, [], result)
    assert result.size == result.lower_bound == 2 * 16384


def test_one_target_over_two_dying_sources_keeps_both_distances() -> None:
    buffers = [Buffer("a", 64, 0, 1), Buffer("b", 64, 0, 1), Buffer("c", 128, 1, 2)]
    overlaps = [Overlap("a", "c", 16), Overlap("b", "c", 16)]
    result = plan(buffers, overlaps)
    check(buffers, overlaps, result)
    assert result.size == 16 + 128


def test_a_target_that_is_read_far_behind_may_start_above_its_source() -> None:
    buffers = [Buffer("wide", 256, 0, 1), Buffer("narrow", 64, 1, 2), Buffer("other", 64, 1, 1)]
    overlaps = [Overlap("wide", "narrow", -128)]
    result = plan(buffers, overlaps)
    check(buffers, overlaps, result)
    assert result.size == 256 + 64


def test_two_rows_of_one_pair_must_both_hold() -> None:
    buffers = [Buffer("a", 64, 0, 1), Buffer("b", 64, 1, 2)]
    overlaps = [Overlap("a", "b", 32), Overlap("a", "b", 0)]
    assert plan(buffers, overlaps).size == 96
    with pytest.raises(GraphError, match="share bytes"):
        check(buffers, overlaps, Plan({"a": 16, "b": 0}, 80, 128), 16)


def test_no_buffers_take_no_room() -> None:
    assert plan([]) == Plan({}, 0, 0)
    check([], [], Plan({}, 0, 0), 16)


def test_without_effort_the_greedy_plan_is_still_valid() -> None:
    buffers, overlaps = residual_chain(3, 1000, 48, 100)
    check(buffers, overlaps, plan(buffers, overlaps, effort=0))


A, B = Buffer("a", 32, 0, 1), Buffer("b", 32, 1, 2)


@pytest.mark.parametrize(
    ("buffers", "overlaps", "alignment", "message"),
    [
        ([A, Buffer("a", 8, 5, 6)], [], 16, "buffer 'a': Two buffers have this name"),
        ([Buffer("a", 0, 0, 1)], [], 16, "buffer 'a': Its size is 0 bytes"),
        ([Buffer("a", -4, 0, 1)], [], 16, "buffer 'a': Its size is -4 bytes"),
        ([Buffer("a", 4, 3, 2)], [], 16, "buffer 'a': Its last step, 2, comes before its first, 3"),
        ([A, B], [Overlap("a", "c", 0)], 16, "overlap of 'a' by 'c': There is no buffer 'c'"),
        ([A, B], [Overlap("c", "b", 0)], 16, "overlap of 'c' by 'b': There is no buffer 'c'"),
        (
            [A, B],
            [Overlap("b", "a", 0)],
            16,
            "last read in step 2, but the target is first written in step 0",
        ),
        ([Buffer("a", 4, 1, 1)], [Overlap("a", "a", 0)], 16, "cannot overlap itself"),
        ([A, B], [], 0, "alignment is 0 bytes"),
    ],
)
def test_bad_input_is_refused(
    buffers: list[Buffer], overlaps: list[Overlap], alignment: int, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        plan(buffers, overlaps, alignment=alignment)
    with pytest.raises(GraphError, match=message):
        check(buffers, overlaps, Plan({"a": 0, "b": 32}, 64, 64), alignment)


@pytest.mark.parametrize(
    ("offsets", "size", "message"),
    [
        ({"a": 0, "b": 16}, 48, "Buffers 'a' at 0..32 and 'b' at 16..48 share bytes in step 1"),
        ({"a": 0}, 32, "buffer 'b': The plan does not place it"),
        ({"a": 0, "b": 40}, 80, "buffer 'b': Its offset 40 is not a multiple of 16"),
        ({"a": 0, "b": 32}, 48, "buffer 'b': It lies at 32..64, outside the arena of 48 bytes"),
        ({"a": -16, "b": 32}, 64, "buffer 'a': It lies at -16..16, outside the arena"),
        ({"a": 0, "b": 32, "c": 0}, 64, "buffer 'c': The plan places a buffer that does not exist"),
    ],
)
def test_check_finds_a_bad_plan(offsets: dict[str, int], size: int, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        check([A, B], [], Plan(offsets, size, 64), 16)


def test_check_takes_an_overlap_only_in_its_direction() -> None:
    check([A, B], [Overlap("a", "b", 16)], Plan({"a": 16, "b": 0}, 48, 64), 16)
    with pytest.raises(GraphError, match="share bytes in step 1"):
        check([A, B], [Overlap("a", "b", 16)], Plan({"a": 0, "b": 16}, 48, 64), 16)
