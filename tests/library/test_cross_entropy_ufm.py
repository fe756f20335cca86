"""ufm.CrossEntropyUFM: derivatives against autograd, closed forms against optimisation, lower bounds."""

import math
import random
import secrets

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import losses
from ncbook.frames import frame_distance, gram, simplex_etf
from ncbook.protocol import NoClosedForm, Problem, UFMParams, optional_method
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import CrossEntropyUFM

sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
decays = st.floats(-3.5, 0).map(lambda x: 10**x)
biases = st.sampled_from([None, "free", 0.07])
smoothings = st.sampled_from([0.0, 0.1, 0.6])


def of_run(x, run):
    return x[run] if isinstance(x, torch.Tensor) else x


def objective(model, W, H, b, run):
    """The objective of one run, in the words of the definition and for autograd."""
    lambda_W, lambda_H, alpha = (of_run(x, run) for x in (model.lambda_W, model.lambda_H, model.smoothing))
    labels = torch.arange(model.K).repeat_interleave(torch.tensor(model.sizes))
    Z = W @ H if b is None else W @ H + b[:, None]
    Y = (1 - alpha) * torch.nn.functional.one_hot(labels, model.K).T.double() + alpha / model.K
    f = -(Y * Z.log_softmax(0)).sum() / model.N
    f = f + lambda_W / 2 * (W**2).sum() + lambda_H / 2 * (H**2).sum()
    return f if b is None else f + of_run(model.lambda_b, run) / 2 * (b**2).sum()


def tensors(params):
    return [x for x in params if x is not None]


def assert_derivatives_match(model, batch, seed):
    params, direction = (model.init(batch, generator(seed + i)) for i in range(2))
    value, gradient = model.value_and_grad(params)
    product = model.hvp(params, direction)
    torch.testing.assert_close(model.value(params), value, rtol=0, atol=0)
    for x, y in zip(tensors(model.grad(params)), tensors(gradient), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)  # softmax and exp of log_softmax
    held = model.classifier is not None
    for run in range(batch):
        leaves = [x[run].clone().requires_grad_() for x in tensors(params)]
        f = objective(model, *leaves, *[None] * (3 - len(leaves)), run)
        free = leaves[1:] if held else leaves
        first = torch.autograd.grad(f, free, create_graph=True)
        along = sum((g * v[run]).sum() for g, v in zip(first, tensors(direction)[held:], strict=True))
        second = torch.autograd.grad(along, free)
        mine = (value, *tensors(gradient)[held:], *tensors(product)[held:])
        for x, y in zip(mine, (f, *first, *second), strict=True):
            torch.testing.assert_close(x[run], y.detach(), rtol=1e-10, atol=1e-10)
    if held:
        assert not gradient.W.any()
        assert not product.W.any()


@given(sizes, decays, decays, biases, smoothings, st.booleans(), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_derivatives_are_those_of_autograd(shape, lambda_W, lambda_H, bias, alpha, vector, held, seed):
    K, _, d = shape
    lambdas = [lambda_W, lambda_H]
    if vector:
        lambdas = [torch.tensor([x, 2 * x, 0.0], dtype=torch.float64) for x in lambdas]
        alpha = [alpha, alpha / 2, 1.0]
        bias = [0.3, 0.0, 0.1] if bias else None
    classifier = torch.randn(K, d, generator=generator(seed), dtype=torch.float64) if held else None
    model = CrossEntropyUFM(*shape, *lambdas, bias=bias, smoothing=alpha, classifier=classifier)
    assert_derivatives_match(model, 3, seed)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), biases, smoothings, st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_derivatives_with_unequal_classes(counts, bias, alpha, seed):
    model = CrossEntropyUFM(
        len(counts), None, 3, 0.1, 0.02, bias=bias, smoothing=alpha, counts=np.array(counts)
    )
    assert model.sizes == tuple(counts)
    assert_derivatives_match(model, 2, seed)


