"""The metrics against dense definitions, their invariances, known geometries, traps and malformed input."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ncbook import frames
from ncbook.metrics import CollapseMetrics, collapse_metrics, from_passes, measure
from ncbook.statistics import BetweenScatter, ClassStatistics

FIELDS = [field.name for field in dataclasses.fields(CollapseMetrics)]
OF_CLASSIFIER = FIELDS[8:]


def problem(counts, d, *, seed=0, spread=0.5, offset=0.0):
    """Features (float64) in shuffled order, labels, a random classifier and bias."""
    generator = torch.Generator().manual_seed(seed)
    K = len(counts)
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.randn(K, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    weight = torch.randn(K, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(K, generator=generator, dtype=torch.float64)
    return offset + means[labels] + spread * noise, labels, weight, bias


def by_definition(features, labels, weight, bias):
    """Every metric from its definition with dense d × d matrices, in NumPy."""
    H, y, W, b = (np.asarray(a, dtype=np.float64) for a in (features, labels, weight, bias))
    (K, d), N = W.shape, len(y)
    means = np.stack([H[y == k].mean(0) for k in range(K)])
    centre = means.mean(0)
    M = (means - centre).T
    deviations = H - means[y.astype(int)]
    within, between = deviations.T @ deviations / N, M @ M.T / K
    rank = np.linalg.matrix_rank(M, rtol=1e-10)
    v = np.array([(deviations[y == k] ** 2).sum() / (y == k).sum() for k in range(K)])
    pairs = [(k, j) for k in range(K) for j in range(k)]
    norms = np.linalg.norm(M, axis=0)
    cosines = [M[:, k] @ M[:, j] / norms[k] / norms[j] for k, j in pairs]
    etf, of = np.eye(K) - 1 / K, np.eye(K)
    network = (H @ W.T + b).argmax(1)
    nearest = ((H[:, None] - means[None]) ** 2).sum(2).argmin(1)

    def apart(A, B):
        return np.linalg.norm(A / np.linalg.norm(A) - B / np.linalg.norm(B))

    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-20 if rank == d else 1e-13)) / K,
        "nc1_ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean([(v[k] + v[j]) / (2 * np.sum((means[k] - means[j]) ** 2)) for k, j in pairs]),
        "nc2_norm": norms.std() / norms.mean(),
        "nc2_angle": np.mean([abs(c + 1 / (K - 1)) for c in cosines]),
        "nc2_etf": apart(M.T @ M, etf),
        "nc2_of": apart(means @ means.T, of),
        "rank": rank,
        "nc2_weight_etf": apart(W @ W.T, etf),
        "nc2_weight_of": apart(W @ W.T, of),
        "nc3": apart(W.T, M),
        "nc3_joint": apart(W @ M, etf),
        "nc3_uncentred": apart(W.T, means.T),
        "nc4": np.mean(network != nearest),
        "bias_collapse": np.linalg.norm(W @ centre + b),
    }


def agree(found, expected, rtol, atol=1e-14, fields=FIELDS):
    for name in fields:
        assert getattr(found, name) == pytest.approx(expected[name], rel=rtol, abs=atol), name


# -- definitions -----------------------------------------------------------------------------------------

SIZES = [
    ([20] * 10, 40),
    ([5] * 4, 3),
    ([7] * 12, 5),
    ([30, 2, 9], 6),
    ([1, 8], 4),
    ([3] * 6, 1),
    ([40] * 3, 100),
]


@pytest.mark.parametrize(("counts", "d"), SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_is_its_dense_definition(counts, d, seed):
    arguments = problem(counts, d, seed=seed)
    # 1e-12: rounding times the condition of random means; K = 2 makes three of them 0 up to rounding.
    agree(collapse_metrics(*arguments), by_definition(*arguments), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_metric_is_its_dense_definition_for_any_sizes(data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=8))
    d = data.draw(st.integers(1, 12))
    arguments = problem(counts, d, seed=data.draw(st.integers(0, 9999)), spread=data.draw(st.floats(0.01, 3)))
    M = ClassStatistics(len(counts), d).update(*arguments[:2]).centred_means
    values = torch.linalg.svdvals(M)[: min(len(counts) - 1, d)]
    condition = float(values[0] / torch.cat([values[-1:], torch.pdist(M), M.norm(dim=1)]).min())
    # Rounding of the means counts against the smallest singular value, distance and length, squared in nc1.
    rtol = 1e-12 + 1e-15 * condition**2
    agree(collapse_metrics(*arguments), by_definition(*arguments), rtol, atol=1e-13)


def test_plausible_wrong_definitions_would_show():
    """The agreement above tells the book's conventions from those of some published code."""
    features, labels, weight, bias = problem([30, 10, 5, 5], 6)
    found = collapse_metrics(features, labels, weight, bias)
    first = ClassStatistics(4, 6).update(features, labels)
    by_counts = first.means - features.mean(0)  # the sample mean as centre
    norms = by_counts.norm(dim=1)
    assert abs(float(norms.std(correction=0) / norms.mean()) - found.nc2_norm) > 1e-2
    norms = first.centred_means.norm(dim=1)
    assert float(norms.std() / norms.mean()) == pytest.approx(found.nc2_norm * math.sqrt(4 / 3))  # ddof = 1
    ratio = float(first.scatter_trace.sum() / 50 / first.centred_means.square().sum())
    assert found.nc1_ratio == pytest.approx(4 * ratio)  # without the K
    assert collapse_metrics(features, labels, weight).nc4 != found.nc4  # without the bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_narrow_features_are_measured_as_the_numbers_that_they_are(dtype):
    features, labels, weight, bias = problem([40] * 5, 16)
    features = (8 * features).to(dtype)
    agree(
        collapse_metrics(features, labels, weight, bias),
        by_definition(features.double(), labels, weight, bias),
        1e-6,
    )


