"""The second-order view of any problem: Hessian spectra, certificates, directions of escape, slices.

The tools see a problem through its parameters alone. They use its ``hvp`` where it has one, and otherwise
differentiate its ``value`` twice.
"""

from ncbook.landscape.factorised import Escape, certificate, escape_direction
from ncbook.landscape.hessian import curvature, hessian_vector_product
from ncbook.landscape.slices import plane_slice
from ncbook.landscape.spectrum import (
    EigenvalueNotConverged,
    ModeCount,
    count_modes,
    hessian_spectrum,
    minimum_hessian_eigenvalue,
)

__all__ = [
    "EigenvalueNotConverged",
    "Escape",
    "ModeCount",
    "certificate",
    "count_modes",
    "curvature",
    "escape_direction",
    "hessian_spectrum",
    "hessian_vector_product",
    "minimum_hessian_eigenvalue",
    "plane_slice",
]
