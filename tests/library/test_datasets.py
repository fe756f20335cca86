"""The data sets: what is served, from where, how labels go wrong, and what is said about bad files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import lzma
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import datasets
from ncbook.datasets import _files, _sources

PROJECT = Path(__file__).resolve().parents[2]
ORIGINAL_FOLDERS = (_sources.DEBIAN_FOLDER, PROJECT.parent / "shared" / "data" / "FashionMNIST")


@pytest.fixture(autouse=True)
def nothing_but_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fresh machine without data, network or permission; tests add what they need."""
    monkeypatch.delenv("NCBOOK_DATA", raising=False)
    monkeypatch.delenv("NCBOOK_DOWNLOAD", raising=False)
    monkeypatch.setattr(_sources, "DEBIAN_FOLDER", tmp_path / "no-debian-folder")
    monkeypatch.setattr(_sources, "_cache_folder", lambda: tmp_path / "cache")


def original_folder() -> Path:
    folder = next((folder for folder in ORIGINAL_FOLDERS if folder.is_dir()), None)
    if folder is None:
        pytest.skip("the original Fashion-MNIST files are not here")
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    lengths = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A complete small MNIST in $NCBOOK_DATA, whose hashes stand in the table."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "MNIST"
    folder.mkdir(parents=True)
    hashes = []
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, size=(count, 28, 28), dtype=np.uint8)
        labels = generator.permutation(np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images", images), ("labels", labels)):
            content = idx_bytes(array)
            (folder / f"{prefix}-{kind}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(content))
            hashes.append((f"{prefix}-{kind}", hashlib.sha256(content).hexdigest()))
    spec = _sources.SPECS["mnist"]
    tiny = _sources.Spec(**{**spec.__dict__, "sha256": tuple(hashes)})
    monkeypatch.setitem(_sources.SPECS, "mnist", tiny)
    monkeypatch.setenv("NCBOOK_DATA", str(tmp_path / "data"))
    return folder


# -- what is served ------------------------------------------------------------------------------------


def test_embedded_subset_needs_nothing_else() -> None:
    data = datasets.load("fashion-mnist", per_class=1000)
    assert data.source == "embedded subset"
    assert data.images.shape == (10000, 1, 28, 28)
    assert data.images.dtype == torch.float32
    assert data.counts.tolist() == [1000] * 10
    assert datasets.load("fashion-mnist", split="test", per_class=200).counts.tolist() == [200] * 10


def test_images_are_standardised_by_the_whole_training_split() -> None:
    data = datasets.load("fashion-mnist", per_class=1000)
    pixels = data.images.double() * data.std[:, None, None] + data.mean[:, None, None]
    levels = pixels * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4  # float32 of numbers up to 255
    assert float(levels.min()) == pytest.approx(0, abs=1e-4)
    assert float(levels.max()) == pytest.approx(255, abs=1e-4)
    assert float(data.mean) == pytest.approx(0.2860405969887955, abs=1e-15)
    assert float(data.std) == pytest.approx(0.3530242445149226, abs=1e-15)
    # The subset's own mean is another number: standardising by it would depend on the choice of images.
    assert abs(float(pixels.mean()) - float(data.mean)) > 1e-5
    assert torch.allclose(data.pixels().double(), pixels, atol=1e-6)


def test_moments_in_the_table_are_those_of_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sources, "DEBIAN_FOLDER", original_folder())
    whole = datasets.load("fashion-mnist")
    assert len(whole) == 60000
    assert abs(float(whole.images.double().mean())) < 1e-6
    assert abs(float(whole.images.double().std(correction=0)) - 1) < 1e-6


def test_any_request_that_fits_is_the_same_from_every_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = original_folder()
    requests = [
        {"per_class": 1000},
        {"per_class": [1000, 1, 7], "classes": [9, 0, 4], "label_noise": 0.3, "seed": 5},
        {"per_class": 200, "split": "test"},
    ]
    embedded = [datasets.load("fashion-mnist", **request) for request in requests]
    monkeypatch.setattr(_sources, "DEBIAN_FOLDER", folder)
    packaged = [datasets.load("fashion-mnist", **request) for request in requests]
    (tmp_path / "FashionMNIST").symlink_to(folder, target_is_directory=True)
    monkeypatch.setenv("NCBOOK_DATA", str(tmp_path))
    named = [datasets.load("fashion-mnist", **request) for request in requests]
    for a, b, c in zip(embedded, packaged, named, strict=True):
        assert (a.source, c.source) == ("embedded subset", "$NCBOOK_DATA")
        assert "Debian" in b.source
        assert a.sha256 == b.sha256 == c.sha256
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.std, c.std)


