"""Ridge asymptotics: reference values, three forms of the theorem, simulation, hard spectra, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook.ridge_asymptotics import (
    bias_variance,
    degrees_of_freedom,
    effective_ridge,
    empirical_moments,
    learning_curve,
    population_risk,
    ridge_asymptotics,
    ridge_readout,
    solve_effective_ridge,
    spectral_data,
)
from ncbook.runtime import DTYPE, generator

OMEGA = torch.tensor([4, 2, 1, 1, 0.5, 0.25, 0.125, 0.0625], dtype=DTYPE)
OPTIMUM = torch.tensor([1, -1, 0.5, 2, 0, 1, -2, 3], dtype=DTYPE)
PSI2 = (OMEGA * OPTIMUM).square()
SIGNAL = float((OMEGA * OPTIMUM.square()).sum())

# n, ridge, sigma2, power outside the span; kappa, df1, df2, test, train
TABLE = [
    (4, 0.5, 0.1, 0.0, 0.845876881, 3.408897428, 1.973595392, 4.554453527, 0.09945851957),
    (8, 1e-3, 0.1, 0.0, 0.005684798485, 7.824092269, 7.657722584, 2.457413449, 0.001188141343),
    (16, 0.5, 0.0, 0.0, 0.05441448489, 6.811270179, 5.97893475, 0.3021945597, 0.09966843532),
    (16, 2.0, 0.3, 0.7, 0.1901944731, 5.484447326, 4.222810221, 2.281346794, 0.9854067882),
    (5, 0.0, 0.1, 0.2, 0.2755014636, 5.0, 3.650742968, 4.532950579, 0.0),
    (20, 0.0, 0.1, 0.2, 0.0, 8.0, 8.0, 0.5, 0.18),
]


def power_law(p=100, exponent=1.5):
    return torch.arange(1, p + 1, dtype=DTYPE) ** -exponent


@pytest.mark.parametrize("row", TABLE, ids=[f"n{row[0]}-ridge{row[1]:g}" for row in TABLE])
def test_reference_values_of_a_small_spectrum(row):
    n, ridge, sigma2, outside, kappa, df1, df2, test, train = row
    found = ridge_asymptotics(OMEGA, PSI2, SIGNAL + outside, n, ridge, sigma2)
    measured = torch.stack([found.kappa, found.df1, found.df2, found.test, found.train])
    expected = torch.tensor([kappa, df1, df2, test, train], dtype=DTYPE)
    torch.testing.assert_close(measured, expected, rtol=2e-9, atol=1e-14)
    assert math.isclose(found.excess, test - sigma2, rel_tol=1e-8)


@pytest.mark.parametrize(
    ("p", "n", "ridge", "kappa", "test"),
    [
        (100, 50, 1.0, 1.039244745, 0.9819970521),
        (100, 100, 1.0, 0.105124922, 1.429620243),
        (100, 200, 1.0, 0.009902894312, 0.4906176948),
        (100, 100, 1e-6, 1.000050001e-4, 1250.125055),
        (400, 1000, 0.5, 8.328712685e-4, 0.4162062027),
    ],
)
def test_reference_values_of_isotropic_features(p, n, ridge, kappa, test):
    found = ridge_asymptotics(torch.ones(p), torch.full((p,), 1 / p), 1.0, n, ridge, 0.25)
    # float32 input: 1/p is rounded to seven digits, so rho is only that close to the sum of psi2
    assert math.isclose(found.kappa, kappa, rel_tol=1e-9)
    assert math.isclose(found.test, test, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("n", "ridge", "kappa", "test", "train"),
    [
        (20, 1e-2, 0.02563225276, 0.5126450553, 1.950667406e-4),
        (50, 1e-4, 0.00367157838, 0.20907115, 6.203667197e-8),
        (200, 1e-3, 9.960071717e-6, 0.01984928589, 0.005002187477),
    ],
)
def test_reference_values_of_a_power_law(n, ridge, kappa, test, train):
    omega = power_law()
    found = ridge_asymptotics(omega, omega.square(), omega.sum(), n, ridge, 0.01)
    measured = torch.stack([found.kappa, found.test, found.train])
    torch.testing.assert_close(measured, torch.tensor([kappa, test, train], dtype=DTYPE), rtol=2e-9, atol=0)


def population(p, k, seed):
    """A joint covariance of p features and k teacher features, Haar-rotated, and a teacher."""
    draw = torch.randn(p + k, 2 * (p + k), dtype=DTYPE, generator=generator(seed))
    joint = draw @ draw.T / (2 * (p + k))
    joint[:p, :p] += 0.1 * torch.eye(p, dtype=DTYPE)
    teacher = torch.randn(k, dtype=DTYPE, generator=generator(seed + 1))
    return joint[:p, :p], joint[:p, p:], joint[p:, p:], teacher


def paper_form(Omega, Phi, Psi, teacher, n, lam, sigma2):
    """Test error by the matrices of the paper: 1/m = λ + ⟨Ω(I + (n/p) m Ω)⁻¹⟩, with λ = Λ/p."""
    p, k = Phi.shape
    identity = torch.eye(p, dtype=DTYPE)
    m = 1 / lam
    for _ in range(20_000):
        new = 1 / (lam + (Omega @ torch.linalg.inv(identity + n / p * m * Omega)).trace().item() / p)
        done, m = abs(new - m) <= 1e-15 * m, new
        if done:
            break
    M = torch.linalg.inv(lam * identity + n / p * lam * m * Omega)
    share = n / p * (lam * m) ** 2 * (Omega @ M @ Omega @ M).trace().item() / p
    inner = Psi - n / p * m * lam * Phi.T @ (M + lam * M @ M) @ Phi
    excess = (teacher @ inner @ teacher / k + sigma2 * share) / (1 - share)
    return float(excess + sigma2)


def saddle_point_form(Omega, psi, rho, n, Lam, sigma2):
    """Test and training error by the saddle-point equations of the Gaussian covariate model: iterate the
    order parameters V, q, m and their conjugates."""
    p = len(Omega)
    lam, alpha = Lam / p, n / p
    omega, U = torch.linalg.eigh(Omega)
    squares = (U.T @ psi).square()
    V, q, m = 1.0, 0.5, 0.1
    for _ in range(50_000):
        V_hat = alpha / (1 + V)
        m_hat = alpha / (1 + V)
        q_hat = alpha * (rho + sigma2 + q - 2 * m) / (1 + V) ** 2
        D = lam + V_hat * omega
        new_V = float((omega / D).sum() / p)
        new_m = float(m_hat * (squares / D).sum())
        new_q = float((q_hat * omega**2 / D**2).sum() / p + m_hat**2 * (squares * omega / D**2).sum())
        change = abs(new_V - V) / V + abs(new_q - q) + abs(new_m - m)
        V, q, m = new_V, new_q, new_m
        if change < 1e-15:
            break
    test = rho + sigma2 + q - 2 * m
    return test, test / (1 + V) ** 2, m, q


@pytest.mark.parametrize(("n", "lam"), [(20, 0.1), (60, 0.05), (61, 1e-2), (150, 0.3)])
def test_three_forms_of_the_theorem_are_one(n, lam):
    p, k, sigma2 = 60, 35, 0.2
    Omega, Phi, Psi, teacher = population(p, k, seed=n)
    psi, rho = Phi @ teacher / math.sqrt(k), float(teacher @ Psi @ teacher / k)
    found = learning_curve(Omega, psi, rho, [n], p * lam, sigma2)
    test, train, m, q = saddle_point_form(Omega, psi, rho, n, p * lam, sigma2)
    paper = paper_form(Omega, Phi, Psi, teacher, n, lam, sigma2)
    assert math.isclose(found.test[0], paper, rel_tol=1e-10)
    for ours, theirs in zip((found.test, found.train, found.m, found.q), (test, train, m, q), strict=True):
        assert math.isclose(ours[0], theirs, rel_tol=1e-10)
    # the paper's misprint: a ridge Λ in place of λ = Λ/p
    wrong = paper_form(Omega, Phi, Psi, teacher, n, p * lam, sigma2)
    assert not math.isclose(found.test[0], wrong, rel_tol=1e-3)


def test_theory_meets_simulation_with_exact_risk():
    p, sigma2, repeats = 100, 0.25, 60
    omega = power_law(p, 1.0)
    optimum = torch.ones(p, dtype=DTYPE)
    Omega, psi, rho = torch.diag(omega), omega * optimum, float(omega.sum())
    for n in (40, 100, 300):
        draw = generator(n)
        F = torch.randn(repeats, n, p, dtype=DTYPE, generator=draw) * omega.sqrt()
        y = F @ optimum + math.sqrt(sigma2) * torch.randn(repeats, n, dtype=DTYPE, generator=draw)
        w = ridge_readout(F, y, 0.5)
        risk = population_risk(w, Omega, psi, rho) + sigma2
        residual = (y - (F @ w[..., None]).squeeze(-1)).square().mean(1)
        found = ridge_asymptotics(omega, psi.square(), rho, n, 0.5, sigma2)
        for measured, predicted in ((risk, found.test), (residual, found.train)):
            error = float(measured.std() / math.sqrt(repeats))
            # 4 standard errors, and the O(1/p) of a deterministic equivalent at p = 100
            assert abs(float(measured.mean() - predicted)) < 4 * error + 0.02 * float(predicted)
        assert abs(float((w @ psi).mean() / found.m) - 1) < 0.03
        assert abs(float((w.square() @ omega).mean() / found.q) - 1) < 0.03


def isotropic_kappa(p, n, ridge):
    """The positive root of nκ² + (n−p−Λ)κ − Λ = 0, by whichever form does not cancel."""
    b = n - p - ridge
    root = math.sqrt(b * b + 4 * n * ridge)
    return (root - b) / (2 * n) if b < 0 else 2 * ridge / (root + b)


@settings(deadline=None, max_examples=60)
@given(p=st.integers(1, 300), n=st.integers(1, 600), exponent=st.floats(-10, 4))
def test_isotropic_features_have_a_quadratic_equation(p, n, exponent):
    ridge = 10**exponent
    assert math.isclose(effective_ridge(np.ones(p), ridge, n), isotropic_kappa(p, n, ridge), rel_tol=1e-9)


def spectra(count, seed):
    """Random spectra of five kinds: equal, power laws, exponential, two levels far apart, log-uniform."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        p = int(rng.integers(1, 250))
        level = np.where(np.arange(p) < p // 3 + 1, 10 ** rng.uniform(0, 6), 10 ** rng.uniform(-6, 0))
        kinds = (
            np.ones(p),
            np.arange(1, p + 1) ** -rng.uniform(0, 4),
            rng.exponential(size=p) + 1e-12,
            level,
            10 ** rng.uniform(-8, 3, size=p),
        )
        yield kinds[rng.integers(5)] * 10 ** rng.uniform(-3, 3)


def test_newton_needs_at_most_25_steps_on_thousands_of_problems():
    ridges = np.array([1e-10, 1e-6, 1e-2, 1.0, 1e4])[:, None]
    problems, most, worst = 0, 0, 0.0
    for omega in spectra(200, seed=0):
        p = len(omega)
        ns = np.array([1, max(1, p // 2), p, p + 1, 2 * p, 10 * p], dtype=float)
        found = solve_effective_ridge(omega, ridges, ns)
        kappa = found.kappa.numpy()
        left = ridges / kappa + (omega / (omega + kappa[..., None])).sum(-1)
        problems, most = problems + kappa.size, max(most, found.steps)
        worst = max(worst, float(np.abs(left / ns - 1).max()))
    assert problems == 6000
    assert most <= 25
    assert worst < 1e-13


def test_the_peak_keeps_its_digits():
    """At n = p with a tiny ridge everything of order one cancels; fractions of integers know the answer."""
    from fractions import Fraction

    p, ridge = 20, Fraction(1, 10**10)
    omega = [Fraction(j + 1, 4) for j in range(p)]
    low, high = Fraction(1, 10**9), Fraction(1)
    for _ in range(90):  # bisection of Λ/κ = Σ κ/(ω+κ), exact up to the width of the bracket
        middle = (low + high) / 2
        middle = Fraction(round(middle * 2**110), 2**110)
        above = ridge / middle > sum(middle / (w + middle) for w in omega)
        low, high = (middle, high) if above else (low, middle)
    kappa = (low + high) / 2
    share = 1 - sum((w / (w + kappa)) ** 2 for w in omega) / p
    found = ridge_asymptotics(
        [float(w) for w in omega], [1e-3] * p, 100.0, n=p, ridge=float(ridge), sigma2=1.0
    )
    assert math.isclose(found.kappa, kappa, rel_tol=1e-13)
    assert math.isclose(found.inflation, 1 / share, rel_tol=1e-12)
    assert abs(1 / (1 - float(found.df2) / p) / float(1 / share) - 1) > 1e-13  # the naive difference is worse


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.floats(0.5, 400),
    ridge=st.floats(1e-8, 1e3),
    sigma2=st.floats(0, 2),
    outside=st.floats(0, 2),
)
def test_identities(seed, n, ridge, sigma2, outside):
    omega = torch.as_tensor(next(spectra(1, seed)), dtype=DTYPE)
    optimum = torch.randn(len(omega), dtype=DTYPE, generator=generator(seed))
    rho = float((omega * optimum.square()).sum()) + outside
    psi2 = (omega * optimum).square()
    found = ridge_asymptotics(omega, psi2, rho, n, ridge, sigma2)
    # bounds of the effective ridge, with room for rounding
    assert ridge / n * (1 - 1e-12) <= found.kappa <= (ridge + float(omega.sum())) / n * (1 + 1e-12)
    assert 0 <= found.df2 <= found.df1 * (1 + 1e-12)
    assert found.df1 <= n * (1 + 1e-12)
    # q by its definition as a quadratic form is q by the total error
    total = rho + sigma2
    assert abs(float(found.test - sigma2 - rho + 2 * found.m - found.q)) < 1e-9 * (total + float(found.test))
    parts = bias_variance(omega, psi2, rho, n, ridge, sigma2, rank_tol=0.0)
    assert math.isclose(sum(parts), found.test, rel_tol=1e-6, abs_tol=1e-9 * total)
    assert math.isclose(found.train, found.test / (1 + found.h) ** 2, rel_tol=1e-9)


def test_the_optimal_ridge_of_isotropic_features():
    p, sigma2 = 100, 0.25
    ridges = torch.linspace(5, 60, 1101, dtype=DTYPE)
    least = []
    for n in (50, 100, 200):
        test = ridge_asymptotics(np.ones(p), np.full(p, 1 / p), 1.0, n, ridges, sigma2).test
        assert math.isclose(ridges[test.argmin()], p * sigma2, rel_tol=1e-3)
        least.append(float(test.min()))
    np.testing.assert_allclose(least, [0.89038820, 0.64038820, 0.42539053], rtol=2e-8)


def test_ridge_zero_is_the_limit_of_small_ridges():
    omega = torch.cat([power_law(30), torch.zeros(10, dtype=DTYPE)])
    psi2, rho = omega.square(), float(omega.sum()) + 0.3
    for n in (7, 29, 31, 60):
        limit = ridge_asymptotics(omega, psi2, rho, n, 0.0, 0.1)
        small = ridge_asymptotics(omega, psi2, rho, n, 1e-12, 0.1)
        for name in ("df1", "df2", "test", "m", "q"):
            assert math.isclose(getattr(limit, name), getattr(small, name), rel_tol=1e-6), name
        if n < 30:
            assert limit.train == 0
            assert math.isinf(limit.h)
            assert math.isclose(limit.kappa, small.kappa, rel_tol=1e-6)
        else:
            assert limit.kappa == 0
            assert math.isclose(limit.test, 0.4 / (1 - 30 / n), rel_tol=1e-12)
            assert math.isclose(limit.train, 0.4 * (1 - 30 / n), rel_tol=1e-12)


def test_ridge_zero_at_the_rank_is_refused():
    omega = [1.0, 1.0, 0.0]
    assert effective_ridge(omega, 0.0, 2) == 0
    with pytest.raises(ValueError, match="rank 2"):
        ridge_asymptotics(omega, [1.0, 1.0, 0.0], 2.0, [1, 2], 0.0)


def test_points_broadcast_and_agree_with_single_calls():
    ns, ridges = [3, 8, 20], np.array([[0.0], [0.3]])
    found = ridge_asymptotics(OMEGA, PSI2, SIGNAL, [3, 9, 20], ridges, 0.1)
    assert found.test.shape == (2, 3)
    for a, ridge in enumerate((0.0, 0.3)):
        for b, n in enumerate((3, 9, 20)):
            single = ridge_asymptotics(OMEGA, PSI2, SIGNAL, n, ridge, 0.1)
            for name in ("kappa", "df1", "df2", "test", "excess", "train", "m", "q", "inflation"):
                torch.testing.assert_close(getattr(found, name)[a, b], getattr(single, name))
    assert isinstance(effective_ridge(OMEGA, 0.3, 4), float)
    assert effective_ridge(OMEGA, ridges, ns).shape == (2, 3)


def test_degrees_of_freedom_reject_a_dropped_square():
    df1, df2 = degrees_of_freedom(OMEGA, [0.5, 0.0])
    assert df1[1] == df2[1] == 8
    assert math.isclose(df1[0], sum(float(w) / (float(w) + 0.5) for w in OMEGA), rel_tol=1e-14)
    assert math.isclose(df2[0], sum((float(w) / (float(w) + 0.5)) ** 2 for w in OMEGA), rel_tol=1e-14)
    assert df2[0] < df1[0]


def test_spectral_data_is_what_the_matrices_say():
    Omega, Phi, _, _ = population(12, 3, seed=5)
    data = spectral_data(Omega.float(), Phi.numpy())
    torch.testing.assert_close(data.eigenvalues.sum(), Omega.trace(), rtol=1e-6, atol=0)
    for kappa in (0.1, 2.0):
        inverse = torch.linalg.inv(Omega + kappa * torch.eye(12, dtype=DTYPE))
        exact = (Phi * (inverse @ Phi)).sum()
        torch.testing.assert_close((data.psi2 / (data.eigenvalues + kappa)).sum(), exact, rtol=1e-5, atol=0)
    assert bool((data.eigenvalues.diff() <= 0).all())


@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 30), (15, 15), (1, 4), (4, 1)])
@pytest.mark.parametrize("outputs", [None, 3])
def test_readouts_solve_their_normal_equations(n, p, outputs):
    draw = generator(n * p)
    F = torch.randn(2, n, p, dtype=DTYPE, generator=draw)
    Y = torch.randn(2, n, *([outputs] if outputs else []), dtype=DTYPE, generator=draw)
    for ridge in (0.7, 0.0):
        theta = ridge_readout(F, Y, ridge)
        assert theta.shape == (2, p, *([outputs] if outputs else []))
        column = theta if outputs else theta[..., None]
        target = Y if outputs else Y[..., None]
        gradient = F.mT @ (F @ column - target) + ridge * column
        assert float(gradient.abs().max()) < 1e-9
        if not ridge:  # of least norm: in the row space of F
            again = torch.linalg.pinv(F) @ target
            torch.testing.assert_close(column, again, rtol=1e-8, atol=1e-8)


