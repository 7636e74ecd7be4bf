"""bakenn, an ahead-of-time compiler for int8 networks that carries CMSIS-NN 4.0.0 sources.

It is no dependency of this project. For the comparison it goes into an environment of its own, as it needs
the packages `flatbuffers` and `tflite`:

    python -m venv bakenn-venv && bakenn-venv/bin/pip install "bakenn[tflite]==1.0.0"
    python tools/bench_mcu.py --bakenn-python bakenn-venv/bin/python

The package and the CMSIS-NN sources that it copies are Apache-2.0; the C that it generates carries no licence
note. None of it is in this repository: everything is made in a temporary folder, with the options for a
Cortex-M4 with CMSIS-NN. It has no profile for other Cortex-M; the sources themselves choose the DSP or Helium
paths by what the compiler's -mcpu says.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_deploy.errors import ExportError, MissingDependencyError

_PROGRAM = Path(__file__).with_name("bakenn_compile.py")
_ALIGNMENT = 16
_COMPILE_SECONDS = 300
VERSION = "1.0.0"
"""Of bakenn, that this was written against."""
STANDARD = "gnu11"
"""Its generated C is C11, and CMSIS-NN uses GNU extensions."""


@dataclass(frozen=True)
class BakennModel:
    """C of one model, behind `model.h`.

    Attributes:
        folder: With the shim, `model.h` and `model.c`.
        sources: bakenn's and CMSIS-NN's C files.
        include_dirs: Their headers.
        defines: Macros they want.
        version: Of bakenn.
        note: What its own .tflite importer refused, where the model went in through its graph types instead.
        kernels: Name of a kernel → how many steps use it.
        arena_bytes: bakenn's own arena, its input and output not included.
    """

    folder: Path
    sources: tuple[Path, ...]
    include_dirs: tuple[Path, ...]
    defines: tuple[str, ...]
    version: str
    note: str
    kernels: Mapping[str, int]
    arena_bytes: int


def compile_model(model: Path, folder: Path, python: str) -> BakennModel:
    """Compiles a .tflite file and puts the shim around it.

    Args:
        model: The file.
        folder: Where everything goes; made, and empty before.
        python: Interpreter that bakenn is installed in.

    Raises:
        MissingDependencyError: If bakenn is not installed there.
        ExportError: If bakenn refuses the model.
    """
    if _run([python, "-c", "import bakenn, flatbuffers, tflite"]).returncode:
        raise _missing(python)
    code = folder / "bakenn"
    ran = _run([python, str(_PROGRAM), str(model), str(code)])
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        raise ExportError(f"bakenn refuses it: {lines[-1] if lines else ran.returncode}", where=model.name)
    made = json.loads(ran.stdout)
    shim = folder / "shim"
    shim.mkdir()
    (shim / "model.h").write_text(_header(model.stem, made))
    (shim / "model.c").write_text(_source(made))
    return BakennModel(
        shim,
        tuple(Path(p) for p in made["sources"]),
        tuple(Path(p) for p in made["includes"]),
        tuple(made["defines"]),
        made["version"],
        made["refusal"],
        made["kernels"],
        made["arena_bytes"],
    )


def _missing(python: str) -> MissingDependencyError:
    return MissingDependencyError(
        "bakenn[tflite]",
        "",
        "Comparing with bakenn",
        fix=f"Run: {python} -m pip install 'bakenn[tflite]=={VERSION}'",
    )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_SECONDS)
    except FileNotFoundError as error:
        raise _missing(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"bakenn took more than {_COMPILE_SECONDS} s", where=command[-1]) from error


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _layout(made: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    """Bytes of the input and the output; offsets of the input and the output in the arena; bytes of all.

    bakenn wants the input and the output outside its arena, and untouched by it; ours has them inside. What
    counts is what must be in RAM, so here they lie behind its arena. Scratch is last in its arena: where the
    Helium paths need more than was planned, they get it.
    """
    inputs, outputs = (_bytes(made[side]) for side in ("input", "output"))
    more = max(0, made["mve_scratch_bytes"] - made["scratch_bytes"])
    at = _aligned(made["arena_bytes"] + more)
    return inputs, outputs, at, at + _aligned(inputs), at + _aligned(inputs) + _aligned(outputs)


def _bytes(tensor: Mapping[str, Any]) -> int:
    size = 1
    for length in tensor["shape"]:
        size *= int(length)
    return size


def _header(name: str, made: Mapping[str, Any]) -> str:
    inputs, outputs, _, _, total = _layout(made)
    return f"""#ifndef MODEL_H
#define MODEL_H
#include <stddef.h>
#include <stdint.h>

#define MODEL_NAME "{name} (bakenn)"
#define MODEL_ARENA_BYTES {total}u
#define MODEL_ARENA_ALIGNMENT {_ALIGNMENT}u
#define MODEL_INPUT_BYTES {inputs}u
#define MODEL_OUTPUT_BYTES {outputs}u
#define MODEL_LABELS 0

enum {{ MODEL_OK = 0, MODEL_ERROR_NULL = 1, MODEL_ERROR_ALIGNMENT = 2, MODEL_ERROR_ARENA = 3 }};
typedef struct {{
    unsigned char *arena;
    size_t arena_bytes;
}} model_t;

int model_init(model_t *model, void *arena, size_t arena_bytes);
int8_t *model_input(const model_t *model);
const int8_t *model_output(const model_t *model);
int model_run(model_t *model);
#endif
"""


def _source(made: Mapping[str, Any]) -> str:
    _, _, input_at, output_at, _ = _layout(made)
    return f"""#include "model.h"
#include "bknn_model.h"

int model_init(model_t *model, void *arena, size_t arena_bytes)
{{
    if (model == NULL || arena == NULL) {{
        return MODEL_ERROR_NULL;
    }}
    model->arena = arena;
    model->arena_bytes = arena_bytes;
    return arena_bytes < MODEL_ARENA_BYTES ? MODEL_ERROR_ARENA : MODEL_OK;
}}

int8_t *model_input(const model_t *model)
{{
    return (int8_t *)model->arena + {input_at};
}}

const int8_t *model_output(const model_t *model)
{{
    return (const int8_t *)model->arena + {output_at};
}}

int model_run(model_t *model)
{{
    bknn_model_infer(model->arena, (int8_t *)model->arena + {input_at}, (int8_t *)model->arena + {output_at});
    return MODEL_OK;
}}
"""
