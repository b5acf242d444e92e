"""Streams without a server, and what a planner hears of them."""

from __future__ import annotations

from collections.abc import Sequence

from goodspeed.estimation import Goodput, HitOrMiss
from goodspeed.messages import Draft, DraftEnd
from goodspeed.sampling import SamplingParams
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.verification import Judgement
from goodspeed_server.live import LiveStream
from goodspeed_server.planner import Planner
from tests.planted import PASS_S, Agent

__all__ = ["QUICK", "Observations", "decode", "guess", "parts", "seen", "stream"]


class Observations(HitOrMiss):
    """Remembers what it is told: how many tokens were asked for, and how many were right."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def observe(self, budget: int, judgement: Judgement) -> None:
        super().observe(budget, judgement)
        self.seen.append((budget, judgement.accepted))


QUICK = Pace(draft_s=0.1 * PASS_S, turnaround_s=0.1 * PASS_S)
"""Only its first guess is overtaken."""


def stream(*, max_draft: int = 8, max_new_tokens: int = 100, pace: Pace = QUICK) -> LiveStream:
    agent = Agent()
    served = ServedStream([1, 2], 2, SamplingParams(), max_new_tokens, max_draft, 1000, eos_tokens=())
    return LiveStream(0, agent, agent.account, served, 0, Observations(), Goodput(0.0, 10.0), pace.copy())


def seen(live: LiveStream) -> list[tuple[int, int]]:
    assert isinstance(live.estimator, Observations)
    return live.estimator.seen


def decode(planner: Planner, live: LiveStream, tokens: Sequence[int], now: float) -> None:
    """The server commits tokens one by one, none of them drafted."""
    for token in tokens:
        judgement = Judgement(0, token)
        planner.committed(live, [], judgement, live.stream.commit([], judgement), now)


def parts(pace: Pace) -> tuple[float, float]:
    return pace.draft_s, pace.turnaround_s


def guess(planner: Planner, live: LiveStream, draft: Draft, now: float) -> None:
    """Guesses come that nobody waited for."""
    live.guesses.take(draft.base, draft.offset, draft.tokens, ended=draft.end is DraftEnd.NOTHING_TO_SAY)
    planner.guessed(live, draft, now)