def test_population_risk_is_the_mean_squared_error_of_the_pool():
    draw = generator(3)
    F, Y = torch.randn(50, 6, generator=draw), torch.randn(50, 2, generator=draw)
    moments = empirical_moments(F + 2.0, Y + 1.0)
    assert moments.psi.shape == (6, 2)
    w = torch.randn(3, 6, 2, dtype=DTYPE, generator=draw)
    centred = F.double() + 2.0 - moments.feature_mean
    error = (Y.double() + 1.0 - moments.label_mean - centred @ w).square().sum(-1).mean(-1)
    torch.testing.assert_close(
        population_risk(w, moments.Omega, moments.psi, moments.rho), error, rtol=1e-6, atol=0
    )
    raw = empirical_moments(F + 2.0, Y[:, 0], centre=False)
    assert raw.label_mean == 0
    assert raw.psi.shape == (6,)
    assert float(raw.Omega.trace()) > float(moments.Omega.trace()) + 20  # 6 squared means of about 4


GOOD = {"eigenvalues": [2.0, 1.0], "psi2": [1.0, 0.5], "rho": 1.0, "n": 4, "ridge": 0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eigenvalues": []}, r"eigenvalues must have the shape \(p,\)"),
        ({"eigenvalues": [1.0, math.nan]}, "eigenvalues must be finite"),
        ({"eigenvalues": [1.0, -0.1]}, "eigenvalues must not be negative"),
        ({"psi2": [1.0]}, "psi2 must have the shape of eigenvalues"),
        ({"psi2": [1.0, -1.0]}, "psi2 must not be negative"),
        ({"eigenvalues": [2.0, 0.0]}, "psi2 must be zero where eigenvalues are"),
        ({"rho": -1.0}, "rho must not be negative"),
        ({"rho": [1.0, 2.0]}, "rho must be one number"),
        ({"rho": 0.1}, "rho must be at least the power"),
        ({"sigma2": -0.1}, "sigma2 must not be negative"),
        ({"n": 0}, "n must be positive"),
        ({"n": []}, "at least one number"),
        ({"ridge": -1e-3}, "ridge must not be negative"),
        ({"ridge": [1.0, 2.0], "n": [1, 2, 3]}, "ridge and n must broadcast"),
    ],
)
def test_bad_input_of_the_theory_is_named(change, words):
    ridge_asymptotics(**GOOD)
    with pytest.raises(ValueError, match=words):
        ridge_asymptotics(**(GOOD | change))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spectral_data([[1.0, 2.0]], [1.0]), "Omega must have the shape"),
        (lambda: spectral_data([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0]), "Omega must be symmetric"),
        (lambda: spectral_data([[1.0, 0.0], [0.0, -1.0]], [1.0, 1.0]), "must not be negative"),
        (lambda: spectral_data([[1.0]], [1.0, 2.0]), "psi must have the shape"),
        (lambda: ridge_readout([1.0, 2.0], [1.0], 1.0), "F must have the shape"),
        (lambda: ridge_readout([[1.0], [2.0]], [1.0], 1.0), "Y must have the shape"),
        (lambda: ridge_readout([[1.0]], [1.0], -1.0), "ridge must not be negative"),
        (lambda: ridge_readout([[1.0]], [1.0], [1.0]), "ridge must be one number"),
        (lambda: ridge_readout(np.ones((5, 2)), np.ones(5), 1e-30), "ridge 1e-30 is too small"),
        (lambda: ridge_readout([[math.inf]], [1.0], 1.0), "F must be finite"),
        (lambda: population_risk([1.0, 2.0], [[1.0]], [1.0], 1.0), "w must have the shape"),
        (lambda: population_risk([1.0], [[1.0]], [[[1.0]]], 1.0), "psi must have the shape"),
        (lambda: empirical_moments(np.ones((2, 3, 4)), np.ones((2, 3))), r"F must have the shape \(N, p\)"),
        (lambda: empirical_moments(np.ones((0, 3)), np.ones(0)), "n, p ≥ 1"),
        (lambda: degrees_of_freedom([1.0], -1.0), "kappa must not be negative"),
    ],
)
def test_bad_input_of_moments_and_readouts_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_extremes_do_not_overflow():
    found = ridge_asymptotics([1e30, 1.0, 1e-30], [0.0] * 3, 1.0, [1, 3, 5], 1e-60, 0.0)
    assert bool(torch.isfinite(found.test).all())
    assert effective_ridge([0.0, 0.0], 2.0, 4) == 0.5
    assert effective_ridge([0.0, 0.0], 0.0, 4) == 0.0
