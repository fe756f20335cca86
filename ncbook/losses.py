"""The two losses of the book: value and hand-derived gradient in the logits, for whole batches at once.

Logits are columns, shape (…, K, N), with any leading batch axes; the N labels are shared by the batch. Both
losses are *means* over the N columns. The gradient is returned, not recorded: autograd does not see through
these functions. Those ending in ``_unchecked`` are the same without the checks of the input, for inner loops:
they wait for no device and let NaN pass through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = ["cross_entropy", "cross_entropy_unchecked", "squared", "squared_unchecked"]


def cross_entropy(logits: Any, labels: Any, smoothing: Any = 0.0) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy with label smoothing and its gradient in the logits.

    With the targets :math:`y^{(\alpha)} = (1-\alpha) e_k + (\alpha/K) 1` and P the softmax of each column,

    .. math:: g(Z) = -\frac1N \sum_i \sum_j y^{(\alpha)}_{ij} \log P_{ji}, \qquad
        \nabla g(Z) = \frac1N \left(P - Y^{(\alpha)}\right)

    Args:
        logits: shape (…, K, N).
        labels: shape (N,), integers from 0 to K−1.
        smoothing: α between 0 and 1, one number, or one for each entry of the batch, shape (…).

    Returns:
        The value, shape (…), and the gradient, shape (…, K, N).

    Raises:
        ValueError: the shapes do not fit, a label is out of range, α is outside [0, 1], or an entry is not
            finite.

    >>> value, gradient = cross_entropy([[2.0, 0.0], [0.0, 0.0]], [0, 1])
    >>> round(float(value), 4)
    0.41
    >>> gradient.round(decimals=4)
    tensor([[-0.0596,  0.2500],
            [ 0.0596, -0.2500]], dtype=torch.float64)
    """
    logits, labels = _checked(logits, labels)
    alpha = as_tensor(smoothing, "smoothing", logits.dtype).to(logits.device)
    if alpha.ndim > 0 and alpha.shape != logits.shape[:-2]:
        raise ValueError(
            f"smoothing must be a number or of shape {list(logits.shape[:-2])}, got {list(alpha.shape)}"
        )
    if bool(((alpha < 0) | (alpha > 1)).any()):
        raise ValueError(f"smoothing must lie between 0 and 1, got {alpha.tolist()}")
    return cross_entropy_unchecked(logits, labels, alpha)


def cross_entropy_unchecked(
    logits: Tensor, labels: Tensor, smoothing: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Return what :func:`cross_entropy` returns, for tensors known to be right.

    The columns are shifted by their maximum, so that no exponential overflows, and the probabilities are
    formed in the one buffer that becomes the gradient.

    Args:
        logits: floating-point tensor, shape (…, K, N).
        labels: int64 tensor on the same device, shape (N,).
        smoothing: a number, or a tensor of shape () or (…).

    >>> labels = torch.tensor([0])
    >>> value, _ = cross_entropy_unchecked(torch.tensor([[1e4], [0.0]]), labels)
    >>> value
    tensor(0.)
    """
    K, N = logits.shape[-2:]
    alpha = smoothing[..., None, None] if isinstance(smoothing, Tensor) else smoothing
    index = labels.expand(*logits.shape[:-2], 1, N)
    buffer = logits - logits.amax(-2, keepdim=True)
    target = (1 - alpha) * buffer.gather(-2, index) + alpha * buffer.mean(-2, keepdim=True)
    buffer.exp_()
    normaliser = buffer.sum(-2, keepdim=True)
    value = (normaliser.log() - target).mean((-2, -1))
    gradient = buffer.div_(normaliser * N).sub_(alpha / (K * N))
    return value, gradient.scatter_add_(-2, index, torch.zeros_like(target).add_((alpha - 1) / N))


def squared(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    r"""Return the squared loss against one-hot targets, with ½, and its gradient in the logits.

    .. math:: g(Z) = \frac{1}{2N} \|Z - Y\|_F^2, \qquad \nabla g(Z) = \frac1N (Z - Y)

    (``torch.nn.MSELoss`` averages over the K outputs as well and has no ½: it is 2/K of this.)

    Args:
        logits: shape (…, K, N).
        labels: shape (N,), integers from 0 to K−1.

    Returns:
        The value, shape (…), and the gradient, shape (…, K, N).

    Raises:
        ValueError: the shapes do not fit, a label is out of range, or an entry is not finite.

    >>> value, gradient = squared([[1.0, 0.5], [0.0, 0.5]], [0, 1])
    >>> value
    tensor(0.1250, dtype=torch.float64)
    >>> gradient
    tensor([[ 0.0000,  0.2500],
            [ 0.0000, -0.2500]], dtype=torch.float64)
    """
    return squared_unchecked(*_checked(logits, labels))


def squared_unchecked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`squared` returns, for tensors known to be right.

    Args:
        logits: floating-point tensor, shape (…, K, N).
        labels: int64 tensor on the same device, shape (N,).

    >>> value, _ = squared_unchecked(torch.zeros(3, 2, 5), torch.zeros(5, dtype=torch.int64))
    >>> value
    tensor([0.5000, 0.5000, 0.5000])
    """
    N = logits.shape[-1]
    index = labels.expand(*logits.shape[:-2], 1, N)
    minus_one = torch.full((), -1, dtype=logits.dtype, device=logits.device)
    residual = logits.scatter_add(-2, index, minus_one.expand(index.shape))
    value = torch.linalg.vector_norm(residual, dim=(-2, -1)).square() / (2 * N)
    return value, residual.div_(N)


def _checked(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    logits = as_tensor(logits, "logits").detach()
    if not logits.is_floating_point():
        logits = logits.to(DTYPE)
    if logits.ndim < 2 or logits.shape[-1] == 0 or logits.shape[-2] == 0:
        raise ValueError(f"logits must be (…, K, N) with K and N at least 1, got shape {list(logits.shape)}")
    labels = as_tensor(labels, "labels", torch.int64).to(logits.device)
    K, N = logits.shape[-2:]
    if labels.shape != (N,):
        raise ValueError(f"labels must be of shape ({N},), one for each column, got {list(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= K:
        raise ValueError(f"labels must lie from 0 to {K - 1}, got {int(labels.min())} to {int(labels.max())}")
    return logits, labels