@pytest.mark.parametrize("lambdas", [(0.3, 0.1), ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), (0.3, [0.3, 0.2, 0.1])])
@pytest.mark.parametrize("bias", [None, "free", 0.2, [0.1, 0.0, 0.3]])
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_accumulating_the_gradient_is_adding_it(lambdas, bias, itself, held):
    classifier = simplex_etf(3, 4).T if held else None
    model = CrossEntropyUFM(3, 2, 4, *lambdas, bias=bias, classifier=classifier)
    params, other = (model.init(3, generator(i)) for i in range(2))
    into = params if itself else other
    gradient = model.grad(params)
    expected = [0.7 * x - 0.2 * g for x, g in zip(tensors(into), tensors(gradient), strict=True)]
    model.accumulate_grad(into, params, 0.7, -0.2)
    for x, y in zip(tensors(into), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-15)


def test_the_fit_is_the_cross_entropy_of_the_library():
    model = CrossEntropyUFM(3, 4, 5, 0.0, 0.0, smoothing=[0.0, 0.3])
    params = model.init(2, generator(0))
    labels = torch.arange(3).repeat_interleave(4)
    value, gradient = losses.cross_entropy(model.logits(params), labels, [0.0, 0.3])
    torch.testing.assert_close(model.value(params), value)
    torch.testing.assert_close(model.logit_gradient(params), gradient)
    torch.testing.assert_close(model.grad(params).b, gradient.sum(-1))


def test_huge_logits_neither_overflow_nor_lose_the_loss():
    model = CrossEntropyUFM(3, 1, 3, 0.0, 0.0, bias=None)
    W = 1e3 * torch.eye(3, dtype=torch.float64)[None]
    value, gradient = model.value_and_grad(UFMParams(W, -W))
    assert float(value) == pytest.approx(1e6 + math.log(2))  # two classes tie at 0, the own one is at -1e6
    assert gradient.W.isfinite().all()


def test_the_closed_form_on_a_grid_drawn_afresh():
    """Sizes, decays over decades and both sides of the threshold, new at every run of this test."""
    seed = secrets.randbelow(10**9)
    draw = random.Random(seed)
    sides = set()
    for case in range(14):
        K, n = draw.randint(2, 30), draw.randint(1, 60)
        while K * n > 400:  # keeps the test within its time; the large sizes are met one at a time
            K, n = draw.randint(2, 30), draw.randint(1, 60)
        d = K - 1 + draw.choice([0, 1, 2, 5])
        alpha = draw.choice([0.0, 0.0, 0.1, 0.4])
        # q over three decades, λ_W/λ_H over four; q < 1-α in most cases, above it in the others
        q = (1 - alpha) * (10 ** draw.uniform(-3, -0.1) if case % 3 else draw.uniform(1.05, 3))
        ratio = 10 ** draw.uniform(-2, 2)
        lambda_W, lambda_H = (q / K / math.sqrt(n) * x for x in (ratio**0.5, ratio**-0.5))
        bias = draw.choice([None, "free", 10 ** draw.uniform(-4, 0)])
        model = CrossEntropyUFM(K, n, d, lambda_W, lambda_H, bias=bias, smoothing=alpha)
        minimum, found = model.minimum(), minimise(model, batch=2, seed=seed)
        words = f"seed {seed}, case {case}: {model}"
        assert float(minimum.q) == pytest.approx(q), words
        sides.add(bool(minimum.trivial))
        assert found.loss.tolist() == pytest.approx([float(minimum.loss)] * 2, abs=1e-9), words
        assert float(found.gap.abs().max()) < 1e-9, words
    assert sides == {False, True}, f"seed {seed}"


@given(
    st.integers(1, 8), st.integers(1, 5), st.integers(0, 3), decays, decays, biases, smoothings, st.booleans()
)
@settings(deadline=None, max_examples=40)
def test_the_constructed_minimiser_is_stationary_and_certified(
    K, n, extra, lambda_W, lambda_H, bias, alpha, nonnegative
):
    d = max(K - 1 + nonnegative + extra, 1)
    model = CrossEntropyUFM(K, n, d, lambda_W, lambda_H, bias=bias, smoothing=alpha, nonnegative=nonnegative)
    minimum, params = model.minimum(), model.minimiser(seed=3)
    value, gradient = model.value_and_grad(params)
    assert float(value) == pytest.approx(float(minimum.loss), abs=1e-13)
    assert float(params.W.square().sum()) == pytest.approx(float(minimum.norm_W2), abs=1e-10)
    assert float(params.H.square().sum()) == pytest.approx(float(minimum.norm_H2), rel=1e-12, abs=1e-10)
    if nonnegative:
        assert bool((params.H >= 0).all())
        gradient = gradient._replace(H=params.H - (params.H - gradient.H).clamp(min=0))
    assert max(float(x.abs().max()) for x in tensors(gradient)) < 1e-14 * max(1, minimum.norm_H2**0.5)
    # off by rounding only, some units of it in a difference of logarithms
    assert float(model.lower_bound(params)) == pytest.approx(float(value), abs=1e-13)
    if K > 1:
        P = model.logits(params).softmax(-2)[0, :, 0]
        assert float(P[0]) == pytest.approx(float(minimum.p_correct), abs=1e-13)
        assert P[1:].tolist() == pytest.approx([float(minimum.p_wrong)] * (K - 1), abs=1e-13)


