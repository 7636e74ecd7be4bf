"""Backbones and the CSR-Conv networks of the paper."""

from csr_deploy.models.architecture import (
    BACKBONES,
    PRESETS,
    Architecture,
    Preset,
    architecture,
    count_parameters,
)
from csr_deploy.models.mobilenet import CifarMobileNetV2
from csr_deploy.models.resnet import CifarResNet
from csr_deploy.models.vgg import VGG16

__all__ = [
    "BACKBONES",
    "PRESETS",
    "VGG16",
    "Architecture",
    "CifarMobileNetV2",
    "CifarResNet",
    "Preset",
    "architecture",
    "count_parameters",
]
