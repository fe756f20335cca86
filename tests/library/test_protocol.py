"""protocol: the checks that models share, and the Gaussian draws."""

import math

import numpy as np
import pytest
import torch

from ncbook import protocol
from ncbook.runtime import generator


def test_a_run_number_is_a_float_or_a_vector():
    assert protocol.run_number(np.float32(0.5), "x") == 0.5
    assert isinstance(protocol.run_number(torch.tensor(2), "x"), float)
    vector = protocol.run_number((1, 2), "x")
    assert vector.dtype == torch.float64
    assert vector.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("x", [-1, [0.1, -0.1], math.inf, [[1.0]], [], "a", None])
def test_a_wrong_run_number_is_named(x):
    with pytest.raises(ValueError, match="lambda_W"):
        protocol.run_number(x, "lambda_W")


def test_numbers_of_runs_must_agree():
    two, three = torch.ones(2), torch.ones(3)
    assert protocol.common_batch(a=1.0, b=2.0) is None
    assert protocol.common_batch(a=two, b=2.0, c=two) == 2
    with pytest.raises(ValueError, match="'a': 2, 'b': 3"):
        protocol.common_batch(a=two, b=three)


def test_numbers_follow_the_runs():
    numbers = torch.tensor([1.0, 2.0, 3.0])
    assert protocol.take_runs(0.5, torch.tensor([1])) == 0.5
    assert protocol.take_runs(numbers, torch.tensor([2, 2])).tolist() == [3.0, 3.0]
    tensor = torch.ones(3, 2, 4, dtype=torch.float64)
    shaped = protocol.over_runs(numbers, tensor)
    assert shaped.dtype == torch.float64
    assert (shaped * tensor)[:, 1, 2].tolist() == [1.0, 2.0, 3.0]
    assert protocol.over_runs(0.5, tensor) == 0.5


@pytest.mark.parametrize("x", [0, 1.0, True, "3", None])
def test_a_wrong_count_is_named(x):
    with pytest.raises(ValueError, match="K must be an integer of at least 1"):
        protocol.require_count(x, "K")
    assert protocol.require_count(np.int32(3), "K") == 3
    assert protocol.require_count(0, "steps", 0) == 0


def test_gaussian_draws_depend_on_the_seed_alone():
    a = protocol.gaussian((1000, 20), 3.0, generator(1))
    b = protocol.gaussian((1000, 20), 3.0, generator(1), torch.float32, "cpu")
    torch.testing.assert_close(a.float(), b)
    # 20,000 draws: the standard error of the deviation is 3/sqrt(40,000) = 0.015
    assert float(a.std()) == pytest.approx(3.0, abs=0.075)


def test_optional_methods_may_be_absent_or_none():
    class Partial:
        project = None

        def hvp(self):
            return 1

    assert protocol.optional_method(Partial(), "hvp")() == 1
    assert protocol.optional_method(Partial(), "project") is None
    assert protocol.optional_method(Partial(), "take") is None
