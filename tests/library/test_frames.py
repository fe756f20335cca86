"""frames: definitions to machine precision, bounds with their equality cases, distances in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import frames

MACHINE = 3e-15  # a few units of rounding, for sums of a handful of products of numbers below one
SIZES = [2, 3, 10, 100]


def machine(K):
    """The rounding of a sum of K such products, one unit for each addition, and MACHINE at least."""
    return max(MACHINE, 2 * K * 2.3e-16)


def etf_gram(K):
    return (K * torch.eye(K, dtype=torch.float64) - 1) / (K - 1)


def unit_vectors(d, K, seed):
    vectors = torch.randn(d, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=0)


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("extra", [None, -1, 0, 1, 7])
@pytest.mark.parametrize("seed", [None, 5])
def test_simplex_etf_has_its_gram_matrix(K, extra, seed):
    d = None if extra is None else K + extra
    frame = frames.simplex_etf(K, d, seed=seed)
    assert frame.shape == (d or K, K)
    assert frame.dtype == torch.float64
    torch.testing.assert_close(frames.gram(frame), etf_gram(K), rtol=0, atol=machine(K))


@pytest.mark.parametrize("K", SIZES)
def test_simplex_etf_is_tight_and_centred(K):
    frame = frames.simplex_etf(K, K + 2, seed=1)
    values = torch.linalg.svdvals(frame)
    assert values[: K - 1] == pytest.approx([math.sqrt(K / (K - 1))] * (K - 1), abs=MACHINE)
    assert float(values[K - 1]) < MACHINE
    assert float(frame.sum(1).norm()) < 10 * MACHINE
    operator = frame @ frame.T  # K/(K-1) times a projection
    torch.testing.assert_close(operator @ operator, K / (K - 1) * operator, rtol=0, atol=machine(K))


def test_canonical_frames_are_what_they_are_said_to_be():
    torch.testing.assert_close(frames.simplex_etf(2, 1).abs(), torch.ones(1, 2, dtype=torch.float64))
    expected = math.sqrt(3 / 2) * (torch.eye(3, dtype=torch.float64) - 1 / 3)
    torch.testing.assert_close(frames.simplex_etf(3), expected)
    torch.testing.assert_close(frames.simplex_etf(3, 5)[:3], expected)
    assert torch.equal(frames.simplex_etf(3, 5)[3:], torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(frames.orthogonal_frame(3), torch.eye(3, dtype=torch.float64))
    assert torch.equal(frames.orthogonal_frame(1), torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("make", [frames.simplex_etf, frames.orthogonal_frame])
def test_a_seed_rotates_and_repeats(make):
    canonical, a, b, c = make(4, 6), make(4, 6, seed=1), make(4, 6, seed=1), make(4, 6, seed=2)
    assert torch.equal(a, b)
    assert float((a - c).norm()) > 0.5
    assert float((a - canonical).norm()) > 0.5


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=12),
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(0, 9)),
)
@settings(deadline=None, max_examples=40)
def test_general_orthogonal_frame_has_its_lengths(lengths, extra, seed):
    frame = frames.general_orthogonal_frame(lengths, len(lengths) + extra, seed=seed)
    expected = torch.diag(torch.tensor(lengths, dtype=torch.float64) ** 2)
    torch.testing.assert_close(frames.gram(frame), expected, rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("K", SIZES)
def test_the_centred_orthogonal_frame_is_a_simplex_etf(K):
    centred = frames.centre(frames.orthogonal_frame(K, K + 3, seed=2))
    distance = frames.frame_distance(frames.gram(centred), frames.gram(frames.simplex_etf(K)))
    assert float(distance) < machine(K)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: frames.simplex_etf(1), "K"),
        (lambda: frames.simplex_etf(2.0), "K"),
        (lambda: frames.simplex_etf(True), "K"),
        (lambda: frames.simplex_etf(5, 3), "d must be an integer of at least 4"),
        (lambda: frames.orthogonal_frame(0), "K"),
        (lambda: frames.orthogonal_frame(5, 4), "d must be an integer of at least 5"),
        (lambda: frames.general_orthogonal_frame([1.0, -1.0]), "lengths"),
        (lambda: frames.general_orthogonal_frame([1.0, math.nan]), "lengths"),
        (lambda: frames.general_orthogonal_frame([]), "lengths"),
        (lambda: frames.general_orthogonal_frame([[1.0]]), "lengths"),
        (lambda: frames.haar_orthogonal(0, 0), "d"),
        (lambda: frames.simplex_etf(3, seed=-1), "seed"),
        (lambda: frames.triangular_incidence(1), "r"),
        (lambda: frames.kneser_adjacency(1), "r"),
        (lambda: frames.gram([1.0, 2.0]), "frame"),
        (lambda: frames.gram(torch.zeros(0, 3)), "frame"),
        (lambda: frames.gram([[math.inf]]), "frame"),
        (lambda: frames.largest_cosine([[1.0], [1.0]]), "two or more columns"),
        (lambda: frames.coherence([[1.0, 0.0]]), "none zero"),
        (lambda: frames.rankin_bound(1, 3), "K"),
        (lambda: frames.welch_bound(3, 0), "d"),
        (lambda: frames.frame_distance(torch.eye(3), torch.eye(4)), "gram_b"),
        (lambda: frames.frame_distance(torch.ones(2, 3), torch.eye(3)), "gram_a"),
        (lambda: frames.frame_distance(torch.eye(3), torch.zeros(3, 3)), "gram_b must not be zero"),
        (lambda: frames.etf_orthogonal_distance(1), "K"),
        (lambda: frames.etf_general_distance([1.0]), "number of lengths"),
        (lambda: frames.orthogonal_general_distance([0.0, 0.0]), "not all be zero"),
        (lambda: frames.margin(torch.eye(3), torch.ones(3, 2)), "features"),
        (lambda: frames.margin(torch.ones(1, 2), torch.ones(2, 1)), "classes"),
    ],
)
def test_impossible_requests_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_haar_matrices_are_orthogonal_and_not_biased():
    draws = torch.stack([frames.haar_orthogonal(3, seed) for seed in range(2000)])
    identity = torch.eye(3, dtype=torch.float64).expand_as(draws)
    torch.testing.assert_close(draws @ draws.mT, identity, rtol=0, atol=MACHINE)
    # Haar: every entry has mean 0 and second moment 1/d. Standard errors over 2000 draws: sqrt(1/3/2000) =
    # 0.013 for the mean and sqrt((1/5 - 1/9)/2000) = 0.0067 for the square; the bands are five of each.
    # Without the correction of signs the first diagonal entry is never positive.
    assert float(draws.mean(0).abs().max()) < 5 * 0.013
    assert float((draws.square().mean(0) - 1 / 3).abs().max()) < 5 * 0.0067
    assert 0.4 < float((torch.linalg.det(draws) > 0).double().mean()) < 0.6


@pytest.mark.parametrize("r", [2, 3, 4, 5, 8])
def test_triangular_incidence(r):
    incidence = frames.triangular_incidence(r)
    K = r * (r - 1) // 2
    assert incidence.shape == (r, K)
    assert torch.equal(incidence.sum(0), torch.full((K,), 2.0, dtype=torch.float64))
    assert torch.equal(incidence @ incidence.T, (r - 2) * torch.eye(r).double() + 1)
    assert len({tuple(column.tolist()) for column in incidence.T}) == K


@pytest.mark.parametrize("r", [4, 5, 6, 9])
def test_kneser_adjacency_has_its_spectrum(r):
    adjacency = frames.kneser_adjacency(r)
    K = r * (r - 1) // 2
    expected = [(r - 2) * (r - 3) / 2, *[1.0] * (K - r), *[-(r - 3.0)] * (r - 1)]
    values = torch.linalg.eigvalsh(adjacency).flip(0)
    assert values.tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-12)
    assert set(adjacency.unique().tolist()) == {0.0, 1.0}
    pairs = [{i, j} for i in range(r) for j in range(i + 1, r)]
    assert adjacency.tolist() == [[float(not (a & b)) for b in pairs] for a in pairs]


def test_small_kneser_graphs_have_no_edges():
    assert not frames.kneser_adjacency(2).any()
    assert not frames.kneser_adjacency(3).any()


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_no_vectors_beat_the_bounds(K, d, seed):
    vectors = unit_vectors(d, K, seed)
    assert float(frames.largest_cosine(vectors)) >= frames.rankin_bound(K, d) - MACHINE
    assert float(frames.coherence(vectors)) >= frames.welch_bound(K, d) - MACHINE


@pytest.mark.parametrize("K", SIZES)
def test_the_simplex_attains_both_bounds(K):
    frame = frames.simplex_etf(K, K - 1, seed=3)
    assert float(frames.largest_cosine(frame)) == pytest.approx(frames.rankin_bound(K, K - 1), abs=MACHINE)
    assert float(frames.coherence(frame)) == pytest.approx(frames.welch_bound(K, K - 1), abs=MACHINE)


@pytest.mark.parametrize(("d", "K"), [(1, 3), (2, 4), (3, 5), (3, 6), (4, 8)])
def test_the_orthoplex_attains_the_second_rankin_bound(d, K):
    points = torch.cat([torch.eye(d), -torch.eye(d)], 1).double()[:, :K]
    if d == 1:
        points = torch.tensor(
            [[1.0, -1.0, 1.0]]
        )  # three points on a line: two coincide, the bound is not attained
        assert float(frames.largest_cosine(points)) > frames.rankin_bound(K, d) == 0.0
    else:
        assert float(frames.largest_cosine(points)) == frames.rankin_bound(K, d) == 0.0


def test_the_mercedes_frame_shows_which_cosine_is_meant():
    """Three vectors in the plane at 120 degrees; one turned round changes the signed cosine only."""
    frame = frames.simplex_etf(3, 2) * torch.tensor([1.0, 1.0, -1.0])
    assert float(frames.coherence(frame)) == pytest.approx(0.5, abs=MACHINE)
    assert float(frames.largest_cosine(frame)) == pytest.approx(0.5, abs=MACHINE)
    assert float(frames.largest_cosine(frames.simplex_etf(3, 2))) == pytest.approx(-0.5, abs=MACHINE)
    assert frames.welch_bound(4, 4) == frames.welch_bound(3, 9) == 0.0


@pytest.mark.parametrize("K", [2, 3, 4, 5, 10, 100, 10**6])
def test_distance_of_etf_and_orthogonal_frame(K):
    table = {2: 0.7654, 3: 0.6058, 4: 0.5176, 5: 0.4595, 10: 0.3204, 100: 0.1001}
    closed = frames.etf_orthogonal_distance(K)
    if K in table:
        assert closed == pytest.approx(table[K], abs=5e-5)
        grams = frames.gram(frames.simplex_etf(K)), frames.gram(frames.orthogonal_frame(K))
        assert closed == pytest.approx(float(frames.frame_distance(*grams)), abs=1e-14)
        assert closed != pytest.approx(math.sqrt(2 - 2 * (K - 1) / K), abs=1e-3)  # without the inner root
    else:  # the naive difference keeps ten digits here; the leading term 1/sqrt(K) has relative error 1/(8K)
        assert closed == pytest.approx(K**-0.5 * (1 + 1 / (8 * K)), rel=1e-12)


@given(st.lists(st.floats(0.01, 50), min_size=2, max_size=9))
@settings(deadline=None, max_examples=60)
def test_distances_of_general_orthogonal_frames(lengths):
    K = len(lengths)
    general = frames.gram(frames.general_orthogonal_frame(lengths, K + 1, seed=0))
    orthogonal, etf = frames.gram(frames.orthogonal_frame(K)), frames.gram(frames.simplex_etf(K))
    # where a distance is 0 its square is of the size of rounding, so 1e-14 is compared with squares
    for closed, other in (
        (frames.orthogonal_general_distance(lengths), orthogonal),
        (frames.etf_general_distance(lengths), etf),
    ):
        assert closed**2 == pytest.approx(float(frames.frame_distance(general, other)) ** 2, abs=1e-14)
    assert frames.etf_general_distance(lengths) >= frames.etf_orthogonal_distance(K) - 1e-14


def test_frame_distance_knows_neither_scale_nor_rotation():
    frame = unit_vectors(6, 4, seed=0)
    rotated = 7.5 * frames.haar_orthogonal(6, seed=1) @ frame
    assert float(frames.frame_distance(frames.gram(frame), frames.gram(rotated))) < MACHINE
    assert float(frames.frame_distance(frames.gram(frame), frames.gram(frame.flip(1)))) > 0.1


@given(st.integers(2, 7), st.integers(1, 8), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_no_unit_vectors_have_a_larger_margin_than_the_simplex(K, d, seed):
    classifier, features = unit_vectors(d, K, seed).T, unit_vectors(d, K, seed + 1)
    assert float(frames.margin(classifier, features)) <= K / (K - 1) + MACHINE
    etf = frames.simplex_etf(K)
    assert float(frames.margin(etf.T, etf)) == pytest.approx(K / (K - 1), abs=MACHINE)


def test_margin_is_the_least_gap():
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    H = np.array([[2.0, 0.0, -0.5], [0.0, 0.25, 0.5]])
    # the third feature has logits -0.5, 0.5, 0.5: its margin over the second class is 0
    assert float(frames.margin(W, H)) == 0.0
    assert float(frames.margin(W[:2], H[:, :2])) == 0.25


def test_frames_take_batches_arrays_and_float32():
    batch = torch.stack([frames.simplex_etf(3), frames.orthogonal_frame(3)])
    assert frames.largest_cosine(batch).tolist() == pytest.approx([-0.5, 0.0], abs=MACHINE)
    assert frames.coherence(batch).tolist() == pytest.approx([0.5, 0.0], abs=MACHINE)
    assert frames.gram(batch).shape == (2, 3, 3)
    assert frames.frame_distance(frames.gram(batch), torch.eye(3)).shape == (2,)
    assert frames.margin(batch.mT, batch).tolist() == pytest.approx([1.5, 1.0], abs=MACHINE)
    assert frames.gram(np.eye(2, dtype=np.float32)).dtype == torch.float32
    assert frames.gram([[1, 0], [0, 1]]).dtype == torch.float64
    assert frames.centre([[1, 3]]).tolist() == [[-1.0, 1.0]]