def test_arrays_and_sequences_are_taken():
    arguments = problem([5, 6, 7], 4)
    expected = collapse_metrics(*arguments)
    for kind in (torch.Tensor.numpy, torch.Tensor.tolist, lambda a: a.requires_grad_(a.is_floating_point())):
        agree(collapse_metrics(*map(kind, arguments)), dataclasses.asdict(expected), rtol=1e-13)


def test_the_fields_are_those_of_the_design_and_frozen():
    found = collapse_metrics(*problem([3, 4], 2))
    design = """nc1 nc1_ratio cdnv nc2_norm nc2_angle nc2_etf nc2_of rank
        nc2_weight_etf nc2_weight_of nc3 nc3_joint nc3_uncentred nc4 bias_collapse"""
    assert design.split() == FIELDS
    assert all(isinstance(getattr(found, name), int if name == "rank" else float) for name in FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nc1 = 0.0


def test_without_a_classifier_its_metrics_are_none():
    features, labels, weight, bias = problem([3, 4], 2)
    found, full = collapse_metrics(features, labels), collapse_metrics(features, labels, weight, bias)
    assert all(getattr(found, name) is None for name in OF_CLASSIFIER)
    agree(found, dataclasses.asdict(full), rtol=1e-13, fields=FIELDS[:8])


def test_a_missing_bias_is_zero():
    features, labels, weight, _ = problem([9, 9, 9], 4)
    with_zeros = collapse_metrics(features, labels, weight, torch.zeros(3))
    agree(collapse_metrics(features, labels, weight), dataclasses.asdict(with_zeros), rtol=1e-13)


def test_streamed_passes_give_the_same_metrics():
    features, labels, weight, bias = problem([31, 12, 20], 7)
    first = ClassStatistics(3, 7)
    for part, own in zip(features.split(9), labels.split(9), strict=True):
        first.update(part, own)
    second = BetweenScatter(first, weight, bias)
    for part, own in zip(features.split(20), labels.split(20), strict=True):
        second.update(part, own)
    agree(
        from_passes(second), dataclasses.asdict(collapse_metrics(features, labels, weight, bias)), rtol=1e-12
    )


# -- invariances (each metric may change only where its definition says so) ------------------------------

UNCENTRED = {"nc2_of", "nc3_uncentred", "nc4", "bias_collapse"}


def changed(before, after, rtol=1e-9):
    return {n for n in FIELDS if getattr(before, n) != pytest.approx(getattr(after, n), rel=rtol, abs=1e-12)}


@pytest.fixture
def imbalanced():
    return problem([25, 40, 10, 18], 9, seed=3)


def test_scaling_the_features_changes_no_geometry(imbalanced):
    features, labels, weight, bias = imbalanced
    before = collapse_metrics(features, labels, weight, bias)
    assert changed(before, collapse_metrics(100 * features, labels, weight, 100 * bias)) == {"bias_collapse"}
    assert "nc4" in changed(before, collapse_metrics(features / 1000, labels, weight, bias))


def test_scaling_the_classifier_changes_no_geometry(imbalanced):
    features, labels, weight, bias = imbalanced
    before = collapse_metrics(features, labels, weight, bias)
    after = collapse_metrics(features, labels, 7 * weight, 7 * bias)
    assert changed(before, after) == {"bias_collapse"}
    assert after.bias_collapse == pytest.approx(7 * before.bias_collapse)


def test_rotating_features_and_classifier_changes_nothing(imbalanced):
    features, labels, weight, bias = imbalanced
    rotation = frames.haar_orthogonal(9, 1)
    before = collapse_metrics(features, labels, weight, bias)
    assert changed(before, collapse_metrics(features @ rotation, labels, weight @ rotation, bias)) == set()
    alone = changed(before, collapse_metrics(features @ rotation, labels, weight, bias))
    assert {"nc3", "nc3_joint", "nc3_uncentred", "nc4"} <= alone


def test_translating_the_features_changes_what_is_not_centred(imbalanced):
    features, labels, weight, bias = imbalanced
    step = torch.linspace(1, 5, 9, dtype=torch.float64)
    before = collapse_metrics(features, labels, weight, bias)
    assert changed(before, collapse_metrics(features + step, labels, weight, bias)) == UNCENTRED
    absorbed = collapse_metrics(features + step, labels, weight, bias - weight @ step)
    assert changed(before, absorbed) == {"nc2_of", "nc3_uncentred"}


def test_duplicating_samples_changes_nothing(imbalanced):
    features, labels, weight, bias = imbalanced
    twice = collapse_metrics(features.repeat(2, 1), labels.repeat(2), weight, bias)
    assert changed(collapse_metrics(features, labels, weight, bias), twice) == set()
    uneven = labels == 1
    more = collapse_metrics(
        torch.cat([features, features[uneven]]), torch.cat([labels, labels[uneven]]), weight, bias
    )
    weighted_by_samples = {"nc1", "nc1_ratio", "nc4"}
    assert changed(collapse_metrics(features, labels, weight, bias), more) == weighted_by_samples


def test_relabelling_and_reordering_change_nothing(imbalanced):
    features, labels, weight, bias = imbalanced
    before = collapse_metrics(features, labels, weight, bias)
    new = torch.tensor([2, 0, 3, 1])  # class k becomes new[k]
    old = torch.argsort(new)
    assert changed(before, collapse_metrics(features, new[labels], weight[old], bias[old])) == set()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert changed(before, collapse_metrics(features[order], labels[order], weight, bias)) == set()


def test_a_general_linear_map_changes_the_metrics_but_not_the_logits(imbalanced):
    features, labels, weight, bias = imbalanced
    A = torch.eye(9, dtype=torch.float64) + 0.3 * torch.randn(
        9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    mapped = weight @ torch.linalg.inv(A)
    assert torch.allclose(features @ A.T @ mapped.T, features @ weight.T, atol=1e-10)
    before = collapse_metrics(features, labels, weight, bias)
    after = collapse_metrics(features @ A.T, labels, mapped, bias)
    assert {"nc1", "nc1_ratio", "cdnv", "nc2_norm", "nc2_angle", "nc2_etf", "nc3"} <= changed(before, after)
    assert {"rank", "nc3_joint", "bias_collapse"}.isdisjoint(changed(before, after))


def test_nc1_is_affinely_invariant_where_the_means_span_the_space():
    """With d = K−1 the pseudo-inverse is an inverse, and tr(Σ_W Σ_B⁻¹) does not see a linear map."""
    features, labels, *_ = problem([20] * 5, 4)
    A = torch.diag(torch.tensor([1.0, 3.0, 0.2, 5.0], dtype=torch.float64))
    before, after = collapse_metrics(features, labels), collapse_metrics(features @ A, labels)
    assert after.nc1 == pytest.approx(before.nc1, rel=1e-10)
    assert abs(after.nc1_ratio / before.nc1_ratio - 1) > 0.01


# -- geometries and formulas of the book -----------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3, 4, 10, 100])
def test_exact_collapse_to_a_simplex(K):
    frame = frames.simplex_etf(K, K + 3, seed=K).T
    found = collapse_metrics(frame.repeat(4, 1), torch.arange(K).repeat(4), 3.0 * frame)
    assert (found.nc1, found.nc1_ratio, found.cdnv, found.nc4, found.rank) == (0.0, 0.0, 0.0, 0.0, K - 1)
    for name in ("nc2_norm", "nc2_angle", "nc2_etf", "nc2_weight_etf", "nc3", "nc3_joint", "nc3_uncentred"):
        assert getattr(found, name) < 1e-13, name
    apart = frames.etf_orthogonal_distance(K)
    assert found.nc2_of == pytest.approx(apart, rel=1e-12)
    assert found.nc2_weight_of == pytest.approx(apart, rel=1e-12)
    assert found.bias_collapse < 1e-13


@pytest.mark.parametrize("K", [2, 3, 4, 5, 10, 100])
def test_exact_collapse_to_an_orthogonal_frame(K):
    frame = frames.orthogonal_frame(K, K + 2, seed=1).T
    found = collapse_metrics(frame.repeat(3, 1), torch.arange(K).repeat(3), frame)
    assert found.nc2_of < 1e-13
    assert found.nc2_etf < 1e-13  # centring turns the frame into a simplex
    apart = math.sqrt(2 - 2 * math.sqrt((K - 1) / K))
    assert found.nc3 == pytest.approx(apart, rel=1e-12)
    assert found.nc2_weight_etf == pytest.approx(apart, rel=1e-12)
    assert found.nc3_uncentred < 1e-13
    assert found.nc4 == 0.0
    assert found.bias_collapse == pytest.approx(1 / math.sqrt(K), rel=1e-12)


def test_centred_means_of_two_classes_are_always_a_simplex():
    found = collapse_metrics(*problem([4, 30], 6, spread=3.0))
    assert max(found.nc2_norm, found.nc2_angle, found.nc2_etf) < 1e-13
    assert min(found.nc1, found.cdnv, found.nc2_of, found.nc3) > 0.1


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 9), st.integers(1, 9), st.integers(0, 999))
def test_distances_stay_in_their_ranges(K, d, seed):
    found = collapse_metrics(*problem([3] * K, d, seed=seed))
    assert 0 <= found.nc2_etf <= math.sqrt(2 - 2 / math.sqrt(K - 1)) + 1e-12
    assert 0 <= found.nc2_of <= math.sqrt(2)
    assert 0 <= found.nc3 <= 2
    assert 0 <= found.nc4 <= 1
    assert found.rank == min(K - 1, d)
    assert 0 <= found.nc3_joint <= 2