def test_embedded_file_is_what_the_script_builds() -> None:
    path = PROJECT / "book" / "_tools" / "build_embedded_fashion.py"
    spec = importlib.util.spec_from_file_location("build_embedded_fashion", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arrays = script.subset(original_folder())
    content = _sources.embedded_path().read_bytes()
    assert script.same_arrays(content, arrays)
    packed = script.pack({"b": arrays["test_labels"], "a": arrays["test_images"][:50]})
    assert packed == script.pack({"a": arrays["test_images"][:50], "b": arrays["test_labels"]})
    assert hashlib.sha256(content).hexdigest() == _sources._EMBEDDED_SHA256
    arrays["test_labels"] = arrays["test_labels"][::-1]
    assert not script.same_arrays(content, arrays)


def test_digits_are_split_by_class() -> None:
    train, test = datasets.load("digits"), datasets.load("digits", split="test")
    assert train.counts.tolist() == [120] * 10
    assert len(train) + len(test) == 1797
    assert train.images.shape[1:] == (1, 8, 8)
    assert abs(float(train.images.double().mean())) < 1e-6
    assert abs(float(train.images.double().std(correction=0)) - 1) < 1e-6
    together = {image.numpy().tobytes() for image in torch.cat([train.images, test.images])}
    assert len(together) == 1797


def test_digits_of_one_writer_are_in_both_splits() -> None:
    """Every beginning of a class is spread evenly over the order in which the digits were written."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for k in range(10):
        originals = [image.tobytes() for image in bunch.images[bunch.target == k].astype(np.uint8)]
        chosen = datasets.load("digits", classes=[k], per_class=30)
        found = (chosen.pixels() * 16).round().byte().numpy()
        positions = sorted(originals.index(image.tobytes()) / len(originals) for image in found)
        # The i-th of 30 lies near (i + 1/2)/30; in the written order all would lie below 0.2.
        assert np.abs(np.array(positions) - (np.arange(30) + 0.5) / 30).max() < 0.05


@settings(deadline=None, max_examples=15)
@given(
    small=st.integers(1, 40),
    extra=st.integers(0, 40),
    classes=st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True),
    name=st.sampled_from(["digits", "fashion-mnist", "synthetic"]),
)
def test_choices_nest(small: int, extra: int, classes: list[int], name: str) -> None:
    few = datasets.load(name, per_class=small, classes=classes)
    many = datasets.load(name, per_class=small + extra, classes=classes)
    for k in range(len(classes)):
        assert torch.equal(few.images[few.labels == k], many.images[many.labels == k][:small])


def test_classes_are_relabelled_in_the_order_given() -> None:
    chosen = datasets.load("fashion-mnist", classes=[7, 2], per_class=[3, 5])
    whole = datasets.load("fashion-mnist", per_class=5)
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert chosen.class_names == ("sneaker", "pullover")
    assert torch.equal(chosen.images[:3], whole.images[whole.labels == 7][:3])
    assert torch.equal(chosen.images[3:], whole.images[whole.labels == 2])


def test_seed_does_not_choose_images() -> None:
    assert torch.equal(
        datasets.load("digits", per_class=9, seed=1).images,
        datasets.load("digits", per_class=9, seed=2).images,
    )


def test_data_moves_and_changes_type() -> None:
    data = datasets.load("digits", per_class=2).to("cpu", torch.float64)
    assert data.images.dtype == torch.float64
    assert data.labels.dtype == torch.int64


# -- label noise ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    rate=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_flip_makes_exactly_the_rounded_number_of_each_class_wrong(
    sizes: list[int], rate: float, seed: int
) -> None:
    data = datasets.gaussian_mixture(len(sizes), 2, per_class=sizes, label_noise=rate, seed=seed)
    for k, size in enumerate(sizes):
        assert int(data.noisy[data.true_labels == k].sum()) == int(np.floor(rate * size + 0.5))


def test_flip_chooses_uniformly_among_the_other_classes() -> None:
    data = datasets.gaussian_mixture(4, 1, per_class=3000, label_noise=0.5, seed=0)
    wrong = data.labels[(data.true_labels == 1) & data.noisy]
    counts = torch.bincount(wrong, minlength=4)
    assert counts[1] == 0
    # 1500 draws over three classes: chi-squared with 2 degrees of freedom, 13.8 is its 0.999 quantile.
    assert float(((counts[[0, 2, 3]] - 500.0) ** 2 / 500).sum()) < 13.8


@pytest.mark.parametrize("noise", ["uniform", "permute"])
@pytest.mark.parametrize("rate", [0.1, 0.4, 0.75])
def test_rate_is_the_fraction_of_wrong_labels(noise: str, rate: float) -> None:
    data = datasets.gaussian_mixture(4, 1, per_class=5000, label_noise=rate, noise=noise, seed=3)
    wrong = float(data.noisy.double().mean())
    # 20000 labels: six standard deviations of a fraction; the published code's reading, where the fraction
    # ``rate`` is drawn anew and only 3/4 of it is wrong, is off by rate/4 and fails.
    assert abs(wrong - rate) < 6 * (0.25 / 20000) ** 0.5
    assert abs(wrong - 0.75 * rate) > 6 * (0.25 / 20000) ** 0.5


def test_uniform_noise_at_its_largest_forgets_the_class() -> None:
    data = datasets.gaussian_mixture(5, 1, per_class=4000, label_noise=0.8, noise="uniform", seed=0)
    for k in range(5):
        shares = torch.bincount(data.labels[data.true_labels == k], minlength=5) / 4000
        assert float((shares - 0.2).abs().max()) < 6 * (0.16 / 4000) ** 0.5


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5), share=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_permuted_labels_keep_their_counts(sizes: list[int], share: float, seed: int) -> None:
    shares = np.array(sizes) / sum(sizes)
    rate = share * (1 - float((shares**2).sum()))
    data = datasets.gaussian_mixture(
        len(sizes), 1, per_class=sizes, label_noise=rate, noise="permute", seed=seed
    )
    assert data.counts.tolist() == sizes


def test_permute_with_unequal_classes_has_the_stated_mean() -> None:
    sizes, rate = [8000, 1500, 500], 0.2
    data = datasets.gaussian_mixture(3, 1, per_class=sizes, label_noise=rate, noise="permute", seed=1)
    wrong = float(data.noisy.double().mean())
    assert abs(wrong - rate) < 0.015
    # the rule of balanced classes, rho = rate K/(K-1), would make 0.2 * 1.5 * (1 - 0.665) = 0.10 wrong
    assert abs(wrong - 0.10) > 0.05


@pytest.mark.parametrize("noise", ["flip", "uniform", "permute"])
def test_noise_is_a_function_of_the_seed(noise: str) -> None:
    draw = functools.partial(datasets.load, "digits", per_class=50, label_noise=0.3, noise=noise)
    assert torch.equal(draw(seed=4).labels, draw(seed=4).labels)
    assert not torch.equal(draw(seed=4).labels, draw(seed=5).labels)
    assert torch.equal(draw(seed=4).true_labels, draw(seed=5).true_labels)


# -- mixtures ------------------------------------------------------------------------------------------


def test_mixture_has_the_stated_centres_and_spread() -> None:
    means = torch.eye(3, 5) * 4
    data = datasets.gaussian_mixture(3, 5, per_class=4000, means=means, seed=2)
    vectors = data.images.flatten(1).double()
    for k in range(3):
        own = vectors[data.labels == k]
        assert float((own.mean(0) - means[k]).abs().max()) < 6 / 4000**0.5
        assert float((own.std(0) - 1).abs().max()) < 6 / 8000**0.5


def test_mixture_centres_have_one_length_and_are_shared_by_the_splits() -> None:
    train = datasets.gaussian_mixture(2, 40, per_class=3000, separation=10, seed=7)
    test = datasets.gaussian_mixture(2, 40, per_class=3000, separation=10, seed=7, split="test")
    for k in range(2):
        a, b = (d.images[d.labels == k].flatten(1).mean(0) for d in (train, test))
        assert float(a.norm()) == pytest.approx(10, abs=0.5)
        assert float((a - b).norm()) < 6 * (2 * 40 / 3000) ** 0.5
    assert not torch.equal(train.images, test.images)


def test_mixture_of_several_blobs_alternates() -> None:
    centres = torch.tensor([[0.0], [100.0], [200.0], [300.0]])
    data = datasets.gaussian_mixture(2, 1, per_class=6, blobs=2, means=centres)
    nearest = (data.images.flatten() / 100).round().int().tolist()
    assert nearest == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]


def test_mixture_may_have_the_shape_of_images() -> None:
    assert datasets.gaussian_mixture(2, (3, 4, 5), per_class=2).images.shape == (4, 3, 4, 5)


# -- one's own arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 1, 2, 3)])
def test_own_arrays_become_images(shape: tuple[int, ...]) -> None:
    values = np.arange(24, dtype=np.float64).reshape(shape)
    data = datasets.from_arrays(values, [0, 2, 1, 1])
    assert data.images.ndim == 4
    assert data.num_classes == 3
    assert np.array_equal(data.images.numpy().ravel(), values.ravel())
    assert not data.noisy.any()


def test_sha256_sees_images_and_labels() -> None:
    data = datasets.from_arrays(torch.zeros(2, 3), [0, 1])
    assert data.sha256 == datasets.from_arrays(torch.zeros(2, 3), [0, 1]).sha256
    assert data.sha256 != datasets.from_arrays(torch.zeros(2, 3), [1, 0]).sha256
    assert data.sha256 != datasets.from_arrays(torch.zeros(2, 3).double(), [0, 1]).sha256
    assert data.sha256 != datasets.from_arrays(torch.zeros(2, 3), [0, 1], true_labels=[1, 1]).sha256


MALFORMED: list[tuple[str, Callable[[], object]]] = [
    ("name", lambda: datasets.load("imagenet")),
    ("name", lambda: datasets.load("Digits")),
    ("split", lambda: datasets.load("digits", split="valid")),
    ("classes", lambda: datasets.load("digits", classes=[])),
    ("classes", lambda: datasets.load("digits", classes=[1, 1])),
    ("classes", lambda: datasets.load("digits", classes=[0, 10])),
    ("classes", lambda: datasets.load("digits", classes=[-1])),
    ("classes", lambda: datasets.load("digits", classes="01")),
    ("classes", lambda: datasets.load("digits", classes=3)),
    ("classes", lambda: datasets.load("digits", classes=[0.5])),
    ("per_class", lambda: datasets.load("digits", per_class=0)),
    ("per_class", lambda: datasets.load("digits", per_class=-3)),
    ("per_class", lambda: datasets.load("digits", per_class=True)),
    ("per_class", lambda: datasets.load("digits", per_class=2.5)),
    ("per_class", lambda: datasets.load("digits", per_class="5")),
    ("per_class", lambda: datasets.load("digits", per_class=121)),
    ("per_class", lambda: datasets.load("digits", per_class=[5, 5])),
    ("per_class", lambda: datasets.load("digits", classes=[0, 1], per_class=[5, 0])),
    ("per_class", lambda: datasets.load("digits", classes=[0, 1], per_class=[5, 1.5])),
    ("per_class", lambda: datasets.load("synthetic")),
    ("label_noise", lambda: datasets.load("digits", label_noise=-0.1)),
    ("label_noise", lambda: datasets.load("digits", label_noise=1.1)),
    ("label_noise", lambda: datasets.load("digits", label_noise=float("nan"))),
    ("label_noise", lambda: datasets.load("digits", label_noise="0.1")),
    ("label_noise", lambda: datasets.load("digits", label_noise=0.91, noise="uniform")),
    ("label_noise", lambda: datasets.load("digits", label_noise=1.0, noise="permute")),
    ("label_noise", lambda: datasets.load("digits", label_noise=0.1, classes=[3])),
    ("noise", lambda: datasets.load("digits", label_noise=0.1, noise="swap")),
    ("seed", lambda: datasets.load("digits", seed=-1)),
    ("seed", lambda: datasets.load("digits", seed=1.0)),
    ("allow_download", lambda: datasets.load("digits", allow_download="yes")),
    ("num_classes", lambda: datasets.gaussian_mixture(0, 3, per_class=2)),
    ("shape", lambda: datasets.gaussian_mixture(2, 0, per_class=2)),
    ("shape", lambda: datasets.gaussian_mixture(2, (3, 4), per_class=2)),
    ("blobs", lambda: datasets.gaussian_mixture(2, 3, per_class=2, blobs=0)),
    ("separation", lambda: datasets.gaussian_mixture(2, 3, per_class=2, separation=-1)),
    ("separation", lambda: datasets.gaussian_mixture(2, 3, per_class=2, separation=float("nan"))),
    ("means", lambda: datasets.gaussian_mixture(2, 3, per_class=2, means=torch.zeros(3, 2))),
    ("means", lambda: datasets.gaussian_mixture(2, 1, per_class=2, means=[[0.0], [float("nan")]])),
    ("images", lambda: datasets.from_arrays(torch.zeros(2), [0, 1])),
    ("images", lambda: datasets.from_arrays(torch.zeros(0, 3), [])),
    ("images", lambda: datasets.from_arrays([[0.0], [float("inf")]], [0, 1])),
    ("labels", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, 1, 1])),
    ("labels", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, -1])),
    ("labels", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, 2], num_classes=2)),
    ("labels", lambda: datasets.from_arrays(torch.zeros(2, 3), [0.5, 1])),
    ("true_labels", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, 1], true_labels=[0, 2])),
    ("num_classes", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, 1], num_classes=True)),
    ("class_names", lambda: datasets.from_arrays(torch.zeros(2, 3), [0, 1], class_names=["a"])),
]


@pytest.mark.parametrize(
    ("argument", "call"), MALFORMED, ids=[f"{i}-{a}" for i, (a, _) in enumerate(MALFORMED)]
)
def test_bad_arguments_are_named(argument: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}\b") as caught:
        call()
    assert "got" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", torch.zeros(2, 1, 2, 2, dtype=torch.int64)),
        ("images", torch.zeros(2, 4)),
        ("labels", torch.tensor([0.0, 1.0])),
        ("mean", torch.zeros(3)),
        ("std", torch.zeros(1)),
        ("std", torch.tensor([float("nan")])),
    ],
)
def test_a_dataset_checks_its_parts(field: str, value: torch.Tensor) -> None:
    fine = datasets.from_arrays(torch.zeros(2, 1, 2, 2), [0, 1])
    parts = {name: getattr(fine, name) for name in fine.__dataclass_fields__}
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        datasets.Dataset(**{**parts, field: value})


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NCBOOK_DOWNLOAD", "yes")
    with pytest.raises(ValueError, match="NCBOOK_DOWNLOAD"):
        datasets.load("digits")
    monkeypatch.delenv("NCBOOK_DOWNLOAD")
    monkeypatch.setenv("NCBOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(datasets.MissingFile, match="NCBOOK_DATA"):
        datasets.load("mnist")


# -- files -----------------------------------------------------------------------------------------------


def test_own_copies_are_found_and_read(tiny_mnist: Path) -> None:
    data = datasets.load("mnist")
    assert (len(data), data.source) == (60, "$NCBOOK_DATA")
    content = gzip.decompress((tiny_mnist / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((tiny_mnist / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(60, 28, 28)
    first_three = [i for i in range(60) if labels[i] == 3]
    found = (data.pixels()[data.labels == 3][:, 0] * 255).round().byte().numpy()
    assert np.array_equal(found, pixels[first_three])
    assert len(datasets.load("mnist", split="test")) == 20


def test_the_raw_subfolder_is_found_too(tiny_mnist: Path) -> None:
    raw = tiny_mnist / "raw"
    raw.mkdir()
    for file in list(tiny_mnist.glob("*.gz")):
        file.rename(raw / file.name)
    assert len(datasets.load("mnist")) == 60


def test_missing_everywhere() -> None:
    with pytest.raises(datasets.MissingFile, match="NCBOOK_DOWNLOAD") as caught:
        datasets.load("mnist", per_class=1)
    assert "NCBOOK_DATA" in str(caught.value)
    with pytest.raises(datasets.MissingFile, match="170 MB"):
        datasets.load("cifar10", per_class=1)


@pytest.mark.parametrize("request_", [{}, {"per_class": 1001}, {"per_class": 201, "split": "test"}])
def test_more_than_the_subset_is_not_served_by_it(request_: dict) -> None:
    with pytest.raises(datasets.MissingFile, match="per_class"):
        datasets.load("fashion-mnist", **request_)


def test_one_file_missing_from_a_folder(tiny_mnist: Path) -> None:
    (tiny_mnist / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(datasets.MissingFile, match="train-labels-idx1-ubyte"):
        datasets.load("mnist")


@pytest.mark.parametrize("kept", [0, 1, 2, 9, 30, 0.5, -9, -1])
def test_truncated_file(tiny_mnist: Path, kept: float) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    packed = path.read_bytes()
    path.write_bytes(packed[: int(kept * len(packed)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(datasets.TruncatedFile, match=r"train-images.*ends too early.*remove it"):
        datasets.load("mnist")


def test_not_gzip(tiny_mnist: Path) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"<!doctype html><title>404</title>")
    with pytest.raises(datasets.NotGzip, match=r"train-images.*<!doctyp"):
        datasets.load("mnist")


def test_uncompressed_file_is_not_gzip(tiny_mnist: Path) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(datasets.NotGzip):
        datasets.load("mnist")


def test_corrupt_file(tiny_mnist: Path) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    packed = bytearray(path.read_bytes())
    packed[-8] ^= 0xFF  # the checksum in the trailer
    path.write_bytes(bytes(packed))
    with pytest.raises(datasets.CorruptFile, match="train-images"):
        datasets.load("mnist")


@pytest.mark.parametrize("change", ["pixel", "shorter", "longer", "other file"])
def test_wrong_hash(tiny_mnist: Path, change: str) -> None:
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    if change == "pixel":
        content[-1] ^= 1
    elif change == "shorter":
        del content[-1]
    elif change == "longer":
        content.append(0)
    else:
        content = bytearray(gzip.decompress((tiny_mnist / "t10k-images-idx3-ubyte.gz").read_bytes()))
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(datasets.WrongHash, match=r"train-images.*expected"):
        datasets.load("mnist")


def test_recompressed_file_is_accepted(tiny_mnist: Path) -> None:
    before = datasets.load("mnist").sha256
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=99))
    assert datasets.load("mnist").sha256 == before


def test_unreadable_file(tiny_mnist: Path) -> None:
    with pytest.raises(datasets.MissingFile, match="cannot be read"):
        _files.read_gzip(tiny_mnist)  # a folder where a file should be


def test_damaged_embedded_subset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = bytearray(_sources.embedded_path().read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy = tmp_path / "fashion-mnist-subset.npz"
    copy.write_bytes(bytes(damaged))
    monkeypatch.setattr(_sources, "embedded_path", lambda: copy)
    _sources._read_embedded.cache_clear()
    try:
        with pytest.raises(datasets.WrongHash, match="fashion-mnist-subset"):
            datasets.load("fashion-mnist", per_class=1)
    finally:
        _sources._read_embedded.cache_clear()


def test_all_data_errors_have_one_root() -> None:
    for name in ("MissingFile", "NotGzip", "TruncatedFile", "CorruptFile", "WrongHash", "DownloadFailed"):
        assert issubclass(getattr(datasets, name), datasets.DataError)


# -- CIFAR-10 --------------------------------------------------------------------------------------------


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tiny_cifar_records(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    pixels = generator.integers(0, 256, size=(count, 3, 32, 32), dtype=np.uint8)
    return pixels, labels, np.concatenate([labels[:, None], pixels.reshape(count, -1)], axis=1).tobytes()


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    files = {f"cifar-10-batches-bin/data_batch_{i}.bin": tiny_cifar_records(20, i)[2] for i in range(1, 6)}
    files["cifar-10-batches-bin/test_batch.bin"] = tiny_cifar_records(20, 6)[2]
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(gzip.compress(tar_of(files)))
    monkeypatch.setattr(_sources, "_CIFAR_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("NCBOOK_DATA", str(tmp_path))
    _sources._read_cifar.cache_clear()
    return path


def test_cifar_binary_version(tiny_cifar: Path) -> None:
    data = datasets.load("cifar10", per_class=2)
    assert data.images.shape == (20, 3, 32, 32)
    assert data.source == "$NCBOOK_DATA"
    pixels, labels, _ = tiny_cifar_records(20, 1)
    expected = pixels[labels == 4][:2]
    found = (data.pixels()[data.labels == 4] * 255).round().byte().numpy()
    assert np.array_equal(found, expected)
    assert len(datasets.load("cifar10", split="test")) == 20
    assert len(datasets.load("cifar10")) == 100


def test_cifar_truncated_and_wrong(tiny_cifar: Path) -> None:
    packed = tiny_cifar.read_bytes()
    tiny_cifar.write_bytes(packed[:-100])
    with pytest.raises(datasets.TruncatedFile, match="cifar-10-binary"):
        datasets.load("cifar10")
    tiny_cifar.write_bytes(gzip.compress(gzip.decompress(packed) + b"\0"))
    with pytest.raises(datasets.WrongHash, match="cifar-10-binary"):
        datasets.load("cifar10")


@pytest.fixture
def tiny_jpegs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    files = {}
    for split in ("train", "test"):
        for k, name in enumerate(_sources.SPECS["cifar10"].class_names):
            for i in range(2):
                buffer = io.BytesIO()
                image.fromarray(np.full((32, 32, 3), (20 * k, 100, i), dtype=np.uint8)).save(buffer, "JPEG")
                files[f"{split}/{name}/{i:04d}.jpg"] = buffer.getvalue()
    path = tmp_path / "cifar10_jpeg.tar.xz"
    path.write_bytes(lzma.compress(tar_of(files)))
    monkeypatch.setattr(_sources, "_CIFAR_JPEG_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(_sources, "_CIFAR_PER_CLASS", {"train": 2, "test": 2})
    monkeypatch.setenv("NCBOOK_DATA", str(tmp_path))
    _sources._read_cifar_jpeg.cache_clear()
    return path


def test_cifar_recompressed_says_so(tiny_jpegs: Path) -> None:
    data = datasets.load("cifar10", per_class=2)
    assert "JPEG-recompressed" in data.source
    red = data.pixels()[:, 0].mean((1, 2)) * 255
    assert float((red - 20 * data.labels).abs().max()) < 8  # JPEG colours are only near
    assert float((data.pixels()[:, 1].mean((1, 2)) * 255 - 100).abs().max()) < 8


def test_cifar_recompressed_faults(tiny_jpegs: Path) -> None:
    packed = tiny_jpegs.read_bytes()
    tiny_jpegs.write_bytes(packed[:-40])
    with pytest.raises(datasets.TruncatedFile, match="cifar10_jpeg"):
        datasets.load("cifar10")
    tiny_jpegs.write_bytes(b"no archive at all")
    with pytest.raises(datasets.CorruptFile, match="cifar10_jpeg"):
        datasets.load("cifar10")
    tiny_jpegs.write_bytes(lzma.compress(lzma.decompress(packed) + b"\0"))
    with pytest.raises(datasets.WrongHash, match="cifar10_jpeg"):
        datasets.load("cifar10")


def test_the_real_recompressed_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PROJECT.parent / "shared" / "data"
    if not (folder / "cifar10_jpeg.tar.xz").is_file():
        pytest.skip("the re-compressed CIFAR-10 is not here")
    monkeypatch.setenv("NCBOOK_DATA", str(folder))
    data = datasets.load("cifar10", split="test")
    assert data.counts.tolist() == [1000] * 10
    # Standardised by the originals' training moments; JPEG and the test split move them by little.
    assert float(data.images.mean((0, 2, 3)).abs().max()) < 0.05
    assert float((data.images.std((0, 2, 3)) - 1).abs().max()) < 0.05


# -- downloads -------------------------------------------------------------------------------------------


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves the files of ``folder``; a name in ``broken`` dies midway."""

    folder: Path
    broken: set[str]
    requests: list[str]

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.requests.append(name)
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.broken else content)
        if name in self.broken:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Server]]:
    """The tiny MNIST behind HTTP on the loopback address."""
    handler = type("Handler", (_Server,), {"folder": tiny_mnist, "broken": set(), "requests": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    spec = _sources.SPECS["mnist"]
    url = f"http://127.0.0.1:{running.server_port}/"
    monkeypatch.setitem(_sources.SPECS, "mnist", _sources.Spec(**{**spec.__dict__, "url": url}))
    monkeypatch.delenv("NCBOOK_DATA")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    running.shutdown()
    running.server_close()
    thread.join()


def cached(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_download_needs_permission(server: type[_Server], tmp_path: Path) -> None:
    with pytest.raises(datasets.MissingFile):
        datasets.load("mnist")
    assert server.requests == []


def test_download_fills_the_cache_once(
    server: type[_Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = datasets.load("mnist", allow_download=True)
    assert (len(data), data.source) == (60, "download cache")
    assert len(server.requests) == 2
    monkeypatch.setenv("NCBOOK_DOWNLOAD", "1")
    datasets.load("mnist")
    assert len(server.requests) == 2
    monkeypatch.delenv("NCBOOK_DOWNLOAD")
    assert len(datasets.load("mnist")) == 60  # what lies in the cache needs no permission
    assert capfd.readouterr().err == ""


def test_download_that_dies_midway_leaves_nothing(server: type[_Server], tmp_path: Path) -> None:
    server.broken.add("train-images-idx3-ubyte.gz")
    with pytest.raises(datasets.DataError, match="train-images") as caught:
        datasets.load("mnist", allow_download=True)
    assert isinstance(caught.value, datasets.DownloadFailed | datasets.TruncatedFile)
    assert cached(tmp_path) == []
    assert not any((tmp_path / "cache" / "mnist").iterdir())
    server.broken.clear()
    assert len(datasets.load("mnist", allow_download=True)) == 60


def test_download_of_a_wrong_file_leaves_nothing(server: type[_Server], tmp_path: Path) -> None:
    (server.folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(datasets.WrongHash):
        datasets.load("mnist", allow_download=True)
    assert cached(tmp_path) == []


def test_download_refused_by_the_server(server: type[_Server], tmp_path: Path) -> None:
    (server.folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(datasets.DownloadFailed, match="404"):
        datasets.load("mnist", allow_download=True)
    assert cached(tmp_path) == []


def test_download_offline(server: type[_Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    spec = _sources.SPECS["mnist"]
    url = f"http://127.0.0.1:{port}/"
    monkeypatch.setitem(_sources.SPECS, "mnist", _sources.Spec(**{**spec.__dict__, "url": url}))
    with pytest.raises(datasets.DownloadFailed, match="Nothing was kept"):
        datasets.load("mnist", allow_download=True)
    assert cached(tmp_path) == []


def test_permission_alone_downloads_nothing_that_the_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(_sources, "download", refuse)
    assert datasets.load("fashion-mnist", per_class=3, allow_download=True).source == "embedded subset"
    with pytest.raises(AssertionError):
        datasets.load("fashion-mnist", allow_download=True)


def test_cache_is_damaged_afterwards(server: type[_Server], tmp_path: Path) -> None:
    datasets.load("mnist", allow_download=True)
    path = tmp_path / "cache" / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    os.utime(path)
    with pytest.raises(datasets.TruncatedFile, match="cache"):
        datasets.load("mnist")
