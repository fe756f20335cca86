"""solvers: every method, alone and in batches, under constraints, and on runs that go wrong."""

import math
from typing import NamedTuple

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import solvers
from ncbook.protocol import NoClosedForm, Problem, UFMParams, gaussian
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.solvers.flat import Layout, Objective
from ncbook.solvers.line_search import Point, row_dot, wolfe_search
from ncbook.ufm import SquaredLossUFM

METHODS = ["lbfgs", "gd", "momentum", "adam"]


class Single(NamedTuple):
    x: torch.Tensor


class Function:
    """A function of the rows of one tensor as a problem; gradients by autograd, and no `take`."""

    def __init__(self, function, shape, project=None, lower_bound=None):
        self.function, self.shape, self.lower_bound = function, shape, lower_bound
        self.project = None if project is None else lambda params: Single(project(params.x))

    def init(self, batch, generator, *, scale=1.0, dtype=torch.float64, device=None):
        return Single(gaussian((batch, *self.shape), scale, generator, dtype, device))

    def value(self, params):
        return self.function(params.x)

    def value_and_grad(self, params):
        with torch.enable_grad():
            x = params.x.detach().clone().requires_grad_()
            value = self.function(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), Single(gradient)

    def minimum(self):
        raise NoClosedForm("any function may stand here")


class NonNegativeUFM(SquaredLossUFM):
    """The same model with features that may not be negative."""

    def project(self, params):
        return params._replace(H=params.H.clamp(min=0))


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(-1)


def quadratic(size, seed):
    source = generator(seed)
    A = torch.randn(size, size, dtype=torch.float64, generator=source)
    A = A @ A.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    b = torch.randn(size, dtype=torch.float64, generator=source)
    return A, b, lambda x: 0.5 * ((x @ A) * x).sum(-1) - x @ b


@pytest.fixture
def model():
    return SquaredLossUFM(3, 4, 5, 0.01, 0.02)


# ---------------------------------------------------------------- the methods


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_first_order_methods_take_torchs_steps(model, method, schedule):
    start, steps, lr = model.init(3, generator(0)), 60, {"gd": 0.4, "momentum": 0.1, "adam": 0.03}[method]
    found = minimise(model, start=start, method=method, steps=steps, lr=lr, schedule=schedule, tol=0.0)
    make = {
        "gd": lambda leaves: torch.optim.SGD(leaves, lr),
        "momentum": lambda leaves: torch.optim.SGD(leaves, lr, momentum=0.9),
        "adam": lambda leaves: torch.optim.Adam(leaves, lr),
    }[method]
    labels = torch.arange(3).repeat_interleave(4)
    Y = torch.nn.functional.one_hot(labels, 3).double().T
    for run in range(3):
        W, H = (x[run].clone().requires_grad_() for x in start[:2])
        optimiser = make([W, H])
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            optimiser.zero_grad()
            fit = ((W @ H - Y) ** 2).sum() / (2 * model.N)
            (fit + 0.01 / 2 * (W**2).sum() + 0.02 / 2 * (H**2).sum()).backward()
            optimiser.step()
            if schedule == "cosine":
                cosine.step()
        for mine, theirs in zip(found.params[:2], (W, H), strict=True):
            torch.testing.assert_close(mine[run], theirs.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reaches_the_closed_form(method):
    model = SquaredLossUFM(4, 5, 8, 5e-3, 5e-3)
    found = minimise(model, batch=4, method=method)
    assert found.converged.all()
    assert found.loss.tolist() == pytest.approx([float(model.minimum().loss)] * 4, abs=1e-14)
    assert float(found.gradient_norm.max()) <= 1e-10
    assert float(found.gap.abs().max()) < 1e-14


@pytest.mark.parametrize("size", [2, 10])
def test_lbfgs_follows_a_curved_valley(size):
    found = minimise(Function(rosenbrock, (size,)), batch=40, scale=2.0 if size == 2 else 1.0)
    assert found.converged.all()
    assert set(found.reason) == {"gradient"}
    best = found.loss < 1e-15
    assert float((found.params.x[best] - 1).abs().max()) < 1e-8
    assert best.all() if size == 2 else best.any()  # with ten variables there is a second, local minimum
    assert int(found.steps.max()) < 300


def test_lbfgs_solves_a_linear_system():
    A, b, function = quadratic(30, seed=0)
    found = minimise(Function(function, (30,)), batch=5)
    assert found.converged.all()
    exact = torch.linalg.solve(A, b)
    assert float((found.params.x - exact).abs().max()) < 1e-9  # a gradient of 1e-10 over a curvature of 0.1


@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(-9, 4))
@settings(deadline=None, max_examples=40)
def test_the_line_search_satisfies_the_wolfe_conditions(batch, seed, exponent):
    problem = Function(rosenbrock, (3,))
    params = problem.init(batch, generator(seed))
    objective = Objective(problem, Layout(params))
    start = Point(params.x, *objective.value_and_grad(params.x))
    length = torch.full((batch,), 10.0**exponent, dtype=torch.float64)
    searching = torch.arange(batch) % 3 != 1
    point, moved = wolfe_search(objective, start, -start.gradient, length, searching)
    assert moved.tolist() == searching.tolist()
    before, after = -row_dot(start.gradient, start.gradient), -row_dot(point.gradient, start.gradient)
    share = -((point.flat - start.flat) * start.gradient).sum(-1) / -before
    assert bool((point.loss <= start.loss + 1e-4 * share * before + 1e-12 * start.loss)[searching].all())
    assert bool((after >= 0.9 * before)[searching].all())
    assert torch.equal(point.flat[~searching], start.flat[~searching])
    torch.testing.assert_close(problem.value(Single(point.flat)), point.loss, rtol=0, atol=0)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_a_loop(method):
    """The same steps; a matrix product may round differently in a batch, which 20 steps enlarge to 1e-10."""
    lambdas = torch.tensor([0.003, 0.03, 0.3], dtype=torch.float64)
    batch = SquaredLossUFM(3, 4, 5, lambdas, 0.02)
    start = batch.init(3, generator(1))
    together = minimise(batch, start=start, method=method, steps=20, tol=0.0)
    for run in range(3):
        single = SquaredLossUFM(3, 4, 5, float(lambdas[run]), 0.02)
        own = UFMParams(*(x[run : run + 1] for x in start[:2]))
        alone = minimise(single, start=own, method=method, steps=20, tol=0.0)
        for a, b in zip(alone.params[:2], together.params[:2], strict=True):
            torch.testing.assert_close(a[0], b[run], rtol=0, atol=1e-8)
        assert float(alone.loss) == pytest.approx(float(together.loss[run]), abs=1e-10)


