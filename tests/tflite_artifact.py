"""A small CSR network with random weights, exported to tflite-int8 by the real exporter."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_deploy.artifact import Artifact
from tests.onnx_artifact import CLASSES, PREPROCESSING, pictures


def make_int8(path: Path, image_folder: Path) -> Artifact:
    """Exports it; skips where torch is not installed."""
    torch = pytest.importorskip("torch", reason="needs torch to export")
    from csr_deploy.export import ExportOptions, Network, export, load_export_data
    from csr_deploy.models import architecture
    from csr_deploy.targets import find_target

    torch.manual_seed(0)
    model = architecture("resnet20-csr", num_classes=len(CLASSES)).build()
    with torch.no_grad():
        for module in model.modules():
            # Some start as zero, and a residual branch that is zero tests nothing.
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        model.train()(torch.from_numpy(PREPROCESSING.normalize(pictures(32, seed=2)[0])))
    network = Network("random", model.eval(), CLASSES, PREPROCESSING)
    options = ExportOptions(calibration_images=32, parity_images=24, agreement=0.0)
    data = load_export_data(network, str(image_folder), options, quantized=True)
    return export(network, find_target("tflite-int8"), data, path, options)
