"""File trees and programs that stand in for other machines."""

from __future__ import annotations

from pathlib import Path

from csr_deploy.bench.telemetry.machine import Machine

DATA = Path(__file__).parent / "data" / "telemetry"


def plant(name: str, root: Path) -> Path:
    """Makes the tree `tests/data/telemetry/trees/<name>.txt` under a folder."""
    for line in (DATA / "trees" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, text = line.partition(" = ")
            put(root, path, text)
    return root


def put(root: Path, path: str, text: str) -> None:
    """Writes a file of a tree; "(unreadable)" makes something that cannot be read, even by root."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if text == "(unreadable)":
        file.mkdir()
    else:
        file.write_text(text.replace("\\n", "\n") + "\n", encoding="utf-8")


def programs(folder: Path, **scripts: str) -> str:
    """Makes executable shell scripts; gives a search path with only them on it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)
    return str(folder)


def machine(name: str, root: Path, **scripts: str) -> Machine:
    """A planted tree with programs of its own and no others."""
    return Machine(plant(name, root / "tree"), programs(root / "bin", **scripts))
