"""AdamW with parameter groups, and its learning rate as a function of the step."""

import math

import torch
from torch import nn

from bkray.config import OptimizerConfig


def lr_factor(step: int, n_steps: int, optimizer: OptimizerConfig) -> float:
    """Return the learning rate of ``step`` (from 1) as a fraction of ``optimizer.lr``.

    Linear from 0 over ``warmup_steps``, then half a cosine down to ``final_lr_fraction``.
    """
    if step <= optimizer.warmup_steps:
        return step / optimizer.warmup_steps
    rest = max(1, n_steps - optimizer.warmup_steps)
    done = min(1.0, (step - optimizer.warmup_steps) / rest)
    low = optimizer.final_lr_fraction
    return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2


def adamw(
    model: nn.Module, optimizer: OptimizerConfig, halt_lr_factor: float = 1.0
) -> torch.optim.AdamW:
    """Return AdamW over four groups: decayed or not, halting unit or not.

    Matrices decay; energies, norms, biases and embeddings do not. Halting units learn at
    ``halt_lr_factor`` times the rate. Each group keeps its factor under ``lr_factor``. The fused
    kernel is the one that leaves out a step on the device (``train.guard``).
    """
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and id(parameter) not in embeddings
            groups.setdefault((decays, ".halting." in f".{name}"), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": optimizer.weight_decay if decays else 0.0,
                "lr_factor": halt_lr_factor if halts else 1.0,
            }
            for (decays, halts), parameters in sorted(groups.items())
        ],
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
