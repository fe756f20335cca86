"""memorization_dilation: closed forms, solver against constrained optimisation, limits, accuracy, input."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats

from ncbook import memorization_dilation as md
from ncbook.runtime import DTYPE, generator
from ncbook.ufm import CrossEntropyUFM

LAM = 5e-3
decays = st.floats(-4, -1.5).map(lambda x: 10**x)
smoothings = st.floats(0, 0.6)


# --- the problem, written a second time with scipy only ----------------------------------------------------


def clean_by_hand(alpha, lam_W, lam_H):
    p = 1 - alpha / 2 - math.sqrt(2 * lam_W * lam_H)
    m = math.log(p / (1 - p))
    return p, m, math.sqrt(m * math.sqrt(lam_W / (2 * lam_H)))


def expected(f, noise):
    """E f(c) over the noise along one direction, by adaptive quadrature."""
    if noise == "circle":
        return integrate.quad(lambda t: f(math.cos(t)), 0, math.pi, epsabs=1e-13)[0] / math.pi
    density = stats.norm.pdf
    return integrate.quad(lambda x: f(x / math.sqrt(2)) * density(x), -12, 12, epsabs=1e-13, limit=200)[0]


def objective_by_hand(x, eta, alpha, lam_W, lam_H, noise):
    """The five-variable objective at x = (u_1, u_2, r), by adaptive quadrature."""
    _, m, a = clean_by_hand(alpha, lam_W, lam_H)
    D = math.sqrt(2) * a

    def loss(t):
        return np.logaddexp(0, -t) + alpha * t / 2

    fit = expected(lambda c: loss(m + 2 * m * x[4] / D * c), noise)
    total = fit + lam_H * (a**2 + x[4] ** 2)
    noisy = loss(m * (x[0] - x[1]) / a) + loss(m * (x[3] - x[2]) / a) + lam_H * float(np.sum(x[:4] ** 2))
    return total + eta * noisy / 2


def constrained(eta, C, alpha, lam_W, lam_H, noise="circle", normalised=False):
    """The same problem by SLSQP in five variables, with a fixed rule of its own for the noise."""
    _, m, a = clean_by_hand(alpha, lam_W, lam_H)
    D = math.sqrt(2) * a
    if noise == "circle":
        c, weight = np.cos((np.arange(400) + 0.5) * math.pi / 400), np.full(400, 1 / 400)
    else:
        nodes, weight = np.polynomial.hermite_e.hermegauss(150)
        c, weight = nodes / math.sqrt(2), weight / weight.sum()
    far = 1.0 if normalised else D

    def value(x):
        t = m + 2 * m * x[4] / D * c
        noisy = np.array([m * (x[0] - x[1]) / a, m * (x[3] - x[2]) / a])
        f = weight @ (np.logaddexp(0, -t) + alpha * t / 2) + lam_H * (a**2 + x[4] ** 2)
        g = np.logaddexp(0, -noisy) + alpha * noisy / 2
        slope = -special.expit(-t) + alpha / 2
        turn = -special.expit(-noisy) + alpha / 2
        gradient = eta * lam_H * np.r_[x[:4], 0.0]
        gradient[:4] += eta / 2 * (m / a) * np.array([turn[0], -turn[0], -turn[1], turn[1]])
        gradient[4] = 2 * lam_H * x[4] + weight @ (slope * c) * 2 * m / D
        total = f + eta / 2 * (g.sum() + lam_H * np.sum(x[:4] ** 2))
        return total / eta, gradient / eta  # in the scale of the noisy part, or small rates stop too early

    def room(x):
        return [C * x[4] / far - eta * math.hypot(*gap) for gap in ((x[0], x[1] - a), (x[2] - a, x[3]))]

    start = np.array([a / 2, a / 2, a / 2, a / 2, 1.1 * eta * a * far / (C * math.sqrt(2))])
    rule = {"type": "ineq", "fun": room}
    # the step of r is a hundredfold: steep constraints otherwise stop the line search early
    options = {"ftol": 1e-15, "maxiter": 2000}
    bounds = [(0, None)] * 5
    return optimize.minimize(
        value, start, jac=True, bounds=bounds, constraints=[rule], method="SLSQP", options=options
    )


# --- the clean configuration ------------------------------------------------------------------------------


def test_the_clean_configuration_of_the_table():
    table = {  # p, m, a, D, ‖w_1 − w_2‖, 2F_2
        0.0: (0.992929, 4.944648, 1.869865, 2.644388, 3.739729, 0.059097),
        0.05: (0.967929, 3.407204, 1.552178, 2.195112, 3.104356, 0.159579),
        0.1: (0.942929, 2.804694, 1.408268, 1.991591, 2.816535, 0.223450),
        0.2: (0.892929, 2.121014, 1.224656, 1.731926, 2.449313, 0.296779),
        0.3: (0.842929, 1.680184, 1.089986, 1.541473, 2.179972, 0.324600),
        0.4: (0.792929, 1.342672, 0.974378, 1.377978, 1.948756, 0.321773),
    }
    clean = md.clean_configuration(list(table), LAM, LAM)
    found = torch.stack([*clean[:5], 2 * clean.curvature], -1)
    torch.testing.assert_close(found, torch.tensor(list(table.values()), dtype=DTYPE), rtol=0, atol=6e-7)
    ratios = [1, 0.830102, 0.753139, 0.654944, 0.582922, 0.521095]
    assert md.limit_ratio(list(table), LAM, LAM).tolist() == pytest.approx(ratios, abs=6e-7)


@given(smoothings, decays, decays)
@settings(deadline=None, max_examples=25)
def test_the_clean_configuration_is_the_minimum_of_the_model_with_non_negative_features(alpha, lam_W, lam_H):
    model = CrossEntropyUFM(2, 1, 2, lam_W, lam_H, bias=None, smoothing=alpha, nonnegative=True)
    minimum = model.minimum()
    clean = md.clean_configuration(alpha, lam_W, lam_H)
    assert bool(clean.trivial) == bool(minimum.trivial)
    assert float(clean.loss) == pytest.approx(float(minimum.loss), rel=1e-12)
    assert float(clean.margin) == pytest.approx(float(minimum.margin), rel=1e-10, abs=1e-12)
    assert 2 * float(clean.length) ** 2 == pytest.approx(float(minimum.norm_H2), rel=1e-10, abs=1e-12)
    weight = float(clean.weight_distance)  # two opposite rows: ‖W‖² = ‖w_1 − w_2‖²/2
    assert weight**2 / 2 == pytest.approx(float(minimum.norm_W2), rel=1e-10, abs=1e-12)


def test_too_much_decay_or_smoothing_leaves_zero_features():
    clean = md.clean_configuration([0.3, 0.3, 0.99], [0.1, 0.3, LAM], [0.1, 0.3, LAM])
    assert clean.trivial.tolist() == [False, True, True]
    for field in (clean.margin, clean.length, clean.distance, clean.weight_distance):
        assert field[0] > 0
        assert field[1:].tolist() == [0, 0]
    assert clean.loss[1:].tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("noise", md.NOISES)
def test_the_curvature_is_that_of_the_loss_of_clean_features(noise):
    clean = md.clean_configuration(0.1, 1e-2, 1e-3)
    a, h = float(clean.length), 1e-3
    U = [[a, 0.0], [0.0, a]]
    values = [float(md.objective(U, r, 0.0, 0.1, 1e-2, 1e-3, noise)) for r in (0.0, h)]
    # the fourth order is h² of the second
    assert (values[1] - values[0]) / h**2 == pytest.approx(float(clean.curvature), rel=1e-5)


# --- noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", md.NOISES)
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0, 50.0])
def test_the_rule_integrates_a_logistic_function_to_rounding(noise, sharpness):
    rule = md.nodes(noise, sharpness)
    assert float(rule.weight.sum()) == pytest.approx(1, abs=1e-14)
    assert float(rule.weight @ rule.c.square()) == pytest.approx(0.5, abs=1e-13)
    f = [special.expit(-(3.0 + sign * sharpness * rule.c.numpy())) for sign in (1, -1)]
    found = float(rule.weight.numpy() @ (f[0] + f[1]) / 2)
    truth = expected(lambda c: special.expit(-(3.0 + sharpness * c)), noise)
    assert found == pytest.approx(truth, abs=1e-11)  # scipy's own accuracy near the steep place


@pytest.mark.parametrize("noise", md.NOISES)
def test_the_accuracy_against_drawn_features(noise):
    n, a = 400_000, 1.3
    for delta in (0.35, 0.6, 1.5):
        r = delta * math.sqrt(2) * a
        if noise == "gaussian":
            v = r / math.sqrt(2) * torch.randn(n, 2, generator=generator(0), dtype=DTYPE)
        else:
            angle = 2 * math.pi * torch.rand(n, generator=generator(0), dtype=DTYPE)
            v = r * torch.stack([angle.cos(), angle.sin()], 1)
        right = (v[:, 0] + a > v[:, 1]).to(DTYPE).mean()
        exact = md.accuracy(delta, noise)
        error = math.sqrt(float(exact * (1 - exact)) / n) + 1e-12
        assert abs(float(right - exact)) < 4 * error
        if delta < 1:  # r per axis instead of r/√2, a plausible slip, is far outside
            slip = stats.norm.cdf(1 / (2 * delta))
            assert abs(float(right) - slip) > 20 * error
        assert float(exact + md.error_rate(delta, noise)) == pytest.approx(1, abs=1e-15)


def test_the_error_rate_keeps_its_digits():
    assert float(md.error_rate(0.02)) == pytest.approx(stats.norm.sf(1 / (math.sqrt(2) * 0.02)), rel=1e-10)
    assert md.error_rate([0.0, 0.5], "circle").tolist() == [0, 0]
    assert md.accuracy(0.0).item() == 1


# --- the solution -------------------------------------------------------------------------------------------

SWEEP = {  # eta: (dilation, relative memorization, accuracy) at α = 0, .05, .1, .2, .3
    0.02: ".05024 .9499 1 .0422 .9612 1 .03849 .9664 1 .03371 .9732 1 .03015 .9781 1",
    0.05: ".1196 .9045 1 .10118 .9218 1 .09262 .9302 1 .08155 .9417 1 .07328 .9508 1",
    0.10: ".21842 .8260 .99940 .18814 .8571 .99991 .17361 .8717 .99998 .15452 .8922 1 .14019 .9094 1",
    0.15: ".30059 .7578 .99067 .26435 .8028 .99626 .24578 .8227 .99799 .22051 .8488 .99933"
    " .20114 .8699 .99978",
    0.20: ".37071 .7009 .97177 .33177 .7557 .98347 .31080 .7803 .98855 .28104 .8113 .99407"
    " .25760 .8356 .99697",
    0.30: ".48580 .6124 .92724 .44623 .6776 .94348 .42357 .7089 .95248 .38875 .7482 .96554"
    " .35952 .7774 .97540",
    0.40: ".58078 .5491 .88829 .54177 .6170 .90409 .51916 .6517 .91340 .48242 .6964 .92864"
    " .44965 .7293 .94209",
}


def test_the_sweep_over_noise():
    rates = torch.tensor(list(SWEEP), dtype=DTYPE)[:, None]
    found = md.solve_md(rates, 1.0, [0.0, 0.05, 0.1, 0.2, 0.3], LAM, LAM)
    table = torch.tensor([[float(x) for x in row.split()] for row in SWEEP.values()], dtype=DTYPE)
    table = table.view(7, 5, 3)
    # the table has five digits, of memorization four
    torch.testing.assert_close(found.dilation, table[..., 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.relative_memorization, table[..., 1], rtol=0, atol=6e-5)
    torch.testing.assert_close(found.accuracy, table[..., 2], rtol=0, atol=1e-5)
    assert (found.dilation.diff(dim=0) > 0).all()
    assert (found.relative_memorization.diff(dim=0) < 0).all()
    assert (found.dilation.diff(dim=1) < 0).all()
    assert (found.relative_memorization.diff(dim=1) > 0).all()


def test_the_sweep_over_expressivity_and_solution_points():
    slopes = [0.3, 0.5, 1, 2, 5, 10]
    rows = {
        0.0: [0.42030, 0.34079, 0.21842, 0.12382, 0.05219, 0.02635],
        0.1: [0.33500, 0.27497, 0.17361, 0.09549, 0.03953, 0.01988],
        0.2: [0.29666, 0.24641, 0.15452, 0.08376, 0.03444, 0.01729],
    }
    for alpha, row in rows.items():
        assert md.solve_md(0.1, slopes, alpha, LAM, LAM).dilation.tolist() == pytest.approx(row, abs=6e-6)
    points = {
        (0.1, 0.0): (1.41223, 0.20368),
        (0.1, 0.1): (1.15890, 0.11564),
        (0.4, 0.0): (1.01721, 0.83378),
        (0.4, 0.1): (0.90484, 0.47776),
        (0.01, 0.0): (1.76029, 0),
        (0.01, 0.1): (1.35670, 0),
    }
    for (eta, alpha), u in points.items():
        assert md.solve_md(eta, 1.0, alpha, LAM, LAM).u.tolist() == pytest.approx(u, abs=6e-6)


def test_gaussian_noise_of_the_table():
    found = md.solve_md([[0.2], [0.4]], 1.0, [0.0, 0.1, 0.3], LAM, LAM, noise="gaussian")
    assert found.dilation.flatten().tolist() == pytest.approx(
        [0.35139, 0.30577, 0.25728, 0.58210, 0.51660, 0.45048], abs=6e-6
    )
    assert found.relative_memorization.flatten().tolist() == pytest.approx(
        [0.66441, 0.76765, 0.83452, 0.55032, 0.64848, 0.73060], abs=6e-6
    )
    assert found.accuracy.flatten().tolist() == pytest.approx(
        [0.97791, 0.98963, 0.99701, 0.88777, 0.91446, 0.94175], abs=6e-6
    )


def test_where_smoothing_does_worse():
    lam = torch.tensor([1e-4, 1e-4, 1e-3, 8e-2], dtype=DTYPE)
    alpha = torch.tensor([0.05, 0.1, 0.05, 0.6], dtype=DTYPE)
    both = md.solve_md(0.4, 0.3, torch.stack([torch.zeros_like(alpha), alpha]), lam, lam).dilation
    assert (both[1] / both[0]).tolist() == pytest.approx([1.0277, 1.0122, 1.0142, 1.083], abs=6e-5)
    slsqp = [constrained(0.4, 0.3, alpha, 1e-4, 1e-4).x[4] for alpha in (0.0, 0.05)]
    D = md.clean_configuration([0.0, 0.05], 1e-4, 1e-4).distance
    assert float(slsqp[1] / D[1] / (slsqp[0] / D[0])) == pytest.approx(1.0277, abs=6e-5)


def test_normalised_memorization_takes_the_advantage_away():
    rates = torch.tensor([1e-3, 5e-3, 1e-2, 0.05, 0.1, 0.2, 0.4], dtype=DTYPE)[:, None]
    found = md.solve_md(rates, 1.0, [0.0, 0.1, 0.2], LAM, LAM, normalised=True)
    ratio = found.dilation / found.dilation[:, :1]
    assert (ratio[:4, 1:] - 1).abs().max() < 1e-3
    table = [0.9995, 0.9993, 0.9996, 0.9989, 1.004, 1.0022, 1.0249, 1.0277]
    assert ratio[3:, 1:].flatten().tolist() == pytest.approx(table, abs=2e-4)
    assert (md.solve_md(rates, 1.0, [0.0, 0.1], LAM, LAM).dilation.diff(dim=1) < -1e-4).all()
    torch.testing.assert_close(found.displacement, found.r)  # the constraint is active at C = 1


CELLS = [
    (0.1, 1.0, 0.0, LAM, LAM, "circle", False),
    (0.4, 0.3, 0.2, LAM, LAM, "circle", False),
    (0.3, 1.0, 0.1, 1e-2, 1e-3, "gaussian", False),
    (0.02, 2.0, 0.3, 1e-3, 2e-2, "gaussian", False),
    (0.2, 1.0, 0.1, LAM, LAM, "circle", True),
    (0.01, 1.0, 0.05, LAM, LAM, "circle", False),
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_solver_against_constrained_optimisation_in_five_variables(cell):
    found = md.solve_md(*cell)
    other = constrained(*cell)
    # SLSQP stops at an objective that no longer falls: half of the digits for the point
    assert float(found.value) == pytest.approx(cell[0] * other.fun, abs=1e-9)
    mirrored = [*found.u.tolist(), *reversed(found.u.tolist())]
    np.testing.assert_allclose([*mirrored, float(found.r)], other.x, rtol=0, atol=2e-4)
    x = np.array([*mirrored, float(found.r)])
    noise = cell[5]
    U, r = x[:4].reshape(2, 2), x[4]
    assert objective_by_hand(x, cell[0], *cell[2:5], noise) == pytest.approx(float(found.value), abs=1e-11)
    assert float(md.objective(U, r, cell[0], *cell[2:5], noise)) == pytest.approx(
        float(found.value), abs=1e-13
    )


@given(st.floats(-4, 0), st.floats(-2, 2), smoothings, decays, decays, st.sampled_from(md.NOISES))
@settings(deadline=None, max_examples=30)
def test_no_feasible_neighbour_is_better(log_eta, log_C, alpha, lam_W, lam_H, noise):
    eta, C = 10**log_eta, 10**log_C
    if md.clean_configuration(alpha, lam_W, lam_H).margin < 1e-3:
        return
    found = md.solve_md(eta, C, alpha, lam_W, lam_H, noise)
    a, D, u = float(found.distance) / math.sqrt(2), float(found.distance), found.u
    steps = torch.tensor(list(itertools.product((-1e-3, 0.0, 1e-3), repeat=2)), dtype=DTYPE) * a
    near = (u + steps).clamp(min=0)
    r = eta * D * (near - torch.tensor([0.0, a], dtype=DTYPE)).norm(dim=1) / C
    U = torch.stack([near, near.flip(1)], 1)
    values = md.objective(U, r, eta, alpha, lam_W, lam_H, noise)
    assert float(values.min()) >= float(found.value) - 1e-12 * (1 + abs(float(found.value)))
    assert float(values[4]) == pytest.approx(float(found.value), rel=1e-12)  # the middle is the point itself


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=5)
def test_extreme_arguments_stay_finite_feasible_and_stationary(seed):
    def spread(low, high):
        return 10 ** (low + (high - low) * torch.rand(200, generator=g, dtype=DTYPE))

    g = generator(seed)
    eta, C, lam_W, lam_H = spread(-12, 0), spread(-8, 8), spread(-14, 1), spread(-14, 1)
    alpha = torch.rand(200, generator=g, dtype=DTYPE)
    good = alpha / 2 + torch.sqrt(2 * lam_W * lam_H) < 0.5 - 1e-6
    eta, C, alpha, lam_W, lam_H = (x[good] for x in (eta, C, alpha, lam_W, lam_H))
    clean = md.clean_configuration(alpha, lam_W, lam_H)
    for noise in md.NOISES:
        found = md.solve_md(eta, C, alpha, lam_W, lam_H, noise)
        assert all(bool(torch.isfinite(field).all()) for field in found)
        assert bool((found.u >= 0).all())
        torch.testing.assert_close(C * found.dilation, found.displacement, rtol=1e-12, atol=0)
        # stationary in x: the price of dilation against the gain, with a quadrature of its own
        m, a = clean.margin, clean.length
        x, y = (found.u / a[:, None]).unbind(-1)
        rho, delta = found.memorization / a, found.dilation
        rule = md.nodes(noise, float((2 * m * delta).max()) + 5)
        z = 2 * (m * delta)[:, None] * rule.c
        tilt = torch.sigmoid(z - m[:, None]) - torch.sigmoid(-z - m[:, None])
        price = m * (tilt @ (rule.weight * rule.c)) + 4 * lam_H * a.square() * delta
        gain = m * (torch.sigmoid(-m * (x - y)) - alpha / 2) - 2 * lam_H * a.square() * x
        left, right = (a / C) * price * x, gain * rho
        # where u_1 has reached μ_1 the gain is a difference that rounds at machine precision of its terms
        assert ((left - right).abs() <= 1e-9 * right.abs() + 1e-11 * (1 + m)).all()


def test_the_solution_depends_on_the_decays_through_two_numbers():
    """On λ_Wλ_H, and on the ratio only through C: scaling a and C alike changes no ratio."""
    base = md.solve_md([0.05, 0.3], 1.0, 0.1, LAM, LAM)
    ratio = 9.0
    other = md.solve_md([0.05, 0.3], math.sqrt(ratio), 0.1, LAM * ratio, LAM / ratio)
    torch.testing.assert_close(other.dilation, base.dilation, rtol=1e-13, atol=0)
    torch.testing.assert_close(other.u, base.u * math.sqrt(ratio), rtol=1e-12, atol=1e-12)
    moved = md.solve_md([0.05, 0.3], 1.0, 0.1, LAM * ratio, LAM / ratio)
    assert ((moved.dilation / base.dilation - 1).abs() > 0.1).all()


def test_the_path_holds_every_solution():
    path = md.noisy_path(0.1, LAM, LAM, points=4001)
    for noise, normalised in itertools.product(md.NOISES, (False, True)):
        found = md.solve_md(
            torch.logspace(-3, 0, 13)[:, None], [0.1, 1.0, 5.0], 0.1, LAM, LAM, noise, normalised
        )
        gaps = torch.cdist(found.u.view(-1, 2), path).min(1).values
        assert gaps.max() < 1e-3  # half the distance of neighbouring points is 3.5e-4
    ends = path[[0, -1]]
    a = float(md.clean_configuration(0.1, LAM, LAM).length)
    torch.testing.assert_close(ends, torch.tensor([[a, 0.0], [0.0, a]], dtype=DTYPE), rtol=0, atol=1e-12)
    assert md.noisy_path([0.0, 0.1], LAM, LAM, points=7).shape == (2, 7, 2)


# --- limits -------------------------------------------------------------------------------------------------


def test_the_small_noise_limit():
    ratios = []
    for eta in (1e-5, 1e-4, 1e-3, 1e-2):
        dilation = md.solve_md(eta, 1.0, [0.0, 0.1], LAM, LAM).dilation
        ratios.append(float(dilation[1] / dilation[0]))
    assert ratios == pytest.approx([0.75315, 0.75325, 0.75424, 0.76145], abs=6e-6)
    assert abs(ratios[1] - float(md.limit_ratio(0.1, LAM, LAM))) < 1e-3
    far = md.solve_md(1e-5, 2.0, [0.0, 0.05, 0.1, 0.3], 1e-2, 1e-3)
    assert (far.dilation[1:] / far.dilation[0]).tolist() == pytest.approx(
        [0.804038, 0.726647, 0.560806], abs=1e-6
    )
    assert (far.r[1:] / far.r[0]).tolist() == pytest.approx([0.646470, 0.528008, 0.314497], abs=1e-6)


@pytest.mark.parametrize("noise", md.NOISES)
@pytest.mark.parametrize("normalised", [False, True])
def test_the_expansion_is_of_the_stated_order(noise, normalised):
    arguments = (1.0, [0.0, 0.1, 0.3], LAM, LAM)
    rates = torch.tensor([4e-4, 1e-4], dtype=DTYPE)[:, None]
    exact = md.solve_md(rates, *arguments, noise=noise, normalised=normalised)
    series = md.small_noise(rates, *arguments, normalised=normalised)
    first = (exact.dilation / series.leading - 1).abs()
    second = (exact.dilation / series.dilation - 1).abs()
    point = (exact.u[..., 0] / series.x - 1).abs()
    # a fourfold smaller rate divides a first order by 4 and a second by 16
    assert (first[0] / first[1]).tolist() == pytest.approx([4, 4, 4], rel=0.02)
    assert (second[0] / second[1]).tolist() == pytest.approx([16, 16, 16], rel=0.05)
    assert (point[0] / point[1]).tolist() == pytest.approx([16, 16, 16], rel=0.05)


def test_the_first_order_of_the_table():
    found = md.solve_md(1e-3, 1.0, [0.0, 0.1], LAM, LAM).u[:, 0]
    series = md.small_noise(1e-3, 1.0, [0.0, 0.1], LAM, LAM).x
    assert found.tolist() == pytest.approx([1.857057, 1.402730], abs=1e-6)
    assert series.tolist() == pytest.approx([1.856789, 1.402682], abs=1e-6)


def test_the_exit_from_the_axis():
    alpha = [0.0, 0.1, 0.2]
    left = md.axis_exit(alpha, LAM, LAM)
    length = md.clean_configuration(alpha, LAM, LAM).length
    table = [0.0319726, 0.0520869, 0.0577901]
    assert (left.pull / length.square()).tolist() == pytest.approx(table, abs=6e-8)
    # the table's rates use the quadratic part of the loss only: they are right to a thousandth
    rate = md.exit_rate(0.05, alpha, LAM, LAM)
    assert rate.tolist() == pytest.approx([1.93421e-4, 1.46923e-4, 1.62294e-4], rel=1e-3)
    for noise, normalised in itertools.product(md.NOISES, (False, True)):
        arguments = (0.3, alpha, LAM, LAM, noise, normalised)
        rate = md.exit_rate(*arguments)
        assert (rate < 0.5).all()
        assert md.solve_md(rate * (1 - 1e-6), *arguments).u[:, 1].tolist() == [0, 0, 0]
        past = md.solve_md(rate * (1 + 1e-6), *arguments)
        assert (past.u[:, 1] > 0).all()
        torch.testing.assert_close(past.u[:, 0] / length, left.position, rtol=1e-5, atol=0)


def test_no_noise_is_the_limit():
    found = md.solve_md([0.0, 1e-9], 1.0, 0.1, LAM, LAM)
    a = float(found.distance[0]) / math.sqrt(2)
    assert found.u[0].tolist() == pytest.approx([a, 0], abs=1e-15)
    assert found.r[0] == 0
    assert found.dilation[0] == 0
    assert found.relative_memorization.tolist() == pytest.approx([1, 1], abs=1e-8)
    assert found.accuracy[0] == 1


# --- shapes and bad input -------------------------------------------------------------------------------


def test_all_arguments_broadcast():
    eta = torch.rand(3, 1, 1, generator=generator(0)) / 2  # float32
    found = md.solve_md(eta, np.array([[0.5], [2.0]]), [0.0, 0.1, 0.2, 0.3], LAM, np.float32(LAM))
    assert found.r.shape == (3, 2, 4)
    assert found.u.shape == (3, 2, 4, 2)
    assert all(field.dtype == DTYPE for field in found)
    single = md.solve_md(float(eta[1, 0, 0]), 2.0, 0.2, LAM, float(np.float32(LAM)))
    assert single.r.shape == ()
    assert single.u.shape == (2,)
    for field, one in zip(found, single, strict=True):
        torch.testing.assert_close(field[1, 1, 2], one, rtol=1e-11, atol=1e-14)
    each = md.solve_md([0.1, 0.2], [1.0, 2.0], [0.0, 0.1], [1e-3, 2e-3], [5e-3, 4e-3])
    again = md.solve_md(0.2, 2.0, 0.1, 2e-3, 4e-3)
    torch.testing.assert_close(each.u[1], again.u)
    empty = md.solve_md(torch.zeros(0), 1.0, 0.1, LAM, LAM)
    assert empty.u.shape == (0, 2)
    assert md.exit_rate(torch.zeros(0), 0.1, LAM, LAM).shape == (0,)


def test_blocks_of_a_large_map_agree_with_single_cells():
    rates, slopes = torch.linspace(0.001, 0.6, 90), torch.logspace(-2, 2, 90)
    found = md.solve_md(rates[:, None], slopes, 0.1, 1e-4, 1e-4, "gaussian")
    for i, j in ((0, 0), (89, 0), (45, 45), (89, 89)):
        one = md.solve_md(rates[i], slopes[j], 0.1, 1e-4, 1e-4, "gaussian")
        assert float(found.dilation[i, j]) == pytest.approx(float(one.dilation), rel=1e-11)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eta": -0.1}, "eta must be a fraction"),
        ({"eta": 1.1}, "eta must be a fraction"),
        ({"eta": math.nan}, "eta must be finite"),
        ({"C_MD": 0.0}, "C_MD must be positive"),
        ({"C_MD": math.inf}, "C_MD must be finite"),
        ({"smoothing": 1.0}, "smoothing must be in"),
        ({"smoothing": -0.1}, "smoothing must be in"),
        ({"smoothing": 0.99}, "clean features are zero"),
        ({"lambda_W": 0.0}, "lambda_W must be positive"),
        ({"lambda_H": -1.0}, "lambda_H must be positive"),
        ({"lambda_H": [LAM, 50.0]}, "clean features are zero"),
        ({"noise": "square"}, "noise must be one of circle, gaussian"),
        ({"noise": None}, "noise must be one of"),
        ({"normalised": 1}, "normalised must be True or False"),
        ({"eta": [0.1, 0.2], "C_MD": [1.0, 2.0, 3.0]}, "must broadcast"),
        ({"eta": "much"}, "eta must be an array of numbers"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    whole = {"eta": 0.1, "C_MD": 1.0, "smoothing": 0.1, "lambda_W": LAM, "lambda_H": LAM} | arguments
    with pytest.raises(ValueError, match=words):
        md.solve_md(**whole)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"U must have shape"):
        md.objective([1.0, 0.0], 0.1, 0.1, 0.1, LAM, LAM)
    with pytest.raises(ValueError, match="r must be at least 0"):
        md.objective([[1.0, 0.0], [0.0, 1.0]], -0.1, 0.1, 0.1, LAM, LAM)
    with pytest.raises(ValueError, match="dilation must not be negative"):
        md.accuracy(-0.1)
    with pytest.raises(ValueError, match="points must be an integer"):
        md.noisy_path(0.1, LAM, LAM, points=1)
    with pytest.raises(ValueError, match="sharpness"):
        md.nodes("circle", -1.0)
    for f in (md.axis_exit, md.noisy_path, md.limit_ratio):
        with pytest.raises(ValueError, match="clean features are zero"):
            f(0.5, 1.0, 1.0)
    for f in (
        lambda: md.small_noise(0.1, 1, 0, LAM, LAM, 0),
        lambda: md.exit_rate(1, 0, LAM, LAM, "circle", 0),
    ):
        with pytest.raises(ValueError, match="normalised"):
            f()