@pytest.mark.parametrize("n", [3, 5, 12])
def test_pure_noise_has_small_nc1_but_not_small_cdnv(n):
    """E cdnv = (n−1)/2 and E nc1 ≈ (K−1)(n−1)/d where d is much larger than K."""
    K, d, repeats = 5, 1500, 100
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(K * n) % K
    found = [
        collapse_metrics(torch.randn(K * n, d, generator=generator), labels, num_classes=K)
        for _ in range(repeats)
    ]
    cdnv, nc1 = np.mean([m.cdnv for m in found]), np.mean([m.nc1 for m in found])
    # nc1 is a mean of (K−1)K(n−1) squares of normal variables: its relative deviation is √(2 over that).
    # Five deviations, and a bias of the order of K/d from 1/E s² instead of E 1/s²; the same for cdnv with d.
    deviation = 5 * math.sqrt(2 / ((K - 1) * K * (n - 1) * repeats)) + K / d
    assert nc1 == pytest.approx((K - 1) * (n - 1) / d, rel=deviation)
    assert nc1 != pytest.approx(K * (n - 1) / d, rel=deviation)
    assert nc1 != pytest.approx((K - 1) * n / d, rel=deviation)
    assert cdnv == pytest.approx((n - 1) / 2, rel=0.01)
    assert cdnv != pytest.approx(n / 2, rel=0.01)


