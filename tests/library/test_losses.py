"""losses: value and gradient against torch's own losses and autograd, shapes, extremes and refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ncbook import losses

EXACT = 1e-12  # the same sums of at most a few hundred terms of size one, in another order


def batch_of(shape, K, N, seed, size=3.0):
    source = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(*shape, K, N, dtype=torch.float64, generator=source)
    return logits, torch.randint(K, (N,), generator=source)


def reference(logits, labels, smoothing):
    """torch's cross-entropy, for one matrix of logits in columns, and its gradient by autograd."""
    rows = logits.T.detach().clone().requires_grad_()
    value = F.cross_entropy(rows, labels, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(value, rows)
    return value.detach(), gradient.T


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_cross_entropy_is_torchs(K, N, smoothing, seed):
    logits, labels = batch_of((), K, N, seed)
    value, gradient = losses.cross_entropy(logits, labels, smoothing)
    expected = reference(logits, labels, smoothing)
    torch.testing.assert_close((value, gradient), expected, rtol=EXACT, atol=EXACT)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_squared_is_half_of_torchs_sum_over_outputs(K, N, seed):
    logits, labels = batch_of((), K, N, seed)
    leaf = logits.clone().requires_grad_()
    expected = F.mse_loss(leaf, F.one_hot(labels, K).double().T) * K / 2
    (slope,) = torch.autograd.grad(expected, leaf)
    value, gradient = losses.squared(logits, labels)
    torch.testing.assert_close((value, gradient), (expected.detach(), slope), rtol=EXACT, atol=EXACT)


def test_a_batch_is_its_entries_each_with_its_own_smoothing():
    logits, labels = batch_of((2, 3), 4, 7, seed=0)
    smoothing = torch.linspace(0, 0.9, 6).reshape(2, 3).double()
    values, gradients = losses.cross_entropy(logits, labels, smoothing)
    squares, slopes = losses.squared(logits, labels)
    assert values.shape == squares.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = losses.cross_entropy(logits[i, j], labels, float(smoothing[i, j]))
            torch.testing.assert_close((values[i, j], gradients[i, j]), one, rtol=0, atol=1e-15)
            one = losses.squared(logits[i, j], labels)
            torch.testing.assert_close((squares[i, j], slopes[i, j]), one, rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.squared])
def test_losses_are_means_over_the_columns(loss):
    logits, labels = batch_of((), 3, 5, seed=1)
    value, gradient = loss(logits, labels)
    twice_value, twice_gradient = loss(torch.cat([logits, logits], 1), torch.cat([labels, labels]))
    torch.testing.assert_close(twice_value, value)
    torch.testing.assert_close(twice_gradient, torch.cat([gradient, gradient], 1) / 2)


def test_known_values():
    value, _ = losses.cross_entropy(torch.zeros(4, 3), [0, 1, 3])
    assert float(value) == pytest.approx(math.log(4), abs=1e-7)  # float32
    value, _ = losses.squared(np.zeros((4, 3)), [0, 1, 3])
    assert float(value) == pytest.approx(0.5, abs=1e-15)
    # a margin m over K-1 equal rivals: log(1 + (K-1) e^{-m}), and smoothing adds m (K-1) α / K
    m, K, alpha = 2.0, 5, 0.3
    logits = m * torch.eye(K, dtype=torch.float64)
    value, _ = losses.cross_entropy(logits, range(K), alpha)
    expected = math.log(1 + (K - 1) * math.exp(-m)) + alpha * m * (K - 1) / K
    assert float(value) == pytest.approx(expected, abs=1e-14)
    assert float(value) != pytest.approx(expected - alpha * m * (K - 1) / K + alpha * m, abs=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_survives_large_logits(smoothing):
    logits = torch.tensor([[1000.0, -1000.0], [0.0, 0.0]], dtype=torch.float64)
    value, gradient = losses.cross_entropy(logits, [0, 0], smoothing)
    expected = 500 * (1 - smoothing) + 2 * 1000 * smoothing / 4
    assert float(value) == pytest.approx(expected, rel=1e-14)
    assert bool(gradient.isfinite().all())


def test_columns_of_the_gradient_sum_to_zero():
    logits, labels = batch_of((3,), 5, 6, seed=2)
    _, gradient = losses.cross_entropy(logits, labels, 0.2)
    assert float(gradient.sum(-2).abs().max()) < 1e-16


def test_the_input_is_left_alone_and_float32_stays():
    logits, labels = batch_of((2,), 3, 4, seed=3)
    single = logits.float().requires_grad_()
    before = single.detach().clone()
    for loss in (losses.cross_entropy, losses.squared):
        value, gradient = loss(single, labels)
        assert value.dtype == gradient.dtype == torch.float32
        assert not gradient.requires_grad
        assert torch.equal(single.detach(), before)


def test_unchecked_lets_nan_pass_in_its_own_run_only():
    logits, labels = batch_of((3,), 3, 4, seed=4)
    logits[1, 0, 0] = math.nan
    for loss in (losses.cross_entropy_unchecked, losses.squared_unchecked):
        value, gradient = loss(logits, labels)
        assert value.isnan().tolist() == [False, True, False]
        assert bool(gradient[[0, 2]].isfinite().all())


@pytest.mark.parametrize(
    ("logits", "labels", "word"),
    [
        (torch.zeros(3), [0], "logits"),
        (torch.zeros(3, 0), [], "logits"),
        (torch.zeros(0, 3), [0, 0, 0], "logits"),
        ([[math.nan, 0.0]], [0, 0], "logits"),
        (torch.zeros(3, 2), [0], "labels"),
        (torch.zeros(3, 2), [[0, 1]], "labels"),
        (torch.zeros(3, 2), [0, 3], "labels must lie from 0 to 2"),
        (torch.zeros(3, 2), [-1, 0], "labels must lie from 0 to 2"),
        (torch.zeros(3, 2), [0.5, 0], "labels"),
    ],
)
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.squared])
def test_wrong_arguments_are_named(loss, logits, labels, word):
    with pytest.raises(ValueError, match=word):
        loss(logits, labels)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan, [0.1, 0.2, 0.3], [[0.1], [0.2]]])
def test_wrong_smoothing_is_named(smoothing):
    with pytest.raises(ValueError, match="smoothing"):
        losses.cross_entropy(torch.zeros(2, 3, 4), [0, 1, 2, 0], smoothing)
