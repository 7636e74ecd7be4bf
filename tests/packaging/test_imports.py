"""What the device side and the command line may not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_ON_A_DEVICE = ("torch", "onnxscript", "litert_torch")
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "csr_deploy" / "cli").glob("*.py")
    if "def main() -> None:" in path.read_text(encoding="utf-8")
)
HEAVY = {
    "ai_edge_litert",
    "cv2",
    "jinja2",
    "jsonschema",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "optuna",
    "PIL",
    "plotly",
    "safetensors",
    "starlette",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "tflite_micro",
    "torch",
}


def loaded_modules(code: str, *arguments: str) -> set[str]:
    """Runs code in a fresh interpreter and gives the modules that it ended with.

    In a subprocess, because this one has long imported torch.
    """
    script = (
        "import json, sys\n"
        f"try:\n    {code}\n"
        "finally:\n"
        "    print('\\n' + json.dumps([n for n, m in sys.modules.items() if m is not None]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "csr_deploy.artifact",
        "csr_deploy.bench",
        "csr_deploy.bench.devices",
        "csr_deploy.bench.devices.agent",
        "csr_deploy.bench.runner",
        "csr_deploy.data",
        "csr_deploy.demo.pipeline",
        "csr_deploy.demo.server",
        "csr_deploy.runtimes",
        "csr_deploy.runtimes.native.cache",
        "csr_deploy.runtimes.native.runtime",
        "csr_deploy.runtimes.trt.engines",
    ],
)
def test_the_device_side_needs_no_torch_and_no_exporter(module: str) -> None:
    block = f"sys.modules.update(dict.fromkeys({NOT_ON_A_DEVICE}))"
    loaded = loaded_modules(f"{block}; import {module}")
    assert module in loaded
    assert not {name for name in loaded if name.startswith("csr_deploy.exporters")}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    loaded = loaded_modules(f"from csr_deploy.cli.{command} import main; main()", "--help")
    assert f"csr_deploy.cli.{command}" in loaded
    assert not HEAVY & loaded