@pytest.mark.parametrize(
    ("K", "d", "n", "lambda_W", "lambda_H", "bias", "q", "margin", "p", "norm_W2", "loss"),
    [
        (3, 5, 10, 5e-3, 5e-3, 0, 0.0474341649, 4.1148912460, 0.9683772234, 26.0248573227, 0.1622578606),
        (4, 3, 10, 5e-3, 5e-3, 0.01, 0.0632455532, 4.0984287639, 0.9525658351, 38.8811091656, 0.2430016020),
        (4, 6, 5, 0.01, 0.001, 0.01, 0.0282842712, 4.9303023394, 0.9787867966, 10.4587506524, 0.1260289434),
        (10, 12, 10, 5e-3, 1e-5, 0.01, 0.0070710678, 7.2479445719, 0.9936360390, 9.2251273616, 0.0525099342),
        (2, 3, 8, 0.01, 0.01, 0.01, 0.0565685425, 3.5367574377, 0.9717157288, 10.0034606705, 0.1287265841),
        (6, 8, 4, 0.03, 0.03, 0.01, 0.36, 2.4567357728, 0.7, 24.5673577282, 1.0936956758),
        (6, 8, 4, 0.09, 0.09, 0.01, 1.08, 0.0, 1 / 6, 0.0, 1.7917594692),
    ],
)
def test_printed_values(K, d, n, lambda_W, lambda_H, bias, q, margin, p, norm_W2, loss):
    minimum = CrossEntropyUFM(K, n, d, lambda_W, lambda_H, bias=bias).minimum()
    found = [float(x) for x in (minimum.q, minimum.margin, minimum.p_correct, minimum.norm_W2, minimum.loss)]
    assert found == pytest.approx([q, margin, p, norm_W2, loss], abs=6e-11)
    assert float(minimum.norm_H2) == pytest.approx(lambda_W / lambda_H * norm_W2, rel=1e-10)
    assert bool(minimum.trivial) == (q > 1)
    if q < 1:  # the formulas of the usual slips are told apart
        for wrong in (q / math.sqrt(n), q / K, K * n * math.sqrt(lambda_W * lambda_H)):
            x = wrong / K
            entropy = -(1 - (K - 1) * x) * math.log(1 - (K - 1) * x) - (K - 1) * x * math.log(x)
            assert n == 1 or loss != pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize(
    ("alpha", "nonnegative", "K", "n", "d", "lam", "loss"),
    [
        (0.1, False, 5, 6, 8, 2e-3, 0.462263466),
        (0.5, False, 5, 6, 8, 2e-3, 1.261844693),
        (0.0, True, 4, 5, 4, 5e-3, 0.2064353377),
    ],
)
def test_printed_values_of_the_variants(alpha, nonnegative, K, n, d, lam, loss):
    model = CrossEntropyUFM(K, n, d, lam, lam, smoothing=alpha, nonnegative=nonnegative)
    assert float(model.minimum().loss) == pytest.approx(loss, abs=6e-10)


