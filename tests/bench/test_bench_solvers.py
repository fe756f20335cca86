"""How much a batch saves: one tensor of runs with hand-derived gradients against a loop with autograd.

Run by hand: ``pytest -s tests/bench/test_bench_solvers.py``. Nothing here is a gate: ratios are printed and
kept in the report of pytest-benchmark (``extra_info``); only that both computations are the same is asserted.
Both sides are timed at their best, the batch by its fastest round, the loop by its fastest run.
"""

import math
import time

import pytest
import torch

from ncbook.protocol import UFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import SquaredLossUFM

K, N_PER_CLASS, D, BATCH = 4, 10, 16, 128
STEPS, LR, LOOPED = 200, 0.5, 8  # the loop is timed on its first runs, a step costs the same in each

OPTIMISERS = {
    "gd": lambda leaves: torch.optim.SGD(leaves, LR),
    "momentum": lambda leaves: torch.optim.SGD(leaves, LR / 5, momentum=0.9),
    "adam": lambda leaves: torch.optim.Adam(leaves, LR / 50),
}
RATES = {"gd": LR, "momentum": LR / 5, "adam": LR / 50}


def looped(model: SquaredLossUFM, start: UFMParams, method: str) -> tuple[list[torch.Tensor], float]:
    """Train single runs one after the other; the classifiers, and the seconds of a step of the fastest."""
    Y = torch.eye(K, dtype=torch.float64).repeat_interleave(N_PER_CLASS, dim=1)
    ends, seconds = [], math.inf
    for run in range(LOOPED):
        W, H = (x[run].clone().requires_grad_() for x in start[:2])
        optimiser = OPTIMISERS[method]([W, H])
        begin = time.perf_counter()
        for _ in range(STEPS):
            optimiser.zero_grad()
            fit = ((W @ H - Y) ** 2).sum() / (2 * model.N)
            loss = fit + model.lambda_W / 2 * (W**2).sum() + model.lambda_H / 2 * (H**2).sum()
            loss.backward()
            optimiser.step()
        seconds = min(seconds, time.perf_counter() - begin)
        ends.append(W.detach())
    return ends, seconds / STEPS


@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_a_batch_against_a_loop(benchmark, method):
    model = SquaredLossUFM(K, N_PER_CLASS, D, 5e-3, 5e-3)
    start = model.init(BATCH, generator(0))
    arguments = {"steps": STEPS, "lr": RATES[method], "schedule": "constant", "tol": 0.0}
    looped(model, start, method)  # warms torch's optimisers up
    ends, single = looped(model, start, method)
    found = benchmark(minimise, model, start=start, method=method, **arguments)
    for run, W in enumerate(ends):
        torch.testing.assert_close(found.params.W[run], W, rtol=0, atol=1e-6)
    step = benchmark.stats.stats.min / STEPS
    report(benchmark, method, single * BATCH / step, single, step / BATCH)


def test_lbfgs_against_torchs(benchmark):
    model = SquaredLossUFM(K, N_PER_CLASS, D, 5e-3, 5e-3)
    start = model.init(BATCH, generator(0))
    Y = torch.eye(K, dtype=torch.float64).repeat_interleave(N_PER_CLASS, dim=1)
    single = math.inf
    for run in range(LOOPED):
        W, H = (x[run].clone().requires_grad_() for x in start[:2])
        optimiser = torch.optim.LBFGS(
            [W, H],
            max_iter=500,
            history_size=12,
            tolerance_grad=1e-11,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure(W=W, H=H, optimiser=optimiser):
            optimiser.zero_grad()
            fit = ((W @ H - Y) ** 2).sum() / (2 * model.N)
            loss = fit + model.lambda_W / 2 * (W**2).sum() + model.lambda_H / 2 * (H**2).sum()
            loss.backward()
            return loss

        begin = time.perf_counter()
        optimiser.step(closure)
        single = min(single, time.perf_counter() - begin)
    found = benchmark(minimise, model, start=start)
    assert found.converged.all()
    report(benchmark, "lbfgs, to the end", single * BATCH / benchmark.stats.stats.min, single, None)


def report(benchmark, name: str, ratio: float, single: float, batched: float | None) -> None:
    benchmark.extra_info.update(ratio=ratio, threads=torch.get_num_threads(), single_seconds=single)
    step = "" if batched is None else f", {1e6 * batched:.2f} µs a model-step against {1e6 * single:.0f}"
    print(f"\n{name}: {ratio:.0f} times less than the loop{step} ({torch.get_num_threads()} threads)")
