"""The networks of the book: multi-layer perceptron, small convolutional network and ResNet18.

Every network is ``head(features(x))``: the features are what collapses, the head is the classifier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ncbook.networks._heads import (
    FixedETF,
    HeadBuilder,
    build_head,
    fixed_etf_head,
    layered_head,
    linear_head,
    require_positive,
)

__all__ = [
    "FixedETF",
    "HeadBuilder",
    "Network",
    "cnn",
    "fixed_etf_head",
    "layered_head",
    "linear_head",
    "mlp",
    "parameter_count",
    "parameter_table",
    "resnet18",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class Network(nn.Module):
    """A network in two parts, logits = head(features(x)); any two modules that fit together will do.

    Args:
        features: maps a batch of images (B, C, H, W) to features (B, d).
        head: maps features (B, d) to logits (B, K).
        layer_names: names of the submodules whose outputs are worth measuring, from input to output.

    Raises:
        ValueError: an argument is no module, or a name belongs to no submodule.

    >>> network = Network(nn.Flatten(), nn.Linear(64, 10))
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    features: nn.Module
    head: nn.Module

    def __init__(self, features: nn.Module, head: nn.Module, layer_names: Sequence[str] = ()) -> None:
        super().__init__()
        for name, part in (("features", features), ("head", head)):
            if not isinstance(part, nn.Module):
                raise ValueError(f"{name} must be a torch module, got {type(part).__name__}")
        self.features = features
        self.head = head
        known = dict(self.named_modules())
        for name in layer_names:
            if name not in known:
                raise ValueError(f"layer_names must name submodules, got {name!r}")
        self.layer_names = tuple(layer_names)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return self.head(self.features(images))


def mlp(
    shape: int | Sequence[int],
    num_classes: int,
    *,
    width: int = 256,
    depth: int = 3,
    feature_dim: int | None = None,
    batch_norm: bool = True,
    activation: str = "relu",
    signed_features: bool = False,
    head: str | HeadBuilder = "linear",
    seed: int = 0,
) -> Network:
    """Return a multi-layer perceptron: ``depth`` layers [linear - BatchNorm - activation], then the head.

    Args:
        shape: of an image, (C, H, W), or the number of inputs.
        num_classes: K.
        width: of the hidden layers.
        depth: the number of hidden layers, the last of which puts out the features.
        feature_dim: the width d of the last hidden layer; None takes ``width``.
        batch_norm: whether a BatchNorm follows each linear layer.
        activation: ``relu``, ``tanh`` or ``gelu``.
        signed_features: leave out the last activation, so that features may be negative.
        head: ``linear``, ``fixed_etf``, or a builder such as ``layered_head(3, 64)``.
        seed: of the initial weights (torch's default initialisation).

    Raises:
        ValueError: a size is not a positive integer, a name is unknown, or the head does not fit.

    >>> network = mlp((1, 8, 8), 10, width=128)
    >>> network.layer_names, network.features(torch.zeros(2, 1, 8, 8)).shape
    (('features.layer1', 'features.layer2', 'features.layer3'), torch.Size([2, 128]))
    """
    inputs = _count_inputs(shape)
    require_positive(width, "width")
    require_positive(depth, "depth")
    last = _feature_dim(feature_dim, width)
    sizes = [inputs] + [width] * (depth - 1) + [last]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    with _seeded(seed):
        for i in range(1, depth + 1):
            signed = signed_features and i == depth
            layers[f"layer{i}"] = _dense(sizes[i - 1], sizes[i], batch_norm, activation, signed)
        classifier = build_head(head, last, num_classes)
    names = [f"features.layer{i}" for i in range(1, depth + 1)]
    return _assemble(nn.Sequential(layers), classifier, names)


def cnn(
    shape: Sequence[int],
    num_classes: int,
    *,
    widths: Sequence[int] = (8, 16, 32),
    feature_dim: int = 128,
    batch_norm: bool = True,
    activation: str = "relu",
    signed_features: bool = False,
    head: str | HeadBuilder = "linear",
    seed: int = 0,
) -> Network:
    """Return a small convolutional network.

    Each stage is [3 x 3 convolution - BatchNorm - activation - 2 x 2 max-pooling], its convolution without
    a bias where BatchNorm follows. A dense layer of ``feature_dim`` units (with BatchNorm and activation)
    puts out the features, then comes the head.

    Args:
        shape: of an image, (C, H, W).
        num_classes: K.
        widths: the channels of the stages.
        feature_dim: d.
        batch_norm: whether BatchNorm is used.
        activation: ``relu``, ``tanh`` or ``gelu``.
        signed_features: leave out the last activation, so that features may be negative.
        head: ``linear``, ``fixed_etf``, or a builder such as ``layered_head(3, 64)``.
        seed: of the initial weights (torch's default initialisation).

    Raises:
        ValueError: a size is not a positive integer, the image is too small for the stages, a name is
            unknown, or the head does not fit.

    >>> cnn((1, 28, 28), 10).layer_names
    ('features.stage1', 'features.stage2', 'features.stage3', 'features.dense')
    """
    channels, height, width = _image_shape(shape)
    stages = tuple(widths)
    if not stages:
        raise ValueError("widths must name at least one stage, got none")
    for size in stages:
        require_positive(size, "widths")
    shrunk = (height >> len(stages)) * (width >> len(stages))
    if shrunk == 0:
        raise ValueError(f"shape {tuple(shape)} is too small for {len(stages)} stages that halve the image")
    last = _feature_dim(feature_dim, feature_dim)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with _seeded(seed):
        for i, (before, after) in enumerate(zip((channels, *stages), stages, strict=False), start=1):
            layers[f"stage{i}"] = _convolution(before, after, batch_norm, activation)
        layers["flatten"] = nn.Flatten()
        layers["dense"] = _dense(stages[-1] * shrunk, last, batch_norm, activation, signed_features)
        classifier = build_head(head, last, num_classes)
    names = [*(f"features.stage{i}" for i in range(1, len(stages) + 1)), "features.dense"]
    return _assemble(nn.Sequential(layers), classifier, names)


