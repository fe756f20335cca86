"""runtime: environment variables, seeds, progress bars and the check of array arguments."""

import io
import sys

import numpy as np
import pytest
import torch

from ncbook import runtime


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("NCBOOK_DEVICE", "NCBOOK_PROFILE", "NCBOOK_SEED", "NCBOOK_STATIC"):
        monkeypatch.delenv(name, raising=False)


def test_defaults():
    assert runtime.profile() == "quick"
    assert runtime.seed() == 0
    assert not runtime.is_static()
    assert runtime.DTYPE is torch.float64
    assert runtime.device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_variables_are_read_at_each_call(monkeypatch):
    monkeypatch.setenv("NCBOOK_PROFILE", "full")
    monkeypatch.setenv("NCBOOK_SEED", "7")
    monkeypatch.setenv("NCBOOK_STATIC", "1")
    monkeypatch.setenv("NCBOOK_DEVICE", "cpu")
    assert runtime.profile() == "full"
    assert (runtime.seed(), runtime.seed(100)) == (7, 107)
    assert runtime.is_static()
    assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "value", "call"),
    [
        ("NCBOOK_PROFILE", "fast", runtime.profile),
        ("NCBOOK_SEED", "-1", runtime.seed),
        ("NCBOOK_SEED", "1.5", runtime.seed),
        ("NCBOOK_SEED", "²", runtime.seed),
        ("NCBOOK_STATIC", "yes", runtime.is_static),
        ("NCBOOK_DEVICE", "abacus", runtime.device),
        ("NCBOOK_DEVICE", "cuda:99", runtime.device),
    ],
)
def test_wrong_variables_are_named(monkeypatch, name, value, call):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize("offset", [-1, 1.0, True, "1"])
def test_seed_refuses_a_wrong_offset(offset):
    with pytest.raises(ValueError, match="offset"):
        runtime.seed(offset)


def test_generator_depends_on_its_seed_only():
    a, b, c = (torch.rand(5, generator=runtime.generator(s)) for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert runtime.generator(np.int64(3)).initial_seed() == 3
    for wrong in (-1, 0.5, True, None):
        with pytest.raises(ValueError, match="seed"):
            runtime.generator(wrong)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _slow_count(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(runtime, "_BAR_DELAY_SECONDS", 0.0)
    return list(runtime.progress(iter(range(200)), "counting sheep", total=200))


def test_progress_is_seen_in_a_terminal_on_stdout(monkeypatch, capsys):
    terminal = _Terminal()
    assert _slow_count(monkeypatch, terminal) == list(range(200))
    assert "counting sheep" in terminal.getvalue()
    assert capsys.readouterr().err == ""


def test_progress_is_silent_on_a_page_and_in_a_pipe(monkeypatch):
    pipe, page = io.StringIO(), _Terminal()
    assert _slow_count(monkeypatch, pipe) == list(range(200))
    monkeypatch.setenv("NCBOOK_STATIC", "1")
    assert _slow_count(monkeypatch, page) == list(range(200))
    assert pipe.getvalue() == page.getvalue() == ""


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], torch.float64),
        ([[1, 2], [3, 4]], torch.int64),
        (np.array([[1, 2], [3, 4]], dtype=np.float32), torch.float32),
        (np.array([[1, 2], [3, 4]], dtype=">f8"), torch.float64),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.float32),
        ([torch.tensor([1.0, 2.0]), [3.0, 4.0]], torch.float64),
        ((range(1, 3), range(3, 5)), torch.int64),
        (np.array([[4, 3], [2, 1]])[::-1, ::-1], torch.int64),
    ],
)
def test_as_tensor_accepts_arrays_of_all_kinds(x, dtype):
    tensor = runtime.as_tensor(x, "x")
    assert tensor.dtype == dtype
    assert tensor.tolist() == [[1, 2], [3, 4]]


def test_as_tensor_shares_memory_but_not_with_what_is_read_only():
    array = np.zeros(3)
    runtime.as_tensor(array, "x")[0] = 5
    assert array[0] == 5
    array.setflags(write=False)
    runtime.as_tensor(array, "x")[1] = 5
    assert array[1] == 0


def test_as_tensor_keeps_autograd_and_converts():
    x = torch.ones(2, requires_grad=True)
    assert runtime.as_tensor(x, "x", torch.float64).requires_grad
    assert runtime.as_tensor([1.0, 2.0], "labels", torch.int64).tolist() == [1, 2]
    assert runtime.as_tensor([], "x").dtype == torch.float64
    assert runtime.as_tensor(3, "x").ndim == 0


@pytest.mark.parametrize(
    ("x", "dtype", "word"),
    [
        ([1.0, float("nan")], None, "finite"),
        (torch.tensor([float("inf")]), None, "finite"),
        ([1e300], torch.float32, "finite"),
        ([1.5], torch.int64, "integers"),
        ([[1.0], [1.0, 2.0]], None, "rectangular"),
        ([torch.ones(1), torch.ones(2)], None, "rectangular"),
        (["a"], None, "numbers"),
        ([None], None, "numbers"),
        ([1j], None, "real"),
    ],
)
def test_as_tensor_names_what_is_wrong(x, dtype, word):
    with pytest.raises(ValueError, match=f"weights must .*{word}"):
        runtime.as_tensor(x, "weights", dtype)
