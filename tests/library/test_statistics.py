"""The two passes against their definitions: streams, merges, processes, offsets, deep collapse, bad input."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook.statistics import BetweenScatter, ClassStatistics, rows


def sample(counts, d, *, seed=0, spread=1.0, offset=0.0, dtype=torch.float64):
    """Class means of unit entries plus noise of the given spread, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    return (offset + means[labels] + spread * noise).to(dtype), labels


def by_definition(features, labels, K):
    """Counts, means and scatters by two plain NumPy passes in float64."""
    X, y = features.to(torch.float64).numpy(), labels.numpy()
    means = np.stack([X[y == k].mean(0) for k in range(K)])
    scatter = np.array([((X[y == k] - means[k]) ** 2).sum() for k in range(K)])
    return np.bincount(y, minlength=K), means, scatter


def stream(features, labels, K, cuts):
    statistics = ClassStatistics(K, features.shape[1])
    for part, own in zip(np.split(features, cuts), np.split(labels, cuts), strict=True):
        statistics.update(part, own)
    return statistics


# -- the first pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "d"), [([7, 1, 20], 5), ([4], 3), ([3, 3], 1), ([2] * 30, 4), ([300, 5], 40)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_first_pass_is_its_definition_for_every_float_type(counts, d, dtype):
    features, labels = sample(counts, d, dtype=dtype)
    found = ClassStatistics(len(counts), d).update(features, labels)
    n, means, scatter = by_definition(features, labels, len(counts))
    # Narrow types are widened before anything is summed, so their error is that of float64 as well.
    assert found.counts.tolist() == n.tolist()
    assert np.allclose(found.means, means, rtol=0, atol=1e-14)
    assert np.allclose(found.scatter_trace, scatter, rtol=1e-14, atol=1e-25)
    assert np.allclose(found.global_mean, means.mean(0), rtol=0, atol=1e-14)
    assert np.allclose(found.centred_means, means - means.mean(0), rtol=0, atol=1e-14)
    assert found.num_samples == sum(counts)


def test_the_mean_of_the_class_means_is_not_the_mean_of_the_samples():
    features, labels = sample([30, 2], 3)
    found = ClassStatistics(2, 3).update(features, labels)
    assert torch.allclose(found.global_mean, found.means.mean(0))
    assert float((found.global_mean - features.mean(0)).norm()) > 0.1


@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.tolist, lambda t: np.asarray(t)[:, ::-1][:, ::-1]])
def test_arrays_sequences_and_views_are_taken(kind):
    features, labels = sample([5, 6], 4)
    expected = ClassStatistics(2, 4).update(features, labels)
    found = ClassStatistics(2, 4).update(kind(features), labels.to(torch.uint8))
    assert torch.equal(found.means, expected.means)
    assert torch.equal(found.scatter_trace, expected.scatter_trace)


def test_gradients_and_strides_of_the_input_do_not_matter():
    features, labels = sample([5, 6], 4)
    strided = torch.stack([features, features], 2)[:, :, 0].requires_grad_()
    found = ClassStatistics(2, 4).update(strided, labels)
    assert torch.equal(found.means, ClassStatistics(2, 4).update(features, labels).means)
    assert not found.means.requires_grad


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
def test_the_size_of_a_block_does_not_matter(monkeypatch, block):
    features, labels = sample([40, 23, 9], 6, dtype=torch.float32)
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(rows, "_CPU_BLOCK", block)
    first = ClassStatistics(3, 6).update(features, labels)
    second = BetweenScatter(first, weight).update(features, labels)
    n, means, scatter = by_definition(features, labels, 3)
    assert np.allclose(first.means, means, rtol=0, atol=1e-14)
    assert np.allclose(first.scatter_trace, scatter, rtol=1e-14)
    assert second.counts.tolist() == n.tolist()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_streaming_gives_the_batch(data):
    K, d = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    counts = data.draw(st.lists(st.integers(1, 30), min_size=K, max_size=K))
    features, labels = sample(counts, d, seed=data.draw(st.integers(0, 999)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=8)))
    streamed = stream(features.numpy(), labels.numpy(), K, cuts)
    whole = ClassStatistics(K, d).update(features, labels)
    assert torch.equal(streamed.counts, whole.counts)
    # 1e-14: a few roundings of numbers of order one. 1e-12 for the scatter: as many roundings as merges.
    assert torch.allclose(streamed.means, whole.means, rtol=0, atol=1e-14)
    assert torch.allclose(streamed.scatter_trace, whole.scatter_trace, rtol=1e-12, atol=1e-25)
    assert bool((streamed.scatter_trace >= 0).all())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.permutations(range(5)))
