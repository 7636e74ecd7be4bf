"""Scales that XNNPACK can requantise by."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csr_deploy.atomic import undisturbed
from csr_deploy.data import Preprocessing, open_dataset, sample
from csr_deploy.export import ExportData, ExportOptions, Network, export
from csr_deploy.quantize.scheme import quantize_weight
from csr_deploy.runtimes import open_runtime
from csr_deploy.targets import find_target


class Extreme(nn.Module):
    """A summand far below its sum, and a channel far above the others' range."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.small = nn.Conv2d(8, 8, 1, bias=False)
        self.gain = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 10)
        with torch.no_grad():
            self.small.weight.mul_(1e-6)
            # What channel 0 reads is never positive, so that its weights set no range.
            self.stem.weight[0], self.stem.bias[0] = 0.0, -1.0
            self.gain.weight[:, 0] = 1e7

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.gain(x))
        x = torch.relu(x + self.small(x))
        return self.head(x.mean((2, 3)))


def test_extreme_factors_load_and_pass_the_gate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dataset = open_dataset("fashion-mnist", "train")
    preprocessing = Preprocessing(28, 28, (0.286,), (0.353,))
    network = Network("extreme", Extreme().eval(), tuple(dataset.classes), preprocessing)
    pictures = sample(dataset, preprocessing, 40, 0)
    data = ExportData(pictures, sample(open_dataset("fashion-mnist", "test"), preprocessing, 40, 0), None)
    made = export(network, find_target("tflite-int8"), data, tmp_path / "made", ExportOptions(agreement=0.0))
    with open_runtime("litert", made) as runtime:
        assert np.isfinite(runtime.logits(data.parity.images[:2])).all()


def test_weights_are_clipped_to_the_largest_scale() -> None:
    weight = np.array([[1.0, -0.5], [100.0, 0.25]])
    found = quantize_weight(weight, np.array([np.inf, 0.1]))
    np.testing.assert_allclose(found.scales, [1 / 127, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(found.values, [[127, -64], [127, 2]])


def test_ctrl_c_waits_for_files_that_belong_together() -> None:
    done = []
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("inside")
    except KeyboardInterrupt:
        done.append("behind")
    assert done == ["inside", "behind"]
