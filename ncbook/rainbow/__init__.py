"""Deep structured random features: coefficients, covariances, exact kernels, sampling, collapsed features."""

from ncbook.rainbow.collapsed import (
    CollapsedRidge,
    class_covariances,
    collapsed_means,
    collapsed_ridge,
    least_squares_floor,
    population_nc1,
    sample_collapsed,
)
from ncbook.rainbow.covariances import (
    LayerCoefficients,
    LinearisedCovariances,
    equivalent_linear_network,
    features,
    linearised_covariances,
)
from ncbook.rainbow.estimation import CovarianceError, covariance_error
from ncbook.rainbow.hermite import (
    ACTIVATIONS,
    Activation,
    HermiteCoefficients,
    activation_function,
    hermite_coefficients,
    joint_coefficient,
    joint_moment,
)
from ncbook.rainbow.kernels import (
    CLOSED_FORMS,
    arc_cosine_kernel,
    arcsine_kernel,
    cross_kernel,
    exact_kernel,
)
from ncbook.rainbow.sampling import rainbow_surrogate, sample_rainbow, symmetric_root

__all__ = [
    "ACTIVATIONS",
    "CLOSED_FORMS",
    "Activation",
    "CollapsedRidge",
    "CovarianceError",
    "HermiteCoefficients",
    "LayerCoefficients",
    "LinearisedCovariances",
    "activation_function",
    "arc_cosine_kernel",
    "arcsine_kernel",
    "class_covariances",
    "collapsed_means",
    "collapsed_ridge",
    "covariance_error",
    "cross_kernel",
    "equivalent_linear_network",
    "exact_kernel",
    "features",
    "hermite_coefficients",
    "joint_coefficient",
    "joint_moment",
    "least_squares_floor",
    "linearised_covariances",
    "population_nc1",
    "rainbow_surrogate",
    "sample_collapsed",
    "sample_rainbow",
    "symmetric_root",
]
