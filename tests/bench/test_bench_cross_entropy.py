"""How much a batch of cross-entropy models saves: one tensor of runs against a loop with autograd.

Run by hand: ``pytest -s tests/bench/test_bench_cross_entropy.py``. Nothing here is a gate: ratios are printed
and kept in the report of pytest-benchmark (``extra_info``); only that both computations are the same is
asserted. Both sides are timed at their best, the batch by its fastest round, the loop by its fastest run.
"""

import math
import time

import pytest
import torch

from ncbook.protocol import UFMParams
from ncbook.runtime import generator
from ncbook.solvers import minimise
from ncbook.ufm import CrossEntropyUFM

K, N_PER_CLASS, D, BATCH = 4, 10, 16, 128
STEPS, LR, LOOPED = 200, 0.5, 8  # the loop is timed on its first runs, a step costs the same in each

OPTIMISERS = {
    "gd": lambda leaves: torch.optim.SGD(leaves, LR),
    "momentum": lambda leaves: torch.optim.SGD(leaves, LR / 5, momentum=0.9),
    "adam": lambda leaves: torch.optim.Adam(leaves, LR / 50),
}
RATES = {"gd": LR, "momentum": LR / 5, "adam": LR / 50}


def looped(model: CrossEntropyUFM, start: UFMParams, method: str) -> tuple[list[torch.Tensor], float]:
    """Train single runs one after the other; the classifiers, and the seconds of a step of the fastest."""
    labels = torch.arange(K).repeat_interleave(N_PER_CLASS)
    ends, seconds = [], math.inf
    for run in range(LOOPED):
        leaves = [x[run].clone().requires_grad_() for x in start if x is not None]
        optimiser = OPTIMISERS[method](leaves)
        begin = time.perf_counter()
        for _ in range(STEPS):
            optimiser.zero_grad()
            Z = leaves[0] @ leaves[1] + (leaves[2][:, None] if len(leaves) == 3 else 0.0)
            loss = torch.nn.functional.cross_entropy(Z.T, labels)
            loss = loss + model.lambda_W / 2 * leaves[0].square().sum()
            loss = loss + model.lambda_H / 2 * leaves[1].square().sum()
            loss.backward()
            optimiser.step()
        seconds = min(seconds, time.perf_counter() - begin)
        ends.append(leaves[0].detach())
    return ends, seconds / STEPS


@pytest.mark.parametrize("bias", [None, "free"])
@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_a_batch_against_a_loop(benchmark, method, bias):
    model = CrossEntropyUFM(K, N_PER_CLASS, D, 5e-3, 5e-3, bias=bias)
    start = model.init(BATCH, generator(0))
    arguments = {"steps": STEPS, "lr": RATES[method], "schedule": "constant", "tol": 0.0}
    looped(model, start, method)  # warms torch's optimisers up
    ends, single = looped(model, start, method)
    found = benchmark(minimise, model, start=start, method=method, **arguments)
    for run, W in enumerate(ends):
        torch.testing.assert_close(found.params.W[run], W, rtol=0, atol=1e-6)
    step = benchmark.stats.stats.min / STEPS
    ratio = single * BATCH / step
    benchmark.extra_info.update(ratio=ratio, threads=torch.get_num_threads(), single_seconds=single)
    print(
        f"\n{method}, bias {bias}: {ratio:.0f} times less than the loop, {1e6 * step / BATCH:.2f} µs a "
        f"model-step against {1e6 * single:.0f} ({torch.get_num_threads()} threads)"
    )
