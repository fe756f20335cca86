"""The choices of a run: precision, loss, optimiser, and the head read as a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncbook.trainers._config import TrainConfig

__all__ = ["choose_precision", "classifier_of", "make_optimiser", "mean_loss", "split_parameters"]


def choose_precision(wanted: str, device: torch.device, convolutional: bool) -> str:
    """Resolve ``auto``: bf16 pays for convolutions where the device has it in hardware."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if convolutional and native else "float32"


def mean_loss(logits: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """The mean over the batch of the loss of the configuration."""
    if config.loss == "ce":
        return nn.functional.cross_entropy(logits, labels, label_smoothing=config.smoothing)
    targets = nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return 0.5 * (logits - targets).square().sum() / len(labels)


def split_parameters(network: nn.Module, decay_on: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if decay_on == "all":
        return parameters, []
    head = {id(parameter) for parameter in network.get_submodule("head").parameters()}
    chosen = [p for p in parameters if (p.ndim >= 2 if decay_on == "weights" else id(p) in head)]
    kept = {id(parameter) for parameter in chosen}
    return chosen, [parameter for parameter in parameters if id(parameter) not in kept]


def make_optimiser(network: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of the configuration; its learning rate is set before each step."""
    decayed, free = split_parameters(network, config.decay_on)
    if not decayed and not free:
        raise ValueError("network must have trainable parameters, got none")
    if config.optimiser == "lbfgs":
        return torch.optim.LBFGS(
            [*decayed, *free], lr=config.lr, max_iter=20, history_size=10, line_search_fn="strong_wolfe"
        )
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cpu", "cuda")  # one kernel for all parameters instead of several for each
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def classifier_of(head: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight (K, d) and bias (K,) of the head as one linear map of the features, where it is one."""
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    weight: Tensor | None = None
    bias: Tensor | None = None
    for layer in layers:
        own, shift = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(own, Tensor) or own.ndim != 2:
            return None, None
        bias = shift if bias is None else own @ bias if shift is None else own @ bias + shift
        weight = own if weight is None else own @ weight
    return weight, bias
