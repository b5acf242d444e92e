"""Whom to tune next: the drafts of a deployment, ranked by the utility that an hour of training is expected to bring.

For each stream of a draft's agents, acceptance is expected to move a share of the way to 1; what that brings is the
difference of utilities at the stream's budget, and what it costs is the arithmetic of the training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from goodspeed.errors import InvalidRequest
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed.utility import AlphaFair

__all__ = ["GAP_CLOSED", "Candidate", "expected_length", "measured_flops", "plan"]

GAP_CLOSED = 0.25
"""Which share of the way from its acceptance to 1 a tuning is taken to bring a draft, unless the user knows better."""

_OPERATIONS = 6
"""Per parameter and token trained on: two forward, four backward."""

_LEAST_GOODPUT = 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One draft, and what tuning it is expected to bring."""

    drafter: str
    agents: int
    streams: int
    alpha: float
    """Of its streams, now."""
    alpha_after: float
    budget: float
    length: float
    """Tokens per round that acceptance and budget make, mean over the streams."""
    length_after: float
    gain: float
    """In utility: `sum omega (U(x') - U(x))` over its streams, `x` in tokens per second."""
    parameters: int
    hours: float

    @property
    def gain_per_hour(self) -> float:
        """What the ranking is by."""
        return self.gain / self.hours


def expected_length(alpha: float, budget: float) -> float:
    """`(1 - alpha^(S + 1)) / (1 - alpha)`: tokens per round at one constant acceptance rate."""
    if alpha >= 1.0:
        return budget + 1.0
    return float((1.0 - alpha ** (budget + 1.0)) / (1.0 - alpha))


def plan(
    state: ServerSnapshot, parameters: Mapping[str, int], *, train_tokens: float, flops: float, gap_closed: float
) -> tuple[list[Candidate], list[str]]:
    """Rank the drafts that a server's agents use.

    Args:
        state: of the server.
        parameters: of the drafts that can be tuned, by the name that agents report.
        train_tokens: what one tuning reads.
        flops: operations a second that training runs at.
        gap_closed: see `GAP_CLOSED`.

    Returns:
        Candidates, the most worthwhile first; and the drafters that cannot be tuned.

    Raises:
        InvalidRequest: a figure is out of range, or nobody is generating.
    """
    if not 0 < gap_closed < 1:
        raise InvalidRequest(f"gap-closed is {gap_closed}: it is a share between 0 and 1")
    by_drafter: dict[str, list[AgentRow]] = {}
    for row in state.agents:
        if row.streams:
            by_drafter.setdefault(row.drafter, []).append(row)
    if not by_drafter:
        raise InvalidRequest("no agent of that server has a stream: take its state while it is at work")
    utility = AlphaFair(state.fairness)
    candidates = [
        _candidate(drafter, rows, utility, parameters[drafter], train_tokens, flops, gap_closed)
        for drafter, rows in by_drafter.items()
        if drafter in parameters
    ]
    candidates.sort(key=lambda candidate: -candidate.gain_per_hour)
    return candidates, sorted(by_drafter.keys() - parameters.keys())


def _candidate(
    drafter: str,
    rows: list[AgentRow],
    utility: AlphaFair,
    parameters: int,
    train_tokens: float,
    flops: float,
    gap_closed: float,
) -> Candidate:
    streams = np.array([row.streams for row in rows], dtype=np.float64)
    weights = np.array([row.weight for row in rows]) * streams
    alpha = np.array([row.alpha for row in rows])
    after = alpha + gap_closed * (1.0 - alpha)
    budgets = np.array([row.budget for row in rows])
    length = np.array([expected_length(a, s) for a, s in zip(alpha, budgets, strict=True)])
    length_after = np.array([expected_length(a, s) for a, s in zip(after, budgets, strict=True)])
    goodput = np.maximum(np.array([row.goodput for row in rows]) / streams, _LEAST_GOODPUT)
    # The rounds keep their pace: goodput moves as the tokens of a round do.
    gain = utility.value(goodput * length_after / length, weights) - utility.value(goodput, weights)

    def mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float((values * streams).sum() / streams.sum())

    return Candidate(
        drafter=drafter,
        agents=len(rows),
        streams=int(streams.sum()),
        alpha=mean(alpha),
        alpha_after=mean(after),
        budget=mean(budgets),
        length=mean(length),
        length_after=mean(length_after),
        gain=float(gain.sum()),
        parameters=parameters,
        hours=_OPERATIONS * parameters * train_tokens / flops / 3600.0,
    )


def measured_flops(device: str, seconds: float = 0.5) -> float:
    """Operations a second of a training-sized matrix product here: an upper bound of what training reaches."""
    import torch

    size = 1024
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    begun, products = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        (left @ right).sum().item()
        products += 1
    return products * 2.0 * size**3 / (time.perf_counter() - begun)
