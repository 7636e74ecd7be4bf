"""CSR-Conv layers, step cells and the replacement of convolutions in any model."""

from csr_deploy.nn.cells import CELLS, StepCell, VanillaCell, find_cell
from csr_deploy.nn.csr_conv import CSRConv2d, parameter_ratio
from csr_deploy.nn.csrify import csrify

__all__ = ["CELLS", "CSRConv2d", "StepCell", "VanillaCell", "csrify", "find_cell", "parameter_ratio"]
