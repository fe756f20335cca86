"""Deep unconstrained features models (linear, extended, ReLU at every depth) and their closed forms."""

from ncbook.dufm.closed_forms import Collapse, LinearMinimum
from ncbook.dufm.deep import DeepUFM
from ncbook.dufm.models import ExtendedUFM, LinearUFM
from ncbook.dufm.params import DeepUFMParams
from ncbook.dufm.scalar import existence_limit, larger_root, output_scale, phi, threshold

__all__ = [
    "Collapse",
    "DeepUFM",
    "DeepUFMParams",
    "ExtendedUFM",
    "LinearMinimum",
    "LinearUFM",
    "existence_limit",
    "larger_root",
    "output_scale",
    "phi",
    "threshold",
]
