"""Images a second: the trainer against a plain loop of the same network, in one run.

Run with ``pytest tests/bench/test_bench_trainers.py --benchmark-only -s``. Nothing here is gated: the ratio
is what the book reports, and it stands in ``extra_info`` of the saved benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ncbook import datasets, networks
from ncbook.trainers import TrainConfig
from ncbook.trainers._run import Run

ROUNDS = 9
BATCH = 128


def small_cnn(data: datasets.Dataset) -> networks.Network:
    return networks.cnn(data.shape, 10)


def wide_cnn(data: datasets.Dataset) -> networks.Network:
    return networks.cnn(data.shape, 10, widths=(32, 64, 128))


def perceptron(data: datasets.Dataset) -> networks.Network:
    return networks.mlp(data.shape, 10, width=256)


CASES = {"small CNN": (small_cnn, 200), "wide CNN": (wide_cnn, 40), "MLP": (perceptron, 200)}


def plain_epoch(data: datasets.Dataset, build: Callable[[datasets.Dataset], nn.Module]) -> Callable[[], None]:
    """The loop that everyone writes first: float32, torch's defaults, one batch after the other."""
    network = build(data)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)

    def epoch() -> None:
        network.train()
        order = torch.randperm(len(data))
        for start in range(0, len(data), BATCH):
            rows = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(network(data.images[rows]), data.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return epoch


def trainer_epoch(
    data: datasets.Dataset, build: Callable[[datasets.Dataset], nn.Module], precision: str
) -> tuple[Callable[[], None], str]:
    """One epoch of the trainer with all that it does besides: the state kept, loss and error looked at."""
    config = TrainConfig(
        epochs=1, batch_size=BATCH, weight_decay=1e-2, schedule="constant", precision=precision, device="cpu"
    )
    run = Run(build(data), data, config, (), (), None, None)
    run.epoch = 1

    def epoch() -> None:
        sound = {name: value.clone() for name, value in run.network.state_dict().items()}
        run.train_epoch(sound)
        run.makes_no_error()

    return epoch, run.precision


def best_of_alternating(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    """The least CPU seconds of each, taken in turns so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for _ in range(ROUNDS):
        for kept, work in zip(times, (first, second), strict=True):
            started = time.process_time()
            work()
            kept.append(time.process_time() - started)
    return min(times[0]), min(times[1])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_images_per_second(benchmark: Any, case: str, precision: str) -> None:
    build, per_class = CASES[case]
    data = datasets.load("fashion-mnist", per_class=per_class)
    epoch, used = trainer_epoch(data, build, precision)
    plain, ours = best_of_alternating(plain_epoch(data, build), epoch)
    chosen = trainer_epoch(data, build, "auto")[1]
    benchmark.extra_info.update(
        case=case,
        precision=used,
        auto=chosen,
        plain_images_per_second=len(data) / plain,
        trainer_images_per_second=len(data) / ours,
        ratio=plain / ours,
    )
    print(
        f"\n{case}, {used}: {len(data) / ours:.0f} images/s, plain float32 loop {len(data) / plain:.0f}, "
        f"ratio {plain / ours:.2f} (auto takes {chosen})"
    )
    benchmark.pedantic(epoch, rounds=1, iterations=1)
