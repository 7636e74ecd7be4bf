"""Offsets of a network's buffers in one arena.

Buffers that are live in one step never share a byte, unless an `Overlap` says that a kernel may write its
output over an input that it has finished with. That turns dynamic storage allocation into a choice, for each
pair of buffers, of which one lies below and by how much at least: `size` of the lower one as a rule,
`distance` where a target lies below its source. The smallest arena is NP-hard to find, so this module

1. places the buffers first-fit in several orders, each followed by squeezing (all up, then all down again);
2. asks, for arena sizes between the bound and the best found, whether walking along the steps with a set of
   partial placements (a beam) gets through: a source must be lifted before its target can go below it, which
   first-fit cannot see, and a walk against a fixed ceiling can;
3. improves the order by moves of the buffers that hold up the top,

and stops as soon as the bound is reached. The walk works because a network's lifetimes are chain-like: few
buffers are live at once, so most partial placements coincide in everything that later steps can see.

Nothing here depends on a clock, on hash order or on the order of the arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from csr_deploy.errors import GraphError

# In inspections of a neighbour; some 0.3 s of a current x86 core at most.
DEFAULT_EFFORT = 500_000
_BEAM_WIDTHS = (12, 96)
# Complete placements after which a small network has been searched well enough, whatever effort is left.
_ROUNDS = 2000
_PATIENCE = 40
_SEED = 20230103


@dataclass(frozen=True)
class Buffer:
    """A run of bytes that must be in the arena for some steps.

    Attributes:
        name: Unique name.
        size: Bytes, at least 1.
        first: First step in which it is live.
        last: Last step in which it is live, inclusive.
    """

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Overlap:
    """Permission for a step's output to lie over an input that dies in that step.

    The two may share bytes if `offset(target) + distance <= offset(source)`: the kernel writes the target at
    least `distance` bytes behind what it still reads.

    Attributes:
        source: Name of the buffer that is read; its last step is the target's first.
        target: Name of the buffer that is written.
        distance: Bytes; 0 allows in-place, less allows the target to start above its source.
    """

    source: str
    target: str
    distance: int


@dataclass(frozen=True)
class Plan:
    """Where each buffer lies.

    Attributes:
        offsets: Bytes from the start of the arena, by buffer name.
        size: Bytes of the arena: the highest end of any buffer.
        lower_bound: Bytes of the fullest step if nothing may overlap; `size` can be less where overlaps save.
    """

    offsets: Mapping[str, int]
    size: int
    lower_bound: int


def plan(
    buffers: Sequence[Buffer],
    overlaps: Sequence[Overlap] = (),
    *,
    alignment: int = 16,
    effort: int = DEFAULT_EFFORT,
) -> Plan:
    """Lays the buffers out in an arena that is as small as can be found.

    Args:
        buffers: Buffers in any order.
        overlaps: Pairs that may share bytes. Two rows for one pair must both hold.
        alignment: Bytes; every offset is a multiple of it.
        effort: Bound on the search after the greedy orders, in inspections of one neighbour of one buffer;
            0 keeps the best greedy order.

    Returns:
        The plan. The same buffers and overlaps give the same plan, whatever their order.

    Raises:
        GraphError: If a buffer or an overlap is not well formed.
    """
    distances = _validate(buffers, overlaps, alignment)
    if not buffers:
        return Plan({}, 0, 0)
    problem = _Problem(buffers, distances, alignment)
    best = _search(problem, effort)
    by_name = {buffer.name: offset * alignment for buffer, offset in zip(problem.buffers, best, strict=True)}
    return Plan(
        offsets={buffer.name: by_name[buffer.name] for buffer in buffers},
        size=problem.top(best),
        lower_bound=max(sum(buffer.size for buffer in live) for _, live in _live_sets(buffers)),
    )


def smallest_possible(
    buffers: Sequence[Buffer], overlaps: Sequence[Overlap] = (), *, alignment: int = 16
) -> int:
    """A size that no plan can go below, overlaps and alignment included.

    A plan of this size is optimal. Unlike `Plan.lower_bound` it takes off what overlaps can save at most.

    Args:
        buffers: Buffers in any order.
        overlaps: Pairs that may share bytes.
        alignment: Bytes; every offset is a multiple of it.

    Returns:
        Bytes.

    Raises:
        GraphError: If a buffer or an overlap is not well formed.
    """
    return _bound(buffers, _validate(buffers, overlaps, alignment), alignment)


def check(buffers: Sequence[Buffer], overlaps: Sequence[Overlap], plan: Plan, alignment: int = 16) -> None:
    """Verifies a plan by comparing every two buffers in every step.

    Args:
        buffers: The buffers that were planned.
        overlaps: The pairs that may share bytes.
        plan: The plan.
        alignment: Bytes; every offset must be a multiple of it.

    Raises:
        GraphError: If two buffers share a byte that they must not share (names both and the step), or a
            buffer is missing, misaligned or outside the arena, or an argument is not well formed.
    """
    distances = _validate(buffers, overlaps, alignment)
    for name in sorted(plan.offsets.keys() - {buffer.name for buffer in buffers}):
        raise GraphError("The plan places a buffer that does not exist.", where=f"buffer '{name}'")
    for buffer in buffers:
        where = f"buffer '{buffer.name}'"
        if buffer.name not in plan.offsets:
            raise GraphError("The plan does not place it.", where=where)
        offset = plan.offsets[buffer.name]
        if offset % alignment:
            raise GraphError(f"Its offset {offset} is not a multiple of {alignment}.", where=where)
        if offset < 0 or offset + buffer.size > plan.size:
            raise GraphError(
                f"It lies at {offset}..{offset + buffer.size}, outside the arena of {plan.size} bytes.",
                where=where,
            )

    def allowed(source: Buffer, target: Buffer) -> bool:
        distance = distances.get((source.name, target.name))
        return distance is not None and plan.offsets[target.name] + distance <= plan.offsets[source.name]

    for step, live in _live_sets(buffers):
        for index, one in enumerate(live):
            one_start = plan.offsets[one.name]
            for two in live[:index]:
                two_start = plan.offsets[two.name]
                disjoint = one_start + one.size <= two_start or two_start + two.size <= one_start
                if not (disjoint or allowed(one, two) or allowed(two, one)):
                    raise GraphError(
                        f"Buffers '{two.name}' at {two_start}..{two_start + two.size} and '{one.name}' at "
                        f"{one_start}..{one_start + one.size} share bytes in step {step}; both are live.",
                        where=f"step {step}",
                    )


def _validate(
    buffers: Sequence[Buffer], overlaps: Sequence[Overlap], alignment: int
) -> dict[tuple[str, str], int]:
    """Checks the arguments; returns the distance of each (source, target), the strictest of its rows."""
    if alignment < 1:
        raise GraphError(f"The alignment is {alignment} bytes.", fix="Give 1 or more.")
    named: dict[str, Buffer] = {}
    for buffer in buffers:
        where = f"buffer '{buffer.name}'"
        if buffer.name in named:
            raise GraphError("Two buffers have this name.", where=where, fix="Give each buffer its own name.")
        if buffer.size < 1:
            raise GraphError(f"Its size is {buffer.size} bytes.", where=where, fix="Leave empty buffers out.")
        if buffer.last < buffer.first:
            raise GraphError(
                f"Its last step, {buffer.last}, comes before its first, {buffer.first}.",
                where=where,
                fix="A buffer that nobody reads is live in the step that writes it.",
            )
        named[buffer.name] = buffer
    distances: dict[tuple[str, str], int] = {}
    for overlap in overlaps:
        where = f"overlap of '{overlap.source}' by '{overlap.target}'"
        for name in (overlap.source, overlap.target):
            if name not in named:
                raise GraphError(f"There is no buffer '{name}'.", where=where)
        if overlap.source == overlap.target:
            raise GraphError("A buffer cannot overlap itself.", where=where)
        source, target = named[overlap.source], named[overlap.target]
        if source.last != target.first:
            raise GraphError(
                f"The source is last read in step {source.last}, but the target is first written in step "
                f"{target.first}.",
                where=where,
                fix="Only the step that reads a buffer for the last time may write over it.",
            )
        pair = (overlap.source, overlap.target)
        distances[pair] = max(overlap.distance, distances.get(pair, overlap.distance))
    return distances


def _live_sets(buffers: Sequence[Buffer]) -> Iterator[tuple[int, list[Buffer]]]:
    """Yields (step, live buffers) for each step in which a buffer begins.

    Every two buffers that are ever live together are live together in one of these, and so is every peak.
    """
    live: list[Buffer] = []
    waiting = sorted(buffers, key=lambda buffer: (buffer.first, buffer.last, buffer.name))
    position = 0
    while position < len(waiting):
        step = waiting[position].first
        live = [buffer for buffer in live if buffer.last >= step]
        while position < len(waiting) and waiting[position].first == step:
            live.append(waiting[position])
            position += 1
        yield step, live


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _bound(buffers: Sequence[Buffer], distances: Mapping[tuple[str, str], int], alignment: int) -> int:
    """A size in bytes that no plan can go below.

    In each step the live buffers cover at least the sum of their sizes less what each pair can share. A
    target that overlaps its source reaches from its own offset to the further end, so the two cover at
    least max(target, source + distance). A target (or a source) shares no more than itself with all its
    partners together; that cap is left out for a buffer that is both in one step, where counting by one
    side of the pairs would miss bytes.
    """
    rows: dict[int, list[tuple[str, str, int]]] = {}
    last = {buffer.name: buffer.last for buffer in buffers}
    for (source, target), distance in distances.items():
        behind = max(0, _ceil_div(distance, alignment) * alignment)
        rows.setdefault(last[source], []).append((source, target, behind))

    def covered(sizes: Mapping[str, int], pairs: Sequence[tuple[str, str, int]]) -> int:
        by_target: dict[str, int] = {}
        by_source: dict[str, int] = {}
        for source, target, behind in pairs:
            joint = max(sizes[target], sizes[source] + behind)
            shared = max(0, sizes[source] + sizes[target] - joint)
            by_target[target] = by_target.get(target, 0) + shared
            by_source[source] = by_source.get(source, 0) + shared
        both = by_target.keys() & by_source.keys()
        saved = min(
            sum(shared if name in both else min(shared, sizes[name]) for name, shared in side.items())
            for side in (by_target, by_source)
        )
        return sum(sizes.values()) - saved

    bound = 0
    for step, live in _live_sets(buffers):
        pairs = rows.get(step, [])
        exact = {buffer.name: buffer.size for buffer in live}
        aligned = {name: _ceil_div(size, alignment) * alignment for name, size in exact.items()}
        # Whichever buffer lies on top needs no padding behind it.
        padding = max(aligned[name] - exact[name] for name in exact)
        bound = max(bound, covered(exact, pairs), covered(aligned, pairs) - padding)
    return bound


class _Problem:
    """The buffers in a canonical order, with the separations that each pair needs.

    Offsets and separations are in units of the alignment; `size` and `top` in bytes.
    """

    def __init__(
        self, buffers: Sequence[Buffer], distances: Mapping[tuple[str, str], int], alignment: int
    ) -> None:
        self.alignment = alignment
        self.buffers = sorted(
            buffers, key=lambda buffer: (buffer.first, buffer.last, buffer.size, buffer.name)
        )
        self.sizes = [buffer.size for buffer in self.buffers]
        self.units = [_ceil_div(size, alignment) for size in self.sizes]
        self.bound = _bound(buffers, distances, alignment)
        index = {buffer.name: number for number, buffer in enumerate(self.buffers)}
        behind = {
            (index[target], index[source]): _ceil_div(distance, alignment)
            for (source, target), distance in distances.items()
        }
        # near[k] has (i, below, above): offset(k) must not lie strictly between offset(i) - below and
        # offset(i) + above.
        self.near: list[list[tuple[int, int, int]]] = [[] for _ in self.buffers]
        live: list[int] = []
        for one, buffer in enumerate(self.buffers):
            live = [other for other in live if self.buffers[other].last >= buffer.first]
            for two in live:
                below = min(self.units[one], behind.get((one, two), self.units[one]))
                above = min(self.units[two], behind.get((two, one), self.units[two]))
                if below + above > 0:
                    self.near[one].append((two, below, above))
                    self.near[two].append((one, above, below))
            live.append(one)
        self.targets: list[list[tuple[int, int]]] = [[] for _ in self.buffers]
        for (target, source), distance in sorted(behind.items()):
            self.targets[source].append((target, max(0, distance)))
        self.evaluation_cost = sum(len(near) + 2 for near in self.near)

    def top(self, offsets: Sequence[int]) -> int:
        """Bytes of the arena that these offsets need."""
        return max(offset * self.alignment + size for offset, size in zip(offsets, self.sizes, strict=True))

    def place_low(self, order: Iterable[int]) -> list[int]:
        """Places each buffer in turn at the lowest offset that the placed ones leave."""
        offsets = [-1] * len(self.sizes)
        for one in order:
            taken = [
                (offsets[two] - below, offsets[two] + above)
                for two, below, above in self.near[one]
                if offsets[two] >= 0
            ]
            taken.sort()
            position = 0
            for low, high in taken:
                if low >= position:
                    break
                if high > position:
                    position = high
            offsets[one] = position
        return offsets

    def place_high(self, order: Iterable[int], limit: int) -> list[int] | None:
        """Places each buffer in turn at the highest offset below `limit` bytes; None if one does not fit."""
        offsets = [-1] * len(self.sizes)
        for one in order:
            taken = [
                (offsets[two] + above, offsets[two] - below)
                for two, below, above in self.near[one]
                if offsets[two] >= 0
            ]
            taken.sort(reverse=True)
            position = (limit - self.sizes[one]) // self.alignment
            for high, low in taken:
                if high <= position:
                    break
                if low < position:
                    position = low
            if position < 0:
                return None
            offsets[one] = position
        return offsets

    def upwards(self, offsets: Sequence[int]) -> list[int]:
        """The buffers by offset; of two at one offset the target comes before its source."""
        return sorted(range(len(offsets)), key=lambda one: (offsets[one], -one))

    def squeeze(self, offsets: list[int]) -> list[int]:
        """Pushes all buffers up against the top and down again for as long as that lowers the top."""
        best, size = offsets, self.top(offsets)
        while size > self.bound:
            lower = self.place_low(self.upwards(best))
            raised = self.place_high(reversed(self.upwards(lower)), min(size, self.top(lower)))
            candidates = [lower] if raised is None else [lower, self.place_low(self.upwards(raised))]
            lowest = min(candidates, key=self.top)
            if self.top(lowest) >= size:
                break
            best, size = lowest, self.top(lowest)
        return best


@dataclass
class _Budget:
    """What is left of the effort, in inspections of a neighbour."""

    left: int


def _greedy_orders(problem: _Problem) -> list[list[int]]:
    """Orders to place in, all good for some kind of network; duplicates removed."""
    buffers, units = problem.buffers, problem.units
    numbers = range(len(buffers))
    span = [buffer.last - buffer.first + 1 for buffer in buffers]
    crowd = [units[one] + sum(units[two] for two, _, _ in problem.near[one]) for one in numbers]
    # A buffer's chain is named by its end, the buffer that nothing overlaps in turn.
    chain = list(numbers)
    for one in reversed(numbers):
        if problem.targets[one]:
            chain[one] = chain[min(problem.targets[one], key=lambda row: (row[1], row[0]))[0]]
    heaviest: dict[int, int] = {}
    for one in numbers:
        heaviest[chain[one]] = max(units[one], heaviest.get(chain[one], 0))

    keys: list[Callable[[int], tuple[int, ...]]] = [
        # Later first among equals: a target must lie low before its source is placed above it.
        lambda one: (-units[one], -one),
        lambda one: (-units[one], one),
        lambda one: (-units[one] * span[one], -one),
        lambda one: (-span[one], -units[one], -one),
        lambda one: (-crowd[one], -units[one], -one),
        lambda one: (-crowd[one], -units[one], one),
        lambda one: (buffers[one].first, -units[one], one),
        lambda one: (-buffers[one].last, -units[one], -one),
        lambda one: (-heaviest[chain[one]], -chain[one], -one),
        lambda one: (-heaviest[chain[one]], chain[one], -one),
    ]
    orders = [sorted(numbers, key=key) for key in keys]
    return [order for position, order in enumerate(orders) if order not in orders[:position]]


def _search(problem: _Problem, effort: int) -> list[int]:
    """The best offsets found, in units."""
    first, *others = _greedy_orders(problem)
    best = problem.squeeze(problem.place_low(first))
    for order in others:
        if problem.top(best) == problem.bound:
            return best
        best = min(best, problem.squeeze(problem.place_low(order)), key=problem.top)
    # The walks get half: where they fail, lifetimes are not chain-like and the moves do better.
    budget = _Budget(min(effort, _ROUNDS * problem.evaluation_cost))
    best = _walk_down(problem, best, budget, keep=budget.left // 2)
    return _improve_order(problem, best, budget)


def _walk_down(problem: _Problem, best: list[int], budget: _Budget, keep: int) -> list[int]:
    """Halves the range between the bound and the best size for as long as walks get through."""
    numbers = range(len(problem.buffers))
    orders = [
        sorted(numbers, key=lambda one: (problem.buffers[one].first, -problem.units[one], one)),
        sorted(numbers, key=lambda one: (-problem.buffers[one].last, -problem.units[one], -one)),
    ]
    walks = [_Walk(problem, order) for order in orders]
    for width in _BEAM_WIDTHS:
        # The bound itself is asked for first: most networks reach it.
        refused, limit = problem.bound - 1, problem.bound
        while refused < limit < problem.top(best) and budget.left > keep:
            for walk in walks:
                offsets = walk.run(limit, width, budget, keep)
                if offsets is not None:
                    best = min(best, problem.squeeze(offsets), key=problem.top)
                    break
            else:
                refused = limit
            if problem.top(best) == problem.bound:
                return best
            limit = (refused + problem.top(best)) // 2
    return best


class _Walk:
    """Places buffers in a fixed order below a fixed ceiling, with many partial placements at once.

    Two partial placements that agree on the offsets of all buffers that still touch an unplaced one (the
    frontier) are one. What each step of the walk looks up is prepared here, as walks are run many times.
    """

    def __init__(self, problem: _Problem, order: Sequence[int]) -> None:
        self.problem = problem
        self.order = order
        rank = {one: position for position, one in enumerate(order)}
        until = [max((rank[two] for two, _, _ in problem.near[one]), default=-1) for one in range(len(order))]
        # For each buffer: (slot in the frontier, below, above) of its neighbours, the slots that stay in the
        # frontier, and whether the buffer joins it.
        self.steps: list[tuple[list[tuple[int, int, int]], list[int], bool]] = []
        self.frontiers: list[list[int]] = []
        frontier: list[int] = []
        for position, one in enumerate(order):
            slot = {two: number for number, two in enumerate(frontier)}
            touching = [(slot[two], below, above) for two, below, above in problem.near[one] if two in slot]
            stay = [number for number, two in enumerate(frontier) if until[two] > position]
            stays = until[one] > position
            self.steps.append((touching, stay, stays))
            frontier = [frontier[number] for number in stay] + ([one] if stays else [])
            self.frontiers.append(frontier)
        # How far each buffer must be lifted for its target, and for the whole chain of targets, to fit below.
        self.lifts: list[set[int]] = [set() for _ in order]
        whole = [0] * len(order)
        for one in reversed(range(len(order))):
            if problem.targets[one]:
                whole[one] = min(distance + whole[two] for two, distance in problem.targets[one])
                self.lifts[one] = {distance for _, distance in problem.targets[one]} | {whole[one]}

    def run(self, limit: int, width: int, budget: _Budget, keep: int) -> list[int] | None:
        """Walks below `limit` bytes with at most `width` partial placements; None if none gets through."""
        problem = self.problem
        states: list[tuple[int, ...]] = [()]
        layers: list[list[tuple[int, int]]] = []
        for position, one in enumerate(self.order):
            touching, stay, stays = self.steps[position]
            ceiling = (limit - problem.sizes[one]) // problem.alignment
            reached: dict[tuple[int, ...], tuple[int, int]] = {}
            for parent, state in enumerate(states):
                kept = tuple([state[number] for number in stay])
                taken = [(state[number] - below, state[number] + above) for number, below, above in touching]
                for offset in self._candidates(one, taken, ceiling):
                    reached.setdefault((*kept, offset) if stays else kept, (parent, offset))
            budget.left -= len(states) * (len(touching) + len(stay) + 4)
            if not reached or budget.left <= keep:
                return None
            states = list(reached)
            if len(states) > width:
                frontier = self.frontiers[position]
                ceiling = limit // problem.alignment
                ranked = sorted((self._fragments(state, frontier, ceiling), state) for state in states)
                states = [state for _, state in ranked[:width]]
            layers.append([reached[state] for state in states])
        offsets = [-1] * len(self.order)
        parent = 0
        for one, layer in zip(reversed(self.order), reversed(layers), strict=True):
            parent, offsets[one] = layer[parent]
        return offsets

    def _candidates(self, one: int, taken: list[tuple[int, int]], ceiling: int) -> list[int]:
        """Both ends of every gap, and the offsets that leave room for targets below within the gap."""
        taken.sort()
        taken.append((ceiling, ceiling))
        offsets: list[int] = []
        position = 0
        for low, high in taken:
            if low >= position:
                end = min(low, ceiling)
                if end >= position:
                    offsets.append(position)
                    if end > position:
                        offsets.append(end)
                        offsets.extend(
                            position + lift for lift in sorted(self.lifts[one]) if 0 < lift < end - position
                        )
            if high > position:
                position = high
            if position > ceiling:
                break
        return offsets

    def _fragments(self, state: tuple[int, ...], frontier: Sequence[int], ceiling: int) -> int:
        """How broken up the free space is: minus the sum of the squares of the gaps."""
        units = self.problem.units
        total = position = 0
        for offset, end in sorted(
            (offset, offset + units[one]) for offset, one in zip(state, frontier, strict=True)
        ):
            if offset > position:
                total += (offset - position) ** 2
            position = max(position, end)
        return -total - max(0, ceiling - position) ** 2


def _improve_order(problem: _Problem, best: list[int], budget: _Budget) -> list[int]:
    """Moves buffers that hold up the top to other places of the order, keeping what is no worse."""
    generator = random.Random(_SEED)

    def pick(count: int) -> int:
        # random() is the one method whose sequence Python promises to keep between versions.
        return int(generator.random() * count)

    best_size = problem.top(best)
    order, offsets, size = problem.upwards(best), best, best_size
    stale = 0
    while best_size > problem.bound and budget.left > 0 and len(order) > 1:
        trial = list(order)
        for _ in range(1 if stale % _PATIENCE else 4):
            pillar = _pillar(problem, offsets, size, pick)
            moved = pillar[pick(len(pillar))]
            near = problem.near[moved]
            position = trial.index(moved)
            if near and pick(2):
                other = trial.index(near[pick(len(near))][0])
                trial[position], trial[other] = trial[other], trial[position]
            else:
                del trial[position]
                trial.insert(pick(position + 1), moved)
        placed = problem.place_low(trial)
        placed_size = problem.top(placed)
        budget.left -= problem.evaluation_cost
        stale += 1
        if placed_size < best_size:
            best = problem.squeeze(placed)
            best_size = problem.top(best)
            order, offsets, size = problem.upwards(best), best, best_size
            stale = 0
        elif placed_size <= size or stale % _PATIENCE == 1:
            # Every so often a large step is taken whatever it costs, to leave a plateau without an exit.
            order, offsets, size = trial, placed, placed_size
        elif stale % (8 * _PATIENCE) == 0:
            order, offsets, size = problem.upwards(best), best, best_size
    return best


def _pillar(problem: _Problem, offsets: Sequence[int], size: int, pick: Callable[[int], int]) -> list[int]:
    """Buffers from one at the top of the arena down to the bottom, each resting on the next."""
    alignment = problem.alignment
    tops = [one for one, offset in enumerate(offsets) if offset * alignment + problem.sizes[one] == size]
    pillar = [tops[pick(len(tops))]]
    while True:
        one = pillar[-1]
        # Negative separations could lead round in a circle.
        rests = [
            two
            for two, _, above in problem.near[one]
            if offsets[two] + above == offsets[one] and two not in pillar
        ]
        if not rests:
            return pillar
        pillar.append(rests[pick(len(rests))])
