"""dufm pairs: the block problems and the pair solution against optimisation, symmetry and known values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import dufm
from ncbook.dufm import DeepUFM, block_margin, block_phi, margin, margin_phi
from ncbook.landscape import minimum_hessian_eigenvalue
from ncbook.protocol import NoClosedForm
from ncbook.runtime import generator
from ncbook.solvers import minimise

torch_double = {"dtype": torch.float64}


def linear(K, L, lambdas, n=1, width=None, **options):
    return DeepUFM(K, n, L, width or K, lambdas, relu=False, loss="ce", **options)


def logits(params):
    Z = params.H
    for W in params.weights:
        Z = W @ Z
    return Z


def penalty_of(Z, L, lam):
    """The least penalty of L + 1 factors with equal decays whose product is Z."""
    s = torch.linalg.svdvals(Z)
    return (L + 1) / 2 * lam * (s[s > 1e-12 * s[0]] ** (2 / (L + 1))).sum()


def cross_entropy(Z, n, alpha=0.0):
    labels = torch.arange(len(Z)).repeat_interleave(n)
    return torch.nn.functional.cross_entropy(Z.T, labels, label_smoothing=alpha)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 9),
    st.integers(1, 5),
    st.floats(-4, -0.2).map(lambda x: 10**x),
    st.sampled_from([0.0, 0.1]),
)
def test_one_block_of_all_classes_is_the_collapse(K, L, q, alpha):
    m = torch.linspace(0, 20, 30, **torch_double)
    assert torch.allclose(
        block_phi(m, q, K, K, L, alpha), margin_phi(m, q, K, L, alpha), rtol=1e-13, atol=1e-14
    )
    whole, alone = margin(q, K, L, alpha), block_margin(q, K, K, L, alpha)
    # at the jump two minima are equally good, and the bracket of the root ends with the digits of its middle
    assert abs(float(block_phi(alone, q, K, K, L, alpha) - margin_phi(whole, q, K, L, alpha))) < 1e-12
    assert abs(float(alone - whole)) < 1e-9 * max(1.0, float(whole))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 12),
    st.integers(1, 8),
    st.floats(-6, 0).map(lambda x: 10**x),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.data(),
)
def test_no_other_margin_is_better(K, L, q, alpha, data):
    s = data.draw(st.integers(2, K))
    m = block_margin(q, K, s, L, alpha)
    best = float(block_phi(m, q, K, s, L, alpha))
    others = torch.cat([torch.zeros(1, **torch_double), torch.logspace(-4, 3, 20_000, **torch_double)])
    assert best <= float(block_phi(others, q, K, s, L, alpha).min()) + 1e-14
    if m > 0:  # a stationary point
        x = m.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            torch.log1p((s - 1) * torch.exp(-x) + (K - s) * torch.exp(-(s - 1) / s * x))
            + (s - 1) / s * (alpha * x + (L + 1) / 2 * q * x ** (2 / (L + 1))),
            x,
        )
        assert abs(float(slope)) < 1e-12


def test_the_decay_of_a_block_has_one_maximum():
    m = torch.logspace(-3, 2.5, 4000, **torch_double)
    for K in (2, 3, 4, 7, 20, 100):
        for s in {2, 3, K // 2, K - 1, K}:
            if not 2 <= s <= K:
                continue
            for L in (2, 3, 6):
                decay = dufm.pairs._decay(m, K, s, L, torch.zeros((), **torch_double))
                signs = decay.log().diff().sign()
                assert int((signs.diff() != 0).sum()) == 1


@pytest.mark.parametrize(
    ("K", "L", "lam", "n", "collapse", "pairs"),
    [
        (10, 2, 2**-10, 5, 0.090662183213, 0.080012659245),
        (10, 3, 2**-10, 5, 0.076948414283, 0.060920823738),
        (4, 3, 1e-3, 1, 0.017974848253, 0.016595176010),
        (4, 2, 1e-3, 1, 0.018894865071, 0.019241456446),
        (6, 2, 1e-3, 1, 0.031490144372, 0.029568473181),
        (6, 1, 1e-3, 1, 0.039526255509, 0.044997966790),
    ],
)
def test_reference_values(K, L, lam, n, collapse, pairs):
    model = linear(K, L, lam, n)
    assert abs(float(model.collapse().loss) - collapse) < 1e-11
    assert abs(float(model.pair_solution().loss) - pairs) < 1e-11


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([2, 4, 5, 6, 7, 8, 11]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.floats(-4, -1.5).map(lambda x: 10**x),
    st.sampled_from([0.0, 0.1]),
)
def test_built_weights_have_the_value_and_no_slope(K, L, n, lam, alpha):
    decays = tuple(lam * (1 + 0.5 * i) for i in range(L + 1))
    model = linear(K, L, decays, n, width=tuple(K // 2 + 1 + i for i in range(L)), smoothing=alpha)
    found = model.pair_solution()
    value, gradient = model.value_and_grad(found.params)
    assert abs(float(value - found.loss)) < 1e-12
    assert max(float(x.abs().max()) for x in (*gradient.weights, gradient.H)) < 1e-12
    if not found.trivial:
        Z = logits(found.params)[0]
        assert found.ranks.tolist() == [int(torch.linalg.matrix_rank(Z, rtol=1e-9))] * (L + 1)
        root = math.prod(decays) ** (1 / (L + 1))
        assert abs(float(cross_entropy(Z, n, alpha) + penalty_of(Z, L, root) - found.loss)) < 1e-12


def test_the_logits_are_pairs():
    found = linear(6, 3, 1e-3, n=2).pair_solution()
    block = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], **torch_double)
    expected = float(found.scale) * torch.block_diag(block, block, block).repeat_interleave(2, 1)
    assert torch.allclose(logits(found.params)[0], expected, atol=1e-12)
    odd = linear(7, 3, 1e-3).pair_solution()
    b, m = odd.scale.tolist()
    triangle = m * (torch.eye(3, **torch_double) - 1 / 3)
    expected = torch.block_diag(b * block, b * block, triangle)
    assert torch.allclose(logits(odd.params)[0], expected, atol=1e-12)
    assert m > b
    assert odd.ranks.tolist() == [4] * 4


def test_two_classes_are_one_pair():
    model = linear(2, 3, 2e-3, n=4)
    pair, collapse = model.pair_solution(), model.collapse()
    assert abs(float(pair.loss - collapse.loss)) < 1e-14
    assert abs(float(2 * pair.scale - collapse.scale)) < 1e-9
    assert pair.ranks.tolist() == [1] * 4


def test_the_conditions_of_the_theorem():
    for K in range(4, 16):
        for L in (2, 3, 4):
            applies = (L >= 3) or K >= 6
            for lam in (1e-6, 1e-4, 1e-3):
                model = linear(K, L, lam)
                lower = bool(model.pair_solution().loss < model.collapse().loss)
                assert lower or not applies
                assert not lower or L > 1
        assert linear(K, 1, 1e-3).pair_solution().loss > linear(K, 1, 1e-3).collapse().loss


@pytest.mark.parametrize("K", [4, 6])
def test_descent_from_nearby_ends_there(K):
    model = linear(K, 3, 2e-3)
    found = model.pair_solution()
    noise = model.init(6, generator(1), scale=0.05)
    start = dufm.DeepUFMParams(
        tuple(W + e for W, e in zip(found.params.weights, noise.weights, strict=True)),
        found.params.H + noise.H,
    )
    ended = minimise(model, start=start)
    assert float((ended.loss - found.loss).abs().max()) < 1e-10


def test_a_saddle_with_one_matrix_and_a_minimum_with_two():
    saddle = linear(6, 1, 1e-3)
    assert float(minimum_hessian_eigenvalue(saddle, saddle.pair_solution().params)[0]) < -1e-4
    for K, L, lam, saddles in ((5, 3, 1e-3, True), (7, 2, 1e-3, True), (5, 2, 0.02, False)):
        odd = linear(K, L, lam)  # as a rule the triangle can be left at a gain
        least = float(minimum_hessian_eigenvalue(odd, odd.pair_solution().params)[0])
        assert least < -1e-4 if saddles else least > -1e-12
    deep = linear(6, 2, 1e-3)
    assert float(minimum_hessian_eigenvalue(deep, deep.pair_solution().params)[0]) > -1e-12


def test_batches_of_decays():
    lambdas = torch.tensor([1e-3, 1e-2, 1.0], **torch_double)
    for K, shape in ((6, (3,)), (7, (3, 2))):
        found = linear(K, 2, lambdas).pair_solution()
        assert found.loss.shape == (3,)
        assert found.scale.shape == shape
        assert found.ranks.shape == (3, 3)
        assert found.trivial.tolist() == [False, False, True]
        assert torch.allclose(linear(K, 2, lambdas).value(found.params), found.loss, atol=1e-13)
        single = linear(K, 2, 1e-2).pair_solution()
        assert torch.allclose(found.loss[1], single.loss, atol=1e-14)
        assert abs(float(found.loss[2]) - math.log(K)) < 1e-12
    per_layer = linear(6, 2, (lambdas, np.full(3, 1e-3), 2e-3)).pair_solution()
    assert per_layer.loss.shape == (3,)


def test_a_bias_changes_nothing_for_even_numbers():
    plain, free = linear(6, 2, 1e-3, n=2), linear(6, 2, 1e-3, n=2, bias="free")
    found = free.pair_solution()
    assert float((found.loss - plain.pair_solution().loss).abs()) < 1e-15
    _, gradient = free.value_and_grad(found.params)
    assert found.params.b.shape == (1, 6)
    assert float(gradient.b.abs().max()) < 1e-14
    with pytest.raises(NoClosedForm, match="odd"):
        linear(7, 2, 1e-3, bias="free").pair_solution()
    # what the message says: the triangle pulls at the bias in another way than the pairs
    odd = linear(7, 2, 1e-3).pair_solution().params
    with_bias = linear(7, 2, 1e-3, bias="free")
    _, gradient = with_bias.value_and_grad(odd._replace(b=torch.zeros(1, 7, **torch_double)))
    assert float(gradient.b.abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (DeepUFM(4, 1, 3, 4, 1e-3), "squared loss"),
        (DeepUFM(4, 1, 3, 4, 1e-3, loss="ce"), "ReLU"),
        (DeepUFM(4, None, 3, 4, 1e-3, loss="ce", relu=False, counts=(2, 1, 1, 1)), "equal classes"),
        (linear(1, 2, 1e-3), "two classes"),
        (linear(3, 2, 1e-3), "got K = 3"),
        (linear(6, 2, 1e-3, width=(6, 2)), "width of at least 3"),
        (linear(7, 2, 1e-3, width=3), "width of at least 4"),
        (linear(6, 2, 0.0), "lambda of 0"),
    ],
)
def test_what_has_no_pairs(model, words):
    with pytest.raises(NoClosedForm, match=words):
        model.pair_solution()


def test_bad_arguments():
    for s in (1, 5, 2.0, True):
        with pytest.raises(ValueError, match="s must"):
            block_margin(0.1, 4, s, 2)
    with pytest.raises(ValueError, match="K must"):
        block_phi(1.0, 0.1, 1, 2, 2)
    with pytest.raises(ValueError, match="L must"):
        block_phi(1.0, 0.1, 4, 2, 0)
    with pytest.raises(ValueError, match="q must be positive"):
        block_margin(0.0, 4, 2, 2)
    with pytest.raises(ValueError, match="m must not be negative"):
        block_phi(-1.0, 0.1, 4, 2, 2)
    with pytest.raises(ValueError, match="smoothing must lie"):
        block_margin(0.1, 4, 2, 2, 1.5)
    for bad in (math.nan, [0.1, math.inf]):
        with pytest.raises(ValueError, match="q"):
            block_margin(bad, 4, 2, 2)
    assert block_margin(np.array([0.01, 0.1], np.float32), 4, 2, 2).dtype == torch.float64
    assert block_margin([], 4, 2, 2).shape == (0,)
    assert float(block_margin(0.1, 4, 2, 2, 1.0)) == 0  # all is smoothed away
