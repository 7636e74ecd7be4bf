"""Post-training int8 quantisation of static graphs."""

from csr_deploy.quantize.scheme import QuantizedGraph, WeightQuantization
from csr_deploy.quantize.sensitivity import sensitivity
from csr_deploy.quantize.simulate import Simulation
from csr_deploy.quantize.static import QuantizeOptions, quantize

__all__ = [
    "QuantizeOptions",
    "QuantizedGraph",
    "Simulation",
    "WeightQuantization",
    "quantize",
    "sensitivity",
]