def test_dilation_is_cdnv_and_a_quarter_of_the_ratio_for_two_classes():
    found = collapse_metrics(*problem([50, 50], 8))
    assert found.cdnv == pytest.approx(found.nc1_ratio / 4, rel=1e-12)


def test_the_nearest_mean_rule_follows_from_duality_for_every_sample():
    """W = cMᵀ with the bias of equal norms is the nearest-mean rule, however far the features are from it."""
    K = 6
    frame = 2 * frames.simplex_etf(K, 9, seed=0).T
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    noise = torch.cat([noise, -noise])  # class means stay exactly in place
    features = torch.cat([frame[k] + 3 * noise for k in range(K)])
    labels = torch.arange(K).repeat_interleave(100)
    assert collapse_metrics(features, labels, frame, torch.zeros(K)).nc4 == 0.0
    bias = torch.zeros(K)
    bias[0] = 5.0
    assert collapse_metrics(features, labels, frame, bias).nc4 > 0.1


# -- numerical traps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_float32_features_far_from_the_origin(offset):
    features, labels, weight, bias = problem([50] * 10, 30, spread=0.05, offset=offset)
    features = features.float()
    found = collapse_metrics(features, labels, weight, bias)
    expected = collapse_metrics(features.double(), labels, weight, bias)
    agree(found, dataclasses.asdict(expected), rtol=1e-5)
    assert found.rank == 9
    if offset == 1e4:  # two moments in float32 have lost the scatter altogether
        naive = (features.T @ features / 500 - features.mean(0).outer(features.mean(0))).trace()
        within = sum(float(features[labels == k].double().var(0, correction=0).sum()) for k in range(10)) / 10
        assert abs(float(naive) / within - 1) > 10


def test_a_dense_pseudo_inverse_in_float32_is_what_fails():
    features, labels, *_ = problem([50] * 10, 30, spread=0.05)
    found = collapse_metrics(features.float(), labels)
    first = ClassStatistics(10, 30).update(features, labels)
    M, D = first.centred_means.float().numpy(), (features - first.means[labels]).float().numpy()
    naive = np.trace((D.T @ D / 500) @ np.linalg.pinv(M.T @ M / 10, rcond=1e-15)) / 10
    assert found.nc1 == pytest.approx(collapse_metrics(features, labels).nc1, rel=1e-5)
    assert abs(naive / found.nc1 - 1) > 1


@pytest.mark.parametrize("ratio", [1e-2, 5e-3, 1e-4])
def test_weak_directions_of_the_means_count_in_float32(ratio):
    """A class whose mean leaves the span of the others by a small step makes a weak singular value."""
    strengths = torch.tensor([1.0, 0.8, 0.6, ratio], dtype=torch.float64)
    basis = frames.simplex_etf(5, 4).T
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 5
    noise = torch.randn(1000, 4, generator=generator, dtype=torch.float64) * strengths * 0.1
    features = torch.cat([basis[labels] * strengths + noise, torch.zeros(1000, 60, dtype=torch.float64)], 1)
    features = 5.0 + features @ frames.haar_orthogonal(64, 3)
    found = collapse_metrics(features.float(), labels)
    expected = by_definition(
        features.float().double(), labels, torch.zeros(5, 64) + torch.eye(5, 64), torch.zeros(5)
    )
    assert found.rank == 4
    assert found.nc1 == pytest.approx(expected["nc1"], rel=1e-4)
    fewer = collapse_metrics(features.float(), labels, rank_tol=2 * ratio)
    assert fewer.rank == 3
    assert fewer.nc1 < 0.9 * found.nc1  # each of the four directions carries about a quarter


