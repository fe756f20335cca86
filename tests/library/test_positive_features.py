"""memorization_dilation.positive: the positive minimum against bounded optimisation, and its dead classes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ncbook import memorization_dilation as md
from ncbook.frames import frame_distance, gram, simplex_etf
from ncbook.protocol import NoClosedForm
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import CrossEntropyUFM


def positive(K, n, d, lambda_W=5e-3, lambda_H=5e-4, smoothing=0.0, bias=None):
    return CrossEntropyUFM(K, n, d, lambda_W, lambda_H, bias=bias, smoothing=smoothing, nonnegative=True)


def bounded(model, seeds=(0, 1, 2)):
    """The best of a few runs of SciPy's L-BFGS-B, an independent solver of the bounded problem."""
    shapes = [(model.K, model.d), (model.d, model.N)]
    cut = model.K * model.d
    bounds = [(None, None)] * cut + [(0, None)] * (model.d * model.N)

    def split(x):
        parts = (torch.as_tensor(x[:cut]).view(1, *shapes[0]), torch.as_tensor(x[cut:]).view(1, *shapes[1]))
        return model.init(1, generator(0))._replace(W=parts[0], H=parts[1])

    def objective(x):
        value, gradient = model.value_and_grad(split(x))
        return value.item(), np.concatenate([gradient.W.numpy().ravel(), gradient.H.numpy().ravel()])

    ends = []
    for seed in seeds:
        start = model.init(1, generator(seed))
        x = np.concatenate([start.W.numpy().ravel(), start.H.numpy().ravel()])
        options = {"maxiter": 5000, "ftol": 1e-18, "gtol": 1e-12, "maxcor": 30}
        ends.append(
            optimize.minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        )
    best = min(ends, key=lambda end: end.fun)
    return best.fun, split(best.x)


@pytest.mark.parametrize(
    ("K", "n", "d", "alpha"), [(2, 3, 3, 0.1), (3, 4, 5, 0.0), (3, 4, 5, 0.2), (4, 2, 6, 0.1)]
)
def test_confidence_is_that_of_an_independent_bounded_solver(K, n, d, alpha):
    model = positive(K, n, d, smoothing=alpha)
    value, found = bounded(model)
    p = model.logits(found).softmax(1)[0]
    own = p[torch.arange(K).repeat_interleave(n), torch.arange(model.N)]
    q = md.positive_decay(K, n, 5e-3, 5e-4)
    assert (own - md.confidence(K, alpha, q)).abs().max() < 1e-5  # gtol 1e-12 over a curvature of some 1e-4
    assert abs(value - md.dead_class_loss(model, 0).item()) < 1e-10
    means = found.H[0].unflatten(1, (K, n)).mean(2)
    cosines = torch.nn.functional.normalize(means, dim=0)
    off = (cosines.mT @ cosines)[~torch.eye(K, dtype=torch.bool)]
    assert off.abs().max() < 1e-5
    assert frame_distance(gram(found.W[0].mT), gram(simplex_etf(K))) < 1e-4
    # what features with signs would have, and smoothing spread over the wrong classes only
    assert (own - md.confidence(K, alpha, q * math.sqrt((K - 1) / K))).abs().min() > 1e-4
    if alpha:
        assert (own - (1 - alpha - (K - 1) / K * q)).abs().min() > 1e-3


def test_reference_values():
    # (K, n, λ_W, λ_H, α): q' (K−1)/K, p; measured with L-BFGS-B, not with these formulas
    rows = {
        (2, 5, 5e-3, 5e-4, 0.0): (0.00500, 0.995000),
        (3, 4, 5e-3, 5e-4, 0.2): (0.00775, 0.858921),
        (10, 3, 1e-3, 2e-4, 0.1): (0.00735, 0.902652),
        (3, 4, 0.05, 0.05, 0.3): (0.24495, 0.555051),
        (3, 4, 0.1, 0.1, 0.3): (0.48990, 1 / 3),
    }
    for (K, n, lambda_W, lambda_H, alpha), (price, p) in rows.items():
        q = md.positive_decay(K, n, lambda_W, lambda_H)
        assert abs(q * (K - 1) / K - price) < 6e-6  # five digits printed
        assert abs(md.confidence(K, alpha, q) - p) < 6e-7


