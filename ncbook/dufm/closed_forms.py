"""What theory says of the deep models: the minimum for squared loss, and the collapse construction.

Everything here decouples into K scalar problems, the *modes*: mode j has a target √n_j, a weight in the loss,
an effective decay q_j and an output scale t_j, and all factors share its direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ncbook.dufm.margin import margin, margin_phi
from ncbook.dufm.params import DeepUFMParams
from ncbook.dufm.scalar import output_scale, phi, threshold
from ncbook.protocol import NoClosedForm
from ncbook.runtime import DTYPE

if TYPE_CHECKING:
    from ncbook.dufm.deep import DeepUFM

__all__ = ["Collapse", "LinearMinimum", "collapse", "minimum"]


class LinearMinimum(NamedTuple):
    """The global minimum of a deep linear model; with (B,) lambdas every tensor has that leading axis.

    >>> from ncbook.dufm import LinearUFM
    >>> LinearUFM(4, 5, (8, 8), 5e-3).minimum().t.round(decimals=6)
    tensor(0.9654, dtype=torch.float64)
    """

    loss: Tensor
    """The least value of the objective."""
    t: Tensor
    """The output scale: Z = tY on the fitted directions (with a bias: on the centred ones). One for each
    class, last axis, in a model with ``counts``."""
    singular_values: tuple[Tensor, ...]
    """Of each factor, in the order (W_1, …, W_L, H_1), those singular values that may differ from zero, as
    many as modes are fitted, largest first, last axis."""
    threshold: float
    """q*(L), to be compared with q."""
    trivial: Tensor
    """Whether the minimiser is zero (all factors; a free bias is not)."""
    bias: Tensor | None
    """The value that all entries of the bias share; None without one."""
    q: Tensor
    """The effective decay K (n λ_H Π λ_ℓ)^(1/(L+1)); one for each class in a model with ``counts``."""
    t_mean: Tensor | None
    """The output scale t_0 in the mean direction, 0 where the bias does it all; None without bias."""
    params: DeepUFMParams
    """One minimiser; every other one with the same fitted directions is a rotation of its levels."""


class Collapse(NamedTuple):
    """Deep neural collapse with the best scale; with (B,) lambdas every tensor has that leading axis.

    >>> from ncbook.dufm import DeepUFM
    >>> found = DeepUFM(K=4, n=5, L=3, width=8, lambdas=2e-3).collapse()
    >>> found.loss.round(decimals=6), found.ranks
    (tensor(0.0239, dtype=torch.float64), tensor([4, 4, 4, 4]))
    """

    loss: Tensor
    """The value of the objective there."""
    scale: Tensor
    """The output scale t, Z = tY (one for each class, last axis, in a model with ``counts``); with
    cross-entropy the margin m, Z = m(I − J/K) ⊗ 1ᵀ."""
    params: DeepUFMParams
    """The construction itself, B = 1 where all lambdas are numbers."""
    ranks: Tensor
    """The ranks of the uncentred class means of H_1, …, H_L and of Z, shape (…, L + 1)."""
    trivial: Tensor
    """Whether zero is at least as good as any scale (then scale, params and ranks are zero)."""
    q: Tensor
    """The effective decay; one for each class in a model with ``counts``."""


class _Modes(NamedTuple):
    """The scalar problems of a model. Tensors of shape (…, K) unless said otherwise."""

    basis: Tensor  # (K, K), orthonormal columns: the direction of each mode among the classes
    target: Tensor  # (K,), √n_j
    weight: Tensor
    q: Tensor
    t: Tensor  # 0 also for a mode for which no width is left
    fitted: Tensor  # indices of the modes that a width is left for
    root: Tensor  # (…,), the geometric mean of all decays


def minimum(model: DeepUFM) -> LinearMinimum:
    r"""Return the global minimum of a model with squared loss, where it is known.

    Without activations the problem decouples. With :math:`\Pi = \lambda_H \prod_\ell \lambda_\ell`,
    :math:`q = K (n \Pi)^{1/(L+1)}`, t the larger root of :math:`(1-t) t^{(L-1)/(L+1)} = q` where q < q*(L),
    else 0, and r the smallest width (or K if that is smaller),

    - without bias: :math:`\min f = \frac rK \varphi_L(t; q) + (1 - \frac rK) \frac12`;
    - free bias: :math:`\frac rK \varphi_L(t; q) + \frac{K-1-r}{2K}` for r ≤ K − 1, and all b = 1/K;
    - bias with decay λ_b, γ = λ_b/(1+λ_b), r ≥ K:
      :math:`\frac{(K-1) \varphi_L(t; q) + \gamma \varphi_L(t_0; q/\gamma)}{K}`, where t_0 solves the scalar
      problem with q/γ, and all b = (1 − t_0)/(K(1+λ_b)); for r < K it is that of the free bias plus γ/(2K);
    - counts, no bias: :math:`\sum_k \frac{n_k}{N} \varphi_L(t_k; q_k)` with
      :math:`q_k = \frac{N}{n_k} (n_k \Pi)^{1/(L+1)}`, the largest r classes fitted.

    Factor ℓ has the singular values :math:`\sqrt{\Pi^{1/(L+1)}/\lambda_\ell}\,(\sqrt{n_k}\, t_k)^{1/(L+1)}`.

    With two weight matrices and ReLU between them, without bias and with balanced classes, the same number is
    returned as the value of the collapse: always attained (an upper bound), and the global minimum by the
    theorem of Tirer and Bruna, under its assumption on the nuclear norms before and after the activation.
    With one or two classes it is returned for every depth: for two it is the global minimum by the theorem of
    Súkeník, Mondelli and Lampert, for one because the ReLU of a column is no longer than the column.

    Raises:
        NoClosedForm: the loss is cross-entropy, a lambda is 0, a bias meets unequal classes, or ReLU acts in
            any case but those above.

    Source: Tirer and Bruna (2022), L = 2; Dang et al. (2023), linear layers; the decay of the bias: this book
    (for L = 1 the model is convex in Z; for every L it is proved in the chapter on linear layers).

    >>> from ncbook.dufm import LinearUFM
    >>> LinearUFM(4, 5, (8, 8), 5e-3, bias=0.5).minimum().loss
    tensor(0.0504, dtype=torch.float64)
    """
    if model.relu and model.L > 1:
        _refuse_relu(model)
    modes = _modes(model)
    loss = _mode_losses(modes, model.L).sum(-1)
    t, q, t_mean, bias = modes.t, modes.q, None, None
    if model.counts is None:
        # a model of K = 1 class has no centred direction; its t is that of the mean
        t, q = modes.t[..., 0], modes.q[..., 0]
    if model.decay_b is not None:
        t_mean = modes.t[..., -1]
        bias = (1 - t_mean) / (model.K * (1 + torch.as_tensor(model.decay_b, dtype=DTYPE)))
    values = tuple(
        _factor(modes, decay, model.L)[..., modes.fitted].sort(dim=-1, descending=True).values
        for decay in model.decays
    )
    params = _params(model, modes, bias)
    trivial = (modes.t == 0).all(-1)
    return LinearMinimum(loss, t, values, threshold(model.L), trivial, bias, q, t_mean, params)


def collapse(model: DeepUFM) -> Collapse:
    r"""Return deep neural collapse with the best scale.

    *Squared loss*, no bias, with or without ReLU: at every level the class means are orthogonal and not
    negative, all factors balanced. ReLU does nothing to them, and the value is that of the linear model,
    :math:`\varphi_L(t; q)` (with counts :math:`\sum_k (n_k/N)\, \varphi_L(t_k; q_k)`). For a linear model it
    is the global minimum. With ReLU it is an upper bound, and from some depth and number of classes on not
    the minimum.

    *Cross-entropy*, linear layers, equal classes, any bias: the class means are a simplex at every
    level, the bias is zero, and the value is :func:`ncbook.dufm.margin.margin_phi` at the best margin. It is
    a critical point; from some depth and number of classes on it is not the minimum.

    Raises:
        NoClosedForm: a width is below K (cross-entropy: K − 1), a lambda is 0, squared loss meets a bias, or
            cross-entropy meets ReLU or unequal classes.

    Source: Súkeník et al. (2023, 2024); Dang et al. (2023); for cross-entropy Garrod and Keating (2025).

    >>> from ncbook.dufm import DeepUFM
    >>> model = DeepUFM(K=3, n=2, L=4, width=5, lambdas=4e-3)
    >>> found = model.collapse()
    >>> float((model.value(found.params) - found.loss).abs()) < 1e-15
    True
    """
    if model.loss == "ce":
        return _collapse_of_cross_entropy(model)
    if model.decay_b is not None:
        raise NoClosedForm(
            "collapse with orthogonal frames is a solution of the model without bias; this model has one"
        )
    _require_width(model, model.K)
    modes = _modes(model)
    alive = (modes.t > 0).sum(-1)
    ranks = alive[..., None].expand(*alive.shape, model.L + 1).clone()
    t, q = (modes.t, modes.q) if model.counts is not None else (modes.t[..., 0], modes.q[..., 0])
    loss = _mode_losses(modes, model.L).sum(-1)
    return Collapse(loss, t, _params(model, modes, None), ranks, alive == 0, q)


def _collapse_of_cross_entropy(model: DeepUFM) -> Collapse:
    if model.relu and model.L > 1:
        raise NoClosedForm("with ReLU and cross-entropy the balanced scales of a collapse are not known")
    if model.counts is not None:
        raise NoClosedForm("with cross-entropy and unequal classes no closed form is known")
    _require_width(model, model.K - 1)
    root = _root(model)
    q = model.K * (model.sizes[0] ** (1 / (model.L + 1))) * root
    m = margin(q, model.K, model.L, model.smoothing)
    loss = margin_phi(m, q, model.K, model.L, model.smoothing)
    basis, centred = _centred_basis(model.K), torch.arange(model.K - 1)
    t = torch.cat([m[..., None].expand(*m.shape, model.K - 1), torch.zeros_like(m)[..., None]], -1)
    sizes = torch.tensor(model.sizes, dtype=DTYPE)
    modes = _Modes(basis, sizes.sqrt(), sizes / model.N, q, t, centred, root.expand_as(m))
    bias = None if model.decay_b is None else torch.zeros_like(m)
    ranks = ((m > 0) * (model.K - 1))[..., None].expand(*m.shape, model.L + 1).clone()
    return Collapse(loss, m, _params(model, modes, bias), ranks, m == 0, q)


def _require_width(model: DeepUFM, least: int) -> None:
    if min(model.widths) < least:
        number = "K" if least == model.K else "K − 1"
        raise NoClosedForm(
            f"collapse needs a width of at least {number} = {least} at every level, got {model.widths}"
        )


def _root(model: DeepUFM) -> Tensor:
    """The geometric mean of all decays, shape (…,)."""
    decays = torch.broadcast_tensors(*(torch.as_tensor(decay, dtype=DTYPE) for decay in model.decays))
    product = torch.stack(decays, -1).prod(-1)
    if bool((product == 0).any()):
        raise NoClosedForm("with a lambda of 0 the infimum is not attained, or leaves a factor undetermined")
    return product ** (1 / (model.L + 1))


def _refuse_relu(model: DeepUFM) -> None:
    if model.L > 2 and model.K > 2:
        raise NoClosedForm(
            "with ReLU and three or more weight matrices the minimum is not known in general; collapse() "
            "gives the value of the collapse, an upper bound"
        )
    if model.decay_b is not None or model.counts is not None:
        raise NoClosedForm("with ReLU no minimum is known for a model with bias or with unequal classes")
    if min(model.widths) < model.K:
        raise NoClosedForm(f"with ReLU no minimum is known for a width below K = {model.K}")


def _modes(model: DeepUFM) -> _Modes:
    """Set up the scalar problems and solve them."""
    if model.loss != "mse":
        raise NoClosedForm("this closed form is that of the squared loss, the model has cross-entropy")
    if model.decay_b is not None and model.counts is not None:
        raise NoClosedForm("no closed form is known for a bias together with unequal classes")
    root = _root(model)
    sizes = torch.tensor(model.sizes, dtype=DTYPE, device=root.device)
    weight = sizes / model.N
    q = (sizes ** (1 / (model.L + 1)) / weight) * root[..., None]
    basis = torch.eye(model.K, dtype=DTYPE, device=root.device)
    if model.decay_b is not None:
        decay_b = torch.as_tensor(model.decay_b, dtype=DTYPE, device=root.device)
        gamma = (decay_b / (1 + decay_b))[..., None]
        q, weight, _ = torch.broadcast_tensors(q, weight, gamma.expand(*gamma.shape[:-1], model.K))
        q = torch.cat([q[..., :-1], q[..., -1:] / gamma], -1)  # infinite for a free bias
        weight = torch.cat([weight[..., :-1], weight[..., -1:] * gamma], -1)
        basis, root = _centred_basis(model.K).to(basis), root.expand(q.shape[:-1])
    # the largest classes first; with a bias the mean direction, of the smallest weight, is the last
    fitted = sizes.argsort(descending=True, stable=True)[: min(model.K, *model.widths)]
    has_width = torch.zeros(model.K, dtype=torch.bool, device=root.device)
    has_width[fitted] = True
    # a free bias makes the last q infinite; from 1 on nothing is alive, whatever L
    t = torch.where(has_width, output_scale(q.clamp(max=1.0), model.L), 0.0)
    return _Modes(basis, sizes.sqrt(), weight, q, t, fitted, root)


def _centred_basis(K: int) -> Tensor:
    """An orthonormal basis of R^K whose last vector is constant (the others: Helmert's contrasts)."""
    basis = torch.zeros(K, K, dtype=DTYPE)
    for j in range(1, K):
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
        basis[:, j - 1] /= (j + j**2) ** 0.5
    basis[:, -1] = K**-0.5
    return basis


def _mode_losses(modes: _Modes, L: int) -> Tensor:
    alive = modes.t > 0
    return modes.weight * torch.where(alive, phi(modes.t, torch.where(alive, modes.q, 0.0), L), 0.5)


def _factor(modes: _Modes, decay: float | Tensor, L: int) -> Tensor:
    """The singular values of the factor with this decay, one for each mode, shape (…, K)."""
    scale = (modes.root / torch.as_tensor(decay, dtype=DTYPE, device=modes.root.device)).sqrt()
    return scale[..., None] * (modes.target * modes.t) ** (1 / (L + 1))


def _params(model: DeepUFM, modes: _Modes, bias: Tensor | None) -> DeepUFMParams:
    """All factors aligned: mode j along coordinate j of every level, in the order of ``fitted``."""
    r, K = len(modes.fitted), model.K
    directions = modes.basis[:, modes.fitted]
    *values_W, values_H = (
        torch.atleast_2d(_factor(modes, decay, model.L)[..., modes.fitted]) for decay in model.decays
    )
    batch = len(values_H)
    diagonal = torch.arange(r, device=directions.device)
    weights: list[Tensor] = []
    for values, rows, columns in zip(values_W, (*model.widths[1:], K), model.widths, strict=True):
        W = values.new_zeros(batch, rows, columns)
        if len(weights) < model.L - 1:
            W[:, diagonal, diagonal] = values
        else:
            W[:, :, :r] = directions * values[:, None, :]
        weights.append(W)
    means = values_H.new_zeros(batch, model.widths[0], K)
    means[:, :r] = values_H[..., None] * directions.T / modes.target
    H = means.repeat_interleave(torch.tensor(model.sizes, device=means.device), dim=2)
    b = None if bias is None else torch.atleast_1d(bias)[:, None].expand(batch, K).clone()
    return DeepUFMParams(tuple(weights), H, b)
