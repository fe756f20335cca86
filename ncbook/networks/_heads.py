"""The heads: linear, a frozen simplex frame, or several layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncbook import frames

__all__ = [
    "FixedETF",
    "HeadBuilder",
    "build_head",
    "fixed_etf_head",
    "layered_head",
    "linear_head",
    "require_positive",
]

HeadBuilder = Callable[[int, int], nn.Module]
"""A function of (feature dimension d, number of classes K) that returns a head."""


class FixedETF(nn.Module):
    """A classifier that is not trained: its rows are a simplex ETF, times a length.

    Args:
        feature_dim: d, at least K - 1.
        num_classes: K.
        scale: the length of every row.
        bias: whether a trainable bias is added.
        seed: rotates the frame; None takes the canonical one.

    Raises:
        ValueError: d < K - 1, where no such frame exists, or the scale is not positive.

    >>> FixedETF(4, 4)(torch.eye(4)).diagonal()
    tensor([0.8660, 0.8660, 0.8660, 0.8660])
    """

    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        scale: float = 1.0,
        bias: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a positive number, got {scale!r}")
        frame = frames.simplex_etf(num_classes, feature_dim, seed=seed)
        self.register_buffer("weight", (scale * frame.T).to(torch.get_default_dtype()).contiguous())
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return nn.functional.linear(features, self.weight, self.bias)


def linear_head(bias: bool = True) -> HeadBuilder:
    """Return a builder of the usual head: one linear layer.

    >>> linear_head(bias=False)(5, 3)
    Linear(in_features=5, out_features=3, bias=False)
    """

    def build(feature_dim: int, num_classes: int) -> nn.Module:
        return nn.Linear(feature_dim, num_classes, bias=bias)

    return build


def fixed_etf_head(scale: float = 1.0, bias: bool = False, seed: int | None = None) -> HeadBuilder:
    """Return a builder of :class:`FixedETF`.

    >>> fixed_etf_head()(10, 10).weight.shape
    torch.Size([10, 10])
    """

    def build(feature_dim: int, num_classes: int) -> nn.Module:
        return FixedETF(feature_dim, num_classes, scale, bias, seed)

    return build


def layered_head(L: int, width: int, relu: bool = True, bias: bool = False) -> HeadBuilder:
    """Return a builder of a deep head: L weight matrices, with L - 1 activations between them if ``relu``.

    The features enter as H_1, H_2 = W_1 H_1 and H_{l+1} = W_l σ(H_l): the layers ``head.W1``, ``head.W2``, …
    of the network put out H_2, H_3, … before their activation.

    Args:
        L: the number of weight matrices.
        width: of the L - 1 hidden layers.
        relu: with activations, or a linear head.
        bias: whether the layers have biases.

    Raises:
        ValueError: L or the width is not a positive integer.

    >>> [name for name, _ in layered_head(3, 8)(5, 4).named_children()]
    ['W1', 'relu1', 'W2', 'relu2', 'W3']
    """
    require_positive(L, "L")
    require_positive(width, "width")

    def build(feature_dim: int, num_classes: int) -> nn.Module:
        sizes = [feature_dim] + [width] * (L - 1) + [num_classes]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, L + 1):
            layers[f"W{i}"] = nn.Linear(sizes[i - 1], sizes[i], bias=bias)
            if relu and i < L:
                layers[f"relu{i}"] = nn.ReLU()
        return nn.Sequential(layers)

    return build


def build_head(head: str | HeadBuilder, feature_dim: int, num_classes: int) -> nn.Module:
    """Build the head that a network's ``head`` argument asks for."""
    require_positive(num_classes, "num_classes")
    if head == "linear":
        return linear_head()(feature_dim, num_classes)
    if head == "fixed_etf":
        return fixed_etf_head()(feature_dim, num_classes)
    if isinstance(head, (str, nn.Module)) or not callable(head):
        raise ValueError(
            f"head must be 'linear', 'fixed_etf' or a builder such as layered_head(3, 64), got {head!r}"
        )
    built = head(feature_dim, num_classes)
    if not isinstance(built, nn.Module):
        raise ValueError(f"head must build a torch module, got {type(built).__name__}")
    return built


def require_positive(value: Any, name: str) -> None:
    """Check a size."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
