"""Whom a draft serves: the clients' budgets, weights and goodputs, and the loss that weighs them by the utility.

The gradient of `sum_i omega_i U(x_i)` with respect to a draft's weights is `omega_i U'(X_i) * grad x_i`; at the
scheduler's optimum the budgets may be held fixed (envelope theorem). It is right upon the *block goodput* `x_i`;
weighting a token-level loss by `1 / X_i` is another objective, and in the trial was worse than no weighting at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from goodspeed.errors import InvalidRequest
from goodspeed.utility import AlphaFair

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Client", "UtilityGuide"]

_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Client:
    """One user of a draft, as its server sees it.

    Raises:
        InvalidRequest: a figure is out of range.
    """

    name: str
    budget: int
    """`S`: the drafted tokens of its rounds."""
    weight: float = 1.0
    """`omega`, its share in the utility."""
    goodput: float | None = None
    """`X`, tokens per round, smoothed, if its server has measured it already."""
    rounds_per_s: float = 1.0
    """What turns tokens per round into tokens per second, the goodput that the utility is of."""

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise InvalidRequest(f"client {self.name!r} has a budget of {self.budget}: it must be 0 or more tokens")
        if not self.weight > 0:
            raise InvalidRequest(f"client {self.name!r} has a weight of {self.weight}: it must be above 0")
        if self.goodput is not None and not self.goodput > 0:
            raise InvalidRequest(f"client {self.name!r} has a goodput of {self.goodput}: it must be above 0")
        if not self.rounds_per_s > 0:
            raise InvalidRequest(f"client {self.name!r} has {self.rounds_per_s} rounds a second: it must be above 0")


class UtilityGuide:
    """The utility-guided loss, which remembers every client's smoothed goodput from batch to batch.

    Args:
        clients: at least one, of different names.
        utility: what is maximised.
        smoothing: how far a batch's goodput moves `X`.
    """

    def __init__(self, clients: Sequence[Client], utility: AlphaFair, smoothing: float = _SMOOTHING) -> None:
        names = [client.name for client in clients]
        if not names or len(set(names)) < len(names):
            raise InvalidRequest(f"clients {', '.join(names) or '(none)'}: at least one is needed, and each name once")
        self.clients = {client.name: client for client in clients}
        self.utility = utility
        self._smoothing = smoothing
        self.goodput = {client.name: client.goodput for client in clients if client.goodput is not None}
        """`X` of each client that has shown one, tokens per round."""

    def weights(self, names: Sequence[str]) -> dict[str, float]:
        """`omega_i U'(X_i)` per token of a round, scaled so that `sum_i weight_i X_i = 1`.

        At `fairness = 1` that is `omega_i / X_i / sum omega`; the scale only keeps the loss in proportion to what is
        added to it, whatever the utility.
        """
        clients = [self.clients[name] for name in names]
        rounds_per_s = np.array([client.rounds_per_s for client in clients])
        omega = np.array([client.weight for client in clients])
        tokens = np.array([self.goodput[name] for name in names])
        log_gradient = np.log(omega * rounds_per_s) + self.utility.log_gradient(tokens * rounds_per_s)
        gradient = np.exp(log_gradient - log_gradient.max())
        gradient /= (gradient * tokens).sum()
        return dict(zip(names, gradient.tolist(), strict=True))

    def remember(self, goodput: Mapping[str, Tensor]) -> None:
        """Move every client's `X` towards what a batch has shown, tokens per round."""
        for name, value in goodput.items():
            seen = float(value.detach())
            self.goodput[name] = self.goodput.get(name, seen) * (1 - self._smoothing) + self._smoothing * seen

    def loss(self, goodput: Mapping[str, Tensor]) -> Tensor:
        """A scalar whose gradient is minus the utility's; remembers what it is given.

        Args:
            goodput: tokens per round of the clients in the batch, each a scalar.
        """
        import torch  # not above: a plain `goodspeed` imports this file for `Client`, and may have no torch

        self.remember(goodput)
        weights = self.weights(list(goodput))
        return -torch.stack([weights[name] * value for name, value in goodput.items()]).sum()
