"""landscape: Hessians against autograd and known spectra, certificates at points in closed form."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from ncbook.landscape import (
    EigenvalueNotConverged,
    certificate,
    count_modes,
    curvature,
    escape_direction,
    hessian_spectrum,
    hessian_vector_product,
    minimum_hessian_eigenvalue,
    plane_slice,
)
from ncbook.protocol import UFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import CrossEntropyUFM, SquaredLossUFM

DOUBLE = torch.float64


# --- problems of the tests ---------------------------------------------------------------------------


@dataclass
class Quadratic:
    """f(x) = ½ xᵀAx for each run, A (B, P, P) symmetric; the parameters are two tensors."""

    A: torch.Tensor

    def hvp(self, params: Any, direction: Any) -> Any:
        flat = torch.cat([direction[0].flatten(1), direction[1]], 1)
        product = (self.A.to(flat) @ flat[..., None])[..., 0]
        return product[:, :2].view(-1, 1, 2), product[:, 2:]

    def take(self, index: torch.Tensor) -> "Quadratic":
        return Quadratic(self.A[index])


def quadratic(spectrum, seed=0):
    """A quadratic problem with the given eigenvalues (B, P), rotated at random, and parameters for it."""
    values = torch.as_tensor(spectrum, dtype=DOUBLE)
    B, P = values.shape
    Q = torch.linalg.qr(torch.randn(B, P, P, dtype=DOUBLE, generator=generator(seed)))[0]
    return Quadratic(Q * values[:, None, :] @ Q.mT), (torch.ones(B, 1, 2), torch.ones(B, P - 2))


class Undivided:
    """Another problem without ``take`` and, if so wished, without ``hvp``."""

    def __init__(self, problem, hvp=True):
        self.value = problem.value
        if hvp:
            self.hvp = problem.hvp


@dataclass
class Softmax:
    """Cross-entropy with unconstrained features in the words of the definition, for autograd."""

    K: int
    d: int
    n: int
    lambda_W: float
    lambda_H: float
    lambda_b: float | None

    @property
    def N(self):
        return self.K * self.n

    def logits(self, params):
        Z = params.W @ params.H
        return Z if params.b is None else Z + params.b[..., None]

    def value(self, params):
        labels = torch.arange(self.K).repeat_interleave(self.n).expand(len(params.W), -1)
        fit = torch.nn.functional.cross_entropy(self.logits(params), labels, reduction="none").mean(1)
        decays = ((params.W, self.lambda_W), (params.H, self.lambda_H), (params.b, self.lambda_b))
        return fit + sum(decay / 2 * x.flatten(1).square().sum(1) for x, decay in decays if x is not None)

    def logit_gradient(self, params):
        Y = torch.eye(self.K, dtype=DOUBLE).repeat_interleave(self.n, 1)
        return (torch.softmax(self.logits(params), 1) - Y) / self.N

    def origin(self):
        return UFMParams(
            torch.zeros(1, self.K, self.d, dtype=DOUBLE),
            torch.zeros(1, self.d, self.N, dtype=DOUBLE),
            None if self.lambda_b is None else torch.zeros(1, self.K, dtype=DOUBLE),
        )

    def partial_simplex(self, r):
        """The saddle with classes 1, …, r on a simplex, from its one or two scalar unknowns."""
        K, q = self.K, self.K * math.sqrt(self.n * self.lambda_W * self.lambda_H)

        def imbalance(t, b):  # 1 − p_own + p_off of an active class − q, zero at a critical point
            rest = (K - r) * math.exp(b)
            off = math.exp(-t / r - b * (K - r) / r)
            return (r * off + rest) / (off * (math.exp(t) + r - 1) + rest) - q

        def scale(b):
            return brentq(lambda t: imbalance(t, b), 0, 100, xtol=1e-14)

        def bias_slope(b):  # of the bias of the other classes
            t = scale(b)
            off = math.exp(-t / r - b * (K - r) / r)
            active = off * (math.exp(t) + r - 1) + (K - r) * math.exp(b)
            idle = r * math.exp(-b * (K - r) / r) + (K - r) * math.exp(b)
            return (r * math.exp(b) / active + (K - r) * math.exp(b) / idle - 1) / K + self.lambda_b * b

        b = 0.0 if self.lambda_b is None else brentq(bias_slope, 0, 5, xtol=1e-14)
        s, t = math.sqrt(self.lambda_W / (self.lambda_H * self.n)), scale(b)
        W = torch.zeros(1, K, self.d, dtype=DOUBLE)
        W[0, :r, :r] = math.sqrt(t / s) * (torch.eye(r, dtype=DOUBLE) - 1 / r)
        bias = torch.tensor([[-b * (K - r) / r] * r + [b] * (K - r)], dtype=DOUBLE)
        H = (s * W.mT).repeat_interleave(self.n, 2)
        return UFMParams(W, H, None if self.lambda_b is None else bias)


class CertifiedSquares(SquaredLossUFM):
    """The squared loss with the gradient in the logits written out."""

    def logit_gradient(self, params):
        return (params.W @ params.H - torch.eye(self.K).repeat_interleave(self.n, 1)) / self.N


# --- products and curvatures -------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_the_fallback_is_the_hand_derived_product(K, n, d, seed):
    lambdas = torch.tensor([0.1, 0.2, 0.4], dtype=DOUBLE)
    model = SquaredLossUFM(K, n, d, lambdas, 2 * lambdas)
    params, direction = (model.init(3, generator(seed + i)) for i in range(2))
    mine = hessian_vector_product(Undivided(model, hvp=False), params, direction)
    theirs = hessian_vector_product(model, params, direction)
    for x, y, z in zip(mine[:2], theirs[:2], model.hvp(params, direction)[:2], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(y, z, rtol=0, atol=1e-14)
    assert mine.b is None


def test_the_curvature_is_the_second_difference():
    model = SquaredLossUFM(3, 2, 4, 0.1, 0.2)
    params, direction = (model.init(4, generator(i)) for i in range(2))

    def along(step):
        return model.value(UFMParams(params.W + step * direction.W, params.H + step * direction.H))

    def second(h):
        return (along(h) + along(-h) - 2 * along(0)) / h**2

    # the objective has degree 4 along a line: one extrapolation makes the second difference exact
    expected = (4 * second(0.01) - second(0.02)) / 3
    torch.testing.assert_close(curvature(model, params, direction), expected, rtol=0, atol=1e-10)


def test_an_objective_without_curvature():
    class Linear:
        def value(self, params):
            return params[0].sum(1)

    assert hessian_spectrum(Linear(), (torch.ones(2, 3),)).tolist() == [[0.0] * 3] * 2


def test_numbers_of_single_precision_stay_so():
    model = SquaredLossUFM(3, 2, 4, 0.1, 0.2)
    params = model.init(2, generator(0), dtype=torch.float32)
    value, direction = minimum_hessian_eigenvalue(model, params)
    assert value.dtype == direction.W.dtype == torch.float32
    double = UFMParams(params.W.double(), params.H.double())
    exact, _ = minimum_hessian_eigenvalue(model, double)
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-5)


# --- spectra -----------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 6), st.floats(0.001, 2), st.floats(0.001, 2))
@settings(deadline=None, max_examples=20)
def test_squared_loss_at_the_origin(K, n, d, lambda_W, lambda_H):
    """∇g(0) = −Y/N has K singular values 1/(K√n); every one makes d pairs λ±."""
    model = SquaredLossUFM(K, n, d, lambda_W, lambda_H)
    origin = UFMParams(torch.zeros(1, K, d, dtype=DOUBLE), torch.zeros(1, d, K * n, dtype=DOUBLE))
    mean, root = (lambda_W + lambda_H) / 2, math.hypot((lambda_W - lambda_H) / 2, 1 / (K * math.sqrt(n)))
    expected = [mean - root] * K * d + [mean + root] * K * d + [lambda_H] * d * (K * n - K)
    found = hessian_spectrum(model, origin)[0].tolist()
    assert found == pytest.approx(sorted(expected), abs=1e-13)
    wrong = [mean - root] * (K - 1) * d + [mean + root] * (K - 1) * d  # the multiplicity of cross-entropy
    assert len(wrong) + d * (K * n - K) != len(found)


@pytest.mark.parametrize("lambda_b", [None, 0.0, 0.3])
@pytest.mark.parametrize(("K", "d", "n"), [(2, 3, 2), (4, 2, 3), (3, 5, 1)])
def test_cross_entropy_at_the_origin(K, d, n, lambda_b):
    lambda_W, lambda_H = 0.02, 0.01
    model = Softmax(K, d, n, lambda_W, lambda_H, lambda_b)
    mean, root = (lambda_W + lambda_H) / 2, math.hypot((lambda_W - lambda_H) / 2, 1 / (K * math.sqrt(n)))
    expected = [mean - root] * d * (K - 1) + [mean + root] * d * (K - 1)
    expected += [lambda_W] * d + [lambda_H] * d * (K * n - K + 1)
    if lambda_b is not None:
        expected += [lambda_b + 1 / K] * (K - 1) + [lambda_b]
    found = hessian_spectrum(model, model.origin())
    assert found[0].tolist() == pytest.approx(sorted(expected), abs=1e-14)
    count = count_modes(found, 1e-10)
    assert int(count.negative) == d * (K - 1)
    assert int(count.zero) == (1 if lambda_b == 0 else 0)


# (K, d, n, λ_W, λ_H, λ_b), r, then f, ‖W‖², ratio, smallest eigenvalue, negative, zero, bias of the rest
FIRST, SECOND, THIRD = (4, 5, 5, 5e-3, 5e-3), (4, 4, 5, 1e-2, 1e-3), (5, 7, 4, 2e-3, 8e-3)
SADDLES = [
    (FIRST, 0.01, 0, 1.3862943611, 0, 22.3606797750, -1.0680339887e-01, 15, 0, 0),
    (FIRST, 0.01, 2, 0.5790618307, 27.0964502069, 22.3606797750, -1.0680339887e-01, 9, 4, 1.15200633),
    (FIRST, None, 2, 0.8002366488, 16.8949996046, 22.3606797750, -1.0680339887e-01, 10, 4, 0),
    (FIRST, 0.01, 3, 0.2996058036, 37.0873464386, 5.6599514007, -2.3299757004e-02, 5, 7, 1.83801102),
    (FIRST, None, 3, 0.4938793648, 23.4013344358, 19.4093138387, -9.2046569194e-02, 5, 7, 0),
    (SECOND, 0.01, 0, 1.3862943611, 0, 35.3553390593, -1.0639392298e-01, 12, 0, 0),
    (SECOND, 0.01, 2, 0.5267741663, 9.4799718540, 35.3553390593, -1.0639392298e-01, 7, 3, 1.23667142),
    (SECOND, None, 2, 0.7674144920, 6.0024222933, 35.3553390593, -1.0639392298e-01, 8, 3, 0),
    (SECOND, 0.01, 3, 0.2271950206, 13.2821142935, 7.0452296434, -1.7228893666e-02, 4, 5, 2.03683079),
    (SECOND, None, 3, 0.4485569287, 8.2641261137, 30.6506493949, -9.1530268902e-02, 4, 5, 0),
    (THIRD, 0.0, 0, 1.6094379124, 0, 25.0, -9.5044989880e-02, 28, 1, 0),
    (THIRD, 0.0, 2, 0.8112097119, 59.7483623946, 25.0, -9.5044989880e-02, 20, 7, 1.27674529),
    (THIRD, None, 2, 1.0504915949, 34.2878960917, 25.0, -9.5044989880e-02, 21, 6, 0),
    (THIRD, 0.0, 3, 0.4952093837, 84.3855673269, 25.0, -9.5044989880e-02, 14, 12, 1.89540731),
    (THIRD, None, 3, 0.7641865791, 48.6458456837, 25.0, -9.5044989880e-02, 14, 11, 0),
    (THIRD, 0.0, 4, 0.2672062171, 100.3581055325, 4.8879887569, -1.4780772113e-02, 7, 16, 2.45714996),
    (THIRD, None, 4, 0.4755866733, 62.6819578443, 22.3864143564, -8.4595897025e-02, 7, 15, 0),
]


@pytest.mark.parametrize(
    ("numbers", "lambda_b", "r", "f", "norm_W2", "ratio", "lowest", "negative", "zero", "bias"), SADDLES
)
def test_the_saddles_in_closed_form(numbers, lambda_b, r, f, norm_W2, ratio, lowest, negative, zero, bias):
    model = Softmax(*numbers, lambda_b)
    params = model.partial_simplex(r) if r else model.origin()
    assert float(model.value(params)) == pytest.approx(f, abs=2e-10)
    assert float(params.W.square().sum()) == pytest.approx(norm_W2, abs=1e-7)
    if params.b is not None:
        assert float(params.b[0, -1]) == pytest.approx(bias, abs=1e-7)
    leaves = [x.clone().requires_grad_() for x in params if x is not None]
    gradient = torch.autograd.grad(model.value(UFMParams(*leaves)).sum(), leaves)
    assert max(float(x.abs().max()) for x in gradient) < 1e-13

    escape = escape_direction(model, params)
    root = math.sqrt(model.lambda_W * model.lambda_H)
    assert float(certificate(model, params)) == pytest.approx(ratio, abs=1e-8)
    assert float(escape.curvature) == pytest.approx(-2 * (ratio - 1) * root, abs=1e-10)
    assert float(curvature(model, params, escape.direction)) == pytest.approx(
        float(escape.curvature), abs=1e-13
    )
    assert float(escape.eigenvalue) == pytest.approx(lowest, abs=1e-11)
    spectrum = hessian_spectrum(model, params)
    assert float(spectrum[0, 0]) == pytest.approx(float(escape.eigenvalue), abs=1e-13)
    count = count_modes(spectrum, 1e-9)
    assert (int(count.negative), int(count.zero)) == (negative, zero)
    # the smallest eigenvalue is 1.9e-3 away from zero, the zeros are rounding
    assert float(count.largest_zero) < 1e-13
    assert float(count.smallest_other) > 1e-4


@pytest.mark.parametrize("lambda_b", [None, 0.0, 0.2])
def test_the_problem_of_the_library_is_seen_alike(lambda_b):
    """By its own product and by differentiating the objective of the tests."""
    model = CrossEntropyUFM(4, 5, 5, 5e-3, 2e-3, bias=lambda_b)
    plain = Softmax(4, 5, 5, 5e-3, 2e-3, lambda_b)
    params = model.init(2, generator(0))
    torch.testing.assert_close(certificate(model, params), certificate(plain, params), rtol=1e-12, atol=0)
    mine, theirs = hessian_spectrum(model, params), hessian_spectrum(plain, params)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_known_spectra_dense_and_iterated(values, seed):
    problem, params = quadratic([values, values[::-1]], seed)
    params = tuple(x.double() for x in params)
    expected, scale = sorted(values), max(1e-300, *map(abs, values))
    for dense_size in (0, 100):
        value, direction = minimum_hessian_eigenvalue(problem, params, dense_size=dense_size, seed=seed)
        # a residual of 1e-8 leaves at most that much in the eigenvalue
        assert value.tolist() == pytest.approx([expected[0]] * 2, abs=1e-8 * scale)
        flat = torch.cat([direction[0].flatten(1), direction[1]], 1)
        torch.testing.assert_close(flat.norm(dim=1), torch.ones(2, dtype=DOUBLE))
        k = min(3, len(values))
        ends = (
            hessian_spectrum(problem, params, k, which=w, dense_size=dense_size)
            for w in ("smallest", "largest")
        )
        for found, wanted in zip(ends, (expected[:k], expected[-k:]), strict=True):
            assert found[1].tolist() == pytest.approx(wanted, abs=1e-8 * scale)
    assert hessian_spectrum(problem, params)[0].tolist() == pytest.approx(expected, abs=1e-13 * max(1, scale))


def test_multiplicities_survive_the_iteration():
    """A single Krylov vector would see one copy of each eigenvalue."""
    values = [-1.0] * 4 + [-0.5] * 2 + torch.linspace(0.1, 3, 200).tolist()
    problem, params = quadratic([values])
    params = tuple(x.double() for x in params)
    found = hessian_spectrum(problem, params, 7, dense_size=0)
    assert found[0].tolist() == pytest.approx([-1] * 4 + [-0.5] * 2 + [0.1], abs=1e-8)


def test_large_problems_are_not_formed():
    model = CertifiedSquares(4, 100, 10, 1e-3, 2e-3)  # 4,040 variables
    origin = UFMParams(torch.zeros(1, 4, 10, dtype=DOUBLE), torch.zeros(1, 10, 400, dtype=DOUBLE))
    value, direction = minimum_hessian_eigenvalue(model, origin)
    assert float(value) == pytest.approx(float(escape_direction(model, origin).eigenvalue), abs=1e-10)
    assert float(curvature(model, origin, direction)) == pytest.approx(float(value), abs=1e-10)


def test_an_eigenvalue_that_was_not_found_is_not_returned():
    values = torch.linspace(0, 1, 300).tolist()
    problem, params = quadratic([values])
    with pytest.raises(EigenvalueNotConverged, match=r"runs \[0\] have residuals"):
        minimum_hessian_eigenvalue(problem, tuple(x.double() for x in params), steps=2, dense_size=0)


@pytest.mark.parametrize("hvp", [True, False])
def test_a_problem_that_cannot_be_divided(hvp):
    lambdas = torch.tensor([0.1, 0.2, 0.4], dtype=DOUBLE)
    model = SquaredLossUFM(2, 2, 3, lambdas, 0.3)
    params = model.init(3, generator(0))
    whole = Undivided(model, hvp)
    torch.testing.assert_close(hessian_spectrum(whole, params), hessian_spectrum(model, params))
    for dense_size in (0, 100):
        values = minimum_hessian_eigenvalue(whole, params, dense_size=dense_size)[0]
        torch.testing.assert_close(values, hessian_spectrum(model, params)[:, 0])
    x, y = [0.0, 0.5], [-1.0, 0.0, 2.0]
    first, second = (model.init(3, generator(i)) for i in (1, 2))
    torch.testing.assert_close(
        plane_slice(whole, params, first, second, x, y), plane_slice(model, params, first, second, x, y)
    )


# --- certificate and escape --------------------------------------------------------------------------


def test_the_certificate_tells_minima_from_saddles():
    model = CertifiedSquares(4, 5, 6, 5e-3, 2e-3)
    found = minimise(model, batch=3)
    torch.testing.assert_close(certificate(model, found.params), torch.ones(3, dtype=DOUBLE))
    origin = UFMParams(torch.zeros(1, 4, 6, dtype=DOUBLE), torch.zeros(1, 6, 20, dtype=DOUBLE))
    assert float(certificate(model, origin)) == pytest.approx(1 / (4 * math.sqrt(5 * 5e-3 * 2e-3)))
    assert float(hessian_spectrum(model, found.params).min()) > -1e-10


def test_the_certificate_takes_one_number_for_each_run():
    lambdas = torch.tensor([0.1, 0.4], dtype=DOUBLE)
    model = CertifiedSquares(2, 3, 2, lambdas, 2 * lambdas)
    params = UFMParams(torch.zeros(2, 2, 2, dtype=DOUBLE), torch.zeros(2, 2, 6, dtype=DOUBLE))
    expected = 1 / (2 * math.sqrt(3) * math.sqrt(2) * lambdas)
    torch.testing.assert_close(certificate(model, params), expected)
    escape = escape_direction(model, params)
    torch.testing.assert_close(escape.eigenvalue, minimum_hessian_eigenvalue(model, params)[0])
    torch.testing.assert_close(escape.curvature, curvature(model, params, escape.direction))
    assert (escape.curvature > 0).tolist() == [False, True]  # certified: no way down


def test_the_escape_needs_a_free_dimension():
    model = CertifiedSquares(4, 2, 3, 0.01, 0.01)
    nearly_zero = model.init(1, generator(0), scale=1e-9)  # an origin as descents leave it
    assert float(escape_direction(model, nearly_zero).curvature) < 0
    with pytest.raises(ValueError, match="unused, runs \\[0, 1\\] use all"):
        escape_direction(model, model.init(2, generator(0)))
    wide = CertifiedSquares(2, 2, 7, 0.1, 0.1)  # K + N = 6 vectors cannot use seven dimensions
    direction = escape_direction(wide, wide.init(1, generator(0))).direction
    assert float((wide.init(1, generator(0)).W @ direction.H).abs().max()) < 1e-14


def test_the_plane_of_the_escape_is_invariant():
    model = Softmax(*SECOND, 0.01)
    params = model.partial_simplex(2)
    escape = escape_direction(model, params)
    basis = [
        UFMParams(escape.direction.W / escape.direction.W.norm(), 0 * params.H, 0 * params.b),
        UFMParams(0 * params.W, -escape.direction.H / escape.direction.H.norm(), 0 * params.b),
    ]
    sigma = float(certificate(model, params)) * math.sqrt(model.lambda_W * model.lambda_H)
    block = [[model.lambda_W, sigma], [sigma, model.lambda_H]]
    for i, direction in enumerate(basis):
        image = hessian_vector_product(model, params, direction)
        expected = [block[i][0] * basis[0].W, block[i][1] * basis[1].H, 0 * params.b]
        for x, y in zip(image, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-14)


# --- slices and counts -------------------------------------------------------------------------------


def test_a_slice_is_the_objective_on_its_grid():
    lambdas = torch.tensor([0.1, 0.2], dtype=DOUBLE)
    model = SquaredLossUFM(2, 2, 3, lambdas, 0.3)
    params, first, second = (model.init(2, generator(i)) for i in range(3))
    x, y = np.linspace(-1, 1, 3), (0.0, 0.5)
    values = plane_slice(model, params, first, second, x, y)
    assert values.shape == (2, 3, 2)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            at = UFMParams(
                *(p + a * u + b * v for p, u, v in zip(params[:2], first[:2], second[:2], strict=True))
            )
            torch.testing.assert_close(values[:, i, j], model.value(at))


def test_modes_are_counted_with_the_gap():
    count = count_modes(np.array([[-2.0, -1e-12, 1e-11, 3.0], [1.0, 1.0, 1.0, 1.0]]), 1e-9)
    assert count.negative.tolist() == [1, 0]
    assert count.zero.tolist() == [2, 0]
    assert count.positive.tolist() == [1, 4]
    assert count.largest_zero.tolist() == [1e-11, 0.0]
    assert count.smallest_other.tolist() == [2.0, 1.0]
    assert count_modes([0.0], 1e-9).smallest_other.tolist() == [math.inf]


# --- the spurious minimum below K − 1 dimensions -----------------------------------------------------


def test_too_few_dimensions_make_a_spurious_minimum():
    """K = 5, d = 2: a square with a class in its centre is a local minimum above the pentagon."""
    model = Softmax(5, 2, 6, 5e-3, 5e-3, 1e-2)
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0]], dtype=DOUBLE)
    s = 1 / math.sqrt(model.n)

    def at(x):
        W = x[0] * square[None]
        b = torch.tensor([[-x[1] / 4] * 4 + [x[1]]], dtype=DOUBLE)
        return UFMParams(W, s * W.mT.repeat_interleave(model.n, 2), b)

    x = minimize(
        lambda x: float(model.value(at(x))),
        [3.0, 1.8],
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-16},
    ).x
    params = at(x)
    assert float(model.value(params)) == pytest.approx(0.3945078278, abs=1e-9)
    assert x[1] == pytest.approx(1.8126, abs=1e-4)
    count = count_modes(hessian_spectrum(model, params), 1e-7)  # the simplex method is right to some 1e-9
    assert (int(count.negative), int(count.zero)) == (0, 1)
    assert float(count.smallest_other) == pytest.approx(1.58e-3, rel=1e-2)
    assert float(certificate(model, params)) == pytest.approx(
        5.665, abs=1e-3
    )  # not certified, and rightly so
    with pytest.raises(ValueError, match="unused"):
        escape_direction(model, params)


# --- bad input ---------------------------------------------------------------------------------------


MODEL = SquaredLossUFM(2, 1, 2, 0.1, 0.1)
GOOD = UFMParams(torch.ones(1, 2, 2), torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (UFMParams(GOOD.W * math.nan, GOOD.H), "params must be finite"),
        (UFMParams(GOOD.W.long(), GOOD.H.long()), "floating-point"),
        (UFMParams(GOOD.W, torch.ones(2, 2, 2)), "common batch axis"),
        (UFMParams(torch.ones(0, 2, 2), torch.ones(0, 2, 2)), "one or more runs"),
        ([1.0, 2.0], "params must be tuples of tensors"),
    ],
)
@pytest.mark.parametrize("function", [minimum_hessian_eigenvalue, hessian_spectrum, certificate])
def test_bad_parameters(function, params, message):
    with pytest.raises(ValueError, match=message):
        function(CertifiedSquares(2, 1, 2, 0.1, 0.1), params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hessian_vector_product(MODEL, GOOD, UFMParams(GOOD.W, GOOD.H[:, :1])),
            "direction must have the",
        ),
        (lambda: curvature(MODEL, GOOD, UFMParams(GOOD.W, GOOD.H * math.inf)), "direction must be finite"),
        (lambda: hessian_spectrum(MODEL, GOOD, 9), "k must be at most the number of variables, 8, got 9"),
        (lambda: hessian_spectrum(MODEL, GOOD, 0), "k must be an integer of at least 1"),
        (lambda: hessian_spectrum(MODEL, GOOD, 1, which="middle"), "which must be"),
        (lambda: minimum_hessian_eigenvalue(MODEL, GOOD, tol=0), "tol must be a positive"),
        (lambda: minimum_hessian_eigenvalue(MODEL, GOOD, steps=0), "steps must be"),
        (lambda: minimum_hessian_eigenvalue(MODEL, GOOD, dense_size=-1), "dense_size must be"),
        (
            lambda: plane_slice(MODEL, GOOD, GOOD, UFMParams(GOOD.W, None), [0], [0]),
            "second must have the shapes",
        ),
        (lambda: plane_slice(MODEL, GOOD, GOOD, GOOD, [], [0]), "x must be a vector"),
        (lambda: plane_slice(MODEL, GOOD, GOOD, GOOD, [0], [[0]]), "y must be a vector"),
        (lambda: count_modes([[1, 2]], 1e-9), "spectrum must be"),
        (lambda: count_modes([1.0], 0.0), "tol must be a positive number"),
        (lambda: certificate(CertifiedSquares(2, 1, 2, 0.0, 0.1), GOOD), "lambda_W must be positive"),
        (lambda: escape_direction(CertifiedSquares(2, 1, 2, 0.1, 0.1), GOOD, rank_tol=0), "rank_tol must be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_problems_that_offer_too_little():
    class Nothing:
        lambda_W = lambda_H = 0.1

    class Constrained(CertifiedSquares):
        def project(self, params):
            return params

    class Detached:
        def value(self, params):
            return params.W.detach().sum((1, 2))

    class Crooked(SquaredLossUFM):
        def hvp(self, params, direction):
            return UFMParams(direction.H, 2 * direction.W)

    with pytest.raises(ValueError, match="must have lambda_W, object has none"):
        certificate(object(), GOOD)
    with pytest.raises(ValueError, match="must have logit_gradient"):
        certificate(Nothing(), GOOD)
    with pytest.raises(ValueError, match="must be unconstrained"):
        certificate(Constrained(2, 1, 2, 0.1, 0.1), GOOD)
    held = CrossEntropyUFM(2, 1, 2, 0.1, 0.1, bias=None, classifier=torch.eye(2))
    with pytest.raises(ValueError, match="must be unconstrained, both W and H free"):
        certificate(held, GOOD)
    with pytest.raises(ValueError, match="a value that autograd can differentiate"):
        hessian_spectrum(Detached(), GOOD)
    with pytest.raises(ValueError, match="must be symmetric"):
        hessian_spectrum(Crooked(2, 1, 2, 0.1, 0.1), GOOD)
