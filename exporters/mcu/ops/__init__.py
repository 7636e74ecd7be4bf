"""Every operation the compiler knows: one module each, all named here."""

from __future__ import annotations

from csr_deploy.exporters.mcu.ops.base import Kind
from csr_deploy.exporters.mcu.ops.conv2d import CONV_2D, FULLY_CONNECTED
from csr_deploy.exporters.mcu.ops.convert import DEQUANTIZE, QUANTIZE
from csr_deploy.exporters.mcu.ops.csr_cell import CSR_CELL
from csr_deploy.exporters.mcu.ops.depthwise import DEPTHWISE_CONV_2D
from csr_deploy.exporters.mcu.ops.elementwise import ADD, MAXIMUM, MINIMUM, MUL, PRELU, SUB
from csr_deploy.exporters.mcu.ops.mean import MEAN
from csr_deploy.exporters.mcu.ops.moves import (
    CONCATENATION,
    PAD,
    RESHAPE,
    SLICE,
    SPACE_TO_DEPTH,
    STRIDED_SLICE,
    TRANSPOSE,
)
from csr_deploy.exporters.mcu.ops.pool import AVERAGE_POOL_2D, MAX_POOL_2D
from csr_deploy.exporters.mcu.ops.softmax import SOFTMAX
from csr_deploy.exporters.mcu.ops.tables import (
    ABS,
    ELU,
    GELU,
    HARD_SWISH,
    LEAKY_RELU,
    LOGISTIC,
    RELU,
    RELU6,
    RELU_N1_TO_1,
    TANH,
)

KINDS: dict[str, Kind] = {
    "ABS": ABS,
    "ADD": ADD,
    "AVERAGE_POOL_2D": AVERAGE_POOL_2D,
    "CONCATENATION": CONCATENATION,
    "CONV_2D": CONV_2D,
    "CSR_CELL": CSR_CELL,
    "DEPTHWISE_CONV_2D": DEPTHWISE_CONV_2D,
    "DEQUANTIZE": DEQUANTIZE,
    "ELU": ELU,
    "GELU": GELU,
    "EXPAND_DIMS": RESHAPE,
    "FULLY_CONNECTED": FULLY_CONNECTED,
    "HARD_SWISH": HARD_SWISH,
    "LEAKY_RELU": LEAKY_RELU,
    "LOGISTIC": LOGISTIC,
    "MAX_POOL_2D": MAX_POOL_2D,
    "MAXIMUM": MAXIMUM,
    "MEAN": MEAN,
    "MINIMUM": MINIMUM,
    "MUL": MUL,
    "PAD": PAD,
    "PADV2": PAD,
    "PRELU": PRELU,
    "QUANTIZE": QUANTIZE,
    "RELU": RELU,
    "RELU6": RELU6,
    "RELU_N1_TO_1": RELU_N1_TO_1,
    "RESHAPE": RESHAPE,
    "SLICE": SLICE,
    "SOFTMAX": SOFTMAX,
    "SPACE_TO_DEPTH": SPACE_TO_DEPTH,
    "SQUEEZE": RESHAPE,
    "STRIDED_SLICE": STRIDED_SLICE,
    "SUB": SUB,
    "TANH": TANH,
    "TRANSPOSE": TRANSPOSE,
}
