"""Deep structured random features: coefficients, covariances, exact kernels, sampling, collapsed features."""
