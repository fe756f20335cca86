"""The networks: shapes, sizes, heads, and what "features" means in each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ncbook import frames, networks


def grey(count: int = 3, size: int = 28) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def colour(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


BUILDERS: dict[str, tuple[Callable[..., networks.Network], Callable[[], Tensor]]] = {
    "mlp": (lambda **more: networks.mlp((1, 28, 28), 10, width=32, **more), grey),
    "cnn": (lambda **more: networks.cnn((1, 28, 28), 10, **more), grey),
    "resnet18": (lambda **more: networks.resnet18(10, width=4, **more), colour),
}


@pytest.fixture(params=BUILDERS)
def family(request: pytest.FixtureRequest) -> tuple[Callable[..., networks.Network], Tensor]:
    build, images = BUILDERS[request.param]
    return build, images()


# -- all families ----------------------------------------------------------------------------------------


def test_logits_are_head_of_features(family: tuple[Callable[..., networks.Network], Tensor]) -> None:
    build, images = family
    network = build().eval()
    features = network.features(images)
    assert features.ndim == 2
    assert torch.equal(network(images), network.head(features))
    assert network(images).shape == (len(images), 10)


def test_features_are_signed_on_demand(family: tuple[Callable[..., networks.Network], Tensor]) -> None:
    build, images = family
    plain, signed = build().eval(), build(signed_features=True).eval()
    assert float(plain.features(images).detach().min()) >= 0
    assert float(signed.features(images).detach().min()) < 0
    # The same weights: only the last activation is missing.
    for (name, a), (other, b) in zip(plain.state_dict().items(), signed.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_relu_of_signed_features_is_features(family: tuple[Callable[..., networks.Network], Tensor]) -> None:
    build, images = family
    plain, signed = build().eval(), build(signed_features=True).eval()
    if "resnet" in type(plain.features[1]).__name__ or "stage4" in dict(plain.features.named_children()):
        before = signed.features[:-1](images)  # the activation comes before the pooling
        assert torch.allclose(plain.features[:-1](images), before.relu())
    else:
        assert torch.allclose(plain.features(images), signed.features(images).relu())


@pytest.mark.parametrize("dim", [1, 7, 9, 10])
def test_feature_dim(family: tuple[Callable[..., networks.Network], Tensor], dim: int) -> None:
    build, images = family
    network = build(feature_dim=dim)
    assert network.features(images).shape == (len(images), dim)
    assert network.head.weight.shape == (10, dim)


def test_seed_decides_the_weights_and_nothing_else(
    family: tuple[Callable[..., networks.Network], Tensor],
) -> None:
    build, _ = family
    torch.manual_seed(123)
    expected = torch.rand(4)
    torch.manual_seed(123)
    first = build(seed=5)
    assert torch.equal(torch.rand(4), expected)  # the global state is untouched
    torch.manual_seed(456)
    again, other = build(seed=5), build(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_layer_names_are_hookable(family: tuple[Callable[..., networks.Network], Tensor]) -> None:
    build, images = family
    network = build()
    known = dict(network.named_modules())
    seen: list[str] = []
    for name in network.layer_names:
        known[name].register_forward_hook(lambda *_, name=name: seen.append(name))
    network(images)
    assert tuple(seen) == network.layer_names  # each runs once, in the order of the data's way


@pytest.mark.parametrize("seed", [None, 3])
def test_fixed_etf_head(family: tuple[Callable[..., networks.Network], Tensor], seed: int | None) -> None:
    build, images = family
    network = build(feature_dim=12, head=networks.fixed_etf_head(scale=2.0, seed=seed))
    weight = network.head.weight
    assert torch.allclose(weight.T.double(), 2 * frames.simplex_etf(10, 12, seed=seed), atol=1e-6)
    gram = (weight @ weight.T).double()
    expected = 4 * (10 / 9) * (torch.eye(10, dtype=torch.float64) - 0.1)
    assert float((gram - expected).abs().max()) < 1e-5  # float32
    assert not any(parameter is weight for parameter in network.parameters())
    network(images).sum().backward()
    assert weight.grad is None
    assert "head.weight" in network.state_dict()


def test_layered_head_is_the_product_of_its_matrices() -> None:
    network = networks.mlp(6, 3, width=5, head=networks.layered_head(3, 4, relu=False))
    product = network.head.W3.weight @ network.head.W2.weight @ network.head.W1.weight
    features = torch.randn(7, 5)
    assert torch.allclose(network.head(features), features @ product.T, atol=1e-6)
    assert network.layer_names[-3:] == ("head.W1", "head.W2", "head.W3")


def test_layered_head_with_relu_has_one_activation_less_than_matrices() -> None:
    head = networks.layered_head(3, 4, bias=True)(5, 2)
    features = torch.randn(7, 5)
    hidden = head.W1(features)  # no activation on the features
    expected = head.W3(head.W2(hidden.relu()).relu())
    assert torch.equal(head(features), expected)
    assert sum(isinstance(part, nn.ReLU) for part in head) == 2


def test_one_layer_head_is_linear() -> None:
    head = networks.layered_head(1, 99)(5, 2)
    assert [type(part) for part in head] == [nn.Linear]


@pytest.mark.parametrize("bias", [True, False])
def test_bias_of_heads(bias: bool) -> None:
    assert (networks.linear_head(bias)(4, 3).bias is not None) == bias
    assert (networks.fixed_etf_head(bias=bias)(4, 3).bias is not None) == bias
    assert (networks.layered_head(2, 4, bias=bias)(4, 3).W2.bias is not None) == bias


# -- each family -----------------------------------------------------------------------------------------


def test_mlp_of_the_opening_recipe() -> None:
    network = networks.mlp((1, 8, 8), 10, width=128)
    parts = [type(part).__name__ for part in network.features.layer1]
    assert parts == ["Linear", "BatchNorm1d", "ReLU"]
    expected = (64 * 128 + 128 + 256) + 2 * (128 * 128 + 128 + 256) + 1290
    assert networks.parameter_count(network) == expected


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.integers(1, 20),
    classes=st.integers(1, 6),
    width=st.integers(1, 9),
    depth=st.integers(1, 4),
    feature_dim=st.none() | st.integers(1, 9),
    batch_norm=st.booleans(),
)
def test_mlp_sizes(
    inputs: int, classes: int, width: int, depth: int, feature_dim: int | None, batch_norm: bool
) -> None:
    network = networks.mlp(
        inputs, classes, width=width, depth=depth, feature_dim=feature_dim, batch_norm=batch_norm
    )
    last = width if feature_dim is None else feature_dim
    assert network.features(torch.randn(3, inputs)).shape == (3, last)
    assert network(torch.randn(3, 1, 1, inputs)).shape == (3, classes)
    assert len(network.layer_names) == depth
    assert any(isinstance(part, nn.BatchNorm1d) for part in network.modules()) == batch_norm


@pytest.mark.parametrize(("name", "kind"), [("tanh", nn.Tanh), ("gelu", nn.GELU), ("relu", nn.ReLU)])
def test_activations(name: str, kind: type[nn.Module]) -> None:
    network = networks.mlp(5, 2, width=4, activation=name)
    assert sum(isinstance(part, kind) for part in network.modules()) == 3


def test_cnn_of_the_opening_recipe() -> None:
    network = networks.cnn((1, 28, 28), 10)
    assert network.features.dense.linear.weight.shape == (128, 32 * 3 * 3)
    assert networks.cnn((3, 32, 32), 4, widths=(5,))(colour()).shape == (2, 4)
    assert networks.cnn((1, 8, 8), 4, widths=(2, 2, 2), batch_norm=False)(grey(2, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("stem", "feature_dim", "count"),
    [("7x7", None, 11_181_642), ("7x7", 10, 8_867_542), ("3x3", None, 11_173_962), ("3x3", 10, 8_859_862)],
)
def test_resnet18_parameter_counts(stem: str, feature_dim: int | None, count: int) -> None:
    assert networks.parameter_count(networks.resnet18(10, stem=stem, feature_dim=feature_dim)) == count


def test_where_the_narrow_resnet18_saves_its_parameters() -> None:
    def table(feature_dim: int | None) -> dict[str, int]:
        network = networks.resnet18(10, stem="7x7", feature_dim=feature_dim)
        return {name: count for name, _, count in networks.parameter_table(network)}

    wide, narrow = table(None), table(10)
    changed = {name for name in wide | narrow if wide.get(name) != narrow.get(name)}
    block = "features.stage4.block2"
    assert changed == {
        f"{block}.conv2.weight",
        f"{block}.norm2.weight",
        f"{block}.norm2.bias",
        f"{block}.shortcut.0.weight",
        f"{block}.shortcut.1.weight",
        f"{block}.shortcut.1.bias",
        "head.weight",
    }
    saved = sum(wide.values()) - sum(narrow.values())
    in_one_convolution = 512 * 502 * 9
    assert wide[f"{block}.conv2.weight"] - narrow[f"{block}.conv2.weight"] == in_one_convolution
    # The classifier and BatchNorm save 5020 + 1004, the new shortcut costs 5140.
    assert saved - in_one_convolution == 5020 + 1004 - 5140
    assert saved / sum(wide.values()) == pytest.approx(0.2070, abs=5e-5)


def test_resnet18_stems() -> None:
    images = colour()
    small = networks.resnet18(10, width=4, stem="3x3")
    large = networks.resnet18(10, width=4, stem="7x7")
    assert small.features.stem(images).shape == (2, 4, 32, 32)
    assert large.features.stem(images).shape == (2, 4, 8, 8)
    assert small.features[:-1](images).shape == (2, 32, 4, 4)
    assert networks.resnet18(3, width=4, channels=1)(grey()).shape == (3, 3)


def test_full_feature_dim_changes_nothing() -> None:
    plain, same = networks.resnet18(10, width=4), networks.resnet18(10, width=4, feature_dim=32)
    assert networks.parameter_table(plain) == networks.parameter_table(same)


def test_any_two_modules_make_a_network() -> None:
    network = networks.Network(nn.Flatten(), nn.Linear(12, 3), ["features"])
    assert network(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert network.layer_names == ("features",)


MALFORMED: list[tuple[str, Callable[[], object]]] = [
    ("shape", lambda: networks.mlp(0, 2)),
    ("shape", lambda: networks.mlp((1, 8), 2)),
    ("shape", lambda: networks.mlp("88", 2)),
    ("shape", lambda: networks.mlp((1, 8, -8), 2)),
    ("num_classes", lambda: networks.mlp(5, 0)),
    ("num_classes", lambda: networks.mlp(5, 2.0)),
    ("width", lambda: networks.mlp(5, 2, width=0)),
    ("depth", lambda: networks.mlp(5, 2, depth=0)),
    ("depth", lambda: networks.mlp(5, 2, depth=True)),
    ("feature_dim", lambda: networks.mlp(5, 2, feature_dim=0)),
    ("activation", lambda: networks.mlp(5, 2, activation="swish")),
    ("head", lambda: networks.mlp(5, 2, head="cosine")),
    ("head", lambda: networks.mlp(5, 2, head=nn.Linear(5, 2))),
    ("head", lambda: networks.mlp(5, 2, head=7)),
    ("head", lambda: networks.mlp(5, 2, head=lambda d, K: None)),
    ("seed", lambda: networks.mlp(5, 2, seed=-1)),
    ("seed", lambda: networks.mlp(5, 2, seed=0.5)),
    ("d", lambda: networks.mlp(5, 10, feature_dim=8, head="fixed_etf")),
    ("shape", lambda: networks.cnn((28, 28), 2)),
    ("shape", lambda: networks.cnn((1, 4, 4), 2)),
    ("widths", lambda: networks.cnn((1, 8, 8), 2, widths=())),
    ("widths", lambda: networks.cnn((1, 8, 8), 2, widths=(4, 0))),
    ("feature_dim", lambda: networks.cnn((1, 8, 8), 2, feature_dim=-1)),
    ("stem", lambda: networks.resnet18(stem="5x5")),
    ("channels", lambda: networks.resnet18(channels=0)),
    ("width", lambda: networks.resnet18(width=0)),
    ("L", lambda: networks.layered_head(0, 4)),
    ("width", lambda: networks.layered_head(2, 0)),
    ("scale", lambda: networks.fixed_etf_head(scale=0.0)(4, 4)),
    ("scale", lambda: networks.fixed_etf_head(scale=float("nan"))(4, 4)),
    ("features", lambda: networks.Network(torch.relu, nn.Linear(2, 2))),
    ("head", lambda: networks.Network(nn.Flatten(), None)),
    ("layer_names", lambda: networks.Network(nn.Flatten(), nn.Linear(2, 2), ["features.0"])),
]


@pytest.mark.parametrize(
    ("argument", "call"), MALFORMED, ids=[f"{i}-{a}" for i, (a, _) in enumerate(MALFORMED)]
)
def test_bad_arguments_are_named(argument: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}\b") as caught:
        call()
    assert "got" in str(caught.value) or "too small" in str(caught.value)
