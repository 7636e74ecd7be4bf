"""Figures of a network that follow from its structure, without running it on data."""

from csr_deploy.analysis.layers import LayerFigures, layer_figures
from csr_deploy.analysis.macs import count_macs
from csr_deploy.analysis.memory import MemoryFigures, memory_figures
from csr_deploy.analysis.network import NetworkFigures, analyse

__all__ = [
    "LayerFigures",
    "MemoryFigures",
    "NetworkFigures",
    "analyse",
    "count_macs",
    "layer_figures",
    "memory_figures",
]
