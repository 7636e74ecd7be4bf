"""Makes the installed tensorrt-stubs readable for mypy; `make venv` runs it.

The stubs of 10.13 were written by a generator that left five signatures which are no Python: parameters
called `in`, and one without a default behind others that have one.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

_REPAIRS = (
    (re.compile(r"\bin: list\["), "inputs: list["),
    (re.compile(r"\bchannel_axis: int\) -> IScaleLayer"), "channel_axis: int = ...) -> IScaleLayer"),
)


def repair(text: str) -> str:
    """The stubs as valid Python; unchanged where they are valid already."""
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text


def main() -> int:
    """Repairs the installed stubs in place."""
    for file in importlib.metadata.files("tensorrt-stubs") or ():
        if file.name == "tensorrt.pyi":
            path = Path(str(file.locate()))
            text = path.read_text(encoding="utf-8")
            compile(repair(text), file.name, "exec")
            path.write_text(repair(text), encoding="utf-8")
            return 0
    print("tensorrt-stubs is not installed, or has no tensorrt.pyi", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
