"""dufm: hand-derived derivatives against autograd, closed forms against optimisation, the scalar problem."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import dufm, losses
from ncbook.dufm import DeepUFM, DeepUFMParams, ExtendedUFM, LinearUFM
from ncbook.frames import kneser_adjacency, triangular_incidence
from ncbook.protocol import NoClosedForm, Problem
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import SquaredLossUFM

torch_double = {"dtype": torch.float64}
depths = st.integers(1, 4)
decays = st.floats(-3.5, -1).map(lambda x: 10**x)


def leaves(params):
    return [*params.weights, params.H, *([] if params.b is None else [params.b])]


def run_of(x, run):
    return x[run] if isinstance(x, torch.Tensor) else x


def objective(model, leaves, run):
    """The objective of one run, in the words of the definition and for autograd."""
    weights, H = leaves[: model.L], leaves[model.L]
    labels = torch.arange(model.K).repeat_interleave(torch.tensor(model.sizes))
    Z = H
    for i, W in enumerate(weights):
        Z = W @ (torch.relu(Z) if i and model.relu else Z)
    penalty = sum(
        run_of(decay, run) / 2 * (x**2).sum() for decay, x in zip(model.decays, [*weights, H], strict=True)
    )
    if model.decay_b is not None:
        Z = Z + leaves[-1][:, None]
        penalty = penalty + run_of(model.decay_b, run) / 2 * (leaves[-1] ** 2).sum()
    if model.loss == "mse":
        return ((Z - torch.nn.functional.one_hot(labels, model.K).T) ** 2).sum() / (2 * model.N) + penalty
    alpha = float(run_of(model.smoothing, run))
    return torch.nn.functional.cross_entropy(Z.T, labels, label_smoothing=alpha) + penalty


def perturbed(params, size, seed):
    """The same parameters, a few times over, each with Gaussian noise of its own."""
    random = generator(seed)

    def shake(x):
        shape = (4, *x.shape[1:])
        return x + size * torch.randn(shape, generator=random, **torch_double)

    b = None if params.b is None else shake(params.b)
    return DeepUFMParams(tuple(shake(W) for W in params.weights), shake(params.H), b)


@st.composite
def models(draw):
    K, L = draw(st.integers(1, 4)), draw(depths)
    counts = draw(st.one_of(st.none(), st.lists(st.integers(1, 3), min_size=K, max_size=K).map(tuple)))
    width = draw(st.one_of(st.integers(1, 5), st.tuples(*[st.integers(1, 5)] * L)))
    vector = torch.tensor([0.01, 0.2, 0.0], **torch_double)
    numbers = st.one_of(st.floats(0, 0.3), st.just(vector))
    lambdas = draw(st.one_of(numbers, st.tuples(*[numbers] * (L + 1))))
    loss = draw(st.sampled_from(["mse", "ce"]))
    smoothing = 0.0 if loss == "mse" else draw(st.sampled_from([0.0, 0.1, vector]))
    bias = draw(st.one_of(st.none(), st.just("free"), numbers))
    n = None if counts is not None else draw(st.integers(1, 3))
    relu = draw(st.booleans())
    return DeepUFM(
        K, n, L, width, lambdas, relu=relu, loss=loss, bias=bias, smoothing=smoothing, counts=counts
    )


@given(models(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_derivatives_are_those_of_autograd(model, seed):
    params, direction = (model.init(3, generator(seed + i), scale=1.5) for i in range(2))
    value, gradient = model.value_and_grad(params)
    product = model.hvp(params, direction)
    torch.testing.assert_close(model.value(params), value, rtol=0, atol=0)
    torch.testing.assert_close(model.grad(params).H, gradient.H, rtol=0, atol=0)
    for run in range(3):
        at = [x[run].clone().requires_grad_() for x in leaves(params)]
        f = objective(model, at, run)
        first = torch.autograd.grad(f, at, create_graph=True, materialize_grads=True)
        along = sum((g * v[run]).sum() for g, v in zip(first, leaves(direction), strict=True))
        second = (
            torch.autograd.grad(along, at, materialize_grads=True)
            if along.requires_grad
            else [torch.zeros_like(x) for x in at]
        )
        mine = [value[run], *(x[run] for x in leaves(gradient)), *(x[run] for x in leaves(product))]
        for x, y in zip(mine, [f, *first, *second], strict=True):
            torch.testing.assert_close(x, y.detach(), rtol=1e-10, atol=1e-10)


@given(models(), st.booleans(), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_accumulating_the_gradient_is_adding_it(model, itself, seed):
    params, other = (model.init(3, generator(seed + i)) for i in range(2))
    into = params if itself else other
    gradient = model.grad(params)
    expected = [0.7 * x - 0.2 * g for x, g in zip(leaves(into), leaves(gradient), strict=True)]
    model.accumulate_grad(into, params, 0.7, -0.2)
    for x, y in zip(leaves(into), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_the_gradient_in_the_logits_is_that_of_the_losses(loss):
    model = DeepUFM(3, None, 2, (4, 5), 0.1, loss=loss, bias="free", counts=(3, 1, 2))
    params = model.init(2, generator(0))
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    Z = params.weights[1] @ torch.relu(params.weights[0] @ params.H) + params.b[..., None]
    function = losses.squared if loss == "mse" else losses.cross_entropy
    torch.testing.assert_close(model.logit_gradient(params), function(Z, labels)[1])


def test_there_is_no_activation_on_the_features_nor_on_the_logits():
    """Features and logits of both signs pass; between the layers only the positive part does."""
    model = DeepUFM(1, 1, 2, 1, 0.0)
    minus, plus = -torch.ones(1, 1, 1, **torch_double), torch.ones(1, 1, 1, **torch_double)
    for W_1, W_2, H, logit in ((minus, minus, minus, -1), (plus, plus, minus, 0), (minus, plus, minus, 1)):
        value = model.value(DeepUFMParams((W_1, W_2), H))
        assert float(value) == (logit - 1) ** 2 / 2


# ------------------------------------------------------------------ the scalar problem


@given(st.integers(1, 8), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_the_larger_root_is_one(L, share):
    q = share * dufm.existence_limit(L)
    t = float(dufm.larger_root(q, L))
    assert (L - 1) / (2 * L) <= t <= 1
    assert (1 - t) * t ** ((L - 1) / (L + 1)) == pytest.approx(q, abs=1e-15)
    # phi rises on both sides: it is a local minimum, unlike the smaller root
    if share <= 0.99:
        assert int(dufm.phi([t - 1e-4, t, t + 1e-4], q, L).argmin()) == 1


@given(st.floats(1e-6, 1), st.integers(2, 7))
@settings(deadline=None, max_examples=60)
def test_the_root_is_accurate(distance, L):
    """Against a root solved for in long double near the fold, where the derivative of the root diverges."""
    q = dufm.existence_limit(L) * (1 - distance)
    power = np.longdouble(L - 1) / (L + 1)
    low, high = np.longdouble(L - 1) / (2 * L), np.longdouble(1)
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) * middle**power > q else (low, middle)
    t = float(low)
    slope = float(abs(power * low ** (power - 1) - (power + 1) * low**power))
    # a rounding of q moves the root by rounding/slope, which no float64 formula can avoid
    assert float(dufm.larger_root(q, L)) == pytest.approx(t, abs=2e-16 + 4e-16 / slope)


@pytest.mark.parametrize(
    ("L", "q_star", "q_s"),
    [
        (1, 1, 1),
        (2, 0.396850262992, 0.472470393711),
        (3, 0.272165526976, 0.384900179460),
        (4, 0.210366589771, 0.346975474207),
        (5, 0.172354775203, 0.325730113991),
    ],
)
def test_thresholds(L, q_star, q_s):
    assert dufm.threshold(L) == pytest.approx(q_star, abs=1e-12)
    assert dufm.existence_limit(L) == pytest.approx(q_s, abs=1e-12)
    # at the threshold the two minima are equally low, at t = (L-1)/L
    assert float(dufm.larger_root(dufm.threshold(L), L)) == pytest.approx((L - 1) / L, abs=1e-15)
    assert float(dufm.phi((L - 1) / L, dufm.threshold(L), L)) == pytest.approx(0.5, abs=1e-15)
    below, at, above = dufm.output_scale([q_star * (1 - 1e-9), dufm.threshold(L), q_star * (1 + 1e-9)], L)
    assert float(below) >= (L - 1) / L
    assert float(at) == float(above) == 0
    assert math.isnan(float(dufm.larger_root(1.001 * q_s, L)))
    assert not math.isnan(float(dufm.larger_root(dufm.existence_limit(L), L)))


def test_the_output_scale_is_the_best_of_a_grid():
    t = torch.linspace(0, 1.2, 240_001, **torch_double)
    for L in range(1, 6):
        for q in (0.02, 0.15, 0.9 * dufm.threshold(L), 1.1 * dufm.threshold(L), 1.5):
            values = dufm.phi(t, q, L)
            best = float(dufm.output_scale(q, L))
            assert float(dufm.phi(best, q, L)) <= float(values.min()) + 1e-15
            assert best == pytest.approx(float(t[values.argmin()]), abs=1e-5)


def test_two_layers_are_a_quartic():
    for q in (1e-3, 0.1, 0.39, 0.47):
        x = np.roots([1, 0, 0, -1, q])
        root = max(x[np.abs(x.imag) < 1e-9].real)
        assert float(dufm.larger_root(q, 2)) == pytest.approx(root**3, abs=1e-13)


@pytest.mark.parametrize("name", ["larger_root", "output_scale", "phi"])
@pytest.mark.parametrize("q", [-0.1, math.nan, math.inf, "a"])
def test_the_scalar_tools_refuse(name, q):
    with pytest.raises(ValueError, match="q must"):
        getattr(dufm, name)(*((0.5, q) if name == "phi" else (q,)), L=2)
    with pytest.raises(ValueError, match="L must be an integer"):
        getattr(dufm, name)(*((0.5, 0.1) if name == "phi" else (0.1,)), L=0)
    assert dufm.output_scale(np.float32(0.1), 2).dtype == torch.float64
    assert dufm.output_scale([], 2).shape == (0,)


# ------------------------------------------------------------------ closed forms


@given(
    st.integers(1, 5), st.integers(1, 4), depths, st.floats(0.05, 1.3), st.booleans(), st.integers(0, 10**6)
)
@settings(deadline=None, max_examples=25)
def test_optimisation_from_near_the_minimiser_stays_at_its_value(K, n, L, share, bias, seed):
    """Random sizes (narrow ones too), decays of all factors different, q below and above the threshold.

    Random starts end in partial-rank minima near the threshold, so the starts are warm: the predicted
    minimiser (above the threshold: the frame that would be it below), shaken.
    """
    random = np.random.default_rng(seed)
    widths = [int(x) for x in random.integers(max(1, K - 2), K + 3, L)]
    q = share * dufm.threshold(L)
    root = q / (K * n ** (1 / (L + 1)))
    spread = np.exp(random.uniform(-1, 1, L + 1))
    lambdas = [float(x) for x in root * spread / spread.prod() ** (1 / (L + 1))]
    decay_b = float(random.choice([0, 0.05, 3])) if bias else None
    model = LinearUFM(K, n, widths, lambdas, bias=decay_b)
    predicted = model.minimum()
    assert float(predicted.q if K > 1 or not bias else q) == pytest.approx(q, rel=1e-12)
    value, gradient = model.value_and_grad(predicted.params)
    assert float(value) == pytest.approx(float(predicted.loss), abs=1e-15)
    assert max(float(x.abs().max()) for x in leaves(gradient)) < 1e-14
    found = minimise(model, start=perturbed(predicted.params, 0.03, seed))
    if share < 0.95 or share > 1.05:  # a shaken minimiser comes back; without a bias every one of them does
        excess = found.loss - predicted.loss
        assert float((excess.min() if bias else excess.max()).abs()) < 1e-9
    random_starts = minimise(model, batch=4, seed=seed, steps=800)
    assert float(torch.cat([found.loss, random_starts.loss]).min() - predicted.loss) > -1e-12
    if L == 1:  # one layer has no local minima: every start arrives
        assert float((random_starts.loss - predicted.loss).abs().max()) < 1e-9


@pytest.mark.parametrize("L", [2, 3, 4])
@pytest.mark.parametrize("ratio", [0.9, 0.995, 1.005])
def test_both_sides_of_the_threshold(L, ratio):
    """A frame near the threshold is a local minimum on both sides, the global one below only."""
    K, n = 4, 3
    q = ratio * dufm.threshold(L)
    t = dufm.larger_root(q, L)
    model = LinearUFM(K, n, [8] * L, q / (K * n ** (1 / (L + 1))))
    below = LinearUFM(K, n, [8] * L, 0.9 * dufm.threshold(L) / (K * n ** (1 / (L + 1))))
    found = minimise(model, start=perturbed(below.minimum().params, 1e-3, 0))
    torch.testing.assert_close(found.loss, dufm.phi(t, q, L).expand(4), rtol=0, atol=1e-9)
    assert bool(model.minimum().trivial) == (ratio > 1)
    assert float(model.minimum().loss) == pytest.approx(min(float(found.loss[0]), 0.5), abs=1e-9)


@pytest.mark.parametrize(
    ("K", "n", "widths", "lambdas", "bias", "q", "t", "loss", "values"),
    [
        (4, 5, [8], (0.005, 0.005), None, 0.0447213595, 0.9552786405, 0.043721359550, None),
        (4, 5, [8], (0.005, 0.01), 0.1, 0.0632455532, 0.9367544468, 0.056245553203, None),
        (4, 5, [8], (0.005, 0.01), 0.05, 0.0632455532, 0.9367544468, 0.051886545855, None),
        (6, 4, [4], (0.005, 0.005), None, 0.06, 0.94, 0.205466666667, None),
        (10, 20, [9], (0.0005, 0.001), "free", 0.0316227766, 0.9683772234, 0.028010498942, None),
        (4, 5, [8, 8], (0.005, 0.005, 0.005), None, 0.0341995189, 0.9653966563, 0.050707624222, None),
        (
            5,
            6,
            [9, 6],
            (0.002, 0.01, 0.001),
            None,
            0.0246621207,
            0.9751299733,
            0.036686521783,
            (1.5572895828, 0.6964410736, 2.2023400485),
        ),
        (4, 5, [8, 8], (0.005, 0.005, 0.005), "free", 0.0341995189, 0.9653966563, 0.038030718167, None),
        (4, 5, [8, 8], (0.005, 0.005, 0.005), 0.5, 0.0341995189, 0.9653966563, 0.050400590615, None),
        (4, 5, [8, 8], (0.005, 0.005, 0.005), 0.09, 0.0341995189, 0.9653966563, 0.048351819084, None),
        (4, 5, [8, 8], (0.005, 0.005, 0.005), 0.0944, 0.0341995189, 0.9653966563, 0.048805385721, None),
        (
            3,
            4,
            [6, 6, 6],
            (0.001, 0.002, 0.005, 0.004),
            None,
            0.0106696765,
            0.9892726302,
            0.021282124972,
            (1.8808059771, 1.3299306605, 0.8411220034, 0.9404029885),
        ),
        (3, 4, [6] * 4, (0.002,) * 5, None, 0.0079170475, 0.9920449219, 0.019761128618, (1.1468649146,) * 5),
    ],
)
def test_printed_values(K, n, widths, lambdas, bias, q, t, loss, values):
    found = LinearUFM(K, n, widths, lambdas, bias=bias).minimum()
    assert float(found.q) == pytest.approx(q, abs=1e-10)
    assert float(found.t) == pytest.approx(t, abs=1e-10)
    assert float(found.loss) == pytest.approx(loss, abs=1e-12)
    assert found.threshold == dufm.threshold(len(widths))
    assert not found.trivial
    if values is not None:
        assert [float(x[0]) for x in found.singular_values] == pytest.approx(values, abs=1e-10)
    L = len(widths)  # forgetting a weight matrix in the exponent, or n, or K, is seen
    for wrong in (dufm.phi(t, q, L + 1), dufm.phi(t, q / K, L), dufm.phi(t, q / n ** (1 / (L + 1)), L)):
        assert float(wrong) != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "lambdas", "scales", "loss"),
    [
        ((8, 4, 2, 1), (0.005,) * 2, (0.9734834957, 0.9625, 0.9469669914, 0.925), 0.035463203436),
        (
            (12, 6, 2, 1),
            (0.015,) * 3,
            (0.938620062, 0.9012364235, 0.7848752682, 0.6331641397),
            0.136117989705,
        ),
        ((5, 20, 5, 10), (0.004,) * 4, (0.950929751, 0.9829358406, 0.950929751, 0.971127671), 0.054601496539),
    ],
)
def test_unequal_classes(counts, lambdas, scales, loss):
    model = LinearUFM(4, None, [6] * (len(lambdas) - 1), lambdas, counts=counts)
    found = model.minimum()
    assert found.t.tolist() == pytest.approx(scales, abs=1e-9)
    assert float(found.loss) == pytest.approx(loss, abs=1e-12)
    value, gradient = model.value_and_grad(found.params)
    assert float(value) == pytest.approx(loss, abs=1e-12)
    assert max(float(x.abs().max()) for x in leaves(gradient)) < 1e-15
    best = minimise(model, batch=20, seed=3).loss.min()
    assert float(best) == pytest.approx(loss, abs=1e-9)


def test_the_largest_classes_are_fitted_where_width_is_short():
    model = LinearUFM(4, None, [5, 2], 5e-3, counts=(2, 8, 1, 4))
    found = model.minimum()
    assert (found.t > 0).tolist() == [False, True, False, True]
    best = minimise(model, batch=60, seed=1, scale=1.0).loss.min()
    assert float(best) == pytest.approx(float(found.loss), abs=1e-9)
    values = torch.linalg.svdvals(found.params.weights[0])[0, :2]
    torch.testing.assert_close(values, found.singular_values[0], rtol=1e-12, atol=0)


def test_the_mean_direction_jumps_where_the_decay_of_the_bias_says():
    K, n, root = 4, 5, 5e-3
    q = K * n ** (1 / 3) * root
    switch = q / (dufm.threshold(2) - q)
    assert switch == pytest.approx(0.0943, abs=1e-4)
    decays = torch.tensor([0.999 * switch, 1.001 * switch], **torch_double)
    found = LinearUFM(K, n, (8, 8), root, bias=decays).minimum()
    assert float(found.t_mean[0]) == 0
    assert float(found.t_mean[1]) == pytest.approx(0.5, abs=1e-2)
    assert float(found.bias[0]) == pytest.approx(1 / (K * (1 + float(decays[0]))), abs=1e-15)
    # the loss is continuous there, though the solution is not
    assert float(found.loss.diff()) == pytest.approx(0, abs=2e-5)


@given(
    st.integers(1, 5),
    depths,
    st.booleans(),
    st.one_of(decays, st.just(torch.tensor([1e-3, 0.5], **torch_double))),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_the_collapse_is_what_it_says(K, L, relu, lambdas, unequal):
    counts = tuple(range(1, K + 1)) if unequal else None
    model = DeepUFM(K, None if unequal else 3, L, K + 1, lambdas, relu=relu, counts=counts)
    found = model.collapse()
    value, gradient = model.value_and_grad(found.params)
    torch.testing.assert_close(value, found.loss.expand_as(value), rtol=0, atol=1e-15)
    # with ReLU the closed units lie at the kink; the one-sided derivatives vanish there as well
    assert max(float(x.abs().max()) for x in leaves(gradient)) < 1e-14
    ranks = found.ranks.reshape(-1, L + 1)
    for run in range(len(value)):
        level = found.params.H[run]
        for i, W in enumerate((*found.params.weights, None)):
            assert int(torch.linalg.matrix_rank(level)) == int(ranks[run, i])
            assert float(level.min()) >= 0
            if W is not None:
                level = W[run] @ (torch.relu(level) if i and relu else level)
    assert (found.trivial == (found.ranks[..., 0] == 0)).all()


def test_relu_with_two_layers_reaches_the_value_of_the_collapse_and_stops_at_kinks():
    model = ExtendedUFM(4, 5, (8, 20), (2e-3, 3e-3, 5e-3))
    predicted = float(model.minimum().loss)
    assert predicted == pytest.approx(0.03165228137546, abs=1e-13)
    found = minimise(model, batch=16, seed=0)
    gaps = found.loss - predicted
    assert float(gaps.min()) > -1e-12
    assert float(gaps.min()) < 1e-9
    assert int((gaps < 1e-6).sum()) >= 4  # most starts arrive; the others rest above
    assert "stagnation" in found.reason
    plain = ExtendedUFM(4, 5, (8, 20), (2e-3, 3e-3, 5e-3), relu=False)
    assert float(plain.minimum().loss) == predicted
    assert plain.L == 2


def test_relu_can_go_below_the_collapse():
    """Ten classes as the edges of the complete graph on five vertices, three weight matrices: rank five."""
    model = DeepUFM(10, 1, 3, 10, 4e-3)
    collapse = model.collapse()
    assert float(collapse.loss) == pytest.approx(0.0791833, abs=1e-7)
    T, A = triangular_incidence(5), kneser_adjacency(5).double()
    U, s, Vh = torch.linalg.svd(T.double(), full_matrices=False)
    factors = [U * s.sqrt(), 0.5 - T.double().T, torch.linalg.inv(A), s.sqrt()[:, None] * Vh]
    product = math.prod(float(x.norm()) for x in factors)
    t = float(dufm.output_scale(4e-3 * product**0.5, 3))
    balanced = [x / x.norm() * (t * product) ** 0.25 for x in factors]
    shapes = [(10, 10)] * 4
    padded = [
        torch.nn.functional.pad(x, (0, c - x.shape[1], 0, r - x.shape[0]))[None]
        for x, (r, c) in zip(balanced, shapes, strict=True)
    ]
    value = model.value(DeepUFMParams(tuple(padded[:3]), padded[3]))
    assert float(value) == pytest.approx(float(dufm.phi(t, 4e-3 * product**0.5, 3)), abs=1e-14)
    assert float(value) < float(collapse.loss) - 1e-3
    with pytest.raises(NoClosedForm, match="upper bound"):
        model.minimum()


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (DeepUFM(3, 2, 2, 4, 0.1, loss="ce"), "cross-entropy"),
        (DeepUFM(3, 2, 2, 4, 0.1, loss="ce", relu=False), "cross-entropy"),
        (DeepUFM(3, 2, 2, 4, 0.1, bias="free"), "bias"),
        (DeepUFM(3, 2, 2, (4, 2), 0.1), "width"),
        (DeepUFM(3, 2, 3, 4, 0.1), "three or more"),
        (DeepUFM(3, None, 2, 4, 0.1, counts=(1, 2, 3)), "unequal"),
        (LinearUFM(3, 2, [4, 4], (0.1, 0.0, 0.1)), "lambda of 0"),
        (LinearUFM(3, None, [4, 4], 0.1, bias="free", counts=(1, 2, 3)), "unequal"),
    ],
)
def test_what_has_no_closed_form_says_so(model, word):
    with pytest.raises(NoClosedForm, match=word):
        model.minimum()


def test_collapse_refuses_a_bias_and_a_narrow_level():
    with pytest.raises(NoClosedForm, match="without bias"):
        DeepUFM(3, 2, 2, 4, 0.1, bias=0.1).collapse()
    with pytest.raises(NoClosedForm, match="at least K = 3 at every level"):
        DeepUFM(3, 2, 2, (4, 2), 0.1).collapse()


def test_a_row_of_lambdas_is_a_batch_of_models():
    row = torch.logspace(-3, 0, 5, **torch_double)
    batch = LinearUFM(3, 4, (5, 4), (row, 0.1, 2 * row), bias=row)
    found, predicted = minimise(batch, batch=5, steps=300), batch.minimum()
    assert sorted(set(predicted.trivial.tolist())) == [False, True]
    for i, x in enumerate(row.tolist()):
        single = LinearUFM(3, 4, (5, 4), (x, 0.1, 2 * x), bias=x)
        one = single.minimum()
        assert float(predicted.loss[i]) == pytest.approx(float(one.loss), abs=1e-15)
        assert float(predicted.bias[i]) == pytest.approx(float(one.bias), abs=1e-15)
        torch.testing.assert_close(predicted.singular_values[1][i], one.singular_values[1])
        params = DeepUFMParams(
            tuple(W[i : i + 1] for W in found.params.weights),
            found.params.H[i : i + 1],
            found.params.b[i : i + 1],
        )
        assert float(single.value(params)) == pytest.approx(float(found.loss[i]), abs=1e-14)
    some = batch.take(torch.tensor([4, 1]))
    assert isinstance(some, LinearUFM)
    assert some.decays[0].tolist() == row[[4, 1]].tolist()
    assert some.decays[1] == 0.1
    torch.testing.assert_close(some.minimum().loss, predicted.loss[[4, 1]])
    with pytest.raises(ValueError, match="2 runs"):
        some.value(found.params)


def test_one_layer_is_the_plain_model():
    plain = SquaredLossUFM(4, 3, 6, 5e-3, 2e-3)
    deep = DeepUFM(4, 3, 1, 6, (5e-3, 2e-3))
    params = plain.init(3, generator(0))
    value, gradient = deep.value_and_grad(DeepUFMParams((params.W,), params.H))
    expected, slopes = plain.value_and_grad(params)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient.weights[0], slopes.W)
    torch.testing.assert_close(gradient.H, slopes.H)
    assert float(deep.minimum().loss) == pytest.approx(float(plain.minimum().loss), abs=1e-15)


def test_init_has_the_promised_size():
    model = DeepUFM(3, 4, 2, (50, 20), 0.1, bias="free")
    params = model.init(200, generator(1), scale=2.0)
    # 12,000 entries and more: the standard error of a variance is at most 1.3 %; 600 for the bias: 6 %
    for x, fan_in, rel in zip(leaves(params), (50, 20, 50, 20), (0.05, 0.05, 0.05, 0.25), strict=True):
        assert float(x.square().mean()) == pytest.approx(4 / fan_in, rel=rel)
    single = model.init(200, generator(1), scale=2.0, dtype=torch.float32)
    torch.testing.assert_close(single.H, params.H.float())
    assert isinstance(model, Problem)
    value, gradient = model.value_and_grad(single)
    assert value.dtype == gradient.H.dtype == torch.float32
    torch.testing.assert_close(value.double(), model.value(params), rtol=1e-5, atol=1e-5)


def test_first_order_methods_take_the_steps_of_torch():
    """Gradient descent and momentum, in place, against autograd's trajectory."""
    model = DeepUFM(3, 2, 3, 5, (0.01, 0.02, 0.03, 0.04), bias=0.05)
    start = model.init(4, generator(2))
    for method, options in (("gd", {"lr": 0.1}), ("momentum", {"lr": 0.05, "momentum": 0.9})):
        found = minimise(
            model, start=start, method=method, steps=40, lr=options["lr"], schedule="constant", tol=0
        )
        for run in range(4):
            at = [x[run].clone().requires_grad_() for x in leaves(start)]
            optimiser = torch.optim.SGD(at, **options)
            for _ in range(40):
                optimiser.zero_grad()
                objective(model, at, run).backward()
                optimiser.step()
            for x, y in zip(leaves(found.params), at, strict=True):
                torch.testing.assert_close(x[run], y.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"K": 0}, "K"),
        ({"n": 0}, "n"),
        ({"n": None}, "either n or counts"),
        ({"L": 0}, "L must"),
        ({"L": 2.0}, "L must"),
        ({"width": 0}, "width"),
        ({"width": (4, 5, 6)}, "width must be one integer or the 2"),
        ({"width": (4, 0)}, r"width\[1\]"),
        ({"lambdas": -0.1}, "lambdas must not be negative"),
        ({"lambdas": math.nan}, "lambdas"),
        ({"lambdas": (0.1, 0.1)}, "lambdas must be one number or 3 of them"),
        ({"lambdas": (0.1, -0.1, 0.1)}, r"lambdas\[1\] must not be negative"),
        ({"lambdas": (0.1, [0.1, 0.2], [0.1, 0.2, 0.3])}, "agree in B"),
        ({"lambdas": np.ones((2, 3))}, "lambdas"),
        ({"loss": "hinge"}, "loss must be 'mse' or 'ce'"),
        ({"bias": True}, "bias"),
        ({"bias": "none"}, "bias"),
        ({"smoothing": 0.1}, "smoothing belongs to"),
        ({"smoothing": 1.5, "loss": "ce"}, "smoothing must lie"),
        ({"counts": (1, 2, 3)}, "either n or counts"),
    ],
)
def test_wrong_models_are_refused(arguments, word):
    usual = {"K": 3, "n": 2, "L": 2, "width": 4, "lambdas": 0.1}
    with pytest.raises(ValueError, match=word):
        DeepUFM(**(usual | arguments))


@pytest.mark.parametrize("widths", [4, [], (), "ab"])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(ValueError, match="width"):
        LinearUFM(3, 2, widths, 0.1)
    with pytest.raises(ValueError, match="width"):
        ExtendedUFM(3, 2, widths, 0.1)
    with pytest.raises(ValueError, match="two dimensions"):
        ExtendedUFM(3, 2, (4, 4, 4), 0.1)


def test_wrong_parameters_are_refused():
    model = DeepUFM(3, 2, 2, (4, 5), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="batch must be 2"):
        model.init(3, generator(0))
    params = model.init(2, generator(0))
    wrong = [
        params._replace(b=torch.zeros(2, 3, **torch_double)),
        params._replace(H=params.H[:, :, :5]),
        params._replace(weights=params.weights[:1]),
        params._replace(weights=params.weights[::-1]),
        params._replace(H=params.H[:1]),
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match="params must"):
            model.value(bad)
    free = DeepUFM(3, 2, 2, (4, 5), 0.1, bias="free")
    with pytest.raises(ValueError, match="params must"):
        free.value(params)
    assert bool(model.value(params._replace(H=params.H * math.nan)).isnan().all())
