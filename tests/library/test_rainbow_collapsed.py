"""rainbow.collapsed: reference values, the general theorem, limits, simulation, the floor, and refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ncbook import rainbow, ridge_asymptotics

EXACT = 1e-9  # the general form subtracts numbers up to a thousand times the result


def spectrum(K, p, beta, w):
    return torch.tensor([beta + w] * (K - 1) + [w] * (p - K + 1), dtype=torch.float64)


def covariances(K, p, beta, w, seed=None):
    means = rainbow.collapsed_means(K, p, beta, seed=seed)
    return means, means @ means.T / K, w * torch.eye(p, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "kappa", "test", "error"),
    [
        ((4, 100, 50, 0.1, 1, 0.3), 0.315622398, 0.3898339831, 0.172603339),
        ((4, 100, 100, 0.01, 1, 0.1), 0.00325797904, 1.128528527, 0.3030755377),
        ((10, 500, 250, 1, 1, 0.01), 0.01695368299, 0.01317385366, None),
    ],
)
def test_reference_values(arguments, kappa, test, error):
    found = rainbow.collapsed_ridge(*arguments)
    assert float(found.kappa) == pytest.approx(kappa, rel=1e-8)
    assert float(found.test) == pytest.approx(test, rel=1e-9)
    if error is not None:
        assert float(found.error_rate) == pytest.approx(error, rel=1e-9)


@given(
    st.integers(2, 8),
    st.integers(0, 40),
    st.integers(1, 120),
    st.floats(1e-3, 10),
    st.floats(0.1, 10),
    st.floats(1e-3, 3),
)
@settings(deadline=None, max_examples=60)
def test_it_is_the_general_theorem_on_its_spectrum(K, extra, n, ridge, beta, w):
    p = K - 1 + extra
    means, between, within = covariances(K, p, beta, w)
    found = rainbow.collapsed_ridge(K, p, n, ridge, beta, w)
    curve = ridge_asymptotics.learning_curve(between + within, means / K, (K - 1) / K, [n], ridge)
    for name in ("kappa", "df1", "df2", "test", "train"):
        assert float(getattr(found, name)) == pytest.approx(float(getattr(curve, name)[0]), rel=1e-7), name
    assert float(found.floor) == pytest.approx(
        float(rainbow.least_squares_floor(between, within, K)), rel=EXACT
    )
    assert float(found.nc1) == pytest.approx(float(rainbow.population_nc1(between, within, K)), rel=EXACT)
    share = (K - 1) / K
    power = float(curve.q[0])  # E‖θ̂ᵀφ‖² = g²(K−1)/K + (K−1)v
    assert share * found.gain**2 + (K - 1) * found.score_variance == pytest.approx(power, rel=1e-7)


@pytest.mark.parametrize("K", [2, 3, 7])
def test_error_rate_is_the_integral(K):
    found = rainbow.collapsed_ridge(K, 40, [10, 40, 200], 0.1, 1.0, 0.5)
    for g, v, error in zip(found.gain, found.score_variance, found.error_rate, strict=True):
        shift = float(g / v.sqrt())
        right = integrate.quad(
            lambda x, a=shift: stats.norm.pdf(x) * stats.norm.cdf(x + a) ** (K - 1), -12, 12, epsabs=1e-12
        )[0]
        assert float(error) == pytest.approx(1 - right, abs=1e-10)


def test_small_error_rates_keep_their_digits():
    found = rainbow.collapsed_ridge(2, 50, 1000, 0.0, 1.0, [0.1, 0.01, 0.003])
    exact = stats.norm.cdf(-(found.gain / (2 * found.score_variance).sqrt()).numpy())
    assert exact[-1] < 1e-60
    np.testing.assert_allclose(found.error_rate.numpy(), exact, rtol=1e-8)


def test_limits_without_ridge():
    below = rainbow.collapsed_ridge(4, 100, 50, 0.0, 1.0, 0.2)
    above = rainbow.collapsed_ridge(4, 100, 400, 0.0, 1.0, 0.2)
    assert float(below.train) == 0
    assert float(below.df1) == pytest.approx(50)
    assert float(above.kappa) == 0
    assert float(above.test) == pytest.approx(float(above.floor) / (1 - 100 / 400), rel=1e-12)
    assert float(above.train) == pytest.approx(float(above.floor) * (1 - 100 / 400), rel=1e-12)
    small = rainbow.collapsed_ridge(4, 100, [50, 400], 1e-10, 1.0, 0.2)
    assert small.test.tolist() == pytest.approx([float(below.test), float(above.test)], rel=1e-6)


def test_perfect_collapse_leaves_the_bias_alone():
    perfect = rainbow.collapsed_ridge(3, 20, 30, 1.0, 2.0, 0.0)
    nearly = rainbow.collapsed_ridge(3, 20, 30, 1.0, 2.0, 1e-12)
    assert float(perfect.test) == pytest.approx(float(nearly.test), rel=1e-6)
    assert float(perfect.nc1) == float(perfect.floor) == 0
    share = (perfect.kappa / (2 + perfect.kappa)) ** 2 * 2 / 3
    assert float(perfect.test) == pytest.approx(float(share / (1 - perfect.df2 / 30)), rel=1e-12)
    free = rainbow.collapsed_ridge(3, 20, 30, 0.0, 2.0, 0.0)
    assert float(free.test) == float(free.error_rate) == float(free.nc3) == 0


def test_scale_changes_nothing():
    one = rainbow.collapsed_ridge(4, 30, [10, 60], 0.2, 1.0, 0.3)
    ten = rainbow.collapsed_ridge(4, 30, [10, 60], 2.0, 10.0, 3.0)
    for name in (
        "test",
        "train",
        "error_rate",
        "nc1",
        "nc3",
        "floor",
        "gain",
        "score_variance",
        "df1",
        "df2",
    ):
        torch.testing.assert_close(getattr(one, name), getattr(ten, name), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(10 * one.kappa, ten.kappa, rtol=1e-9, atol=0)


def test_broadcasting_is_a_loop():
    n, w = torch.tensor([[20], [50]]), np.array([0.1, 0.3, 1.0])
    grid = rainbow.collapsed_ridge(3, 40, n, [0.1, 0.2, 0.1], 1.5, w)
    assert grid.test.shape == (2, 3)
    assert grid.test.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            one = rainbow.collapsed_ridge(3, 40, int(n[i]), [0.1, 0.2, 0.1][j], 1.5, float(w[j]))
            for field, single in zip(grid, one, strict=True):
                torch.testing.assert_close(field[i, j], single, rtol=1e-10, atol=1e-14)


def test_simulation_and_self_duality():
    K, p, n, ridge, w = 4, 60, 60, 0.3, 0.2
    means, between, within = covariances(K, p, 1.0, w, seed=1)
    features, labels = rainbow.sample_collapsed(means, w, n, seed=2, batch=200)
    targets = torch.nn.functional.one_hot(labels, K).double() - 1 / K
    theta = ridge_asymptotics.ridge_readout(features, targets, ridge)
    risk = ridge_asymptotics.population_risk(theta, between + within, means / K, (K - 1) / K)
    found = rainbow.collapsed_ridge(K, p, n, ridge, 1.0, w)
    assert float(found.test) == pytest.approx(float(risk.mean()), rel=0.06)  # 200 readouts: 1 %
    cosine = (theta * means).sum((1, 2)) / theta.flatten(1).norm(dim=1) / means.norm()
    predicted = float(1 - found.nc3**2 / 2)
    assert predicted == pytest.approx(float(cosine.mean()), abs=0.015)
    assert abs(predicted**2 - float(cosine.mean())) > 0.05  # the missing square root


def test_samples_have_the_moments_of_the_model():
    means = rainbow.collapsed_means(3, 5, 2.0, seed=3)
    assert torch.allclose(means.T @ means, 2.0 * (3 * torch.eye(3) - 1).double(), atol=1e-12)
    features, labels = rainbow.sample_collapsed(means, 0.3, 60_000, seed=4)
    between, within = rainbow.class_covariances(features, labels, 3)
    assert (between - means @ means.T / 3).abs().max() < 0.05
    assert (within - 0.3 * torch.eye(5)).abs().max() < 0.01
    again, _ = rainbow.sample_collapsed(means, 0.3, 60_000, seed=4)
    assert again.equal(features)


@given(st.integers(2, 6), st.integers(0, 6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_the_floor_is_least_squares_and_below_nc1(K, extra, seed):
    p = K - 1 + extra
    source = torch.Generator().manual_seed(seed)
    means = torch.randn(p, K, dtype=torch.float64, generator=source)
    means = means - means.mean(1, keepdim=True)
    A = torch.randn(p, p + 3, dtype=torch.float64, generator=source)
    between, within = means @ means.T / K, A @ A.T / p
    floor = rainbow.least_squares_floor(between, within, K)
    direct = (K - 1 - (between @ torch.linalg.inv(between + within)).trace()) / K
    assert float(floor) == pytest.approx(float(direct), abs=1e-9)
    nc1 = rainbow.population_nc1(between, within, K)
    assert float(nc1) == pytest.approx(
        float((within @ torch.linalg.pinv(between, rtol=1e-9)).trace() / K), rel=1e-6
    )
    assert floor <= nc1 / (1 + K / (K - 1) * nc1) * (1 + 1e-9)


def test_floor_of_singular_and_of_missing_directions():
    between = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    noise = torch.diag(torch.tensor([0.5, 1.0, 0.0]))
    assert float(rainbow.least_squares_floor(between, noise, 2)) == pytest.approx(1 / 6)
    # without noise there is no risk; a direction that the means lack costs 1/K
    assert float(rainbow.least_squares_floor(between, 0 * noise, 2)) == pytest.approx(0, abs=1e-15)
    assert float(rainbow.least_squares_floor(between, 0 * noise, 3)) == pytest.approx(1 / 3)
    # d < K − 1: one feature for four classes
    assert float(rainbow.least_squares_floor([[1.0]], [[0.0]], 4)) == pytest.approx(0.5)
    assert float(rainbow.least_squares_floor(0 * between, noise, 3)) == pytest.approx(2 / 3)


def test_batches_and_types_of_covariances():
    stack = [covariances(3, 5, 1.0, w)[1:] for w in (0.1, 0.7)]
    between, within = (torch.stack(list(x)) for x in zip(*stack, strict=True))
    floors = rainbow.least_squares_floor(between.float(), within.numpy(), 3)
    assert floors.dtype == torch.float64
    assert floors.tolist() == pytest.approx([2 / 3 * w / (1 + w) for w in (0.1, 0.7)], rel=1e-6)
    assert rainbow.population_nc1(between, within, 3).tolist() == pytest.approx(
        [2 / 3 * w for w in (0.1, 0.7)]
    )


def test_class_covariances_against_numpy():
    rng = np.random.default_rng(5)
    features, labels = rng.standard_normal((40, 3)), np.repeat(np.arange(4), 10)
    between, within = rainbow.class_covariances(features, labels, 4)
    means = np.stack([features[labels == k].mean(0) for k in range(4)])
    np.testing.assert_allclose(between, np.cov(means.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(within, np.cov((features - means[labels]).T, bias=True), atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((1, 10, 5, 0.1, 1, 0.1), "K"),
        ((3.0, 10, 5, 0.1, 1, 0.1), "K"),
        ((4, 2, 5, 0.1, 1, 0.1), "p"),
        ((3, 10, 0, 0.1, 1, 0.1), "n"),
        ((3, 10, 5, -0.1, 1, 0.1), "ridge"),
        ((3, 10, 5, 0.1, 0, 0.1), "beta"),
        ((3, 10, 5, 0.1, 1, -0.1), "w"),
        ((3, 10, 5, 0.1, 1, math.nan), "w"),
        ((3, 10, [5, 6], 0.1, 1, [0.1, 0.2, 0.3]), "broadcast"),
        ((3, 10, 10, 0.0, 1, 0.1), "ridge"),
        ((3, 10, 2, 0.0, 1, 0.0), "ridge"),
        ((3, 10, 20, 0.0, 1, 1e-14), "w"),
    ],
)
def test_collapsed_ridge_refuses(arguments, word):
    with pytest.raises(ValueError, match=word):
        rainbow.collapsed_ridge(*arguments)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: rainbow.least_squares_floor(torch.eye(3), torch.eye(2), 2), "one size"),
        (lambda: rainbow.least_squares_floor(torch.ones(3), torch.eye(3), 2), "between"),
        (lambda: rainbow.least_squares_floor(torch.eye(3), torch.ones(2, 3), 2), "within"),
        (lambda: rainbow.least_squares_floor(torch.eye(3), torch.eye(3), 1), "K"),
        (lambda: rainbow.population_nc1(torch.zeros(3, 3), torch.eye(3), 2), "between"),
        (lambda: rainbow.collapsed_means(3, 1), "p"),
        (lambda: rainbow.collapsed_means(3, 4, [1.0, 2.0]), "beta"),
        (lambda: rainbow.collapsed_means(3, 4, -1.0), "beta"),
        (lambda: rainbow.sample_collapsed(torch.eye(3), 0.1, 0, seed=0), "n"),
        (lambda: rainbow.sample_collapsed(torch.eye(3), 0.1, 3, seed=0, batch=0), "batch"),
        (lambda: rainbow.sample_collapsed(torch.eye(3), -0.1, 3, seed=0), "w"),
        (lambda: rainbow.sample_collapsed(torch.ones(3), 0.1, 3, seed=0), "means"),
        (lambda: rainbow.class_covariances([[1.0], [2.0]], [0, 2], 2), "labels"),
        (lambda: rainbow.class_covariances([[1.0], [2.0]], [0, 0], 2), "class 1"),
        (lambda: rainbow.class_covariances([[1.0], [2.0]], [0], 2), "labels"),
        (
            lambda: rainbow.class_covariances(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 2),
            "labels",
        ),
        (lambda: rainbow.class_covariances([[1.0], [math.inf]], [0, 1], 2), "features"),
    ],
)
def test_helpers_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
