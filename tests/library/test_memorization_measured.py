"""Memorization and dilation of networks: definitions on built features, closed forms, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import memorization_dilation as md
from ncbook.memorization_dilation.measured import (
    class_distance,
    class_means,
    displacement,
    measure_memorization,
    memorised_fraction,
    progress,
    radius,
)
from ncbook.metrics import collapse_metrics


def draw(seed=0, K=4, n=30, d=6, eta=0.3, shift=0.0):
    """Features of a training and a test set, with flipped labels and predictions."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(K, d, dtype=torch.float64, generator=generator) + shift
    true = torch.arange(K).repeat_interleave(n)
    labels = true.clone()
    for k in range(K):
        wrong = k * n + torch.arange(round(eta * n))
        labels[wrong] = (true[wrong] + 1 + torch.arange(len(wrong)) % (K - 1)) % K
    pull = torch.rand(K * n, 1, dtype=torch.float64, generator=generator)
    noise = torch.randn(K * n, d, dtype=torch.float64, generator=generator)
    features = means[true] + pull * (means[labels] - means[true]) + 0.3 * noise
    test_true = torch.arange(K).repeat_interleave(11)
    test = means[test_true] + 0.5 * torch.randn(11 * K, d, dtype=torch.float64, generator=generator)
    predictions = torch.where(pull[:, 0] > 0.5, labels, true)
    return features, labels, true, test, test_true, predictions


def test_the_package_offers_the_functions():
    for name in (
        "MeasuredMemorization",
        "class_distance",
        "class_means",
        "displacement",
        "measure_memorization",
        "memorised_fraction",
        "progress",
        "radius",
    ):
        assert name in md.__all__
        assert hasattr(md, name)


@pytest.mark.parametrize("K", [2, 3, 10])
def test_every_number_is_its_definition_written_as_loops(K):
    h, y, t, g, u, p = draw(K, K=K, n=12, d=3)
    found = measure_memorization(h, y, t, g, u, predictions=p, test_predictions=(u + (u == 0)) % K)
    mu = [np.mean([g[i].numpy() for i in range(len(g)) if u[i] == k], axis=0) for k in range(K)]
    noisy = [i for i in range(len(h)) if y[i] != t[i]]
    moved = sum(np.linalg.norm(h[i].numpy() - mu[int(t[i])]) for i in noisy)
    pairs = [np.linalg.norm(mu[k] - mu[j]) for k in range(K) for j in range(k)]
    squares = [np.sum((g[i].numpy() - mu[int(u[i])]) ** 2) for i in range(len(g))]
    D, r = np.mean(pairs), math.sqrt(np.mean(squares))
    assert math.isclose(found.noise_rate, len(noisy) / len(h))
    assert math.isclose(found.displacement, moved / len(h), rel_tol=1e-12)
    assert math.isclose(found.distance, D, rel_tol=1e-12)
    assert math.isclose(found.relative_displacement, moved / len(h) / D, rel_tol=1e-12)
    assert math.isclose(found.radius, r, rel_tol=1e-12)
    assert math.isclose(found.dilation, r / D, rel_tol=1e-12)
    assert math.isclose(found.memorised, np.mean([int(p[i] == y[i]) for i in noisy]))
    assert math.isclose(found.accuracy, 1 - 1 / K)
    # neighbouring conventions are told apart
    assert not math.isclose(found.displacement, moved / len(noisy), rel_tol=1e-3)
    assert not math.isclose(found.dilation, found.nc1, rel_tol=1e-3)


def test_nc1_is_that_of_the_metrics():
    h, y, t, g, u, _ = draw(3)
    assert math.isclose(measure_memorization(h, y, t, g, u).nc1, collapse_metrics(g, u).nc1, rel_tol=1e-9)


def test_at_two_balanced_classes_the_squared_dilation_is_the_cdnv():
    h, y, t, g, u, _ = draw(5, K=2)
    found = measure_memorization(h, y, t, g, u)
    metrics = collapse_metrics(g, u)
    assert math.isclose(found.dilation**2, metrics.cdnv, rel_tol=1e-9)
    assert math.isclose(found.dilation**2, metrics.nc1_ratio / 4, rel_tol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
    K=st.integers(2, 6),
)
def test_rotation_and_shift_change_nothing_and_a_scale_only_lengths(seed, scale, shift, K):
    h, y, t, g, u, p = draw(seed, K=K, n=10, d=4)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    a = measure_memorization(h, y, t, g, u, predictions=p)
    b = measure_memorization(scale * h @ Q + shift, y, t, scale * g @ Q + shift, u, predictions=p)
    for name in ("displacement", "distance", "radius"):
        assert math.isclose(getattr(b, name), scale * getattr(a, name), rel_tol=1e-6)
    for name in ("relative_displacement", "dilation", "nc1"):
        assert math.isclose(getattr(b, name), getattr(a, name), rel_tol=1e-6)
    assert a.memorised == b.memorised
    pa = progress(h, y, t, class_means(g, u))
    pb = progress(scale * h @ Q + shift, y, t, class_means(scale * g @ Q + shift, u))
    torch.testing.assert_close(pa, pb, rtol=1e-6, atol=1e-7)


def test_far_from_the_origin_no_digit_is_lost():
    h, y, t, g, u, _ = draw(1)
    near, far = (measure_memorization(h + s, y, t, g + s, u) for s in (0.0, 1e7))
    assert math.isclose(near.dilation, far.dilation, rel_tol=1e-7)
    assert math.isclose(near.displacement, far.displacement, rel_tol=1e-7)


