"""Deep unconstrained features models (linear, extended, ReLU at every depth) and their closed forms."""

from ncbook.dufm.closed_forms import Collapse, LinearMinimum
from ncbook.dufm.deep import DeepUFM
from ncbook.dufm.graphs import graph_constant, graph_vertices, structure_constant
from ncbook.dufm.layers import DeepLayers, deep_layers
from ncbook.dufm.margin import margin, margin_phi, margin_threshold
from ncbook.dufm.models import ExtendedUFM, LinearUFM
from ncbook.dufm.pairs import block_margin, block_phi
from ncbook.dufm.params import DeepUFMParams
from ncbook.dufm.phases import KINDS, Phases, classify, phase_diagram
from ncbook.dufm.scalar import existence_limit, larger_root, output_scale, phi, product_price, threshold

__all__ = [
    "KINDS",
    "Collapse",
    "DeepLayers",
    "DeepUFM",
    "DeepUFMParams",
    "ExtendedUFM",
    "LinearMinimum",
    "LinearUFM",
    "Phases",
    "block_margin",
    "block_phi",
    "classify",
    "deep_layers",
    "existence_limit",
    "graph_constant",
    "graph_vertices",
    "larger_root",
    "margin",
    "margin_phi",
    "margin_threshold",
    "output_scale",
    "phase_diagram",
    "phi",
    "product_price",
    "structure_constant",
    "threshold",
]