def test_many_models_at_once_each_end_on_their_own():
    lambdas = torch.logspace(-3, 0, 300, dtype=torch.float64)
    model = SquaredLossUFM(3, 2, 4, lambdas, 0.02)
    found = minimise(model, batch=300)
    assert found.converged.all()
    assert len(found.steps.unique()) > 10
    torch.testing.assert_close(found.loss, model.minimum().loss, rtol=0, atol=1e-13)
    # what is reported of each run is what its parameters say
    value, gradient = model.value_and_grad(found.params)
    torch.testing.assert_close(found.loss, value, rtol=0, atol=1e-15)
    norm = Layout(gradient).flatten(gradient).norm(dim=1)
    torch.testing.assert_close(found.gradient_norm, norm, rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("method", ["lbfgs", "momentum"])
def test_blocks_change_nothing(monkeypatch, method):
    model = SquaredLossUFM(3, 2, 4, torch.logspace(-3, 0, 50, dtype=torch.float64), 0.02)
    arguments = {"batch": 50, "method": method, "record_every": 10, "steps": 400, "seed": 2}
    whole = minimise(model, **arguments)
    monkeypatch.setattr(solvers, "_BLOCK_BYTES", 1)
    parts = minimise(model, **arguments)
    torch.testing.assert_close(whole.loss, parts.loss, rtol=0, atol=1e-13)
    assert whole.history.loss.shape[1] == parts.history.loss.shape[1] == 50
    common = min(len(whole.history.steps), len(parts.history.steps)) - 1
    assert torch.equal(whole.history.steps[:common], parts.history.steps[:common])
    torch.testing.assert_close(whole.history.loss[:common], parts.history.loss[:common], rtol=0, atol=1e-10)
    assert torch.equal(parts.history.loss[-1], parts.loss)


@pytest.mark.parametrize("method", METHODS)
def test_a_problem_that_cannot_be_divided_is_solved_all_the_same(method):
    class Whole(SquaredLossUFM):
        take = None

    lambdas = torch.logspace(-2, -0.5, 6, dtype=torch.float64)
    divided, whole = (
        minimise(cls(3, 2, 4, lambdas, 0.05), batch=6, method=method, tol=1e-8)
        for cls in (SquaredLossUFM, Whole)
    )
    assert whole.converged.all()
    torch.testing.assert_close(whole.loss, divided.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.params.W, divided.params.W, rtol=0, atol=1e-5)


def test_parameters_may_be_nested():
    class Params(NamedTuple):
        weights: tuple[torch.Tensor, ...]
        nothing: None
        offset: torch.Tensor

    class Nested(Function):
        def __init__(self):
            self.project = self.lower_bound = None

        def init(self, batch, generator, *, scale=1.0, dtype=torch.float64, device=None):
            shapes = ((batch, 2, 3), (batch, 3), (batch,))
            first, second, third = (gaussian(s, scale, generator, dtype, device) for s in shapes)
            return Params((first, second), None, third)

        def value_and_grad(self, params):
            (a, b), _, c = params
            value = ((a - 1) ** 2).sum((1, 2)) / 2 + ((b - 2) ** 2).sum(1) + 2 * (c - 3) ** 2
            return value, Params((a - 1, 2 * (b - 2)), None, 4 * (c - 3))

    for method in METHODS:
        found = minimise(Nested(), batch=4, method=method, lr=None if method == "lbfgs" else 0.05)
        assert found.converged.all()
        assert found.params.nothing is None
        for tensor, shape, value in (
            (found.params.weights[0], (4, 2, 3), 1.0),
            (found.params.weights[1], (4, 3), 2.0),
            (found.params.offset, (4,), 3.0),
        ):
            torch.testing.assert_close(tensor, torch.full(shape, value, dtype=torch.float64))


# ---------------------------------------------------------------- the start


def test_the_start_wins_and_is_left_alone(model):
    start = model.init(2, generator(3))
    copies = [x.clone() for x in start[:2]]
    for method in METHODS:
        found = minimise(model, start=start, batch=7, seed=9, method=method, steps=5)
        assert len(found.loss) == 2
        assert all(torch.equal(a, b) for a, b in zip(start[:2], copies, strict=True))
    assert torch.equal(minimise(model, start=start, steps=0).params.W, start.W)


def test_seeds_and_scale_decide_the_start(model):
    def first(**arguments):
        return minimise(model, batch=2, steps=0, **arguments).params.W

    assert torch.equal(first(seed=1), first(seed=1))
    assert not torch.equal(first(seed=1), first(seed=2))
    torch.testing.assert_close(first(scale=3.0), 3 * first())
    assert torch.equal(first(seed=1), model.init(2, generator(1)).W)


def test_float32_has_its_own_tolerance(model):
    found = minimise(model, batch=3, dtype=torch.float32)
    assert found.params.H.dtype == found.loss.dtype == torch.float32
    assert found.converged.all()
    assert found.loss.tolist() == pytest.approx([float(model.minimum().loss)] * 3, abs=1e-6)
    start = model.init(3, generator(0), dtype=torch.float32)
    assert minimise(model, start=start, steps=1).params.H.dtype == torch.float32
    assert minimise(model, start=start, steps=1, dtype=torch.float64).params.H.dtype == torch.float64


# ---------------------------------------------------------------- how runs end


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_not_finite_ends_alone(model, method):
    start = model.init(5, generator(4))
    healthy = minimise(model, start=UFMParams(*(x[[0, 2, 4]] for x in start[:2])), method=method)
    start.W[1, 0, 0], start.H[3] = math.nan, start.H[3] * 1e200
    found = minimise(model, start=start, method=method)
    assert [found.reason[i] for i in (1, 3)] == ["non-finite"] * 2
    assert found.converged.tolist() == [True, False, True, False, True]
    torch.testing.assert_close(found.loss[[0, 2, 4]], healthy.loss, rtol=0, atol=1e-14)
    assert bool(found.gap[[1, 3]].isnan().all() | (found.gap[[1, 3]].isinf()).any())


def test_a_step_size_that_is_too_large_diverges_in_its_own_run():
    """Gradient descent on a quadratic diverges exactly where lr times the curvature exceeds 2."""
    curvature = torch.tensor([0.5, 3.9, 5.0, 40.0], dtype=torch.float64)
    problem = Function(lambda x: (curvature[: len(x), None] * x**2).sum(-1) / 2, (3,))
    found = minimise(problem, batch=4, method="gd", lr=0.5, schedule="constant", steps=3000)
    assert found.reason == ["gradient", "gradient", "non-finite", "non-finite"]


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_counted(model, method):
    found = minimise(model, batch=3, method=method, steps=7, tol=1e-12)
    assert found.reason == ["steps"] * 3
    assert found.steps.tolist() == [7] * 3
    assert not found.converged.any()
    torch.testing.assert_close(found.loss, model.value(found.params), rtol=0, atol=1e-15)


def test_a_start_at_a_stationary_point_ends_there(model):
    zero = UFMParams(torch.zeros(2, 3, 5).double(), torch.zeros(2, 5, 12).double())
    found = minimise(model, start=zero)
    assert found.reason == ["gradient"] * 2
    assert found.steps.tolist() == [0, 0]
    # the saddle is stationary, and the gap says that it is no minimum
    expected = 0.5 - float(model.minimum().loss)
    assert found.gap.tolist() == pytest.approx([expected] * 2, abs=1e-12)


def test_a_closed_gap_ends_a_run():
    """With curvature 100 a gradient of tol leaves a gap of tol²/200: the gap of tol² is reached first."""

    def bound(params):
        return torch.full((len(params.x),), 3.0, dtype=torch.float64)

    problem = Function(lambda x: 3 + 50 * (x**2).sum(-1), (2,), lower_bound=bound)
    found = minimise(problem, batch=3, method="gd", lr=4e-5, schedule="constant", tol=1e-4, steps=40_000)
    assert found.reason == ["gap"] * 3
    assert found.converged.all()
    assert float(found.gap.max()) <= 1e-8
    assert float(found.gradient_norm.min()) > 1e-4


@pytest.mark.parametrize(("bounded", "reason"), [(True, "gap"), (False, "stagnation")])
def test_rounding_hides_the_rest_of_the_gap(bounded, reason):
    """A gradient that never falls below 1e-9 at a loss of 1: converged only if a bound says so."""

    class Rough(Function):
        def value_and_grad(self, params):
            value, gradient = super().value_and_grad(params)
            return value, Single(gradient.x + 1e-9 * torch.where(gradient.x < 0, -1.0, 1.0))

    def bound(params):
        return torch.ones(len(params.x), dtype=torch.float64)

    problem = Rough(lambda x: 1 + (x**2).sum(-1) / 2, (2,), lower_bound=bound if bounded else None)
    found = minimise(problem, batch=3)
    assert found.reason == [reason] * 3
    assert found.converged.tolist() == [bounded] * 3
    assert (found.gap is None) == (not bounded)
    assert float((found.loss - 1).max()) < 1e-14


def test_a_kink_ends_in_stagnation():
    problem = Function(lambda x: 1 + (x.abs() * torch.tensor([1.0, 3.0])).sum(-1), (2,))
    found = minimise(problem, batch=4, steps=1000)
    assert found.reason == ["stagnation"] * 4
    assert not found.converged.any()
    assert float(found.loss.max()) < 1.1  # at or near the kink, from a start at 4.2 on the average


def test_a_loss_without_a_floor_is_not_called_converged():
    problem = Function(lambda x: -x.exp().sum(-1), (2,))
    found = minimise(problem, batch=2)
    assert found.reason == ["non-finite"] * 2


# ---------------------------------------------------------------- constraints


@pytest.mark.parametrize("method", METHODS)
def test_projection_solves_a_constrained_least_squares_problem(method):
    A, b, function = quadratic(12, seed=1)
    problem = Function(function, (12,), project=lambda x: x.clamp(min=0))
    found = minimise(problem, batch=5, method=method)
    root = torch.linalg.cholesky(A)
    target = torch.linalg.solve_triangular(root, b[:, None], upper=False)[:, 0]
    expected = torch.as_tensor(scipy.optimize.nnls(root.T.numpy(), target.numpy())[0])
    assert found.converged.all(), found.reason
    assert float((found.params.x - expected).abs().max()) < 1e-8
    assert bool((expected == 0).any())  # the constraint is felt
    assert bool((found.params.x >= 0).all())
    assert float(found.gradient_norm.max()) <= 1e-10


@pytest.mark.parametrize("method", ["lbfgs", "gd"])
def test_projection_on_a_ball(method):
    """A set that is no box; the multiplier of the sphere is found by bisection of ‖(A + μ)⁻¹ b‖ = 1."""
    A, b, function = quadratic(8, seed=2)
    project = lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1)  # noqa: E731
    found = minimise(Function(function, (8,), project=project), batch=4, method=method, lr=None, steps=4000)
    identity = torch.eye(8, dtype=torch.float64)
    mu = scipy.optimize.brentq(
        lambda mu: float(torch.linalg.solve(A + mu * identity, b).norm()) - 1, 0, 100, xtol=1e-14
    )
    expected = torch.linalg.solve(A + mu * identity, b)
    # with a gradient of size one along the normal, rounding leaves 1e-8 along the sphere
    assert float((found.params.x - expected).abs().max()) < 1e-6