@pytest.mark.parametrize("kind", ["float32", "numpy", "list"])
def test_other_types_are_taken(kind):
    h, y, t, g, u, p = draw(2)
    expected = measure_memorization(h, y, t, g, u, predictions=p)
    change = {
        "float32": lambda x: x.float() if x.is_floating_point() else x,
        "numpy": lambda x: x.numpy(),
        "list": lambda x: x.tolist(),
    }[kind]
    found = measure_memorization(*(change(x) for x in (h, y, t, g, u)), predictions=change(p))
    assert math.isclose(found.dilation, expected.dilation, rel_tol=1e-5)
    assert math.isclose(found.displacement, expected.displacement, rel_tol=1e-5)
    assert found.memorised == expected.memorised


def test_features_that_require_a_gradient_are_measured_without_one():
    h, y, t, g, u, _ = draw(2)
    plain = displacement(h, y, t, class_means(g, u))
    assert displacement(h.clone().requires_grad_(), y, t, class_means(g, u)) == plain


def test_without_noise_nothing_is_displaced_and_nothing_memorised():
    h, _, t, g, u, p = draw(4)
    found = measure_memorization(h, t, t, g, u, predictions=p)
    assert found.noise_rate == 0
    assert found.displacement == found.relative_displacement == 0
    assert found.memorised is None
    assert progress(h, t, t, class_means(g, u)).shape == (0, 2)
    with pytest.raises(ValueError, match="no label is wrong"):
        memorised_fraction(p, t, t)


@pytest.mark.parametrize(("K", "eta"), [(2, 0.1), (3, 0.3), (10, 0.45)])
def test_complete_memorization_has_its_closed_form(K, eta):
    """Every feature at the place of its label, grouped by true classes."""
    n = 20 * (K - 1)
    m = 2.5 * torch.eye(K, dtype=torch.float64)
    true = torch.arange(K).repeat_interleave(n)
    labels = true.clone()
    for k in range(K):
        wrong = torch.arange(round(eta * n))
        labels[k * n + wrong] = (k + 1 + wrong % (K - 1)) % K
    eta = float((labels != true).double().mean())
    shares = torch.bincount(labels[true == 0], minlength=K).double() / n
    h = m[labels]
    means = class_means(h, true)
    D, r = class_distance(means), radius(h, true, means)
    spread = 0.5 * (1 - float(shares.square().sum()))
    assert math.isclose(r, 2.5 * math.sqrt(2 * spread), rel_tol=1e-9)
    if round(eta * n) % (K - 1) == 0:  # every label equally often: the formula of the proposition
        shrink = 1 - K * eta / (K - 1)
        predicted = math.sqrt(0.5 * (1 - (1 - eta) ** 2 - eta**2 / (K - 1))) / shrink
        assert math.isclose(r / D, predicted, rel_tol=1e-9)
        assert not math.isclose(r / D, predicted * shrink, rel_tol=1e-2)
    along = progress(h, labels, true, m)
    torch.testing.assert_close(along[:, 0], torch.ones(len(along), dtype=torch.float64))
    assert float(along[:, 1].max()) < 1e-9


def test_along_and_aside_of_one_point():
    means = [[1.0, 1.0, 0.0], [5.0, 1.0, 0.0]]
    found = progress([[2.0, 1.0, 8.0]], [1], [0], means)
    assert found.tolist() == [[0.25, 2.0]]
    assert progress([[2.0, 1.0, 8.0]], [0], [1], means).tolist() == [[0.75, 2.0]]


def test_means_of_another_set_are_another_variant():
    h, y, t, g, u, _ = draw(6)
    clean = y == t
    from_test = displacement(h, y, t, class_means(g, u))
    from_training = displacement(h, y, t, class_means(h[clean], t[clean]))
    assert from_test != from_training
    assert math.isclose(from_test, measure_memorization(h, y, t, g, u).displacement, rel_tol=1e-12)


def test_bad_arguments_are_named():
    h, y, t, g, u, p = draw(0)
    for change, words in (
        ({"features": h[:, 0]}, "features"),
        ({"features": h[:-1]}, "labels"),
        ({"features": torch.full_like(h, math.nan)}, "features"),
        ({"labels": y[:-1]}, "labels"),
        ({"labels": -1 - y}, "labels"),
        ({"true_labels": t.double() + 0.5}, "true_labels"),
        ({"test_features": g[u > 0], "test_labels": u[u > 0]}, "every class"),
        ({"test_features": torch.ones_like(g)}, "D = 0"),
        ({"test_features": g[:, :2]}, "columns"),
        ({"predictions": p[:-1]}, "predictions"),
        ({"test_predictions": u[:-1]}, "test_predictions"),
        ({"num_classes": 3}, "num_classes"),
        ({"num_classes": 5}, "every class"),
    ):
        arguments = {
            "features": h,
            "labels": y,
            "true_labels": t,
            "test_features": g,
            "test_labels": u,
        } | change
        with pytest.raises(ValueError, match=words):
            measure_memorization(**arguments)
    with pytest.raises(ValueError, match="at least two classes"):
        class_distance([[1.0, 2.0]])
    with pytest.raises(ValueError, match="means must differ"):
        progress([[1.0]], [1], [0], [[2.0], [2.0]])
    with pytest.raises(ValueError, match="rows of the 2 means"):
        radius([[1.0]], [2], [[2.0], [3.0]])
    with pytest.raises(ValueError, match="at least one"):
        class_means(torch.zeros(0, 3), [])
