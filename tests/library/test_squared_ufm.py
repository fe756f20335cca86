"""SquaredLossUFM with a bias, class counts and non-negative features: derivatives, closed forms, the bound.

The grid of models is drawn afresh at each run; a failure names the seed and the model.
"""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook.frames import frame_distance, gram, simplex_etf
from ncbook.protocol import NoClosedForm, UFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import SquaredLossUFM

SEED = random.SystemRandom().randrange(10**6)
KINDS = ("none", "free", "plateau", "beyond", "counts", "counts-free", "nonnegative", "nonnegative-counts")


def drawn(kind, draw, dead=False):
    """A random model of a kind; ``dead`` puts it above the threshold of the trivial solution."""
    K, n, d = draw.randint(2, 6), draw.randint(1, 5), draw.randint(1, 8)
    sizes = [draw.randint(1, 9) for _ in range(K)] if "counts" in kind else [n] * K
    # c = √(λ_W λ_H) from q = N c / √n_k of the largest class, kept away from the threshold
    q = draw.uniform(1.1, 2.0) if dead else 10 ** draw.uniform(-2.5, -0.15)
    c, ratio = q * math.sqrt(max(sizes)) / sum(sizes), 10 ** draw.uniform(-1, 1)
    arguments = {"nonnegative": kind.startswith("nonnegative")}
    if "counts" in kind:
        n, arguments["counts"] = None, sizes
    if kind in ("free", "counts-free"):
        arguments["bias"] = "free"
    if kind in ("plateau", "beyond"):  # the mean direction wakes at λ_b = q/(1−q)
        arguments["bias"] = q / max(1 - q, 0.1) * (draw.uniform(0.2, 0.9) if kind == "plateau" else 3.0)
    return SquaredLossUFM(K, n, d, c * ratio, c / ratio, **arguments)


def objective(model, W, H, b):
    """The objective of one run, in the words of the definition and for autograd."""
    labels = torch.arange(model.K).repeat_interleave(torch.tensor(model.sizes))
    fit = (W @ H + b[:, None] - torch.nn.functional.one_hot(labels, model.K).T).square().sum() / 2
    decays = ((model.lambda_W, W), (model.lambda_H, H), (model.lambda_b or 0.0, b))
    return fit / len(labels) + sum(decay / 2 * x.square().sum() for decay, x in decays)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
decays = st.floats(-3.5, 0).map(lambda x: 10**x)
biases = st.one_of(st.just("free"), decays)