@given(
    st.integers(2, 8),
    st.integers(1, 5),
    st.floats(-3, 0).map(lambda x: 10**x),
    st.floats(-3, 0).map(lambda x: 10**x),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_line_agrees_with_the_model(K, n, lambda_W, lambda_H, alpha):
    minimum = positive(K, n, K, lambda_W, lambda_H, alpha).minimum()
    q = md.positive_decay(K, n, lambda_W, lambda_H)
    assert abs(md.confidence(K, alpha, q) - minimum.p_correct) < 1e-12
    edge = abs(alpha - md.largest_smoothing(q)) < 1e-9
    assert edge or bool(minimum.trivial) == bool(alpha >= md.largest_smoothing(q))
    signed = CrossEntropyUFM(K, n, K, lambda_W, lambda_H, smoothing=alpha).minimum()
    assert abs(md.confidence(K, alpha, signed.q) - signed.p_correct) < 1e-12


def brute_norm(A):
    """Projected power iterations from many starts, an independent way to the same maximum."""
    gram_matrix = A.mT @ A
    shift = gram_matrix.abs().sum()  # makes the quadratic form convex: every step goes up
    v = torch.rand(300, A.shape[1], dtype=A.dtype, generator=generator(5))
    for _ in range(4000):
        v = (v @ gram_matrix + shift / 20 * v).clamp(min=0)
        v = v / v.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (v @ A.mT).norm(dim=1).max().item()


def test_nonnegative_norm_against_power_iteration():
    for K in (1, 2, 3, 5):
        A = torch.randn(4, K, dtype=torch.float64, generator=generator(K))
        exact = md.nonnegative_norm(A).item()
        assert brute_norm(A) <= exact + 1e-12
        assert abs(brute_norm(A) - exact) < 1e-6
        assert exact <= torch.linalg.matrix_norm(A, 2) + 1e-12


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_nonnegative_norm_bounds_every_vector(K, seed):
    A = torch.randn(2, 3, K, dtype=torch.float64, generator=generator(seed))
    v = torch.rand(2, 50, K, dtype=torch.float64, generator=generator(seed + 1)) ** 4
    stretched = (v @ A.mT).norm(dim=-1) / v.norm(dim=-1)
    assert bool((stretched <= md.nonnegative_norm(A)[:, None] + 1e-12).all())
    assert bool((md.nonnegative_norm(A) >= A.norm(dim=-2).amax(-1) - 1e-12).all())


def test_certificate_at_the_minimum_and_not_at_a_dead_class():
    model = positive(4, 3, 5, 5e-3, 5e-3, 0.1)
    limit = 5e-3
    for point, verdict in ((model.minimiser(), True), (md.dead_class_minimiser(model, [1]), False)):
        G = model.logit_gradient(point)[0].unflatten(1, (4, 3)).mean(2) * math.sqrt(3)
        assert bool(md.nonnegative_norm(G) <= limit * (1 + 1e-10)) is verdict
    spectral = torch.linalg.matrix_norm(model.logit_gradient(model.minimiser())[0], 2)
    assert abs(spectral / limit - math.sqrt(4 / 3)) < 1e-12  # the signed certificate fails here


@pytest.mark.parametrize(
    ("K", "d", "dead"), [(2, 2, [0]), (3, 2, [1]), (4, 4, [0, 3]), (4, 6, [2]), (5, 7, [])]
)
def test_dead_class_point(K, d, dead):
    model = positive(K, 2, d, 5e-3, 5e-3, 0.1)
    point = md.dead_class_minimiser(model, dead, seed=4)
    assert abs(model.value(point) - md.dead_class_loss(model, len(dead))) < 1e-12
    gradient = model.grad(point)
    moved = model.project(point._replace(H=point.H - gradient.H))
    assert (moved.H - point.H).abs().max() < 1e-12  # a critical point of the bounded problem
    assert gradient.W.abs().max() < 1e-12
    assert bool((point.H.sum((0, 2)) > 0).all())  # every dimension is used


def perturbed(model, point, batch, seed):
    """Starts within 1e-3 of a point; where its features are zero they are moved too."""
    noise = [
        1e-3 * torch.randn(batch, *x.shape[1:], dtype=x.dtype, generator=generator(seed)) for x in point[:2]
    ]
    return model.project(point._replace(W=point.W + noise[0], H=point.H + noise[1]))


def test_dead_class_is_a_local_minimum_where_all_units_are_used():
    model = positive(4, 2, 6, 5e-3, 5e-3, 0.1)
    start = perturbed(model, md.dead_class_minimiser(model, [2], seed=1), 40, 9)
    assert bool((model.value(start) >= md.dead_class_loss(model, 1)).all())
    assert (minimise(model, start=start).loss - md.dead_class_loss(model, 1)).abs().max() < 1e-10


def test_a_dead_class_is_the_best_there_is_in_one_dimension():
    """Two classes, d = 1 and no bias: the local minimum is global; with d = K it is not."""
    for d, best in ((1, 1), (2, 0)):
        model = positive(2, 2, d, 5e-3, 5e-3, 0.1)
        found = minimise(model, batch=30, seed=3).loss
        assert abs(found.min() - md.dead_class_loss(model, best)) < 1e-10
    assert md.dead_class_loss(model, 1) - md.dead_class_loss(model, 0) > 0.1


def test_a_unit_left_over_is_a_way_down():
    model = positive(4, 2, 6, 5e-3, 5e-3, 0.1)
    point = md.dead_class_minimiser(model, [2], units=5, seed=1)
    G = model.logit_gradient(point)[0]
    of_dead = G[:, 4:6].mean(1) * math.sqrt(2)  # ∇g v for v = e_2, its two samples alike
    ratio = (of_dead.norm() / 5e-3).item()
    q = md.positive_decay(4, 2, 5e-3, 5e-3).item()
    assert math.isclose(ratio, 0.9 / q, rel_tol=1e-12)  # (1−α)/q', above 1 where the minimum is not trivial
    step = 1e-3
    W, H = point.W.clone(), point.H.clone()
    W[0, :, 5] = -step * of_dead / of_dead.norm()
    H[0, 5, 4:6] = step / math.sqrt(2)
    start = point._replace(W=W, H=H)
    drop = (model.value(start) - model.value(point)).item()
    assert math.isclose(drop, -(step**2) * 5e-3 * (ratio - 1), rel_tol=1e-3)  # half of −2(‖∇g v‖ − √(λ_Wλ_H))
    assert (minimise(model, start=start).loss - md.dead_class_loss(model, 0)).abs().max() < 1e-10


def test_dead_class_loss_is_linear_and_batched():
    alpha = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
    model = positive(5, 2, 3, 1e-2, 1e-2, alpha)  # d < K, where the full minimum does not fit
    levels = torch.stack([md.dead_class_loss(model, c) for c in range(6)])
    assert levels.shape == (6, 3)
    assert (levels.diff(dim=0) - levels.diff(dim=0)[0]).abs().max() < 1e-14
    assert (levels[5] - math.log(5)).abs().max() == 0
    point = md.dead_class_minimiser(model, [0, 4])
    assert (model.value(point) - levels[2]).abs().max() < 1e-12


BAD = [
    (lambda: md.positive_decay(1, 1, 0.1, 0.1), "K must"),
    (lambda: md.positive_decay(2, 0, 0.1, 0.1), "n must"),
    (lambda: md.positive_decay(2, 1, -0.1, 0.1), "lambda_W"),
    (lambda: md.positive_decay(2, 1, 0.1, float("nan")), "lambda_H"),
    (lambda: md.confidence(3, 1.1, 0.1), "smoothing"),
    (lambda: md.confidence(3, 0.1, -1.0), "decay"),
    (lambda: md.largest_smoothing(math.inf), "decay"),
    (lambda: md.nonnegative_norm([1.0, 2.0]), "matrix"),
    (lambda: md.nonnegative_norm(np.zeros((3, 0))), "A must"),
    (lambda: md.nonnegative_norm(torch.ones(2, 13)), "twelve|12"),
    (lambda: md.dead_class_loss(positive(3, 1, 3), 4), "dead"),
    (lambda: md.dead_class_loss(positive(3, 1, 3), True), "dead"),
    (lambda: md.dead_class_minimiser(positive(3, 1, 3), [0, 0]), "dead"),
    (lambda: md.dead_class_minimiser(positive(3, 1, 3), [0, 1, 2]), "dead"),
    (lambda: md.dead_class_minimiser(positive(3, 1, 3), [5]), "dead"),
    (lambda: md.dead_class_minimiser(positive(4, 1, 3), []), "units"),
    (lambda: md.dead_class_minimiser(positive(3, 1, 3), [0], units=4), "units"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_closed_form():
    signed = CrossEntropyUFM(3, 1, 3, 0.01, 0.01, bias=None)
    for model in (signed, positive(3, 1, 3, bias="free"), positive(3, 1, 3, bias=0.1)):
        with pytest.raises(NoClosedForm):
            md.dead_class_loss(model, 1)
    with pytest.raises(NoClosedForm, match="trivial"):
        md.dead_class_minimiser(positive(3, 1, 3, 1.0, 1.0), [0])


def test_float32_and_sequences():
    single = torch.tensor([0.1, 0.2])
    for smoothing, decay in itertools.product((single, [0.1, 0.2], np.array([0.1, 0.2])), (0.1, single)):
        p = md.confidence(3, smoothing, decay)
        assert p.dtype == torch.float64
        assert p.shape == (2,)
