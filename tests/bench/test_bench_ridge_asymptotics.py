"""How much Newton's method in 1/κ saves: a learning curve against the plain fixed-point iteration.

Run by hand: ``pytest -s tests/bench/test_bench_ridge_asymptotics.py``. Nothing here is a gate: ratios are
printed and kept in the report of pytest-benchmark (``extra_info``); only that both computations are the same
is asserted, and that Newton's method keeps to its 25 steps.
"""

import time

import pytest
import torch

from ncbook.ridge_asymptotics import ridge_asymptotics, solve_effective_ridge

P, POINTS, MOST = 1000, 100, 20_000
SPECTRA = {
    "isotropic": torch.ones(P, dtype=torch.float64),
    "power-law": torch.arange(1, P + 1, dtype=torch.float64) ** -1.5,
}


def plain(omega: torch.Tensor, ridge: float, ns: torch.Tensor) -> tuple[torch.Tensor, int]:
    """κ ← (Λ + κ df1(κ))/n for all points at once, until nothing moves by more than 1e-12 of itself."""
    kappa = (ridge + omega.sum()) / ns
    for step in range(1, MOST + 1):
        new = (ridge + (omega * (kappa[:, None] / (omega + kappa[:, None]))).sum(1)) / ns
        moved, kappa = float((new / kappa - 1).abs().max()), new
        if moved < 1e-12:
            return kappa, step
    return kappa, MOST


@pytest.mark.parametrize("ridge", [1.0, 1e-2])
@pytest.mark.parametrize("spectrum", list(SPECTRA))
def test_a_learning_curve_against_the_plain_iteration(benchmark, spectrum, ridge):
    omega = SPECTRA[spectrum]
    ns = torch.linspace(30, 3000, POINTS, dtype=torch.float64).round()
    psi2, rho = omega.square(), float(omega.sum())
    begin = time.perf_counter()
    kappa, iterations = plain(omega, ridge, ns)
    slow = time.perf_counter() - begin
    newton = solve_effective_ridge(omega, ridge, ns)
    torch.testing.assert_close(newton.kappa, kappa, rtol=1e-7, atol=0)
    assert newton.steps <= 25
    benchmark(ridge_asymptotics, omega, psi2, rho, ns, ridge, 0.1)
    curve = benchmark.stats.stats.min
    benchmark.extra_info.update(ratio=slow / curve, newton=newton.steps, plain=iterations, curve=curve)
    print(
        f"\n{spectrum}, ridge {ridge:g}: {POINTS} points at p = {P} in {1e3 * curve:.0f} ms, "
        f"{newton.steps} Newton steps; the plain iteration {iterations} steps, "
        f"{slow / curve:.0f} times the time "
        f"({torch.get_num_threads()} threads)"
    )