@given(sizes, st.integers(1, 7), decays, decays, biases, st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_derivatives_are_those_of_autograd(counts, d, lambda_W, lambda_H, bias, seed):
    model = SquaredLossUFM(len(counts), None, d, lambda_W, lambda_H, bias, counts)
    params, direction = (model.init(2, generator(seed + i)) for i in range(2))
    value, gradient = model.value_and_grad(params)
    product, logits = model.hvp(params, direction), model.logit_gradient(params)
    for run in range(2):
        leaves = tuple(x[run].clone().requires_grad_() for x in params)
        f = objective(model, *leaves)
        first = torch.autograd.grad(f, leaves, create_graph=True)
        along = sum((g * v[run]).sum() for g, v in zip(first, direction, strict=True))
        second = torch.autograd.grad(along, leaves)
        for mine, theirs in zip((value, *gradient, *product), (f, *first, *second), strict=True):
            torch.testing.assert_close(mine[run], theirs.detach(), rtol=1e-10, atol=1e-10)
        by_chain_rule = logits[run] @ params.H[run].T + lambda_W * params.W[run]
        torch.testing.assert_close(gradient.W[run], by_chain_rule, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", ["free", 0.3, [0.0, 0.1, 2.0]])
@pytest.mark.parametrize("itself", [False, True])
def test_accumulating_the_gradient_is_adding_it(bias, itself):
    model = SquaredLossUFM(3, None, 4, 0.3, [0.1, 0.2, 0.3], bias, counts=(4, 1, 2))
    params, other = (model.init(3, generator(i)) for i in range(2))
    into = params if itself else other
    expected = [0.7 * x - 0.2 * g for x, g in zip(into, model.grad(params), strict=True)]
    model.accumulate_grad(into, params, 0.7, -0.2)
    for x, y in zip(into, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dead", [False, True])
def test_optimisation_finds_the_closed_form(kind, dead):
    """Losses to 1e-9 on a grid drawn afresh; singular values and the bias as far as the loss fixes them."""
    draw = random.Random(f"{SEED} {kind} {dead}")
    for _ in range(2 if dead else 4):
        model = drawn(kind, draw, dead)
        minimum = model.minimum()
        found = minimise(model, batch=4, seed=draw.randrange(10**6))
        where = f"seed {SEED}: {model}"
        assert float(found.loss.min()) == pytest.approx(float(minimum.loss), abs=1e-9), where
        assert float((found.loss - model.lower_bound(found.params)).min()) < 1e-9, where
        assert bool(minimum.trivial) == dead, where
        best = int(found.loss.argmin())
        if model.nonnegative:
            assert float(found.params.H.min()) >= 0, where
            continue  # the projected method stops where its loss is right, not its parameters
        assert float(found.loss.max()) == pytest.approx(float(minimum.loss), abs=1e-9), where
        squares = torch.linalg.svdvals(found.params.H[best])[: min(model.K, model.d)].square()
        # a gradient of 1e-10 over the curvature, which is least near the thresholds
        unit = math.sqrt(model.lambda_W / model.lambda_H)
        torch.testing.assert_close(
            squares / unit, minimum.singular_values_H.square() / unit, rtol=0, atol=1e-4, msg=where
        )
        if minimum.bias is not None:
            torch.testing.assert_close(found.params.b[best], minimum.bias, rtol=0, atol=1e-5, msg=where)


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimiser_is_stationary_certified_and_feasible(kind):
    draw = random.Random(f"{SEED} minimiser {kind}")
    for trial in range(25):
        model = drawn(kind, draw, dead=trial % 5 == 4)
        where = f"seed {SEED}: {model}"
        params, minimum = model.minimiser(None if trial % 3 == 0 else trial), model.minimum()
        value, gradient = model.value_and_grad(params)
        assert float(value) == pytest.approx(float(minimum.loss), abs=1e-14), where
        assert float(model.lower_bound(params)) == pytest.approx(float(value), abs=1e-13), where
        if model.nonnegative:
            assert float(params.H.min()) >= 0, where
        assert max(float(x.abs().max()) for x in gradient if x is not None) < 1e-13, where


@pytest.mark.parametrize("kind", KINDS)
def test_the_lower_bound_is_one_wherever_it_is_computed(kind):
    draw = random.Random(f"{SEED} bound {kind}")
    for _ in range(15):
        model = drawn(kind, draw)
        for exponent in (-3, -0.5, 0, 1, 2):
            params = model.init(8, generator(draw.randrange(10**6)), scale=10**exponent)
            slack = 1e-13 * max(1, 10 ** (2 * exponent))  # the logits' rounding is the bound's
            assert bool((model.lower_bound(params) <= model.minimum().loss + slack).all()), f"{SEED} {model}"


@pytest.mark.parametrize("bias", [None, "free", 0.02, 0.3])
def test_the_bound_is_as_near_as_the_objective(bias):
    """Both are of second order: ten times nearer, a hundred times smaller."""
    model = SquaredLossUFM(4, 5, 8, 5e-3, 8e-3, bias)
    best, noise = model.minimiser(), model.init(1, generator(0))
    gaps = []
    for size in (1e-3, 1e-4):
        near = UFMParams(*(None if x is None else x + size * y for x, y in zip(best, noise, strict=True)))
        gaps.append(float(model.value(near) - model.lower_bound(near)))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


def test_the_bound_knows_of_the_bias():
    """The bound of the model without bias lies above the minimum with one: it would not be a bound."""
    free, none = SquaredLossUFM(4, 5, 8, 5e-3, 5e-3, "free"), SquaredLossUFM(4, 5, 8, 5e-3, 5e-3)
    wrong = none.lower_bound(none.minimiser())
    assert float(wrong) > float(free.minimum().loss) + 0.01
    assert float(free.lower_bound(free.minimiser())) == pytest.approx(float(free.minimum().loss), abs=1e-15)


@pytest.mark.parametrize(
    ("K", "n", "d", "lambdas", "bias", "loss", "b", "mean"),
    [
        (4, 5, 8, (0.005, 0.005), "free", 0.032791019662, 0.25, 0.0),
        (10, 20, 9, (0.001, 0.0005), "free", 0.028010498942, 0.1, 0.0),
        (2, 8, 5, (0.01, 0.02), "free", 0.0384, 0.5, 0.0),
        (4, 5, 8, (0.01, 0.005), 0.02, 0.048385145295, 0.2450980392, 0.0),
        (4, 5, 8, (0.01, 0.005), 0.05, 0.051886545855, 0.2380952381, 0.0),
        (4, 5, 8, (0.01, 0.005), 0.1, 0.056245553203, 0.1581138830, 0.6804330589),
        (4, 5, 8, (0.01, 0.005), 0.5, 0.060245553203, 0.0316227766, 1.8118039088),
        (10, 6, 12, (0.002, 0.001), 0.3, 0.033841016151, 0.0115470054, 2.0817942166),
    ],
)
def test_printed_values(K, n, d, lambdas, bias, loss, b, mean):
    minimum = SquaredLossUFM(K, n, d, *lambdas, bias).minimum()
    assert float(minimum.loss) == pytest.approx(loss, abs=1e-12)
    assert minimum.bias.tolist() == pytest.approx([b] * K, abs=1e-10)
    assert float(minimum.t_mean) * math.sqrt(n) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(
    ("lambda_", "t", "loss"),
    [
        (5e-3, [0.9734834957, 0.9625, 0.9469669914, 0.925], 0.035463203436),
        (2e-2, [0.8939339828, 0.85, 0.7878679656, 0.7], 0.132852813742),
    ],
)
def test_printed_values_of_unequal_classes(lambda_, t, loss):
    minimum = SquaredLossUFM(4, None, 6, lambda_, lambda_, counts=(8, 4, 2, 1)).minimum()
    assert minimum.t.tolist() == pytest.approx(t, abs=1e-10)
    assert float(minimum.loss) == pytest.approx(loss, abs=1e-12)
    squares = [math.sqrt(n) * x for n, x in zip((8, 4, 2, 1), t, strict=True)]
    assert minimum.singular_values_H.square().tolist() == pytest.approx(squares, abs=1e-9)


def test_the_plateau_and_its_end():
    """Up to λ_b = q/(1−q) the features are exactly a simplex, from there on the mean grows."""
    K, n, d, decay = 4, 5, 8, 8e-3
    q = K * math.sqrt(n) * decay
    end = q / (1 - q)
    bias = [0.0, 0.5 * end, 0.999 * end, 1.001 * end, 2 * end, 100.0]
    minimum = SquaredLossUFM(K, n, d, decay, decay, bias).minimum()
    assert (minimum.t_mean > 0).tolist() == [False, False, False, True, True, True]
    found = minimise(SquaredLossUFM(K, n, d, decay, decay, bias), batch=6)
    means = found.params.H.unflatten(2, (K, n)).mean(-1)
    etf = gram(simplex_etf(K))
    distances = [float(frame_distance(gram(x), etf)) for x in means]
    assert max(distances[:2]) < 1e-5  # exact, although the second bias is penalised
    assert distances[4] > 0.1
    expected = [1 / (K * (1 + x)) if x <= end else q / (K * x) for x in bias]
    assert minimum.bias[:, 0].tolist() == pytest.approx(expected, abs=1e-14)
    # at the end of the plateau the curvature of the mean vanishes
    assert found.params.b[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_one_dimension_less_than_classes_keeps_the_simplex_for_every_bias():
    K, n, decay = 4, 5, 8e-3
    model = SquaredLossUFM(K, n, K - 1, decay, decay, [0.01, 0.5, 100.0])
    minimum, found = model.minimum(), minimise(model, batch=3)
    assert minimum.t_mean.tolist() == [0, 0, 0]
    torch.testing.assert_close(found.loss, minimum.loss, rtol=0, atol=1e-12)
    for means in found.params.H.unflatten(2, (K, n)).mean(-1):
        assert float(frame_distance(gram(means), gram(simplex_etf(K)))) < 1e-5


def test_a_row_of_numbers_is_a_batch_of_models():
    bias = torch.tensor([0.0, 0.02, 0.4], dtype=torch.float64)
    batch = SquaredLossUFM(3, 4, 5, [0.01, 0.02, 0.03], 0.02, bias)
    params = batch.init(3, generator(0))
    minimum, bound = batch.minimum(), batch.lower_bound(params)
    for i in range(3):
        single = SquaredLossUFM(3, 4, 5, 0.01 * (i + 1), 0.02, float(bias[i]))
        run = UFMParams(*(x[i : i + 1] for x in params))
        for name in ("loss", "singular_values_H", "bias", "t", "t_mean"):
            torch.testing.assert_close(getattr(minimum, name)[i], getattr(single.minimum(), name))
        assert float(batch.value(params)[i]) == pytest.approx(float(single.value(run)), abs=1e-14)
        assert float(bound[i]) == pytest.approx(float(single.lower_bound(run)), abs=1e-14)
    some = batch.take(torch.tensor([2, 0]))
    assert some.bias.tolist() == [0.4, 0.0]
    assert SquaredLossUFM(3, None, 5, [0.1, 0.2], 0.1, counts=[1, 2, 3]).minimum().t.shape == (2, 3)


def test_equal_counts_are_equal_classes():
    for bias in (None, "free", 0.05):
        one = SquaredLossUFM(3, 4, 5, 0.01, 0.02, bias).minimum()
        two = SquaredLossUFM(3, None, 5, 0.01, 0.02, bias, counts=(4, 4, 4)).minimum()
        torch.testing.assert_close(one.loss, two.loss, rtol=0, atol=1e-15)
        torch.testing.assert_close(one.singular_values_H, two.singular_values_H, rtol=0, atol=1e-7)


def test_a_single_class():
    """Its labels are constant: a free bias fits them alone, without a bias one direction is left."""
    assert float(SquaredLossUFM(1, 4, 2, 0.01, 0.01, "free").minimum().loss) == 0
    assert bool(SquaredLossUFM(1, None, 2, 0.01, 0.01, "free", counts=[4]).minimum().trivial)
    for bias in (None, "free", 0.5):
        model = SquaredLossUFM(1, 4, 2, 0.01, 0.01, bias)
        assert float(minimise(model).loss) == pytest.approx(float(model.minimum().loss), abs=1e-12)


def test_projection_and_constraint():
    model = SquaredLossUFM(3, 2, 4, 0.01, 0.01, nonnegative=True)
    params = model.init(2, generator(0))
    assert float(params.H.min()) >= 0
    moved = params._replace(H=params.H - 0.3)
    projected = model.project(moved)
    assert torch.equal(projected.H, moved.H.clamp(min=0))
    assert torch.equal(projected.W, moved.W)
    assert SquaredLossUFM(3, 2, 4, 0.01, 0.01).project is None
    model = SquaredLossUFM(3, 2, 4, 0.01, 0.01, "free", nonnegative=True)
    found = minimise(model, batch=3)
    unconstrained = SquaredLossUFM(3, 2, 4, 0.01, 0.01, "free").minimum().loss
    assert float(found.loss.min()) > float(unconstrained) + 1e-3  # a simplex cannot be non-negative


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_nonnegative_features_with_a_free_bias(K):
    """An orthogonal frame and centred weights; the threshold moves to √((K−1)/K)."""
    edge = math.sqrt((K - 1) / K)
    for share in (0.2, 0.97, 1.03) if K > 1 else (1.0,):
        decay = max(share * edge, 0.1) / K / math.sqrt(2)
        model = SquaredLossUFM(K, 2, K + 2, decay, decay, "free", nonnegative=True)
        minimum, params = model.minimum(), model.minimiser(5)
        assert bool(minimum.trivial) == (K == 1 or share > 1)
        value, gradient = model.value_and_grad(params)
        assert float(value) == pytest.approx(float(minimum.loss), abs=1e-14)
        assert float(params.H.min()) >= 0
        # stationary under the constraint: no slope in W or b, none below zero in H
        assert max(float(x.abs().max()) for x in (gradient.W, gradient.b)) < 1e-14
        assert float(gradient.H.min()) > -1e-14
        # some starts are caught by a class whose features have vanished; the best is not
        found = minimise(model, batch=12, seed=K)
        assert float(found.loss.min()) == pytest.approx(float(minimum.loss), abs=1e-9)
        assert bool((found.loss > minimum.loss - 1e-12).all())
        assert float(model.lower_bound(params)) <= float(value) + 1e-14


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((3, 2, 4, 0.1, 0.1, "none"), "bias"),
        ((3, 2, 4, 0.1, 0.1, True), "bias"),
        ((3, 2, 4, 0.1, 0.1, -0.1), "bias must not be negative"),
        ((3, 2, 4, 0.1, [0.1, 0.2], [0.1, 0.2, 0.3]), "agree in B"),
        ((3, 2, 4, 0.1, 0.1, None, (1, 2, 3)), "counts"),
        ((3, None, 4, 0.1, 0.1), "counts"),
        ((3, None, 4, 0.1, 0.1, None, (1, 2)), "counts"),
        ((3, None, 4, 0.1, 0.1, None, (1, 0, 2)), r"counts\[1\]"),
        ((3, 2, 4, 0.1, 0.1, None, None, 1), "nonnegative"),
        ((3, 2, 4, math.inf, 0.1), "lambda_W"),
    ],
)
def test_wrong_models_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        SquaredLossUFM(*arguments)


def test_wrong_parameters_are_refused():
    model = SquaredLossUFM(3, None, 4, 0.1, 0.1, 0.2, counts=np.array([3, 1, 2]))
    W, H, b = torch.zeros(2, 3, 4), torch.zeros(2, 4, 6), torch.zeros(2, 3)
    for params in (
        UFMParams(W, H),
        UFMParams(W, H, b[:1]),
        UFMParams(W, H, b.T),
        UFMParams(W, H[..., :5], b),
    ):
        for method in (model.value, model.lower_bound, model.logit_gradient):
            with pytest.raises(ValueError, match="params"):
                method(params)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": None, "counts": (3, 1, 2), "bias": 0.1}, "unequal classes"),
        ({"n": 2, "bias": 0.1, "nonnegative": True}, "non-negative"),
        ({"n": 2, "d": 2, "bias": "free", "nonnegative": True}, "d ≥ K"),
        ({"n": 2, "lambda_H": 0.0, "bias": "free"}, "lambda of 0"),
    ],
)
def test_where_no_formula_is_known(arguments, word):
    model = SquaredLossUFM(**{"K": 3, "d": 4, "lambda_W": 0.1, "lambda_H": 0.1, **arguments})
    for method in (model.minimum, model.minimiser):
        with pytest.raises(NoClosedForm, match=word):
            method()