@pytest.mark.parametrize(
    ("K", "n", "lambda_H", "a", "loss"),
    [
        (4, 10, 5e-3, 1.6549593567, 0.5592323946),
        (10, 5, 1e-3, 3.4898554257, 0.4753171891),
    ],
)
def test_printed_values_of_a_held_frame(K, n, lambda_H, a, loss):
    model = CrossEntropyUFM(K, n, K, 0.0, lambda_H, classifier=simplex_etf(K).T)
    minimum = model.minimum()
    assert float(minimum.loss) == pytest.approx(loss, abs=6e-11)
    assert float(minimum.norm_H2) == pytest.approx(K * n * a**2, rel=1e-9)  # ‖h‖ = a, rows are unit vectors
    with_constant = CrossEntropyUFM(K, n, K, 0.3, lambda_H, classifier=simplex_etf(K).T).minimum()
    assert float(with_constant.loss) == pytest.approx(loss + 0.15 * K, abs=1e-9)


@given(
    st.integers(2, 6),
    st.integers(1, 4),
    decays,
    st.sampled_from([None, "free", 0.1]),
    smoothings,
    st.floats(-1, 1),
    st.booleans(),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=20)
def test_a_held_frame_against_optimisation(K, n, lambda_H, bias, alpha, exponent, orthogonal, seed):
    """Any length of the rows, and orthogonal rows, whose centred version is a simplex frame."""
    rows = torch.eye(K, dtype=torch.float64) if orthogonal else simplex_etf(K, seed=seed).T
    model = CrossEntropyUFM(
        K, n, K, 0.01, lambda_H, bias=bias, smoothing=alpha, classifier=10**exponent * rows
    )
    minimum, found = model.minimum(), minimise(model, batch=2, seed=seed)
    assert found.loss.tolist() == pytest.approx([float(minimum.loss)] * 2, abs=1e-9)
    assert float(found.gap.abs().max()) < 1e-9
    value, gradient = model.value_and_grad(model.minimiser())
    assert float(value) == pytest.approx(float(minimum.loss), abs=1e-12)
    assert max(float(x.abs().max()) for x in tensors(gradient)) < 1e-13


def test_a_held_frame_of_extreme_decays():
    decays = 10.0 ** torch.arange(-300, 301, 60, dtype=torch.float64)
    minimum = CrossEntropyUFM(5, 3, 5, 0.0, decays, classifier=simplex_etf(5).T).minimum()
    assert minimum.margin.diff().lt(0).all()
    assert minimum.loss.diff().ge(0).all()
    assert minimum.loss.isfinite().all()
    assert float(minimum.loss[-1]) == pytest.approx(math.log(5))


def test_unequal_classes_have_a_trivial_minimum_or_none():
    for bias in (None, "free"):
        for lam, trivial in ((0.5, True), (0.05, False)):
            model = CrossEntropyUFM(3, None, 4, lam, lam, bias=bias, counts=(6, 2, 1))
            if not trivial:
                with pytest.raises(NoClosedForm, match="unequal classes"):
                    model.minimum()
                assert minimise(model).params.W.norm() > 0.1
                continue
            found = minimise(model, batch=3)
            assert found.loss.tolist() == pytest.approx([float(model.minimum().loss)] * 3, abs=1e-9)
            params = model.minimiser()
            assert float(model.value(params)) == pytest.approx(float(model.minimum().loss), abs=1e-14)
            assert max(float(x.abs().max()) for x in tensors(model.grad(params))) < 1e-15


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    decays,
    decays,
    biases,
    smoothings,
    st.booleans(),
    st.booleans(),
    st.floats(-3, 1.5),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_the_lower_bound_is_one_wherever_it_is_computed(
    K, d, lambda_W, lambda_H, bias, alpha, nonnegative, held, exponent, seed
):
    """Unequal classes, every bias, d < K-1 too: no run of the optimiser goes below a bound made anywhere."""
    counts = torch.randint(1, 5, (K,), generator=generator(seed))
    classifier = torch.randn(K, d, generator=generator(seed), dtype=torch.float64) if held else None
    model = CrossEntropyUFM(
        K,
        None,
        d,
        lambda_W,
        lambda_H,
        bias=bias,
        smoothing=alpha,
        nonnegative=nonnegative,
        counts=counts,
        classifier=classifier,
    )
    params = model.init(4, generator(seed), scale=10**exponent)
    best = minimise(model, batch=2, seed=seed, steps=300).loss.min()
    # rounding: of the constant of a held classifier, and of entropies of size log K
    assert bool((model.lower_bound(params) <= best + 1e-12 * max(1.0, float(best))).all())
    assert model.lower_bound(params).isfinite().all()


