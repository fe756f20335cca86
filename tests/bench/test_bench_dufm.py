"""How much a batch of deep models saves: hand-derived gradients in one tensor against a loop with autograd.

Run by hand: ``pytest -s tests/bench/test_bench_dufm.py``. Nothing here is a gate: ratios are printed and kept
in the report of pytest-benchmark (``extra_info``); only that both computations are the same is asserted.
Both sides are timed at their best, the batch by its fastest round, the loop by its fastest run.
"""

import math
import time

import pytest
import torch

from ncbook.dufm import DeepUFM, DeepUFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise

K, N_PER_CLASS, L, WIDTH, BATCH = 4, 3, 4, 12, 128
STEPS, LOOPED = 200, 8  # the loop is timed on its first runs, a step costs the same in each

OPTIMISERS = {
    "gd": lambda leaves: torch.optim.SGD(leaves, 0.2),
    "momentum": lambda leaves: torch.optim.SGD(leaves, 0.05, momentum=0.9),
    "adam": lambda leaves: torch.optim.Adam(leaves, 0.01),
}
RATES = {"gd": 0.2, "momentum": 0.05, "adam": 0.01}


def looped(model: DeepUFM, start: DeepUFMParams, method: str) -> tuple[list[torch.Tensor], float]:
    """Train single runs one after the other; the last layers, and the seconds of a step of the fastest."""
    Y = torch.eye(K, dtype=torch.float64).repeat_interleave(N_PER_CLASS, dim=1)
    ends, seconds = [], math.inf
    for run in range(LOOPED):
        leaves = [x[run].clone().requires_grad_() for x in (*start.weights, start.H)]
        optimiser = OPTIMISERS[method](leaves)
        begin = time.perf_counter()
        for _ in range(STEPS):
            optimiser.zero_grad()
            Z = leaves[0] @ leaves[-1]
            for W in leaves[1:-1]:
                Z = W @ (torch.relu(Z) if model.relu else Z)
            decay = sum((x**2).sum() for x in leaves) * (model.lambdas / 2)
            loss = ((Z - Y) ** 2).sum() / (2 * model.N) + decay
            loss.backward()
            optimiser.step()
        seconds = min(seconds, time.perf_counter() - begin)
        ends.append(leaves[L - 1].detach())
    return ends, seconds / STEPS


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_a_batch_against_a_loop(benchmark, method, relu):
    model = DeepUFM(K, N_PER_CLASS, L, WIDTH, 1e-3, relu=relu)
    start = model.init(BATCH, generator(0))
    arguments = {"steps": STEPS, "lr": RATES[method], "schedule": "constant", "tol": 0.0}
    looped(model, start, method)  # warms torch's optimisers up
    ends, single = looped(model, start, method)
    found = benchmark(minimise, model, start=start, method=method, **arguments)
    for run, W in enumerate(ends):
        torch.testing.assert_close(found.params.weights[-1][run], W, rtol=0, atol=1e-6)
    step = benchmark.stats.stats.min / STEPS
    ratio = single * BATCH / step
    benchmark.extra_info.update(ratio=ratio, threads=torch.get_num_threads(), single_seconds=single)
    print(
        f"\n{method}, {'ReLU' if relu else 'linear'}: {ratio:.0f} times less than the loop, "
        f"{1e6 * step / BATCH:.2f} µs a model-step against {1e6 * single:.0f} "
        f"({torch.get_num_threads()} threads)"
    )
