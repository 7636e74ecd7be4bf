"""Cost models that come with the package, and how to find one.

They were fitted to counts on the emulated Raspberry Pi, in the way of `tools/calibrate_costs.py`.
"""

from __future__ import annotations

from pathlib import Path

from csr_deploy.errors import OptionError
from csr_deploy.unroll.cost import CostModel, read_cost_model

DEFAULT_COSTS = "pi5"
_FOLDER = Path(__file__).parent


def find_costs(runtime: str, weight_bits: int, name: str) -> CostModel | None:
    """The cost model of a runtime and number format on a processor.

    Args:
        runtime: Name of the family, "litert" or "ort"; empty for targets without costs.
        weight_bits: 8 for integers; all else computes in float32.
        name: Processor ("pi4", "pi5", "x86"), or a file of one's own calibration.

    Returns:
        None for a target without costs.

    Raises:
        OptionError: If there is no such model, with those there are.
    """
    if name.endswith(".json"):
        model = read_cost_model(Path(name))
        return model if runtime else None
    known = sorted({p.stem.rpartition("-")[2] for p in _FOLDER.glob("*.json")})
    if name not in known:
        raise OptionError(
            f"no costs of a processor '{name}' are known",
            where="--optimize-for",
            fix=f"Known: {', '.join(known)}; or give a .json file that tools/calibrate_costs.py wrote.",
        )
    path = _FOLDER / f"{runtime}-{'int8' if weight_bits == 8 else 'float32'}-{name}.json"
    return read_cost_model(path) if runtime and path.exists() else None
