"""Muon for the matrices inside a model, AdamW for embeddings, output head and norms, as one optimiser.

`torch.optim.Muon` orthogonalises in bfloat16, which a CPU without such units emulates very slowly; this one stays in
float32 and takes all matrices of one shape in a single batched product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "Together", "muon_and_adamw", "orthogonalise"]

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ADAMW_SHARE = 0.6
"""AdamW's learning rate beside Muon's."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: each of [n, rows, columns] becomes nearly U V^T of its SVD (Jordan et al., 2024)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; steps scaled to AdamW's usual size (arXiv 2502.16982).

    Args:
        params: matrices.
        lr: the learning rate.
        momentum: of Nesterov's kind.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for alike in by_shape.values():
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in alike])
                scale = 0.2 * max(alike[0].shape) ** 0.5
                for parameter, update in zip(alike, orthogonalise(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


class Together(torch.optim.Optimizer):
    """Several optimisers as one, for a trainer and a schedule that know of one.

    Args:
        parts: of different parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        super().__init__(
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]], {}
        )
        self.param_groups = [group for part in parts for group in part.param_groups]  # a schedule sets their rates

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Let each take its step."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Of all, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def muon_and_adamw(model: nn.Module, learning_rate: float) -> Together:
    """For a language model: Muon at this rate inside its layers, AdamW at 0.6 of it for everything else."""
    ends = {id(weight) for name, weight in model.named_parameters() if "embed" in name or "lm_head" in name}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.ndim == 2 and id(weight) not in ends]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in trained if id(weight) not in inside]
    adamw = torch.optim.AdamW(others, lr=_ADAMW_SHARE * learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return Together([Muon(matrices, learning_rate), adamw])
