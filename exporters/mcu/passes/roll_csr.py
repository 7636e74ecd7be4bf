"""Finds unrolled channel-split recurrences and makes each one operation.

A concatenation along channels of h_1 = conv(x_1, V), h_t = add(conv(x_t, V), conv(h_{t-1}, U)), with one V
and one U, and x_1..x_T evenly spaced slices of one tensor, becomes one CSR_CELL (Wu et al. 2023, Eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping

from csr_deploy.exporters.mcu.ir import Model, Op, rebuild

Step = tuple[Op, Op | None, Op | None]
"""(convolution of x_t, convolution of h_{t-1}, their sum); the last two are None at t = 1."""


def roll_csr(model: Model) -> Model:
    """See the module's description."""
    makers = model.producers()
    users = model.consumers()
    ops: list[Op] = []
    for op in model.ops:
        steps = _steps(model, makers, users, op) if op.kind == "CONCATENATION" else None
        if steps is None:
            ops.append(op)
            continue
        first, recurrent = steps[0][0], steps[1][1]
        assert recurrent is not None
        biases = [part.inputs[2] for step in steps for part in step[:2] if part and len(part.inputs) > 2]
        inputs = [v.inputs[0] for v, _, _ in steps] + [first.inputs[1], recurrent.inputs[1]]
        inputs += [b for b in dict.fromkeys(biases) if b]
        ops.append(Op("CSR_CELL", tuple(inputs), op.outputs, {"steps": tuple(steps)}, op.index))
    rolled = rebuild(model, ops)
    # The cell's kernel takes tensors inside a step from its attributes.
    inner = {
        n
        for op in rolled.ops
        if op.kind == "CSR_CELL"
        for s in op.attrs["steps"]
        for p in s
        if p
        for n in p.outputs
    }
    kept = {**{n: model.tensors[n] for n in inner}, **rolled.tensors}
    return Model(kept, rolled.ops, rolled.input, rolled.output)


def _steps(
    model: Model, makers: Mapping[str, Op], users: Mapping[str, list[Op]], op: Op
) -> list[Step] | None:
    if op.attrs["axis"] != 3 or len(op.inputs) < 2 or model.tensors[op.output].shape[0] != 1:
        return None
    steps: list[Step] = []
    for name in op.inputs:
        step = _step(model, makers, name, steps[-1] if steps else None)
        if step is None:
            return None
        steps.append(step)
    # What the kernel keeps to itself must not be read elsewhere.
    own = {part.output for step in steps for part in step if part} | {op.output}
    inside = {id(part) for step in steps for part in step if part} | {id(op)}
    for name in own - {op.output}:
        if name == model.output or any(id(user) not in inside for user in users.get(name, [])):
            return None
    return steps if _evenly_sliced(makers, [v.inputs[0] for v, _, _ in steps]) else None


def _step(model: Model, makers: Mapping[str, Op], name: str, before: Step | None) -> Step | None:
    maker = makers.get(name)
    if before is None:
        return (maker, None, None) if maker is not None and maker.kind == "CONV_2D" else None
    if maker is None or maker.kind != "ADD":
        return None
    state = (before[2] or before[0]).output
    v, u = (makers.get(i) for i in maker.inputs)
    if v is not None and v.inputs[0] == state:
        v, u = u, v
    if v is None or u is None or v.kind != "CONV_2D" or u.kind != "CONV_2D" or u.inputs[0] != state:
        return None
    first_v, first_u = before[0], before[1]
    same = ("kernel", "stride", "dilation", "pads", "groups")
    if v.inputs[1] != first_v.inputs[1] or any(v.attrs[k] != first_v.attrs[k] for k in same):
        return None
    if first_u is not None and u.inputs[1] != first_u.inputs[1]:
        return None
    keeps_size = model.tensors[u.output].shape == model.tensors[state].shape == model.tensors[name].shape
    plain = u.attrs["stride"] == (1, 1) and v.attrs["groups"] == u.attrs["groups"] == 1
    return (v, u, maker) if keeps_size and plain else None


def _evenly_sliced(makers: Mapping[str, Op], names: list[str]) -> bool:
    begins: list[int] = []
    sources: set[tuple[str, ...]] = set()
    for name in names:
        cut = makers.get(name)
        if (
            cut is None
            or cut.kind != "SLICE"
            or set(cut.attrs["steps"]) != {1}
            or any(cut.attrs["begin"][:3])
        ):
            return False
        sources.add(cut.inputs)
        begins.append(cut.attrs["begin"][3])
    if len(sources) != 1:
        return False
    gaps = {b - a for a, b in zip(begins, begins[1:], strict=False)}
    return len(gaps) == 1 and min(gaps) > 0
