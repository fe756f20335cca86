"""How much a vectorised map of the memorization-dilation problem saves: one call against a loop with scipy.

Run by hand: ``pytest -s tests/bench/test_bench_memorization_dilation.py``. Nothing here is a gate: ratios are
printed and kept in the report of pytest-benchmark (``extra_info``); only that both computations are the same
is asserted. The loop solves a sample of the cells, each as a convex problem in the two coordinates of u_1
with its gradient, by L-BFGS-B: far cheaper already than five variables with constraints.
"""

import math
import time

import numpy as np
import pytest
import torch
from scipy import optimize, special

from ncbook.memorization_dilation import clean_configuration, nodes, solve_md

CELLS, LOOPED, LAM, ALPHA = 100, 10, 5e-3, 0.1  # 100 × 100 cells, of which the loop solves 10 × 10


def looped(rates, slopes, noise):
    """Dilations of the cells one by one, and the seconds of a cell."""
    clean = clean_configuration(ALPHA, LAM, LAM)
    m, a = float(clean.margin), float(clean.length)
    rule = nodes(noise, 20.0)
    c, weight = (np.concatenate([x, y]) for x, y in zip(rule_numpy(rule), rule_numpy(rule, -1), strict=True))
    price = LAM * a**2

    def value(u, eta, scale):
        gap = math.hypot(u[0], u[1] - 1) + 1e-300
        delta = scale * gap
        t = m + 2 * m * delta * c
        own = m * (u[0] - u[1])
        fit = weight @ np.logaddexp(0, -t) + 2 * price * delta**2
        slope = weight @ (-special.expit(-t) * 2 * m * c) + 4 * price * delta
        turn = m * (ALPHA / 2 - special.expit(-own))
        whole = fit / eta + np.logaddexp(0, -own) + ALPHA * own / 2 + price * (u @ u)
        pull = slope / eta * scale / gap * np.array([u[0], u[1] - 1])
        return whole, pull + turn * np.array([1.0, -1.0]) + 2 * price * u

    found = np.empty((len(rates), len(slopes)))
    begin = time.process_time()
    for i, eta in enumerate(rates):
        for j, C in enumerate(slopes):
            scale = eta * a / C
            options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500}
            arguments = {"args": (eta, scale), "jac": True, "bounds": [(0, None)] * 2, "options": options}
            u = optimize.minimize(value, np.array([0.5, 0.5]), method="L-BFGS-B", **arguments).x
            found[i, j] = scale * math.hypot(u[0], u[1] - 1)
    return found, (time.process_time() - begin) / found.size


def rule_numpy(rule, sign=1):
    return sign * rule.c.numpy(), rule.weight.numpy() / 2


@pytest.mark.parametrize("noise", ["circle", "gaussian"])
def test_a_map_against_a_loop(benchmark, noise):
    rates, slopes = np.linspace(0.005, 0.5, CELLS), np.logspace(-0.5, 1, CELLS)
    stride = CELLS // LOOPED
    ends, single = looped(rates[::stride], slopes[::stride], noise)
    found = benchmark.pedantic(
        solve_md, (rates[:, None], slopes, ALPHA, LAM, LAM, noise), rounds=5, warmup_rounds=1
    )
    np.testing.assert_allclose(found.dilation[::stride, ::stride], ends, rtol=1e-4)  # of L-BFGS-B
    begin = time.process_time()
    solve_md(rates[:, None], slopes, ALPHA, LAM, LAM, noise)
    seconds = time.process_time() - begin
    ratio = single * CELLS**2 / seconds
    benchmark.extra_info.update(ratio=ratio, threads=torch.get_num_threads(), single_seconds=single)
    print(
        f"\n{noise}: a map of {CELLS} × {CELLS} cells in {seconds:.2f} CPU-s, {ratio:.0f} times less than "
        f"a loop of {1e3 * single:.2f} ms a cell ({torch.get_num_threads()} threads)"
    )