def test_the_order_and_the_tree_of_merges_do_not_matter(seed, order):
    features, labels = sample([13, 1, 8], 4, seed=seed)
    whole = ClassStatistics(3, 4).update(features, labels)
    parts = list(zip(features.tensor_split(5), labels.tensor_split(5), strict=True))
    made = [ClassStatistics(3, 4).update(*parts[i]) for i in order]
    left = made[0].merge(made[1])
    right = made[2].merge(made[3].merge(made[4]))
    for merged in (left.merge(right),):
        assert torch.equal(merged.counts, whole.counts)
        assert torch.allclose(merged.means, whole.means, rtol=0, atol=1e-14)
        assert torch.allclose(merged.scatter_trace, whole.scatter_trace, rtol=1e-12)


def test_merging_the_wrong_formula_would_show():
    """Without the term of the moved mean the scatter is too small by n_a n_b/n times the squared distance."""
    left = ClassStatistics(1, 2).update([[0.0, 0.0], [2.0, 0.0]], [0, 0])
    right = ClassStatistics(1, 2).update([[5.0, 4.0], [5.0, 4.0], [5.0, 4.0]], [0, 0, 0])
    alone = float(left.scatter_trace + right.scatter_trace)
    assert float(left.merge(right).scatter_trace) == pytest.approx(alone + 6 / 5 * 32, rel=1e-14)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(0, 5), st.integers(1, 5))
def test_integers_are_summed_exactly(seed, power, d):
    """With power-of-two counts every mean, and every term of Chan's formula, is a dyadic number."""
    n = 2**power
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-1000, 1000, (4 * n, d), generator=generator)
    labels = torch.zeros(4 * n, dtype=torch.int64)
    halves = [ClassStatistics(1, d).update(f, labels[:n]) for f in features.split(n)]
    merged = halves[0].merge(halves[1]).merge(halves[2].merge(halves[3]))
    scatter = int(features.square().sum() * 4 * n - features.sum(0).square().sum()) / (4 * n)
    assert torch.equal(merged.means[0], features.sum(0).double() / (4 * n))
    assert float(merged.scatter_trace[0]) == scatter
    shuffled = features[torch.randperm(4 * n, generator=generator)]
    assert torch.equal(ClassStatistics(1, d).update(shuffled, labels).means, merged.means)


