"""Backbones and the CSR-Conv networks of the paper."""

from csr_deploy.models.architecture import BACKBONES, Architecture, Backbone, architecture, count_parameters
from csr_deploy.models.densenet import CifarDenseNet
from csr_deploy.models.efficientnet import EfficientNet
from csr_deploy.models.efficientnet_lite import EfficientNetLite0
from csr_deploy.models.imagenet_mobilenet import ImageNetMobileNetV2
from csr_deploy.models.imagenet_resnet import ImageNetResNet
from csr_deploy.models.mobilenet import CifarMobileNetV2
from csr_deploy.models.presets import PRESETS, Preset
from csr_deploy.models.resnet import CifarResNet
from csr_deploy.models.vgg import VGG16

__all__ = [
    "BACKBONES",
    "PRESETS",
    "VGG16",
    "Architecture",
    "Backbone",
    "CifarDenseNet",
    "CifarMobileNetV2",
    "CifarResNet",
    "EfficientNet",
    "EfficientNetLite0",
    "ImageNetMobileNetV2",
    "ImageNetResNet",
    "Preset",
    "architecture",
    "count_parameters",
]