@pytest.mark.parametrize("bias", [None, "free", 0.05])
@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (9, 4, 1, 1), (20, 10, 5, 5)])
def test_the_bound_closes_at_the_optimum(bias, counts):
    for lam in (5e-3, 5e-2):
        model = CrossEntropyUFM(4, None, 3, lam, lam, bias=bias, counts=counts, smoothing=[0.0, 0.0, 0.2])
        found = minimise(model, batch=3)
        assert found.converged.all()
        assert float(found.gap.abs().max()) < 1e-12


def test_the_bound_is_as_near_as_the_objective():
    """Both are of second order: ten times nearer, a hundred times smaller."""
    model = CrossEntropyUFM(4, 5, 8, 5e-3, 8e-3)
    best, noise = model.minimiser(), model.init(1, generator(0))
    gaps = []
    for size in (1e-3, 1e-4):
        near = UFMParams(*(x + size * y for x, y in zip(best, noise, strict=True)))
        gaps.append(float(model.value(near) - model.lower_bound(near)))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)


def test_a_wrong_bound_would_be_seen():
    """The dual with a limit too large by the usual slip, n for √n, goes above the minimum."""
    model = CrossEntropyUFM(4, 5, 8, 5e-3, 8e-3)
    wrong = CrossEntropyUFM(4, 5, 8, 5e-3 * 5, 8e-3)
    params = model.minimiser()
    assert float(wrong.lower_bound(params) - model.minimum().loss) > 0.1


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_threshold(nonnegative):
    K, n = 4, 3
    stretch = math.sqrt(K / (K - 1)) if nonnegative else 1.0
    for alpha in (0.0, 0.3):
        for share, trivial in ((0.95, False), (1.05, True)):
            lam = share * (1 - alpha) / stretch / K / math.sqrt(n)
            model = CrossEntropyUFM(K, n, 5, lam, lam, smoothing=alpha, nonnegative=nonnegative)
            assert bool(model.minimum().trivial) == trivial
            norm = minimise(model, batch=4).params.H.norm(dim=(1, 2))
            # beyond the threshold the curvature at zero is some λ/20 = 5e-3: zero to 1e-10 over that
            assert bool((norm < 1e-6).all() if trivial else (norm > 0.1).all())
    at_one = CrossEntropyUFM(4, 1, 4, 0.25, 0.25).minimum()
    assert bool(at_one.trivial)
    assert float(at_one.margin) == 0.0


def test_trivial_minima_need_no_width():
    model = CrossEntropyUFM(6, 4, 2, 0.1, 0.1)
    assert bool(model.minimum().trivial)
    assert minimise(model, batch=3).loss.tolist() == pytest.approx([math.log(6)] * 3, abs=1e-12)
    with pytest.raises(NoClosedForm, match="d of at least 5"):
        CrossEntropyUFM(6, 4, 4, 1e-3, 1e-3).minimum()
    with pytest.raises(NoClosedForm, match="d of at least 6"):
        CrossEntropyUFM(6, 4, 5, 1e-3, 1e-3, nonnegative=True).minimum()


def test_one_class_has_nothing_to_learn():
    for arguments in ({}, {"bias": None}, {"bias": 0.1}, {"nonnegative": True}, {"smoothing": 0.2}):
        model = CrossEntropyUFM(1, 3, 2, 0.01, 0.02, **arguments)
        minimum, found = model.minimum(), minimise(model, batch=2)
        assert float(minimum.loss) == 0.0
        assert bool(minimum.trivial)
        assert found.loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-15)
        assert found.gap.abs().max() < 1e-15


def test_too_narrow_a_model_is_solved_and_its_gap_stays_open():
    """d = K-2: the bound knows no rank, and the solver does not wait for it."""
    model = CrossEntropyUFM(5, 6, 2, 5e-3, 5e-3, bias=1e-2)
    found = minimise(model, batch=40, seed=1)
    assert found.converged.all()
    assert set(found.reason) == {"gradient"}
    wide = float(CrossEntropyUFM(5, 6, 4, 5e-3, 5e-3).minimum().loss)
    assert float(found.loss.min()) == pytest.approx(0.3614182132, abs=1e-9)  # the regular pentagon
    gap = found.gap[found.loss.argmin()]
    assert 0.01 < float(found.loss.min()) - wide <= float(gap) + 1e-12


