"""Ridge regression on any features: effective ridge, degrees of freedom, and the errors that follow."""

from ncbook.ridge_asymptotics.errors import (
    BiasVariance,
    RidgeAsymptotics,
    SpectralData,
    bias_variance,
    learning_curve,
    ridge_asymptotics,
    spectral_data,
)
from ncbook.ridge_asymptotics.fixed_point import (
    RANK_TOL,
    FixedPoint,
    degrees_of_freedom,
    effective_ridge,
    solve_effective_ridge,
)
from ncbook.ridge_asymptotics.readout import Moments, empirical_moments, population_risk, ridge_readout

__all__ = [
    "RANK_TOL",
    "BiasVariance",
    "FixedPoint",
    "Moments",
    "RidgeAsymptotics",
    "SpectralData",
    "bias_variance",
    "degrees_of_freedom",
    "effective_ridge",
    "empirical_moments",
    "learning_curve",
    "population_risk",
    "ridge_asymptotics",
    "ridge_readout",
    "solve_effective_ridge",
    "spectral_data",
]
