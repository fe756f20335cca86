"""dufm.layers, dufm.margin and the price of a product: metrics of built weights, formulas against weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ncbook import dufm
from ncbook.dufm import DeepUFM, DeepUFMParams, LinearUFM, deep_layers
from ncbook.metrics import collapse_metrics
from ncbook.protocol import NoClosedForm
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import CrossEntropyUFM

double = {"dtype": torch.float64}
decays = st.floats(-4, -1).map(lambda x: 10**x)


def largest(gradient):
    leaves = [*gradient.weights, gradient.H, *([] if gradient.b is None else [gradient.b])]
    return max(float(x.abs().max()) for x in leaves)


# --- the price of a product -----------------------------------------------------------------------------


@given(st.lists(decays, min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_price_is_paid_by_aligned_balanced_factors(lambdas, rows, columns, seed):
    A = torch.randn(rows, columns, generator=generator(seed), **double)
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    m, root = len(lambdas), math.prod(lambdas) ** (1 / len(lambdas))
    factors = [torch.diag((root / x) ** 0.5 * s ** (1 / m)) for x in lambdas]
    product, cost = U, 0.0
    for x, F in zip(lambdas, factors, strict=True):
        product = product @ F
        cost += x / 2 * float(F.square().sum())
    torch.testing.assert_close(product @ Vh, A, rtol=0, atol=1e-12)
    price = float(dufm.product_price(A, lambdas))
    assert price == pytest.approx(cost, rel=1e-12)
    if m > 1:  # other factors of the same product cost more: the first scaled up, the second down
        worse = cost + (4 - 1) * lambdas[0] / 2 * float(factors[0].square().sum())
        worse += (1 / 4 - 1) * lambdas[1] / 2 * float(factors[1].square().sum())
        assert price < worse


def test_the_price_of_two_factors_is_the_nuclear_norm_and_of_many_nearly_the_rank():
    A = torch.diag(torch.tensor([9.0, 1.0, 0.0], **double))
    assert float(dufm.product_price(A, [0.1, 0.4])) == pytest.approx(0.2 * 10)
    assert float(dufm.product_price(A, [2.0])) == pytest.approx(82.0)
    many = dufm.product_price(torch.stack([A, 5 * A]), [1.0] * 400) / 200
    assert many.tolist() == pytest.approx([2, 2], abs=0.04)
    assert float(dufm.product_price(np.eye(3, dtype=np.float32), np.ones(3))) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("matrix", "lambdas", "word"),
    [
        ([1.0, 2.0], [0.1], "matrix must have"),
        ([[1.0]], [], "decays must be a row"),
        ([[1.0]], 0.1, "decays must be a row"),
        ([[1.0]], [0.1, -0.1], "decays must not be negative"),
        ([[math.nan]], [0.1], "matrix"),
    ],
)
def test_wrong_prices_are_refused(matrix, lambdas, word):
    with pytest.raises(ValueError, match=word):
        dufm.product_price(matrix, lambdas)


# --- the margin problem of cross-entropy ---------------------------------------------------------------


@given(
    st.floats(-6, 0.5).map(lambda x: 10**x),
    st.integers(2, 12),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(deadline=None, max_examples=60)
def test_the_margin_is_the_global_minimiser(q, K, L, alpha):
    m = dufm.margin(q, K, L, alpha)
    value = float(dufm.margin_phi(m, q, K, L, alpha))
    grid = torch.cat([torch.linspace(0, 60, 6001, **double), torch.logspace(-12, 0, 200, **double)])
    assert value <= float(dufm.margin_phi(grid, q, K, L, alpha).min()) + 1e-14
    edge = float(dufm.margin_threshold(K, L, alpha))
    assert (float(m) > 0) == (q < edge) or abs(q / edge - 1) < 1e-9
    if m > 0:
        best = optimize.minimize_scalar(
            lambda x: float(dufm.margin_phi(x, q, K, L, alpha)),
            bracket=(0.9 * float(m), float(m), 1.1 * float(m)),
        )
        assert value == pytest.approx(best.fun, abs=1e-13)


def test_one_matrix_has_the_known_margin():
    q = torch.tensor([0.001, 0.05, 0.3, 0.89, 0.91], **double)
    for K in (2, 3, 10):
        wrong = (K - 1) / K * (0.1 + q)
        expected = torch.where(q < 0.9, torch.log((K - 1) * (1 - wrong) / wrong), 0.0)
        torch.testing.assert_close(dufm.margin(q, K, 1, 0.1), expected, rtol=0, atol=1e-10)
        assert float(dufm.margin_threshold(K, 1, 0.1)) == pytest.approx(0.9)


def test_the_threshold_separates_zero_from_the_larger_root():
    for K, L, alpha in ((2, 2, 0.0), (4, 2, 0.0), (10, 3, 0.1), (5, 6, 0.0)):
        edge = dufm.margin_threshold(K, L, alpha)
        below, above = (
            dufm.margin(edge * (1 - 1e-7), K, L, alpha),
            dufm.margin(edge * (1 + 1e-7), K, L, alpha),
        )
        assert float(below) > 0.3
        assert float(above) == 0
        value = dufm.margin_phi(below, edge * (1 - 1e-7), K, L, alpha)
        assert float(value) == pytest.approx(math.log(K), abs=1e-6)


def test_margin_takes_rows_and_the_ends():
    row = dufm.margin(np.array([1e-300, 0.1]), 3, 2, [0.0, 0.2])
    assert row.shape == (2,)
    assert float(row[0]) > 500
    assert float(dufm.margin(0.1, 1, 3)) == 0
    assert float(dufm.margin(1e-9, 3, 2, 1.0)) == 0
    assert float(dufm.margin_phi(0.0, 0.1, 7, 3)) == pytest.approx(math.log(7))
    for call, word in (
        (lambda: dufm.margin(0.0, 3, 2), "q must be positive"),
        (lambda: dufm.margin(math.nan, 3, 2), "q"),
        (lambda: dufm.margin(0.1, 3, 2, 1.2), "smoothing must lie"),
        (lambda: dufm.margin_phi(-1.0, 0.1, 3, 2), "m must not be negative"),
        (lambda: dufm.margin_threshold(1, 2), "K must"),
        (lambda: dufm.margin_threshold(3, 2, 1.0), "smoothing must be below 1"),
        (lambda: dufm.margin(0.1, 3, 0), "L must"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


# --- the collapse of cross-entropy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "n", "L", "lam", "loss", "m"),
    [
        (10, 5, 2, 2**-10, 0.090662183213, 7.037539),
        (10, 5, 3, 2**-10, 0.076948414283, None),
        (4, 1, 3, 1e-3, 0.017974848253, None),
        (4, 1, 2, 1e-3, 0.018894865071, None),
        (6, 1, 2, 1e-3, 0.031490144372, None),
        (6, 1, 1, 1e-3, 0.039526255509, None),
    ],
)
def test_printed_values_of_cross_entropy(K, n, L, lam, loss, m):
    model = DeepUFM(K, n, L, K, lam, relu=False, loss="ce")
    found = model.collapse()
    assert float(found.loss) == pytest.approx(loss, abs=1e-12)
    value, gradient = model.value_and_grad(found.params)
    assert float(value) == pytest.approx(loss, abs=1e-12)
    assert largest(gradient) < 1e-14
    assert found.ranks.tolist() == [K - 1] * (L + 1)
    if m is not None:
        assert float(found.scale) == pytest.approx(m, abs=1e-6)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.tuples(decays, decays, decays, decays, decays),
    st.sampled_from([None, "free", 0.3]),
    st.sampled_from([0.0, 0.1]),
)
@settings(deadline=None, max_examples=40)
def test_the_collapse_of_cross_entropy_is_a_critical_point(K, L, lambdas, bias, alpha):
    model = DeepUFM(K, 3, L, K + 1, lambdas[: L + 1], relu=L == 1, loss="ce", bias=bias, smoothing=alpha)
    found = model.collapse()
    value, gradient = model.value_and_grad(found.params)
    assert float(value) == pytest.approx(float(found.loss), abs=1e-12)
    assert largest(gradient) < 1e-10
    assert bool(found.trivial) == (found.ranks.max() == 0)


def test_one_matrix_of_cross_entropy_is_the_plain_model():
    deep = DeepUFM(5, 4, 1, 6, (2e-3, 1e-3), loss="ce", bias="free", smoothing=0.1).collapse()
    plain = CrossEntropyUFM(5, 4, 6, 2e-3, 1e-3, bias="free", smoothing=0.1).minimum()
    assert float(deep.loss) == pytest.approx(float(plain.loss), abs=1e-13)
    assert float(deep.scale) == pytest.approx(float(plain.margin), abs=1e-9)


def test_rows_of_decays_and_what_is_refused():
    row = torch.tensor([1e-3, 1e-2, 1.0], **double)
    found = DeepUFM(3, 2, 2, 2, row, relu=False, loss="ce").collapse()
    for i, x in enumerate(row.tolist()):
        one = DeepUFM(3, 2, 2, 2, x, relu=False, loss="ce").collapse()
        assert float(found.loss[i]) == pytest.approx(float(one.loss), abs=1e-15)
        torch.testing.assert_close(found.params.weights[1][i], one.params.weights[1][0])
    assert found.trivial.tolist() == [False, False, True]
    for model, word in (
        (DeepUFM(3, 2, 2, 3, 0.1, loss="ce"), "ReLU and cross-entropy"),
        (DeepUFM(3, None, 2, 3, 0.1, relu=False, loss="ce", counts=(1, 2, 3)), "unequal"),
        (DeepUFM(3, 2, 2, (3, 1), 0.1, relu=False, loss="ce"), "K − 1 = 2"),
        (DeepUFM(3, 2, 2, 3, (0.1, 0.0, 0.1), relu=False, loss="ce"), "lambda of 0"),
    ):
        with pytest.raises(NoClosedForm, match=word):
            model.collapse()


@pytest.mark.parametrize("L", [3, 4])
def test_two_classes_have_the_collapse_for_their_minimum(L):
    model = DeepUFM(2, 1, L, 6, 0.01)
    predicted = model.minimum()
    assert float(predicted.loss) == float(model.collapse().loss)
    assert float(model.value(predicted.params)) == pytest.approx(float(predicted.loss), abs=1e-15)
    found = minimise(model, batch=12, scale=1.3, steps=300, seed=5)
    gaps = found.loss - predicted.loss
    assert float(gaps.min()) > -1e-12
    assert float(gaps.min()) < 1e-8
    assert float(DeepUFM(1, 3, L, 2, 0.01).minimum().loss) == pytest.approx(
        float(LinearUFM(1, 3, (2,) * L, 0.01).minimum().loss)
    )


# --- the levels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [True, False])
@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=15)
def test_the_collapse_has_collapsed_at_every_level(relu, K, L, n):
    model = DeepUFM(K, n, L, K + 2, tuple(1e-4 * (i + 1) for i in range(L + 1)), relu=relu)
    layers = deep_layers(model, model.collapse().params)
    for name in ("dnc1_before", "dnc1_after", "dnc2_before", "dnc2_after", "dnc3_span", "dnc3"):
        assert float(getattr(layers, name).abs().max()) < 1e-12, name
    for name in ("ranks_before", "ranks_after", "ranks_weights"):
        assert bool((getattr(layers, name) == K).all()), name
    assert layers.ranks_before.shape == layers.penalties.shape == (1, L + 1)
    assert layers.ranks_after.shape == layers.dnc3_span.shape == (1, L)
    torch.testing.assert_close(
        layers.penalties, layers.penalties[:, :1].expand(-1, L + 1), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("counts", [None, (2, 4, 1)])
def test_random_levels_are_measured_as_the_metrics_of_the_book_do(counts):
    n = 3 if counts is None else None
    model = DeepUFM(3, n, 3, (6, 5, 4), (0.1, 0.2, 0.3, 0.4), counts=counts)
    params = model.init(4, generator(1))
    layers = deep_layers(model, params, rank_tol=1e-9)  # all that float64 can tell, as the pseudo-inverse
    labels = torch.arange(3).repeat_interleave(torch.tensor(model.sizes))
    for run in range(4):
        level = params.H[run]
        for i in range(4):
            before = collapse_metrics(level.T, labels)
            assert float(layers.dnc1_before[run, i]) == pytest.approx(before.nc1_ratio, rel=1e-10)
            assert float(layers.dnc2_before[run, i]) == pytest.approx(before.nc2_of, rel=1e-10)
            if i == 3:
                break
            level = level.relu() if i else level
            means = torch.stack([level[:, labels == k].mean(1) for k in range(3)], 1)
            torch.testing.assert_close(layers.grams_after[run, i], means.T @ means)
            values = torch.linalg.svdvals(means)
            torch.testing.assert_close(layers.singular_after[run, i], values, rtol=1e-9, atol=1e-12)
            W = params.weights[i][run]
            outside = W - W @ means @ torch.linalg.pinv(means)
            share = float(outside.norm() / W.norm())
            assert float(layers.dnc3_span[run, i]) == pytest.approx(share, abs=1e-10)
            assert int(layers.ranks_weights[run, i]) == int(torch.linalg.matrix_rank(W))
            assert float(layers.penalties[run, i]) == pytest.approx((i + 1) / 10 * float((W**2).sum()))
            level = W @ level
        above = params.H[run]
        for i, W in enumerate(params.weights[:-1]):
            above = W[run] @ (above.relu() if i else above)
        means = torch.stack([above.relu()[:, labels == k].mean(1) for k in range(3)], 1)
        cosines = torch.nn.functional.cosine_similarity(params.weights[-1][run], means.T)
        assert float(layers.dnc3[run]) == pytest.approx(1 - float(cosines.mean()), abs=1e-12)


def test_a_low_rank_level_is_seen_at_the_tolerance():
    """Two opposite class means and a short one: rank one at one per cent, two after a ReLU."""
    H = torch.tensor([[1.0, -1.0, 1e-3], [-1.0, 1.0, 1e-3], [0.0, 0.0, 0.0]], **double)[None]
    eye = torch.eye(3, **double)[None]
    model = DeepUFM(3, 1, 2, 3, 0.1)
    layers = deep_layers(model, DeepUFMParams((eye, eye), H))
    assert layers.ranks_before[0].tolist() == [1, 1, 2]  # the opposite pair; the activated pair
    assert layers.ranks_after[0].tolist() == [1, 2]
    fine = deep_layers(model, DeepUFMParams((eye, eye), H), rank_tol=1e-6)
    assert fine.ranks_before[0].tolist() == [2, 2, 2]


def test_narrow_levels_are_padded_and_zero_has_no_ratio():
    model = DeepUFM(4, 2, 2, (2, 3), 0.1)
    layers = deep_layers(model, model.init(2, generator(0), dtype=torch.float32))
    assert layers.singular_before.shape == (2, 3, 4)
    assert layers.singular_before.dtype == torch.float32
    assert int(layers.ranks_before[0, 0]) == 2
    zero = DeepUFMParams(
        tuple(torch.zeros(1, *s, **double) for s in ((3, 2), (4, 3))), torch.zeros(1, 2, 8, **double)
    )
    nothing = deep_layers(model, zero)
    assert bool(nothing.dnc1_before.isnan().all())
    assert nothing.ranks_before.tolist() == [[0, 0, 0]]


def test_wrong_arguments_are_refused():
    model = DeepUFM(3, 2, 2, 4, 0.1)
    params = model.init(2, generator(0))
    for tol in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="rank_tol"):
            deep_layers(model, params, rank_tol=tol)
    with pytest.raises(ValueError, match="params must"):
        deep_layers(model, params._replace(H=params.H[:, :, :5]))
    with pytest.raises(ValueError, match=r"params\.H"):
        deep_layers(model, params._replace(H=params.H * math.nan))
    with pytest.raises(ValueError, match=r"params\.weights\[1\]"):
        deep_layers(model, params._replace(weights=(params.weights[0], params.weights[1] * math.inf)))