def test_a_row_of_numbers_is_a_batch_of_models():
    lambdas = torch.logspace(-3, 0, 7, dtype=torch.float64)
    alphas = torch.linspace(0, 0.3, 7, dtype=torch.float64)
    batch = CrossEntropyUFM(3, 4, 5, lambdas, 0.1, bias=0.1 * lambdas, smoothing=alphas)
    minimum, found = batch.minimum(), minimise(batch, batch=7)
    assert sorted(set(minimum.trivial.tolist())) == [False, True]
    params = batch.minimiser()
    torch.testing.assert_close(batch.value(params), minimum.loss, rtol=0, atol=1e-14)
    for i in range(7):
        single = CrossEntropyUFM(3, 4, 5, lambdas[i], 0.1, bias=0.1 * lambdas[i], smoothing=alphas[i])
        assert float(minimum.loss[i]) == pytest.approx(float(single.minimum().loss), abs=1e-15)
        own = UFMParams(*(x[i : i + 1] for x in found.params))
        assert float(single.value(own)) == pytest.approx(float(found.loss[i]), abs=1e-15)
        assert float(single.lower_bound(own)) == pytest.approx(float(found.loss[i]), abs=1e-12)
    some = batch.take(torch.tensor([5, 1]))
    for name in ("lambda_W", "lambda_b", "smoothing"):
        assert getattr(some, name).tolist() == getattr(batch, name)[[5, 1]].tolist()
    assert some.lambda_H == 0.1
    shared = CrossEntropyUFM(3, 4, 5, 0.1, 0.1)
    assert shared.take(torch.tensor([0])) is shared


def test_a_bias_of_zero_is_a_free_one():
    zero, free = (CrossEntropyUFM(3, 2, 4, 0.1, 0.1, bias=bias) for bias in (0, "free"))
    params = free.init(2, generator(0))
    torch.testing.assert_close(zero.value(params), free.value(params))
    assert zero.bias == free.bias == "free"
    moved = params._replace(b=params.b + 3)
    torch.testing.assert_close(free.value(moved), free.value(params))
    mixed = CrossEntropyUFM(3, 2, 4, 0.1, 0.1, bias=[0.0, 0.5])
    assert (mixed.value(moved) - free.value(moved))[0] == pytest.approx(0, abs=1e-15)
    assert mixed.lower_bound(params).isfinite().all()


def test_the_solution_collapses_to_a_simplex_frame():
    model = CrossEntropyUFM(5, 6, 7, 5e-3, 2e-3)
    found = minimise(model).params
    means = found.H[0].unflatten(1, (5, 6)).mean(-1)
    target = gram(simplex_etf(5))
    assert float(frame_distance(gram(means), target)) < 1e-7
    assert float(frame_distance(found.W[0] @ found.W[0].T, target)) < 1e-7
    assert float((found.H[0].unflatten(1, (5, 6)) - means[..., None]).abs().max()) < 1e-7
    assert float(found.b.std()) < 1e-7
    ratio = math.sqrt(6 * 2e-3 / 5e-3)  # w = √(nλ_H/λ_W) h
    torch.testing.assert_close(found.W[0].T, ratio * means, rtol=0, atol=1e-6)


def test_nonnegative_features_become_orthogonal():
    model = CrossEntropyUFM(4, 3, 6, 5e-3, 5e-3, nonnegative=True)
    found = minimise(model, batch=6)
    best = int(found.loss.argmin())
    assert float(found.loss[best]) == pytest.approx(float(model.minimum().loss), abs=1e-12)
    H = found.params.H[best]
    assert bool((H >= 0).all())
    means = H.unflatten(1, (4, 3)).mean(-1)
    assert float(frame_distance(gram(means), torch.eye(4, dtype=torch.float64))) < 1e-6
    signed = CrossEntropyUFM(4, 3, 6, 5e-3, 5e-3)
    assert float(model.minimum().loss) > float(signed.minimum().loss) + 1e-3
    assert optional_method(signed, "project") is None