def test_nonnegative_features_reach_the_same_minimum():
    """An orthogonal frame can be turned into the positive orthant: for d ≥ K the constraint is free."""
    model = NonNegativeUFM(4, 5, 8, 5e-3, 5e-3)
    found = minimise(model, batch=6)
    assert found.converged.all()
    assert bool((found.params.H >= 0).all())
    assert float((found.loss - model.minimum().loss).abs().min()) < 1e-12
    assert float((found.loss - model.minimum().loss).min()) > -1e-13


def test_a_start_outside_is_projected_first():
    model = NonNegativeUFM(3, 2, 4, 0.1, 0.1)
    start = model.init(2, generator(0))
    assert bool((start.H < 0).any())
    assert torch.equal(minimise(model, start=start, steps=0).params.H, start.H.clamp(min=0))


# ---------------------------------------------------------------- the history


@pytest.mark.parametrize("method", METHODS)
def test_the_history_is_what_happened(model, method):
    runs = 12  # one of which ends long before the others: too few to be dropped from the working batch
    start = model.init(runs, generator(5))
    nearly = minimise(model, tol=2e-6).params
    start.W[1], start.H[1] = nearly.W[0], nearly.H[0]
    steps = 90 if method == "lbfgs" else 900
    found = minimise(model, start=start, method=method, steps=steps, record_every=7, tol=1e-6)
    history = found.history
    T = len(history.steps)
    assert history.steps[: T - 1].tolist() == list(range(0, 7 * (T - 1), 7))
    assert int(history.steps[-1]) == int(found.steps.max())
    assert history.loss.shape == history.gradient_norm.shape == (T, runs)
    assert history.params.H.shape == (T, runs, 5, 12)
    assert torch.equal(history.params.W[0], start.W)
    assert torch.equal(history.params.W[-1], found.params.W)
    for i in range(T):
        now = UFMParams(history.params.W[i], history.params.H[i])
        torch.testing.assert_close(model.value(now), history.loss[i], rtol=0, atol=1e-14)
    assert int(found.steps[1]) < int(found.steps.max()) / 2
    for run in range(runs):  # a run that has ended keeps its last state
        after = history.steps >= found.steps[run]
        assert bool((history.loss[after, run] == found.loss[run]).all())
    assert minimise(model, start=start, method=method, steps=3).history is None