def test_the_rank_tolerance_follows_the_type():
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1e-8]], dtype=torch.float64)
    features, labels = means.repeat(4, 1), torch.arange(3).repeat(4)
    assert collapse_metrics(features, labels).rank == 2
    assert collapse_metrics(features.float(), labels).rank == 1
    assert collapse_metrics(features.float(), labels, rank_tol=1e-10).rank == 2
    assert collapse_metrics(features, labels, rank_tol=0.0).rank == 2
    assert collapse_metrics(features.to(torch.float16), labels).rank == 1


def test_the_smallest_kept_singular_value_is_never_the_rounding_of_the_kth():
    features, labels, *_ = problem([8] * 5, 20)
    assert collapse_metrics(features, labels, rank_tol=0.0).rank == 4
    assert collapse_metrics(features + 1e6, labels, rank_tol=0.0).rank == 4


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e20, 1e100])
def test_tiny_and_huge_features_neither_vanish_nor_overflow(scale):
    features, labels, weight, bias = problem([9, 8, 7], 5)
    before = collapse_metrics(features, labels, weight, 0 * bias)
    after = collapse_metrics(scale * features, labels, weight / scale, 0 * bias)
    assert changed(before, after) == set()


def test_products_that_overflow_float32_are_taken_in_float64():
    features, labels, weight, _ = problem([9, 8, 7], 5)
    before = collapse_metrics(features.float(), labels, weight)
    after = collapse_metrics(1e25 * features.float(), labels, 1e20 * weight)
    assert changed(before, after, rtol=1e-5) == {"bias_collapse"}


# -- what has no value -------------------------------------------------------------------------------------


def infinite(found):
    assert not any(
        isinstance(value, float) and math.isnan(value) for value in dataclasses.asdict(found).values()
    )
    return {name for name in FIELDS if getattr(found, name) == math.inf}


COLLAPSED_MEANS = {"nc1", "nc1_ratio", "cdnv", "nc2_norm", "nc2_angle", "nc2_etf", "nc3", "nc3_joint"}


@pytest.mark.parametrize("constant", [1.0, 0.1, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_identical_features_have_rank_zero(constant, dtype):
    features = torch.full((12, 5), constant, dtype=dtype) * torch.linspace(0.3, 1.7, 5, dtype=dtype)
    found = collapse_metrics(features, torch.arange(12) % 3, torch.eye(3, 5))
    assert found.rank == 0
    assert infinite(found) == COLLAPSED_MEANS


def test_dead_features_have_no_geometry_at_all():
    found = collapse_metrics(torch.zeros(6, 4), [0, 1, 2, 0, 1, 2], torch.zeros(3, 4), torch.ones(3))
    assert found.rank == 0
    everything = set(FIELDS) - {"rank", "nc4", "bias_collapse"}
    assert infinite(found) == everything
    assert found.bias_collapse == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("n", [10, 3000])
def test_classes_with_the_same_samples_have_rank_zero(offset, n):
    """The same samples in another order: the means differ by rounding only, and that is no geometry."""
    generator = torch.Generator().manual_seed(0)
    base = offset + torch.randn(n, 6, generator=generator, dtype=torch.float64)
    parts = [base[torch.randperm(n, generator=generator)] for _ in range(4)]
    found = collapse_metrics(torch.cat(parts), torch.arange(4).repeat_interleave(n), torch.eye(4, 6))
    assert found.rank == 0
    assert infinite(found) == COLLAPSED_MEANS


def test_two_coinciding_means_leave_the_rest_measurable():
    features = [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0], [4.0, 0.0], [4.0, 2.0]]
    found = collapse_metrics(features, [0, 0, 1, 1, 2, 2], torch.eye(3, 2))
    assert infinite(found) == {"cdnv"}
    assert found.rank == 1


def test_means_that_coincide_up_to_rounding_coincide():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    features = torch.cat([base, base[torch.randperm(50, generator=generator)], base + 1])
    labels = torch.arange(3).repeat_interleave(50)
    assert infinite(collapse_metrics(features, labels)) == {"cdnv"}
    collapsed = collapse_metrics([[0.1, 0.2], [0.1, 0.2], [0.5, 0.1]] * 3, [0, 1, 2] * 3)  # 0 over 0
    assert infinite(collapsed) == {"cdnv"}
    assert collapsed.nc1 == 0.0


def test_a_mean_at_the_centre_has_no_angle():
    features = [[-1.0, 0.5], [-1.0, -0.5], [0.1, 0.0], [-0.1, 0.0], [1.0, 0.25], [1.0, -0.25]]
    found = collapse_metrics(features, [0, 0, 1, 1, 2, 2], torch.eye(3, 2))
    assert infinite(found) == {"nc2_angle"}
    collapsed = collapse_metrics([[-0.1], [0.2], [0.5]] * 2, [0, 1, 2] * 2)  # centred up to rounding
    assert infinite(collapsed) == {"nc2_angle"}


def test_a_classifier_of_zeros_has_no_direction():
    features, labels, *_ = problem([5, 5, 5], 4)
    found = collapse_metrics(features, labels, torch.zeros(3, 4), [0.0, 1.0, 0.0])
    assert infinite(found) == {"nc2_weight_etf", "nc2_weight_of", "nc3", "nc3_joint", "nc3_uncentred"}
    assert 0 < found.nc4 < 1  # it always says class 1


def test_one_sample_a_class_is_collapsed():
    found = collapse_metrics([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]], [0, 1, 2])
    assert (found.nc1, found.nc1_ratio, found.cdnv, found.rank) == (0.0, 0.0, 0.0, 2)


