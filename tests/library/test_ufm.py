"""ufm: hand-derived derivatives against autograd, the closed form against optimisation, the lower bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import losses
from ncbook.frames import frame_distance, gram, orthogonal_frame
from ncbook.protocol import NoClosedForm, Problem, UFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import SquaredLossUFM

sizes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 8))
decays = st.floats(-3.5, 0).map(lambda x: 10**x)


def objective(model, W, H, run):
    """The objective of one run, in the words of the definition and for autograd."""
    lambdas = [x[run] if isinstance(x, torch.Tensor) else x for x in (model.lambda_W, model.lambda_H)]
    labels = torch.arange(model.K).repeat_interleave(model.n)
    fit = ((W @ H - torch.nn.functional.one_hot(labels, model.K).T) ** 2).sum() / (2 * model.N)
    return fit + lambdas[0] / 2 * (W**2).sum() + lambdas[1] / 2 * (H**2).sum()


def optimal_params(model):
    """A global minimiser in closed form: orthogonal frames on the first min(K, d) directions."""
    minimum, r = model.minimum(), min(model.K, model.d)
    directions = torch.zeros(1, model.K, model.d, dtype=torch.float64)
    directions[0, :r, :r] = torch.eye(r)
    features = minimum.singular_values_H[0] / model.n**0.5  # of the class means
    ratio = (model.n * model.lambda_H / model.lambda_W) ** 0.5
    H = (features * directions.mT).repeat_interleave(model.n, 2)
    return UFMParams(ratio * features * directions, H)


@given(sizes, decays, decays, st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_derivatives_are_those_of_autograd(shape, lambda_W, lambda_H, vector, seed):
    lambdas = [lambda_W, lambda_H]
    if vector:
        lambdas = [torch.tensor([x, 2 * x, 0.0], dtype=torch.float64) for x in lambdas]
    model = SquaredLossUFM(*shape, *lambdas)
    params, direction = (model.init(3, generator(seed + i)) for i in range(2))
    value, gradient = model.value_and_grad(params)
    product = model.hvp(params, direction)
    torch.testing.assert_close(model.value(params), value, rtol=0, atol=0)
    torch.testing.assert_close(model.grad(params)[:2], gradient[:2], rtol=0, atol=0)
    for run in range(3):
        leaves = tuple(x[run].clone().requires_grad_() for x in params[:2])
        f = objective(model, *leaves, run)
        first = torch.autograd.grad(f, leaves, create_graph=True)
        along = sum((g * v[run]).sum() for g, v in zip(first, direction[:2], strict=True))
        second = torch.autograd.grad(along, leaves)
        for mine, theirs in zip((value, *gradient[:2], *product[:2]), (f, *first, *second), strict=True):
            torch.testing.assert_close(mine[run], theirs.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lambdas", [(0.3, 0.1), ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), (0.3, [0.3, 0.2, 0.1])])
@pytest.mark.parametrize("itself", [False, True])
def test_accumulating_the_gradient_is_adding_it(lambdas, itself):
    model = SquaredLossUFM(3, 2, 4, *lambdas)
    params, other = (model.init(3, generator(i)) for i in range(2))
    into = params if itself else other
    gradient = model.grad(params)
    expected = [0.7 * x - 0.2 * g for x, g in zip(into[:2], gradient[:2], strict=True)]
    model.accumulate_grad(into, params, 0.7, -0.2)
    for x, y in zip(into[:2], expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-15)


def test_the_fit_is_the_squared_loss_of_the_library():
    model = SquaredLossUFM(3, 4, 5, 0.0, 0.0)
    params = model.init(2, generator(0))
    labels = torch.arange(3).repeat_interleave(4)
    value, gradient = losses.squared(params.W @ params.H, labels)
    torch.testing.assert_close(model.value(params), value)
    torch.testing.assert_close(model.grad(params).H, params.W.mT @ gradient)


@given(sizes, decays, decays, st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_optimisation_finds_the_closed_form(shape, lambda_W, lambda_H, seed):
    """Random sizes, d < K among them, on both sides of q = 1; no start may end anywhere else."""
    model = SquaredLossUFM(*shape, lambda_W, lambda_H)
    minimum, found = model.minimum(), minimise(model, batch=3, seed=seed)
    assert found.converged.all(), found.reason
    # at a gradient of 1e-10 the loss is right to rounding, and so is what the loss determines
    assert found.loss.tolist() == pytest.approx([float(minimum.loss)] * 3, abs=1e-9)
    assert float(found.gap.abs().max()) < 1e-9
    squares = torch.linalg.svdvals(found.params.H).square()[:, : min(model.K, model.d)]
    expected = minimum.singular_values_H.square().expand_as(squares)
    # t - t* is of the size of gradient/curvature (measured: 4e-8 at most); near q = 1 the curvature vanishes
    accuracy = 1e-6 if abs(float(minimum.q) - 1) > 0.05 else 1e-4
    torch.testing.assert_close(squares, expected, rtol=0, atol=accuracy * math.sqrt(lambda_W / lambda_H))


@pytest.mark.parametrize(
    ("K", "n", "d", "lambda_W", "lambda_H", "q", "loss", "singular"),
    [
        (4, 5, 8, 5e-3, 5e-3, 0.0447213595, 0.043721359550, 1.4615293283),
        (10, 20, 16, 1e-3, 5e-4, 0.0316227766, 0.031122776602, 2.0809694459),
        (3, 10, 3, 0.02, 0.01, 0.1341640786, 0.125164078650, 1.9677743659),
        (6, 4, 4, 5e-3, 5e-3, 0.06, 0.205466666667, 1.3711309201),
    ],
)
def test_printed_values(K, n, d, lambda_W, lambda_H, q, loss, singular):
    model = SquaredLossUFM(K, n, d, lambda_W, lambda_H)
    minimum = model.minimum()
    assert float(minimum.q) == pytest.approx(q, abs=1e-10)
    assert float(minimum.loss) == pytest.approx(loss, abs=1e-12)
    if K != 10:
        assert minimum.singular_values_H.tolist() == pytest.approx([singular] * min(K, d), abs=1e-10)
    assert minimum.bias is None
    assert not minimum.trivial
    for wrong in (K * math.sqrt(lambda_W * lambda_H), math.sqrt(n * lambda_W * lambda_H)):  # no n, no K
        assert loss != pytest.approx(wrong - wrong**2 / 2, abs=1e-3)


@given(sizes, decays, decays)
@settings(deadline=None, max_examples=40)
def test_the_constructed_minimiser_is_stationary_and_certified(shape, lambda_W, lambda_H):
    model = SquaredLossUFM(*shape, lambda_W, lambda_H)
    params = optimal_params(model)
    value, gradient = model.value_and_grad(params)
    assert float(value) == pytest.approx(float(model.minimum().loss), abs=1e-14)
    assert max(float(x.abs().max()) for x in gradient[:2]) < 1e-14
    assert float(model.lower_bound(params)) == pytest.approx(float(value), abs=1e-14)


@given(sizes, decays, decays, st.floats(-6, 2), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_the_lower_bound_is_one_wherever_it_is_computed(shape, lambda_W, lambda_H, exponent, seed):
    model = SquaredLossUFM(*shape, lambda_W, lambda_H)
    params = model.init(5, generator(seed), scale=10**exponent)
    # the logits are of size 10^(2 exponent); their rounding is the bound's
    slack = 1e-14 * max(1, 10 ** (2 * exponent))
    assert bool((model.lower_bound(params) <= model.minimum().loss + slack).all())


def test_the_bound_is_as_near_as_the_objective():
    """Both are of second order: ten times nearer, a hundred times smaller."""
    for shape in ((4, 5, 8), (6, 4, 4)):
        model = SquaredLossUFM(*shape, 5e-3, 8e-3)
        best, noise = optimal_params(model), model.init(1, generator(0))
        gaps = []
        for size in (1e-3, 1e-4):
            near = UFMParams(best.W + size * noise.W, best.H + size * noise.H)
            gaps.append(float(model.value(near) - model.lower_bound(near)))
        assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


def test_a_bound_without_the_rank_would_leave_a_gap():
    """For d < K the nuclear norm alone certifies the optimum of d = K, which lies well below."""
    narrow, wide = (SquaredLossUFM(6, 4, d, 5e-3, 5e-3) for d in (4, 6))
    bound = narrow.lower_bound(optimal_params(narrow))
    assert float(bound - wide.minimum().loss) > 0.1


@pytest.mark.parametrize("d", [2, 4, 9])
def test_the_threshold_is_at_q_one(d):
    K, n = 4, 3
    for q, trivial in ((0.97, False), (1.0, True), (1.03, True)):
        lambda_W = q / K / math.sqrt(n)
        model = SquaredLossUFM(K, n, d, lambda_W, lambda_W)
        minimum, found = model.minimum(), minimise(model, batch=4)
        assert bool(minimum.trivial) == trivial or q == 1.0  # there rounding decides, and t is 0 or 1e-16
        assert float(minimum.t) == pytest.approx(max(1 - q, 0), abs=1e-15)
        norm = found.params.H.norm(dim=(1, 2))
        # above the threshold the curvature at zero is lambda (1 - 1/q) = 4e-3: H is zero to 1e-10 over that;
        # at q = 1 the curvature vanishes, the gradient is of third order, and its cube root remains
        bound = {0.97: None, 1.0: 1e-2, 1.03: 1e-6}[q]
        assert bool((norm > 0.1).all() if bound is None else (norm < bound).all())


def test_a_row_of_lambdas_is_a_batch_of_models():
    lambdas = torch.logspace(-3, 0, 7, dtype=torch.float64)
    batch = SquaredLossUFM(3, 4, 5, lambdas, 0.1)
    minimum, found = batch.minimum(), minimise(batch, batch=7)
    assert minimum.singular_values_H.shape == (7, 3)
    assert sorted(set(minimum.trivial.tolist())) == [False, True]
    for i, lambda_W in enumerate(lambdas.tolist()):
        single = SquaredLossUFM(3, 4, 5, lambda_W, 0.1)
        assert float(minimum.loss[i]) == pytest.approx(float(single.minimum().loss), abs=1e-15)
        params = UFMParams(*(x[i : i + 1] for x in found.params[:2]))
        assert float(single.value(params)) == pytest.approx(float(found.loss[i]), abs=1e-15)
        assert float(single.lower_bound(params)) == pytest.approx(float(found.loss[i]), abs=1e-12)
    some = batch.take(torch.tensor([5, 1]))
    assert some.lambda_W.tolist() == lambdas[[5, 1]].tolist()
    assert some.lambda_H == 0.1


def test_the_features_form_an_orthogonal_frame():
    model = SquaredLossUFM(5, 6, 7, 5e-3, 2e-3)
    params = minimise(model).params
    means = params.H[0].unflatten(1, (5, 6)).mean(-1)
    target = gram(orthogonal_frame(5))
    assert float(frame_distance(gram(means), target)) < 1e-7
    assert float(frame_distance(params.W[0] @ params.W[0].T, target)) < 1e-7
    spread = params.H[0].unflatten(1, (5, 6)) - means[..., None]
    assert float(spread.abs().max()) < 1e-7


def test_init_has_the_promised_size():
    model = SquaredLossUFM(3, 4, 50, 0.1, 0.1)
    params = model.init(200, generator(1), scale=2.0)
    # 30,000 entries and more: the standard error of their variance 4/50 is at most 1 %
    for x in params[:2]:
        assert float(x.square().mean()) == pytest.approx(4 / 50, rel=0.05)
    single = model.init(200, generator(1), scale=2.0, dtype=torch.float32)
    torch.testing.assert_close(single.W, params.W.float())
    assert params.b is None
    assert isinstance(model, Problem)


def test_float32_and_a_run_that_is_not_finite():
    model = SquaredLossUFM(3, 2, 4, 0.01, [0.01, 0.02, 0.03])
    params = model.init(3, generator(0), dtype=torch.float32)
    params.H[1, 0, 0] = math.inf
    bound = model.lower_bound(params)
    assert bound.dtype == torch.float32
    assert bound.isnan().tolist() == [False, True, False]
    assert model.value(params).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 5, 8, 0.1, 0.1), "K"),
        ((4, 0, 8, 0.1, 0.1), "n"),
        ((4, 5, 0, 0.1, 0.1), "d"),
        ((4, 5, 8.0, 0.1, 0.1), "d"),
        ((4, 5, 8, -0.1, 0.1), "lambda_W must not be negative"),
        ((4, 5, 8, 0.1, math.nan), "lambda_H"),
        ((4, 5, 8, 0.1, [[0.1]]), "lambda_H"),
        ((4, 5, 8, [], 0.1), "lambda_W"),
        ((4, 5, 8, [0.1, 0.2], [0.1, 0.2, 0.3]), "agree in B"),
    ],
)
def test_wrong_models_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        SquaredLossUFM(*arguments)


def test_wrong_parameters_are_refused():
    model = SquaredLossUFM(3, 2, 4, np.array([0.1, 0.2]), 0.1)
    W, H = torch.zeros(2, 3, 4), torch.zeros(2, 4, 6)
    for params in (
        UFMParams(W, H.mT),
        UFMParams(W.mT, H),
        UFMParams(W, H[:1]),
        UFMParams(W, H, torch.zeros(2, 3)),
        UFMParams(W[:1], H[:1]),
    ):
        with pytest.raises(ValueError, match="params"):
            model.value(params)
    with pytest.raises(ValueError, match="batch must be 2"):
        model.init(3, generator(0))


@pytest.mark.parametrize("lambdas", [(0.0, 0.1), (0.1, 0.0), ([0.1, 0.0], 0.1)])
def test_without_decay_there_is_no_closed_form(lambdas):
    with pytest.raises(NoClosedForm, match="lambda of 0"):
        SquaredLossUFM(3, 2, 4, *lambdas).minimum()
