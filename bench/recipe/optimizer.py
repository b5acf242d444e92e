"""Muon for the matrices, AdamW for embeddings and norms, on several threads; see `goodspeed.tuning.optimizer`."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.recipe.workers import Workers
from goodspeed.tuning.optimizer import orthogonalise

MUON_LR = 5e-3
ADAMW_LR = 3e-3


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; steps scaled to AdamW's usual size (arXiv 2502.16982)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        workers: Workers,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        self._workers = workers
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates every parameter that has a gradient; `closure` is not supported and ignored."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            largest_first = sorted(by_shape.values(), key=lambda same: -len(same) * same[0].numel())
            self._workers.map(partial(self._update, group), largest_first)

    @torch.no_grad()
    def _update(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: torch.Tensor = state["momentum"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


class Optimizers:
    """The pair of optimizers of one model, driven by one learning-rate factor."""

    def __init__(self, model: nn.Module, workers: Workers) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._base = (MUON_LR, ADAMW_LR)
        self._pair = (
            Muon(matrices, workers, lr=self._base[0]),
            torch.optim.AdamW(others, lr=self._base[1], betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, lr_factor: float) -> None:
        """One update of all parameters at `lr_factor` times the base rates; clears the gradients."""
        for optimizer, base in zip(self._pair, self._base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * lr_factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both, Muon's first."""
        return [optimizer.state_dict() for optimizer in self._pair]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned."""
        for optimizer, state in zip(self._pair, states, strict=True):
            optimizer.load_state_dict(state)