# -- networks ------------------------------------------------------------------------------------------------


class Foreign(nn.Module):
    """A network as others write them: convolutions, BatchNorm, an in-place ReLU, dropout, a head named fc."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.drop(torch.flatten(self.avgpool(x), 1)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Foreign()
    model(torch.randn(16, 1, 9, 9))  # running statistics that are not those of the test
    return model


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, 1, 9, 9, generator=generator), torch.arange(50) % 3


def batches_of(images, size=16):
    return DataLoader(TensorDataset(*images), batch_size=size)


def by_hand(model, images, *, to):
    """The features of a layer, computed without hooks in eval mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        x = model.bn1(model.conv1(images))
        x = x if to == "bn1" else model.relu(x)
        if to not in ("bn1", "relu"):
            x = torch.flatten(model.avgpool(model.layer1(x)), 1)
    for module, mode in modes:
        module.training = mode
    return x.flatten(1)


def test_a_foreign_network_is_measured_at_the_input_of_its_head(network, images):
    expected = collapse_metrics(
        by_hand(network, images[0], to="fc"), images[1], network.fc.weight, network.fc.bias
    )
    for head in ("fc", network.fc, (network.fc.weight, network.fc.bias)):
        found = measure(network, batches_of(images), features="fc:input", head=head)
        assert isinstance(found, CollapseMetrics)
        agree(found, dataclasses.asdict(expected), rtol=1e-4)  # float32 forward passes in other batches
    assert found.nc4 > 0


def test_layers_are_flattened_and_taken_before_an_in_place_activation(network, images):
    found = measure(network, batches_of(images), features=["bn1", "relu", "fc:input"], num_classes=3)
    assert list(found) == ["bn1", "relu", "fc:input"]
    for name in found:
        rows = by_hand(network, images[0], to=name.removesuffix(":input"))
        agree(
            found[name], dataclasses.asdict(collapse_metrics(rows, images[1])), rtol=1e-4, fields=FIELDS[:8]
        )
    assert found["bn1"].nc1 != pytest.approx(found["relu"].nc1, rel=1e-2)


def test_a_layer_may_be_a_module_or_a_function(network, images):
    batches = batches_of(images)
    by_name = measure(network, batches, features="avgpool")
    for same in (network.avgpool, "avgpool:output"):
        agree(measure(network, batches, features=same), dataclasses.asdict(by_name), 1e-6, fields=FIELDS[:8])

    def pooled(x):
        return network.avgpool(network.layer1(network.relu(network.bn1(network.conv1(x)))))

    agree(measure(network, batches, features=pooled), dataclasses.asdict(by_name), 1e-6, fields=FIELDS[:8])
    several = measure(network, batches, features=[pooled, network.avgpool, network.layer1[0]])
    assert list(several) == ["pooled", "avgpool", "layer1.0"]


def test_the_head_belongs_to_the_last_of_several_layers(network, images):
    found = measure(network, batches_of(images), features=["conv1", "fc:input"], head="fc")
    assert found["conv1"].nc4 is None
    alone = measure(network, batches_of(images), features="fc:input", head="fc")
    agree(found["fc:input"], dataclasses.asdict(alone), rtol=1e-6)


def test_measuring_leaves_no_trace(network, images):
    network.train()
    network.bn1.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loader = DataLoader(TensorDataset(*images), batch_size=16, shuffle=True)
    torch.manual_seed(5)
    measure(network, loader, features=["conv1", "fc:input"], head="fc")
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_measuring_cleans_up_after_an_error(network, images):
    network.train()
    batches = [(images[0], images[1]), (images[0], images[1] + 7)]
    with pytest.raises(ValueError, match="labels must lie in") as caught:
        measure(network, batches, features="fc:input", head="fc")
    assert network.training
    assert network.bn1.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert caught.value.__traceback__ is not None  # and that while the traceback still holds every frame


def test_dropout_and_batch_statistics_are_those_of_eval_mode(network, images):
    network.train()
    small = measure(network, batches_of(images, 5), features="fc:input", head="fc")
    large = measure(network, batches_of(images, 50), features="fc:input", head="fc")
    agree(small, dataclasses.asdict(large), rtol=1e-4)


def test_lists_arrays_and_shuffled_loaders_serve(network, images):
    expected = dataclasses.asdict(measure(network, batches_of(images), features="fc:input", head="fc"))
    as_list = [(images[0][:20], images[1][:20]), (images[0][20:].numpy(), images[1][20:].tolist())]
    shuffled = DataLoader(TensorDataset(*images), batch_size=8, shuffle=True)
    for batches in (as_list, shuffled):
        agree(measure(network, batches, features="fc:input", head="fc"), expected, rtol=1e-4)


def test_layers_run_without_gradients(network, images):
    recorded = []

    def watched(x):
        recorded.append(torch.is_grad_enabled())
        return x.flatten(1)

    measure(network, batches_of(images), features=[watched, "fc"])
    assert recorded
    assert not any(recorded)