@pytest.mark.parametrize(("n", "lambda_W", "lambda_H", "alpha"), [(3, 0.02, 0.02, 0.1), (1, 0.05, 2e-3, 0.0)])
def test_two_nonnegative_classes_in_one_dimension_with_a_free_bias(n, lambda_W, lambda_H, alpha):
    """The bias speaks for the class whose features are zero; without a free one d = 1 is too little."""
    model, wide = (
        CrossEntropyUFM(2, n, d, lambda_W, lambda_H, smoothing=alpha, nonnegative=True) for d in (1, 2)
    )
    minimum = model.minimum()
    for x, y in zip(minimum, wide.minimum(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    found = minimise(model, batch=6)
    assert found.loss.tolist() == pytest.approx([float(minimum.loss)] * 6, abs=1e-12)
    params = model.minimiser()
    value, gradient = model.value_and_grad(params)
    assert float(value) == pytest.approx(float(minimum.loss), abs=1e-14)
    assert float(params.W.square().sum()) == pytest.approx(float(minimum.norm_W2), rel=1e-13)
    assert float(params.H.square().sum()) == pytest.approx(float(minimum.norm_H2), rel=1e-13)
    gradient = gradient._replace(H=params.H - (params.H - gradient.H).clamp(min=0))
    assert max(float(x.abs().max()) for x in tensors(gradient)) < 1e-14
    for bias in (None, 0.01):
        held = CrossEntropyUFM(2, n, 1, lambda_W, lambda_H, bias=bias, smoothing=alpha, nonnegative=True)
        with pytest.raises(NoClosedForm, match="d of at least 2"):
            held.minimum()
        assert float(minimise(held, batch=10).loss.min()) > float(minimum.loss) + 1e-5


def test_two_nonnegative_classes_in_one_dimension_run_by_run():
    numbers = {"lambda_W": [0.05, 2.0, 2.0], "lambda_H": [0.02, 2.0, 1.0], "smoothing": [0.1, 0.0, 0.2]}
    model = CrossEntropyUFM(2, 2, 1, **numbers, bias=[0.0, 0.0, 0.3], nonnegative=True)
    minimum, params = model.minimum(), model.minimiser()
    assert minimum.trivial.tolist() == [False, True, True]
    torch.testing.assert_close(model.value(params), minimum.loss, rtol=0, atol=1e-14)
    mixed = CrossEntropyUFM(2, 2, 1, 0.05, 0.02, bias=[0.0, 0.3], nonnegative=True)
    with pytest.raises(NoClosedForm, match="d of at least 2"):
        mixed.minimum()
    with pytest.raises(NoClosedForm, match="d of at least 3"):
        CrossEntropyUFM(3, 2, 2, 5e-3, 5e-3, nonnegative=True).minimum()


def test_init_has_the_promised_size():
    model = CrossEntropyUFM(3, 4, 50, 0.1, 0.1)
    params = model.init(200, generator(1), scale=2.0)
    # 30,000 entries and more: the standard error of their variance 4/50 is at most 1 %
    for x in params[:2]:
        assert float(x.square().mean()) == pytest.approx(4 / 50, rel=0.05)
    assert float(params.b.square().mean()) == pytest.approx(4, rel=0.3)  # 600 entries
    single = model.init(200, generator(1), scale=2.0, dtype=torch.float32)
    torch.testing.assert_close(single.W, params.W.float())
    assert isinstance(model, Problem)


def test_float32_and_a_run_that_is_not_finite():
    model = CrossEntropyUFM(3, 2, 4, 0.01, [0.01, 0.02, 0.03])
    params = model.init(3, generator(0), dtype=torch.float32)
    params.H[1, 0, 0] = math.inf
    bound, value = model.lower_bound(params), model.value(params)
    assert bound.dtype == value.dtype == torch.float32
    assert bound.isnan().tolist() == [False, True, False]
    assert value.isfinite().tolist() == [True, False, True]
    found = minimise(CrossEntropyUFM(3, 2, 4, 0.01, 0.02), dtype=torch.float32)
    assert found.converged.all()
    expected = float(CrossEntropyUFM(3, 2, 4, 0.01, 0.02).minimum().loss)
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "keywords", "word"),
    [
        ((0, 5, 8, 0.1, 0.1), {}, "K"),
        ((4, 0, 8, 0.1, 0.1), {}, "n"),
        ((4, 5, 0, 0.1, 0.1), {}, "d"),
        ((4, 5, 8.0, 0.1, 0.1), {}, "d"),
        ((4, 5, 8, -0.1, 0.1), {}, "lambda_W must not be negative"),
        ((4, 5, 8, 0.1, math.nan), {}, "lambda_H"),
        ((4, 5, 8, 0.1, [[0.1]]), {}, "lambda_H"),
        ((4, 5, 8, [], 0.1), {}, "lambda_W"),
        ((4, 5, 8, [0.1, 0.2], [0.1, 0.2, 0.3]), {}, "agree in B"),
        ((4, 5, 8, [0.1, 0.2], 0.1), {"bias": [0.1, 0.2, 0.3]}, "agree in B"),
        ((4, 5, 8, 0.1, 0.1), {"bias": "yes"}, "bias"),
        ((4, 5, 8, 0.1, 0.1), {"bias": -0.1}, "bias"),
        ((4, 5, 8, 0.1, 0.1), {"smoothing": 1.1}, "smoothing"),
        ((4, 5, 8, 0.1, 0.1), {"smoothing": -0.1}, "smoothing"),
        ((4, 5, 8, 0.1, 0.1), {"nonnegative": "yes"}, "nonnegative"),
        ((4, 5, 8, 0.1, 0.1), {"counts": (1, 2, 3, 4)}, "n or counts"),
        ((4, None, 8, 0.1, 0.1), {"counts": (1, 2, 3)}, "counts"),
        ((4, None, 8, 0.1, 0.1), {"counts": (1, 2, 3, 0)}, "counts"),
        ((4, 5, 8, 0.1, 0.1), {"classifier": torch.zeros(8, 4)}, "classifier"),
        ((4, 5, 8, 0.1, 0.1), {"classifier": torch.full((4, 8), math.nan)}, "classifier"),
    ],
)
def test_wrong_models_are_refused(arguments, keywords, word):
    with pytest.raises(ValueError, match=word):
        CrossEntropyUFM(*arguments, **keywords)