def test_lbfgs_never_goes_up(model):
    history = minimise(model, batch=5, record_every=1, seed=6).history
    assert bool((history.loss.diff(dim=0) <= 1e-12 * history.loss[:-1]).all())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 2.0}, "batch"),
        ({"method": "newton"}, "method must be one of lbfgs, gd, momentum, adam"),
        ({"method": "gd", "schedule": "linear"}, "schedule"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"lr": 0.1}, "lr must be None for lbfgs"),
        ({"method": "gd", "lr": -0.1}, "lr"),
        ({"steps": -1}, "steps"),
        ({"tol": -1.0}, "tol"),
        ({"tol": math.nan}, "tol"),
        ({"record_every": 0}, "record_every"),
        ({"seed": -1}, "seed"),
        ({"dtype": torch.int64}, "floating-point"),
        ({"start": UFMParams(torch.zeros(2, 3, 5), torch.zeros(3, 5, 12))}, "common batch axis"),
        ({"start": UFMParams(torch.zeros(0, 3, 5), torch.zeros(0, 5, 12))}, "one or more runs"),
        ({"start": (None,)}, "common batch axis"),
        ({"start": ([1.0],)}, "tuples of tensors"),
    ],
)
def test_wrong_arguments_are_named(model, arguments, word):
    with pytest.raises(ValueError, match=word):
        minimise(model, **arguments)


def test_anything_with_the_four_methods_is_a_problem(model):
    assert isinstance(model, Problem)
    assert isinstance(Function(rosenbrock, (2,)), Problem)
    assert not isinstance(object(), Problem)
