"""Unconstrained features models: objective, hand-derived derivatives and the minimum in closed form."""

from ncbook.protocol import UFMParams
from ncbook.ufm.cross_entropy import CrossEntropyMinimum, CrossEntropyUFM
from ncbook.ufm.squared import SquaredLossMinimum, SquaredLossUFM

__all__ = ["CrossEntropyMinimum", "CrossEntropyUFM", "SquaredLossMinimum", "SquaredLossUFM", "UFMParams"]