def test_the_rank_tolerance_follows_the_type_of_the_layer():
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1e-8]], dtype=torch.float64)
    batches = [(means, [0, 1, 2])]
    assert measure(nn.Identity(), batches, features="").rank == 2
    assert measure(nn.Identity(), [(means.float(), [0, 1, 2])], features="").rank == 1
    assert measure(nn.Identity(), batches, features="", rank_tol=1e-6).rank == 1


def test_a_float64_network_is_measured_in_float64(network, images):
    network.double()
    found = measure(network, [(images[0].double(), images[1])], features="fc:input", head="fc")
    rows = by_hand(network, images[0].double(), to="fc")
    expected = collapse_metrics(rows, images[1], network.fc.weight, network.fc.bias)
    agree(found, dataclasses.asdict(expected), rtol=1e-12)


BAD_MEASUREMENTS = [
    ("features must name a submodule .*'conv1'", {"features": "conv"}),
    ("features must name a submodule", {"features": "nowhere:input"}),
    ("features must end in ':input' or ':output'", {"features": "fc:weight"}),
    ("features must be a submodule of the model", {"features": nn.Linear(6, 3)}),
    ("features must be a layer's name", {"features": 3}),
    ("features must be a layer's name", {"features": None}),
    ("features must name at least one layer", {"features": []}),
    ("features must name at least one layer and none twice", {"features": ["fc", "fc"]}),
    ("'unused' must run once .* ran 0 times", {"features": "unused"}),
    ("must give a tensor of a row for each sample, got list", {"features": lambda x: [x]}),
    ("must give a tensor of a row for each sample", {"features": lambda x: x.sum()}),
    ("labels must have one entry for each", {"features": lambda x: x.flatten(1)[:-1]}),
    ("features must be finite", {"features": lambda x: x.flatten(1) / 0}),
    ("head must name a submodule .*'fc'", {"head": "fcc"}),
    ("head must be a linear module", {"head": "relu"}),
    ("head must be a linear submodule", {"head": 3}),
    ("weight must be a matrix", {"head": "conv1"}),
    ("weight must have the 6 columns", {"head": (torch.zeros(3, 5), None)}),
    ("bias must have one entry", {"head": (torch.zeros(3, 6), torch.zeros(2))}),
    ("num_classes must be a positive integer", {"num_classes": 2.5}),
    ("num_classes must be at least 2", {"num_classes": 1}),
    ("labels must lie in 0 … 1", {"num_classes": 2}),
    ("weight must have one row for each of 4", {"num_classes": 4, "head": "fc"}),
    ("class 3 has no samples", {"num_classes": 4}),
    ("rank_tol must be a number", {"rank_tol": "small"}),
    ("batches must be iterable twice.*generator", {"batches": (pair for pair in [])}),
    ("batches must be iterable twice.*int", {"batches": 3}),
    ("batches must hold at least one batch", {"batches": []}),
    ("batches must hold at least one batch", {"batches": [], "num_classes": 3}),
    ("batches must give pairs", {"batches": [torch.zeros(4, 1, 9, 9)]}),
    ("batches must give pairs", {"batches": [{"x": 0, "y": 1}]}),
    ("batches must give inputs as a tensor", {"batches": [("cat", [0])], "num_classes": 2}),
    ("labels must be a vector", {"batches": [(torch.zeros(1, 1, 9, 9), 0)]}),
]


@pytest.mark.parametrize(("message", "change"), BAD_MEASUREMENTS)
def test_a_measurement_that_cannot_be_made_says_why(network, images, message, change):
    arguments = {"batches": batches_of(images), "features": "fc:input", **change}
    with pytest.raises(ValueError, match=message):
        measure(network, arguments.pop("batches"), **arguments)


def test_a_module_that_runs_twice_is_refused(images):
    shared = nn.Linear(81, 81)
    model = nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared, nn.Linear(81, 3))
    with pytest.raises(ValueError, match="'1' must run once for each batch, it ran 2 times"):
        measure(model, batches_of(images), features="1")


class Exhausted:
    """Iterable in name, but it hands out one and the same iterator."""

    def __init__(self, pairs):
        self.pairs = iter(pairs)

    def __iter__(self):
        return self.pairs


class Growing:
    """Gives one batch more each time it is iterated."""

    def __init__(self, pair):
        self.pair, self.times = pair, 0

    def __iter__(self):
        self.times += 1
        return iter([self.pair] * self.times)


@pytest.mark.parametrize("kind", [lambda pair: Exhausted([pair]), Growing])
def test_passes_over_different_samples_are_refused(network, images, kind):
    with pytest.raises(ValueError, match="batches must give the same samples in both passes"):
        measure(network, kind(images), features="fc:input", num_classes=3)


# -- malformed input -----------------------------------------------------------------------------------------