def test_wrong_parameters_are_refused():
    model = CrossEntropyUFM(3, 2, 4, np.array([0.1, 0.2]), 0.1)
    W, H, b = torch.zeros(2, 3, 4), torch.zeros(2, 4, 6), torch.zeros(2, 3)
    for params in (
        UFMParams(W, H.mT, b),
        UFMParams(W.mT, H, b),
        UFMParams(W, H[:1], b),
        UFMParams(W, H),
        UFMParams(W, H, b[:, :2]),
        UFMParams(W[:1], H[:1], b[:1]),
    ):
        with pytest.raises(ValueError, match="params"):
            model.value(params)
    with pytest.raises(ValueError, match="batch must be 2"):
        model.init(3, generator(0))
    held = CrossEntropyUFM(3, 2, 4, 0.1, 0.1, classifier=torch.ones(3, 4))
    with pytest.raises(ValueError, match="classifier"):
        held.value(UFMParams(W, H, b))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (CrossEntropyUFM(3, 2, 4, 0.0, 0.1), "lambda of 0"),
        (CrossEntropyUFM(3, 2, 4, [0.1, 0.0], 0.1), "lambda of 0"),
        (CrossEntropyUFM(3, 2, 3, 0.1, 0.0, classifier=torch.eye(3)), "lambda_H = 0"),
        (CrossEntropyUFM(3, 2, 4, 0.1, 0.1, classifier=torch.ones(3, 4)), "tight frame"),
        (CrossEntropyUFM(3, 2, 3, 0.1, 0.1, classifier=torch.diag(torch.arange(1.0, 4))), "tight frame"),
        (CrossEntropyUFM(3, 2, 3, 0.1, 0.1, classifier=torch.eye(3), nonnegative=True), "not negative"),
        (CrossEntropyUFM(3, None, 3, 0.1, 0.1, classifier=torch.eye(3), counts=(1, 1, 2)), "with a bias"),
        (CrossEntropyUFM(3, None, 3, 0.1, 0.1, bias=0.1, counts=(1, 1, 2)), "unequal"),
    ],
)
def test_where_no_formula_is_known_it_is_said(model, word):
    for method in (model.minimum, model.minimiser):
        with pytest.raises(NoClosedForm, match=word):
            method()
