"""All collapse metrics against a covariance and its pseudo-inverse, at N = 50,000, d = 512, K = 10, float32.

Run it alone and on one core: ``OMP_NUM_THREADS=1 pytest tests/bench/test_bench_metrics.py -s``. The ratios of
CPU times stand in ``extra_info``; they are reported, not asserted. That both sides measure the same NC1 is.
"""

import time

import pytest
import torch

from ncbook.metrics import collapse_metrics

N, D, K = 50_000, 512, 10
BLOCK = 1_000
ROUNDS = 9


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (N,), generator=generator)
    features = torch.randn(N, D, generator=generator) + torch.randn(K, D, generator=generator)[labels]
    weight = torch.randn(K, D, generator=generator)
    return features, labels, weight, torch.randn(K, generator=generator)


def covariance_and_pseudo_inverse(features, labels):
    """NC1 alone, by the d × d matrices, in float32 and as fast as blocks and one product each make it."""
    sums = torch.zeros(K, D).index_add_(0, labels, features)
    means = sums / torch.bincount(labels, minlength=K)[:, None]
    within = torch.zeros(D, D)
    for start in range(0, N, BLOCK):
        rows = features[start : start + BLOCK] - means[labels[start : start + BLOCK]]
        within.addmm_(rows.T, rows)
    centred = means - means.mean(0)
    between = centred.T @ centred / K
    inverse = torch.linalg.pinv(between, hermitian=True, rtol=1e-5)
    return float((within / N * inverse).sum() / K)


def products_only(features, onehot, columns):
    """The matrix products of the two passes and nothing else: class sums, then axes and logits together."""
    for start in range(0, N, BLOCK):
        rows = features[start : start + BLOCK]
        torch.mm(onehot[start : start + BLOCK].T, rows)
        torch.mm(columns, rows.T)


def seconds(work):
    start = time.process_time()  # of all threads; other work on the machine does not count
    work()
    return time.process_time() - start


def test_all_metrics_against_covariance_and_pseudo_inverse(benchmark, problem):
    features, labels, weight, bias = problem
    onehot = torch.nn.functional.one_hot(labels, K).float()
    columns = torch.randn(2 * K - 1, D)
    collapsed = 0.01 * features + torch.randn(K, D, generator=torch.Generator().manual_seed(1))[labels]
    works = {
        "metrics": lambda: collapse_metrics(features, labels, weight, bias),
        "features_only": lambda: collapse_metrics(features, labels),
        "collapsed": lambda: collapse_metrics(collapsed, labels, weight, bias),  # class means taken off
        "dense": lambda: covariance_and_pseudo_inverse(features, labels),
        "products": lambda: products_only(features, onehot, columns),
    }
    for work in works.values():  # warm up
        work()
    times = {name: [] for name in works}
    for _ in range(ROUNDS):  # in turns, so that a slow moment of the machine meets all of them
        for name, work in works.items():
            times[name].append(seconds(work))
    best = {name: min(taken) for name, taken in times.items()}
    benchmark.extra_info |= {
        "milliseconds": {name: round(1e3 * taken, 1) for name, taken in best.items()},
        "dense_over_metrics": round(best["dense"] / best["metrics"], 2),
        "dense_over_collapsed": round(best["dense"] / best["collapsed"], 2),
        "metrics_over_products": round(best["metrics"] / best["products"], 2),
        "threads": torch.get_num_threads(),
    }
    found = benchmark.pedantic(works["metrics"], rounds=3, iterations=1)
    # Float32 sums of 50,000 squares on the dense side agree to four digits with float64 ones.
    assert found.nc1 == pytest.approx(covariance_and_pseudo_inverse(features, labels), rel=1e-4)
    print(benchmark.extra_info)
