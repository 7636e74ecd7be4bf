"""What a build made: layers, precision, sizes, and whether shared weights stayed shared."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from csr_deploy.errors import ArtifactError
from csr_deploy.runtimes.trt.program import Layer

# As the engine inspector writes types: "Row major linear FP32", "Half", "… row major Int8 format".
_TYPES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "fp8": "float8",
    "bool": "bool",
    "uint8": "uint8",
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_DATATYPE = "Format/Datatype"
INSPECTOR = "engine inspector"
PROGRAM = "program text in the plan"


@dataclass(frozen=True)
class BuildReport:
    """What is known of an engine. None means that the library does not tell; `notes` say why.

    Attributes:
        library: Flavour and version.
        compute_capabilities: What it was built for.
        device: The GPU that it was built on, in words; None for a build without one.
        seconds: Of parsing and building.
        plan_bytes: Size of the engine file.
        weight_bytes: Constants of the ONNX model, each counted once.
        constant_bytes: Constants in the plan, each counted once.
        device_memory_bytes: What an execution context takes on the GPU, without weights.
        layers: After fusion.
        layers_from: Where the layers were read.
        weighted_calls: Convolutions and matrix products.
        distinct_weights: Weights that these use; fewer than calls where shared weights stayed shared.
        weights_searched: Initializers of the model that were searched in the plan byte for byte.
        weights_once: Those found once.
        weights_several: Those found more than once: they were duplicated.
        sources: Generated kernels whose source code is in the plan, each counted once.
        source_bytes: Size of that code.
        notes: Why something is None.
        warnings: Of the library.
    """

    library: str
    compute_capabilities: tuple[str, ...]
    device: str | None
    seconds: float
    plan_bytes: int
    weight_bytes: int
    weights_searched: int
    weights_once: int
    weights_several: int
    constant_bytes: int | None = None
    device_memory_bytes: int | None = None
    layers: tuple[Layer, ...] | None = None
    layers_from: str | None = None
    weighted_calls: int | None = None
    distinct_weights: int | None = None
    sources: int | None = None
    source_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    @property
    def bytes_beyond_weights(self) -> int:
        """What the plan holds beyond the weights of its model: code, tables, names."""
        return self.plan_bytes - self.weight_bytes

    @property
    def precisions(self) -> Mapping[str, int] | None:
        """Layers by data type; "unknown" where the library does not tell it of a layer."""
        if self.layers is None:
            return None
        return dict(sorted(Counter(layer.precision or "unknown" for layer in self.layers).items()))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the manifest and for --json."""
        values = asdict(self)
        for key in ("compute_capabilities", "notes", "warnings"):
            values[key] = list(values[key])
        if self.layers is not None:
            values["layers"] = [asdict(layer) for layer in self.layers]
        values["layer_count"] = None if self.layers is None else len(self.layers)
        values["precisions"] = self.precisions
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BuildReport:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: If a value is missing or of the wrong kind.
        """
        known = {f.name for f in fields(cls)}
        try:
            arguments = {key: value for key, value in values.items() if key in known}
            for key in ("compute_capabilities", "notes", "warnings"):
                arguments[key] = tuple(values[key])
            if values["layers"] is not None:
                arguments["layers"] = tuple(Layer(**layer) for layer in values["layers"])
            return cls(**arguments)
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"a build report is damaged: {error!r}", fix="Build the engine again."
            ) from error


def inspected_layers(information: str) -> tuple[Layer, ...] | None:
    """The layers in what `EngineInspector.get_engine_information` gives as JSON; None if it lists none.

    An engine built without detailed verbosity lists names only: kind and precision are then unknown.
    """
    try:
        listed = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(_inspected(item) for item in listed) or None


def _inspected(item: Any) -> Layer:
    if not isinstance(item, Mapping):
        return Layer(str(item), "unknown", None)
    weights = item.get("Weights")
    texts = [str(weights.get("Type", ""))] if isinstance(weights, Mapping) else []
    texts += [str(tensor.get(_DATATYPE, "")) for key in ("Outputs", "Inputs") for tensor in item.get(key, ())]
    types = (_TYPE.search(text) for text in texts)
    precision = next((_TYPES[found.group(1).lower()] for found in types if found), None)
    return Layer(str(item.get("Name", "")), str(item.get("LayerType", "unknown")), precision)


def report_text(name: str, report: BuildReport) -> str:
    """A few lines for the terminal.

    Args:
        name: Of the engine file.
        report: What is known of it.
    """
    r = report
    where = r.device or f"compute capability {', '.join(r.compute_capabilities)}"
    lines = [
        name,
        f"  built in {r.seconds:.1f} s by {r.library} for {where}",
        f"  {r.plan_bytes:,} bytes, {r.bytes_beyond_weights:,} beyond the {r.weight_bytes:,} of weights",
    ]
    if r.sources:
        lines.append(f"  {r.source_bytes:,} bytes are source code of {r.sources} generated kernels")
    if r.layers is not None and r.precisions is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in r.precisions.items())
        lines.append(f"  {len(r.layers)} layers after fusion: {kinds}")
    lines.append(f"  {_sharing(r)}")
    if r.device_memory_bytes is not None:
        lines.append(f"  {r.device_memory_bytes:,} bytes of GPU memory beside the weights")
    lines += [f"  not known: {note}" for note in r.notes]
    return "\n".join(lines)


def _sharing(report: BuildReport) -> str:
    if report.weighted_calls is not None and report.distinct_weights is not None:
        return f"{report.distinct_weights} weights serve {report.weighted_calls} layers"
    found = report.weights_once + report.weights_several
    if not found:
        return "the library packs weights: whether they are shared cannot be seen in the file"
    packed = report.weights_searched - found
    return (
        f"weights in the file: {report.weights_once} once, {report.weights_several} several times, "
        f"{packed} packed otherwise"
    )