X, Y, W, B = [[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]], [0, 1, 1], [[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0]
NAN, INF = float("nan"), float("inf")
MALFORMED = [
    ("features", {"features": [0.0, 1.0, 2.0]}),
    ("features", {"features": 3.0}),
    ("features", {"features": None}),
    ("features", {"features": "abc"}),
    ("features", {"features": [["a", "b"]] * 3}),
    ("features", {"features": [[0.0, 1.0], [2.0], [1.0, 2.0]]}),
    ("features", {"features": np.zeros((3, 1, 2))}),
    ("features", {"features": np.zeros((3, 0))}),
    ("features", {"features": np.zeros((0, 2)), "labels": []}),
    ("features", {"features": [], "labels": []}),
    ("features", {"features": torch.zeros(3, 2, dtype=torch.complex64)}),
    ("features", {"features": [[0.0, NAN], [1.0, 1.0], [1.0, 1.0]]}),
    ("features", {"features": torch.tensor([[0.0, NAN], [1.0, 1.0], [1.0, 1.0]])}),
    ("features", {"features": torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, INF]])}),
    ("features", {"features": torch.tensor([[0.0, INF], [1.0, 1.0], [1.0, -INF]])}),
    ("features", {"features": torch.tensor([[INF, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float16)}),
    (
        "features",
        {"features": torch.tensor([[1e200], [2e200], [3e200]], dtype=torch.float64), "weight": None},
    ),
    ("labels", {"labels": [0, 1]}),
    ("labels", {"labels": [0, 1, 1, 0]}),
    ("labels", {"labels": [[0], [1], [1]]}),
    ("labels", {"labels": [[1, 0], [0, 1], [0, 1]]}),
    ("labels", {"labels": 1}),
    ("labels", {"labels": None}),
    ("labels", {"labels": ["cat", "dog", "dog"]}),
    ("labels", {"labels": [0.0, 0.5, 1.0]}),
    ("labels", {"labels": [0.0, NAN, 1.0]}),
    ("labels", {"labels": [0.0, INF, 1.0]}),
    ("labels", {"labels": [-1, 0, 1]}),
    ("labels", {"labels": [0, 1, 2]}),
    ("labels", {"labels": [1, 1, 1]}),
    ("labels", {"labels": [0, 0, 0]}),
    ("labels", {"labels": [0, 1, 3], "weight": None}),
    ("labels", {"labels": [0, 2, 2], "weight": None, "num_classes": 2}),
    ("labels", {"weight": None, "num_classes": 3}),
    ("weight", {"weight": [1.0, 0.0]}),
    ("weight", {"weight": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]}),
    ("weight", {"weight": np.zeros((2, 2, 1))}),
    ("weight", {"weight": np.zeros((0, 2))}),
    ("weight", {"weight": [[1.0, NAN], [0.0, 1.0]]}),
    ("weight", {"weight": [[1.0, INF], [0.0, 1.0]]}),
    ("weight", {"weight": "fc"}),
    ("weight", {"weight": nn.Linear(2, 2)}),
    ("weight", {"weight": torch.zeros(2, 2, dtype=torch.complex64)}),
    ("weight", {"num_classes": 3}),
    ("bias", {"weight": None, "bias": B}),
    ("bias", {"bias": [0.0]}),
    ("bias", {"bias": [0.0, 1.0, 2.0]}),
    ("bias", {"bias": [[0.0, 1.0]]}),
    ("bias", {"bias": 0.0}),
    ("bias", {"bias": [0.0, NAN]}),
    ("bias", {"bias": "free"}),
    ("num_classes", {"num_classes": 0}),
    ("num_classes", {"num_classes": -2}),
    ("num_classes", {"num_classes": 1}),
    ("num_classes", {"num_classes": 2.0}),
    ("num_classes", {"num_classes": True}),
    ("num_classes", {"num_classes": "2"}),
    ("num_classes", {"labels": [0, 0, 0], "weight": None}),
    ("num_classes", {"labels": [0, 0, 0], "weight": [[1.0, 0.0]]}),
    ("rank_tol", {"rank_tol": -1e-9}),
    ("rank_tol", {"rank_tol": 1.0}),
    ("rank_tol", {"rank_tol": NAN}),
    ("rank_tol", {"rank_tol": "1e-6"}),
    ("rank_tol", {"rank_tol": True}),
]


@pytest.mark.parametrize(("name", "change"), MALFORMED)
def test_malformed_input_is_refused_by_name(name, change):
    arguments = {"features": X, "labels": Y, "weight": W, **change}
    with pytest.raises(ValueError, match=rf"^{name} must"):
        collapse_metrics(**arguments)


def test_the_well_formed_neighbour_of_the_malformed_is_taken():
    assert collapse_metrics(X, Y, W, B).rank == 1
    assert collapse_metrics(X, [0.0, 1.0, 1.0], W, np.array(B), num_classes=np.int64(2), rank_tol=0).rank == 1


def test_the_empty_class_is_named():
    with pytest.raises(ValueError, match="labels must name every class, but class 2 has no samples"):
        collapse_metrics(X, [0, 1, 3])


def test_unfinished_second_passes_are_refused():
    first = ClassStatistics(2, 2).update(X, Y)
    with pytest.raises(ValueError, match=r"second pass must see the samples of the first, got \[0, 0\]"):
        from_passes(BetweenScatter(first))
    with pytest.raises(ValueError, match="second pass must see the samples"):
        from_passes(BetweenScatter(first).update(X, Y).update(X, Y))
    with pytest.raises(ValueError, match="rank_tol must be a number"):
        from_passes(BetweenScatter(first).update(X, Y), rank_tol=2)