def resnet18(
    num_classes: int = 10,
    *,
    channels: int = 3,
    stem: str = "3x3",
    feature_dim: int | None = None,
    width: int = 64,
    signed_features: bool = False,
    head: str | HeadBuilder = "linear",
    seed: int = 0,
) -> Network:
    """Return a ResNet18 with features of dimension 8 * ``width``, or narrower ones.

    ``feature_dim`` narrows the last block's last convolution, and so its shortcut, which becomes a 1 x 1
    convolution with BatchNorm like every shortcut that changes the width; nothing is added after the block.

    Args:
        num_classes: K.
        channels: of the images.
        stem: ``7x7`` (stride 2, then 3 x 3 max-pooling of stride 2) or ``3x3`` (stride 1), made for 32 x 32.
        feature_dim: d; None keeps 8 * ``width``.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
        signed_features: leave out the last activation, so that features may be negative.
        head: ``linear``, ``fixed_etf``, or a builder such as ``layered_head(3, 64)``.
        seed: of the initial weights (Kaiming's, by the outputs of each convolution).

    Raises:
        ValueError: a size is not a positive integer, a name is unknown, or the head does not fit.

    Source: He, Zhang, Ren and Sun (2016), "Deep residual learning for image recognition".

    >>> parameter_count(resnet18(10, stem="7x7")), parameter_count(resnet18(10, stem="7x7", feature_dim=10))
    (11181642, 8867542)
    """
    require_positive(channels, "channels")
    require_positive(width, "width")
    if stem not in ("3x3", "7x7"):
        raise ValueError(f"stem must be '3x3' or '7x7', got {stem!r}")
    last = _feature_dim(feature_dim, 8 * width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with _seeded(seed):
        layers["stem"] = _stem(stem, channels, width)
        before = width
        for i in range(1, 5):
            size, final = width << (i - 1), i == 4
            layers[f"stage{i}"] = nn.Sequential(
                OrderedDict(
                    block1=_Block(before, size, size, stride=1 if i == 1 else 2),
                    block2=_Block(size, size, last if final else size, signed=final and signed_features),
                )
            )
            before = size
        layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in layers.values():
            _initialise_convolutions(module)
        classifier = build_head(head, last, num_classes)
    names = ["features.stem", *(f"features.stage{i}.block{j}" for i in range(1, 5) for j in (1, 2))]
    return _assemble(nn.Sequential(layers), classifier, [*names, "features.pool"])


class _Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, before: int, middle: int, after: int, stride: int = 1, signed: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, middle, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        total = self.norm2(self.conv2(inner)) + self.shortcut(x)
        return total if self.signed else torch.relu(total)


def parameter_table(network: nn.Module) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and number of entries of every trainable parameter, in order.

    >>> parameter_table(nn.Linear(3, 2))
    [('weight', (2, 3), 6), ('bias', (2,), 2)]
    """
    return [(name, tuple(p.shape), p.numel()) for name, p in network.named_parameters() if p.requires_grad]


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(count for _, _, count in parameter_table(network))


def _assemble(features: nn.Module, head: nn.Module, names: list[str]) -> Network:
    if isinstance(head, nn.Sequential):
        names = names + [
            f"head.{name}" for name, part in head.named_children() if isinstance(part, nn.Linear)
        ]
    return Network(features, head, names)


def _dense(before: int, after: int, batch_norm: bool, activation: str, signed: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(before, after))
    if batch_norm:
        layers["norm"] = nn.BatchNorm1d(after)
    if not signed:
        layers["activation"] = _activation(activation)
    return nn.Sequential(layers)


def _convolution(before: int, after: int, batch_norm: bool, activation: str) -> nn.Sequential:
    # BatchNorm subtracts whatever a bias adds.
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if batch_norm:
        layers["norm"] = nn.BatchNorm2d(after)
    layers["activation"] = _activation(activation)
    layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _stem(stem: str, channels: int, width: int) -> nn.Sequential:
    if stem == "3x3":
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    else:
        convolution = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=convolution, norm=nn.BatchNorm2d(width), activation=nn.ReLU()
    )
    if stem == "7x7":
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


def _initialise_convolutions(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()


@contextmanager
def _seeded(seed: Any) -> Iterator[None]:
    """Initial weights depend on the seed alone, and the global random state stays as it was."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _count_inputs(shape: int | Sequence[int]) -> int:
    if isinstance(shape, int):
        require_positive(shape, "shape")
        return shape
    channels, height, width = _image_shape(shape)
    return channels * height * width


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {shape!r}")
    for size in shape:
        require_positive(size, "shape")
    return shape[0], shape[1], shape[2]


def _feature_dim(feature_dim: int | None, default: int) -> int:
    if feature_dim is None:
        return default
    require_positive(feature_dim, "feature_dim")
    return feature_dim