@pytest.mark.parametrize("offset", [0.0, 2.0**14, 2.0**24, 2.0**40])
def test_an_offset_that_the_input_can_hold_costs_nothing(offset):
    """Dyadic noise is held exactly at every offset here, so the statistics must be those without offset."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(-128, 128, (600, 8), generator=generator).double() / 1024
    labels = torch.arange(600) % 3
    expected = ClassStatistics(3, 8).update(noise, labels)
    shifted = stream((offset + noise).numpy(), labels.numpy(), 3, [1, 100, 350])
    assert torch.allclose(shifted.scatter_trace, expected.scatter_trace, rtol=1e-13)
    assert torch.allclose(shifted.centred_means, expected.centred_means, rtol=0, atol=1e-15)
    if offset == 2.0**24:  # what it is good for: two moments in float64 have lost everything here
        X = offset + noise
        moments = sum(
            float(X[labels == k].square().sum() - 200 * X[labels == k].mean(0).square().sum())
            for k in range(3)
        )
        assert abs(moments / float(expected.scatter_trace.sum()) - 1) > 0.1


def test_deep_collapse_keeps_its_scatter():
    """A spread of 1e-12 beside distances of 1, where the difference of two moments is mere rounding."""
    features, labels = sample([50, 60], 6, spread=0.0)
    noise = torch.randint(-8, 9, features.shape, generator=torch.Generator().manual_seed(0)) * 2.0**-43
    features = (
        features * 2**8
    ).round() / 2**8 + noise  # sums of dyadic numbers: the input holds them exactly
    found = ClassStatistics(2, 6).update(features, labels)
    expected = ClassStatistics(2, 6).update(noise, labels)
    assert torch.allclose(found.scatter_trace, expected.scatter_trace, rtol=1e-12)
    assert 0 < float(found.scatter_trace.max()) < 1e-21


def test_equal_samples_have_exactly_no_scatter():
    features = torch.tensor([[0.1, 0.7, 1e6]]).repeat(9, 1)
    found = ClassStatistics(3, 3).update(features, torch.arange(9) % 3)
    assert found.scatter_trace.tolist() == [0.0, 0.0, 0.0]
    assert float(found.centred_means.abs().max()) == 0.0


def test_the_axes_follow_the_means():
    features, labels = sample([9, 9, 9], 4)
    found = ClassStatistics(3, 4).update(features, labels)
    before = found.axes()
    assert found.axes()[1] is before[1]
    found.update(features + torch.eye(4)[0] * labels[:, None], labels)
    after = ClassStatistics(3, 4).load_state_dict(found.state_dict())
    assert torch.equal(found.axes()[0], after.axes()[0])
    assert not torch.allclose(found.axes()[0], before[0])


def test_an_empty_batch_changes_nothing():
    features, labels = sample([3, 4], 2)
    found = ClassStatistics(2, 2).update(features, labels)
    before = found.state_dict()
    found.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert all(torch.equal(before[name], tensor) for name, tensor in found.state_dict().items())


def test_the_state_goes_through_a_dictionary():
    features, labels = sample([9, 14], 5)
    half = ClassStatistics(2, 5).update(features[:10], labels[:10])
    resumed = ClassStatistics(2, 5).load_state_dict(half.state_dict())
    resumed.update(features[10:], labels[10:])
    half.update(features[10:], labels[10:])
    assert torch.equal(resumed.means, half.means)
    assert torch.equal(resumed.scatter_trace, half.scatter_trace)


# -- the second pass -----------------------------------------------------------------------------------


def decisions_by_definition(features, means, weight, bias):
    logits = features @ weight.T + bias
    distances = torch.linalg.vector_norm(features[:, None] - means[None], dim=2)
    return logits.argmax(1) != distances.argmin(1)


@pytest.mark.parametrize(("counts", "d"), [([9, 4, 6], 7), ([5] * 9, 3), ([20, 30], 1), ([4] * 5, 4)])
def test_the_second_pass_is_its_definition(counts, d):
    K = len(counts)
    features, labels = sample(counts, d)
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(2, K, max(d, 1), generator=generator, dtype=torch.float64)[:, :, :d]
    bias = bias[:, 0]
    first = ClassStatistics(K, d).update(features, labels)
    second = BetweenScatter(first, weight, bias).update(features, labels)
    deviations = features - first.means[labels]
    assert second.basis.shape == (d, min(K - 1, d))
    assert torch.allclose(
        second.projected_scatter, (deviations @ second.basis).square().sum(0), rtol=1e-12, atol=0
    )
    differing = decisions_by_definition(features, first.means, weight, bias)
    assert 0 < int(second.disagreements) == int(differing.sum())
    always = BetweenScatter(first, weight, 1e6 * torch.eye(K)[0]).update(features, labels)
    nearest = torch.linalg.vector_norm(features[:, None] - first.means, dim=2).argmin(1)
    assert int(always.disagreements) == int((nearest != 0).sum())  # the bias counts
    gaps = torch.cdist(first.means, first.means)
    assert torch.allclose(second.distances, gaps, rtol=1e-6, atol=1e-12)


def test_the_second_pass_streams_and_merges():
    features, labels = sample([30, 20, 10], 6)
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    first = ClassStatistics(3, 6).update(features, labels)
    whole = BetweenScatter(first, weight).update(features, labels)
    merged = BetweenScatter(first, weight)
    for part, own in zip(features.split(13), labels.split(13), strict=True):
        merged.merge(BetweenScatter(first, weight).update(part, own))
    assert torch.allclose(merged.projected_scatter, whole.projected_scatter, rtol=1e-13)
    assert torch.equal(merged.disagreements, whole.disagreements)
    assert torch.equal(merged.counts, whole.counts)


def test_nearest_means_are_told_apart_when_they_nearly_coincide():
    """Two means 2e-9 apart: differences of squared lengths of order one see nothing."""
    means = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2e-9], [3.0, 1.0]], dtype=torch.float64)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-9
    features = means[labels] + noise
    first = ClassStatistics(3, 2).update(features, labels)
    nearest = torch.linalg.vector_norm(features[:, None] - first.means, dim=2).argmin(1)
    for k in range(3):  # a classifier that says k always
        second = BetweenScatter(first, torch.zeros(3, 2), torch.eye(3)[k]).update(features, labels)
        assert int(second.disagreements) == int((nearest != k).sum())
    assert 0 < int((nearest[labels == 0] != 0).sum()) < 100
    expanded = features.square().sum(1)[:, None] - 2 * features @ first.means.T + first.means.square().sum(1)
    assert int((expanded.argmin(1) != nearest).sum()) > 10  # the expanded square fails


def test_float32_features_are_projected_to_float32_accuracy_at_any_offset():
    features, labels = sample([200, 150], 32, spread=1e-2, offset=1e4, dtype=torch.float32)
    first = ClassStatistics(2, 32).update(features, labels)
    narrow = BetweenScatter(first).update(features, labels)
    wide = BetweenScatter(first).update(features.double(), labels)
    assert torch.allclose(narrow.projected_scatter, wide.projected_scatter, rtol=1e-5)


@pytest.mark.parametrize("setting", ["autocast", "medium", "per backend"])
def test_reduced_precision_outside_does_not_leak_in(setting):
    features, labels = sample([200, 150, 90], 64, spread=0.3, dtype=torch.float32)
    first = ClassStatistics(3, 64).update(features, labels)
    expected = BetweenScatter(first).update(features.double(), labels).projected_scatter
    backend = torch.backends.mkldnn.matmul if hasattr(torch.backends.mkldnn, "matmul") else None
    if setting == "per backend" and not hasattr(backend, "fp32_precision"):
        pytest.skip("this torch has no precision per backend")
    before = getattr(backend, "fp32_precision", None)
    try:
        if setting == "medium":
            torch.set_float32_matmul_precision("medium")
        if setting == "per backend":
            backend.fp32_precision = "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            found = BetweenScatter(first).update(features, labels).projected_scatter
            narrow = (
                setting == "autocast"
            )  # switched off inside; the others may not be, whatever they do here
            assert rows.product_dtype(features) == (torch.float32 if narrow else torch.float64)
    finally:
        if setting == "per backend":
            backend.fp32_precision = before
        else:
            torch.set_float32_matmul_precision("highest")
    assert torch.allclose(found, expected, rtol=1e-5)  # bf16 products are off by 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu_give_the_same_numbers():
    features, labels = sample([200, 150, 90], 64, dtype=torch.float32)
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    first = ClassStatistics(3, 64).update(features, labels)
    again = ClassStatistics(3, 64).update(features.cuda(), labels.cuda())
    assert torch.allclose(first.means, again.means, rtol=0, atol=1e-14)
    second = BetweenScatter(first, weight).update(features, labels)
    other = BetweenScatter(first, weight.cuda()).update(features.cuda(), labels)
    assert torch.allclose(second.projected_scatter, other.projected_scatter, rtol=1e-5)
    assert torch.equal(second.disagreements, other.disagreements)


# -- several processes -----------------------------------------------------------------------------------

PARTS = ((0, 41), (41, 58))  # rank 1 sees 17 samples, and none of class 2


def problem():
    features, labels = sample([20, 30, 8], 5, offset=3.0)
    order = torch.argsort((labels != 2).int(), stable=True)
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    return features[order], labels[order], weight


def reduce_on(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    features, labels, weight = problem()
    start, stop = PARTS[rank]
    first = ClassStatistics(3, 5).update(features[start:stop], labels[start:stop])
    try:
        BetweenScatter(ClassStatistics(3, 5).update(features + rank, labels)).all_reduce()
        refused = ""
    except ValueError as error:
        refused = str(error)
    first.all_reduce()
    second = BetweenScatter(first, weight).update(features[start:stop], labels[start:stop]).all_reduce()
    kept = {**first.state_dict(), "basis": second.basis, "projected": second.projected_scatter}
    kept |= {"differing": second.disagreements, "seen": second.counts}
    torch.save({"state": kept, "refused": refused}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_reduce_to_the_whole(tmp_path):
    mp.spawn(reduce_on, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    states = [result["state"] for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    features, labels, weight = problem()
    first = ClassStatistics(3, 5).update(features, labels)
    second = BetweenScatter(first, weight).update(features, labels)
    found = ClassStatistics(3, 5).load_state_dict(
        {name: states[0][name] for name in ("counts", "centres", "sums", "scatter_trace")}
    )
    assert torch.equal(found.counts, first.counts)
    assert torch.allclose(found.means, first.means, rtol=0, atol=1e-14)
    assert torch.allclose(found.scatter_trace, first.scatter_trace, rtol=1e-12)
    assert torch.allclose(states[0]["projected"], second.projected_scatter, rtol=1e-10)
    assert torch.equal(states[0]["differing"], second.disagreements)
    assert torch.equal(states[0]["seen"], second.counts)
    assert all("all-reduced before" in result["refused"] for result in results)


def test_one_process_reduces_to_itself():
    features, labels = sample([4, 5], 3)
    first = ClassStatistics(2, 3).update(features, labels)
    before = first.means
    assert torch.equal(first.all_reduce().means, before)
    second = BetweenScatter(first).update(features, labels)
    scatter = second.projected_scatter.clone()
    assert torch.equal(second.all_reduce().projected_scatter, scatter)


# -- bad input -------------------------------------------------------------------------------------------

X, Y = [[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]], [0, 1, 1]
BAD_BATCHES = [
    ("features", [0.0, 1.0, 2.0], Y),
    ("features", [[0.0], [1.0], [2.0]], Y),
    ("features", [[[0.0, 1.0]]] * 3, Y),
    ("features", np.zeros((3, 0)), Y),
    ("features", [[0.0, 1.0], [2.0], [3.0, 4.0]], Y),
    ("features", [["a", "b"]] * 3, Y),
    ("features", None, Y),
    ("features", np.ones((3, 2)) * 1j, Y),
    ("features", [[0.0, float("nan")], [1.0, 1.0], [1.0, 1.0]], Y),
    ("features", torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, float("nan")]]), Y),
    ("features", torch.tensor([[0.0, float("inf")], [1.0, 1.0], [1.0, 1.0]]), Y),
    ("features", torch.tensor([[0.0, float("inf")], [1.0, 1.0], [1.0, -float("inf")]]), Y),
    ("features", torch.full((3, 2), 1e200, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0]]), Y),
    ("labels", X, [0, 1]),
    ("labels", X, [0, 1, 1, 0]),
    ("labels", X, [[0], [1], [1]]),
    ("labels", X, [0, 1, 2]),
    ("labels", X, [-1, 0, 1]),
    ("labels", X, [0, 0.5, 1]),
    ("labels", X, [0, float("nan"), 1]),
    ("labels", X, ["a", "b", "a"]),
    ("labels", X, None),
    ("labels", X, 1),
]


@pytest.mark.parametrize(("name", "features", "labels"), BAD_BATCHES)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_bad_batch_is_refused_by_name_and_leaves_the_state(name, features, labels, which):
    first = ClassStatistics(2, 2).update(X, Y)
    state = first if which == "first" else BetweenScatter(first, torch.eye(2)).update(X, Y)
    watched = (
        ("counts", "scatter_trace") if which == "first" else ("counts", "projected_scatter", "disagreements")
    )
    before = [getattr(state, one).clone() for one in watched]
    with pytest.raises(ValueError, match=rf"^{name} must"):
        state.update(features, labels)
    assert all(torch.equal(a, getattr(state, one)) for a, one in zip(before, watched, strict=True))


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None, True, float("nan")])
def test_sizes_must_be_positive_integers(size):
    with pytest.raises(ValueError, match="num_classes must be a positive integer"):
        ClassStatistics(size, 2)
    with pytest.raises(ValueError, match="dim must be a positive integer"):
        ClassStatistics(2, size)


def test_an_empty_class_is_named_when_its_mean_is_asked_for():
    found = ClassStatistics(3, 1).update([[1.0], [2.0]], [0, 2])
    assert found.counts.tolist() == [1, 0, 1]
    for ask in (
        lambda: found.means,
        lambda: found.global_mean,
        lambda: found.axes(),
        lambda: BetweenScatter(found),
    ):
        with pytest.raises(ValueError, match="class 1 has no samples"):
            ask()


@pytest.mark.parametrize(
    ("name", "weight", "bias"),
    [
        ("weight", torch.zeros(3, 2), None),
        ("weight", torch.zeros(2, 3), None),
        ("weight", torch.zeros(2), None),
        ("weight", [[1.0, float("nan")], [0.0, 0.0]], None),
        ("weight", "linear", None),
        ("bias", torch.eye(2), [0.0]),
        ("bias", torch.eye(2), [[0.0, 0.0]]),
        ("bias", torch.eye(2), [0.0, float("inf")]),
        ("bias", None, [0.0, 0.0]),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_by_name(name, weight, bias):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        BetweenScatter(ClassStatistics(2, 2).update(X, Y), weight, bias)


def test_states_that_do_not_belong_together_are_refused():
    first = ClassStatistics(2, 2).update(X, Y)
    with pytest.raises(ValueError, match="other must have 2 classes in dimension 2, got 2 in dimension 3"):
        first.merge(ClassStatistics(2, 3))
    with pytest.raises(ValueError, match="state must hold"):
        first.load_state_dict({"counts": torch.zeros(2)})
    with pytest.raises(ValueError, match="state must hold counts of shape"):
        first.load_state_dict({**first.state_dict(), "counts": torch.zeros(3)})
    other = ClassStatistics(2, 2).update(X[::-1], [0, 0, 1])
    with pytest.raises(ValueError, match="other must be built on the same statistics"):
        BetweenScatter(first).merge(BetweenScatter(other))
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        BetweenScatter(ClassStatistics(1, 2).update(X, [0, 0, 0]))
