"""dufm.graphs and dufm.phases: built weights against closed forms, norms against formulas, runs by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import dufm, frames
from ncbook.dufm import DeepUFM, deep_layers
from ncbook.dufm.graphs import graph_solution
from ncbook.protocol import NoClosedForm
from ncbook.runtime import generator
from ncbook.solvers import minimise

decays = st.floats(-4, -2).map(lambda x: 10**x)


# --- the constant ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "L", "ratio"),
    [(4, 3, 1.0561), (4, 4, 0.96327), (5, 3, 0.92344), (6, 5, 0.70041), (20, 7, 0.32166), (50, 3, 0.99377)],
)
def test_the_constant_has_the_values_of_the_table(r, L, ratio):
    K = r * (r - 1) // 2
    assert dufm.graph_constant(r, L) / K == pytest.approx(ratio, abs=6e-5)


@given(st.integers(4, 9), st.integers(3, 7))
@settings(deadline=None, max_examples=20)
def test_the_constant_is_the_product_of_the_norms_of_the_factors(r, L):
    T, A = frames.triangular_incidence(r), frames.kneser_adjacency(r)
    K = T.shape[1]
    assert torch.equal((torch.full_like(T, 0.5).T - T.T) @ T, 1 - T.T @ T)
    assert torch.equal((1 - T.T @ T).relu(), A)
    nuclear = torch.linalg.svdvals(T).sum()
    inverse = torch.linalg.inv(A).square().sum()
    power = float(nuclear**2 * r ** (L - 3) * (0.5 - T.T).square().sum() * inverse)
    assert dufm.graph_constant(r, L) ** (L + 1) == pytest.approx(power, rel=1e-12)
    other_sign = float(nuclear**2 * r ** (L - 3) * K * r / 4 * K)  # σ of the last level the identity
    assert r == 4 or abs(other_sign / power - 1) > 0.1  # for r = 4 the two have the same norm


def test_the_constant_of_very_deep_models_is_finite_and_tends_to_the_number_of_vertices():
    assert dufm.graph_constant(50, 3000) == pytest.approx(50, rel=0.02)


def test_the_largest_block():
    assert [dufm.graph_vertices(K) for K in (1, 2, 3, 6, 9, 10, 14, 15, 4950)] == [
        2,
        2,
        3,
        4,
        4,
        5,
        5,
        6,
        100,
    ]
    for r in range(2, 200):  # exact at triangular numbers, one less just below
        K = r * (r - 1) // 2
        assert dufm.graph_vertices(K) == r
        assert K == 1 or dufm.graph_vertices(K - 1) == r - 1
    assert dufm.structure_constant(14, 4) == dufm.graph_constant(5, 4) + 4
    assert dufm.structure_constant(14, 4, 4) == dufm.graph_constant(4, 4) + 8


# --- the weights ----------------------------------------------------------------------------------------


@given(
    st.sampled_from([(6, None), (10, None), (10, 4), (13, None), (15, 6)]),
    st.integers(3, 6),
    st.integers(1, 3),
    st.lists(decays, min_size=7, max_size=7),
)
@settings(deadline=None, max_examples=25)
def test_the_built_weights_have_the_loss_of_the_closed_form(classes, L, n, lambdas):
    (K, r), lambdas = classes, lambdas[: L + 1]
    model = DeepUFM(K, n, L, [K + ell for ell in range(L)], lambdas)
    found = model.graph_solution(r)
    built = float(model.value(found.params))
    assert abs(built - float(found.loss)) < 1e-12
    assert float(found.q) == pytest.approx(
        dufm.structure_constant(K, L, r) * (n * math.prod(lambdas)) ** (1 / (L + 1))
    )
    if n > 1:  # the closed form that forgets n is another number
        one = DeepUFM(K, 1, L, [K + ell for ell in range(L)], lambdas).graph_solution(r)
        assert abs(float(one.loss) - built) > 1e-9
    layers = deep_layers(model, found.params)
    assert torch.equal(layers.ranks_before[0], found.ranks)
    assert layers.ranks_after[0, -1] == K
    penalties = layers.penalties[0]
    torch.testing.assert_close(penalties, penalties.mean().expand(L + 1), rtol=1e-10, atol=0)
    logits = model._forward(found.params)[1][0]
    target = torch.eye(K, dtype=logits.dtype).repeat_interleave(n, 1)
    torch.testing.assert_close(logits, found.scale * target, rtol=0, atol=1e-12)


def test_reference_losses():
    for K, L, lam, loss in [
        (6, 4, 4e-3, 0.0575250251),
        (10, 3, 4e-3, 0.0731797166),
        (10, 4, 4e-3, 0.0811361890),
        (45, 4, 1e-3, 0.0801065900),
        (15, 7, 2e-3, 0.0728960593),
        (7, 4, 4e-3, 0.0674221842),
        (14, 3, 4e-3, 0.1044346055),
    ]:
        assert float(DeepUFM(K, 1, L, K, lam).graph_solution().loss) == pytest.approx(loss, abs=1e-9)


def test_a_batch_of_decays_and_the_threshold():
    model = DeepUFM(10, 2, 4, 12, torch.tensor([1e-3, 4e-3, 0.2]))
    found = model.graph_solution()
    torch.testing.assert_close(model.value(found.params), found.loss, rtol=0, atol=1e-12)
    assert found.trivial.tolist() == [False, False, True]
    assert found.ranks.tolist() == [[5, 5, 5, 5, 10]] * 2 + [[0] * 5]
    assert float(found.loss[2]) == 0.5
    mixed = DeepUFM(10, 2, 4, 12, (1e-3, torch.tensor([1e-3, 2e-3]), 2e-3, 3e-3, 1e-3))
    torch.testing.assert_close(
        mixed.value(mixed.graph_solution().params), mixed.graph_solution().loss, rtol=0, atol=1e-12
    )


def test_the_least_widths_suffice_and_one_less_is_refused():
    model = DeepUFM(7, 1, 4, (5, 5, 5, 7), 1e-3)
    found = model.graph_solution()
    assert abs(float(model.value(found.params) - found.loss)) < 1e-12
    for widths in [(4, 5, 5, 7), (5, 5, 4, 7), (5, 5, 5, 6)]:
        with pytest.raises(NoClosedForm, match="widths of at least"):
            DeepUFM(7, 1, 4, widths, 1e-3).graph_solution()


def test_descent_near_the_graph_solution_only_goes_down_a_little():
    model = DeepUFM(10, 1, 3, 16, 4e-3)
    built = model.graph_solution()
    noise = model.init(4, generator(0), scale=0.1)
    start = dufm.DeepUFMParams(
        tuple(W + e for W, e in zip(built.params.weights, noise.weights, strict=True)),
        built.params.H + noise.H,
    )
    found = minimise(model, start=start, method="adam", lr=0.02, steps=1500)
    assert bool((found.loss < built.loss).all())
    assert bool((found.loss > 0.07289).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"L": 2}, "three or more weight matrices"),
        ({"K": 5}, "6 or more classes"),
        ({"relu": False}, "lives from the ReLU"),
        ({"loss": "ce"}, "squared loss"),
        ({"bias": "free"}, "without bias"),
        ({"n": None, "counts": (2,) * 10}, "equal classes"),
        ({"width": 9}, "widths of at least"),
        ({"lambdas": 0.0}, "lambda of 0"),
    ],
)
def test_models_without_a_graph_solution_are_refused_by_name(arguments, message):
    model = DeepUFM(**({"K": 10, "n": 2, "L": 4, "width": 12, "lambdas": 1e-3} | arguments))
    with pytest.raises(NoClosedForm, match=message):
        graph_solution(model)


@pytest.mark.parametrize("r", [3, 6, 4.0, True])
def test_a_wrong_number_of_vertices_is_named(r):
    with pytest.raises(ValueError, match=r"^r must"):
        DeepUFM(10, 1, 4, 12, 1e-3).graph_solution(r)


def test_wrong_arguments_of_the_constants_are_named():
    for call, name in [
        (lambda: dufm.graph_constant(3, 4), "r"),
        (lambda: dufm.graph_constant(4, 2), "L"),
        (lambda: dufm.structure_constant(5, 4), "K"),
        (lambda: dufm.structure_constant(10, 4, 6), "r"),
        (lambda: dufm.graph_vertices(0), "K"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name} must"):
            call()


# --- phases ---------------------------------------------------------------------------------------------


def test_runs_are_named_by_their_loss():
    reference = 0.06
    loss = [0.06, 0.06 * 1.0019, 0.06 * 0.9981, 0.06 * 0.9979, 0.07, 0.4999, math.nan, math.inf]
    names = [dufm.KINDS[k] for k in dufm.classify(loss, reference)]
    assert names == ["collapsed"] * 3 + ["low-rank", "other", "zero", "other", "other"]
    table = dufm.classify(np.array([[0.1, 0.2]]), torch.tensor([[0.1], [0.2]]))
    assert table.tolist() == [[0, 3], [1, 0]]
    for wrong in (0.0, 0.6, math.nan):
        with pytest.raises(ValueError, match=r"^reference must"):
            dufm.classify(0.1, wrong)


def test_a_diagram_has_the_cells_that_its_arguments_span():
    found = dufm.phase_diagram(minimise, 3, [[2], [3]], 5, [4e-3, 0.3], runs=3, steps=200, n=2)
    assert found.loss.shape == found.kind.shape == found.converged.shape == (2, 2, 3)
    assert found.ranks.shape == (2, 2, 3, 2)
    assert bool((found.ranks[0, :, :, 1] == -1).all())
    assert found.reference.shape == found.unconverged.shape == (2, 2)
    assert found.share("zero")[:, 1].tolist() == [1.0, 1.0]
    assert found.reference[:, 1].tolist() == [0.5, 0.5]
    for i, L in enumerate((2, 3)):
        collapse = DeepUFM(3, 2, L, 5, 4e-3).collapse()
        assert float(found.reference[i, 0]) == pytest.approx(float(collapse.loss), abs=1e-14)
    total = sum(found.share(kind) for kind in dufm.KINDS)
    assert bool((total == 1).all())


def test_depth_makes_low_rank_and_a_small_start_makes_zero():
    found = dufm.phase_diagram(minimise, 6, [2, 5], 12, 4e-3, runs=12, steps=900, seed=3)
    assert found.share("low-rank")[0] == 0
    assert found.share("low-rank")[1] > 0.5
    low = found.kind[1] == dufm.KINDS.index("low-rank")
    assert float(found.ranks[1][low].double().mean()) < 6
    small = dufm.phase_diagram(minimise, 6, 4, 12, 4e-3, scale=0.1, runs=4, steps=400, dtype=torch.float32)
    assert small.share("zero").item() == 1


def test_a_run_that_still_falls_is_not_converged_and_the_same_seed_gives_the_same_runs():
    short = dufm.phase_diagram(minimise, 6, 4, 12, 1e-3, runs=6, steps=40)
    assert float(short.unconverged) > 0.9
    again = dufm.phase_diagram(minimise, 6, 4, 12, 1e-3, runs=6, steps=40)
    other = dufm.phase_diagram(minimise, 6, 4, 12, 1e-3, runs=6, steps=40, seed=1)
    assert torch.equal(short.loss, again.loss)
    assert not torch.equal(short.loss, other.loss)


def test_a_run_that_diverges_is_neither_converged_nor_named():
    def broken(model, *, start, **_):
        bad = [torch.full_like(x, math.nan) for x in (*start.weights, start.H)]
        params = dufm.DeepUFMParams(tuple(bad[:-1]), bad[-1])
        return type("Solution", (), {"params": params, "loss": model.value(params)})

    found = dufm.phase_diagram(broken, 3, 3, 4, 1e-3, runs=2)
    assert bool((found.kind == 3).all())
    assert float(found.unconverged) == 1
    assert bool((found.ranks == 0).all())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"L": 1}, "L must"),
        ({"width": [4, 0]}, "width must"),
        ({"decay": [1e-3, 0.0]}, "decay must"),
        ({"scale": -1.0}, "scale must"),
        ({"scale": math.nan}, "scale"),
        ({"decay": [1e-3] * 3, "scale": [1.0] * 2}, "must broadcast"),
        ({"decay": []}, "at least one cell"),
        ({"runs": 0}, "runs must"),
        ({"steps": 3}, "steps must"),
        ({"K": 2.5}, "K must"),
    ],
)
def test_wrong_arguments_of_a_diagram_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        dufm.phase_diagram(minimise, **({"K": 3, "L": 3, "width": 4, "decay": 1e-3} | arguments))


def test_no_kind_of_that_name():
    found = dufm.Phases(*(torch.zeros(1),) * 5)
    with pytest.raises(ValueError, match=r"^kind must be one of collapsed"):
        found.share("low rank")
