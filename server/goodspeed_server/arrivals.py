"""When the drafts of a round came, and whom the round waited for."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from goodspeed_server.live import AgentAccount, LiveStream

__all__ = ["Arrivals", "look_back"]

_STEP = 0.3
"""Of the smoothing of an agent's times: a few drafts."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Of one round, seconds."""

    draft_s: float = 0.0
    """Of the draft in the middle, by time of arrival: how long it was computed,"""
    network_s: float = 0.0
    """was on its way besides,"""
    wait_s: float = 0.0
    """and waited here. The three are one draft's, so that they add up."""
    slowest: str = ""
    """The agent without which the round would have closed sooner, by `held_s`; empty if there is none."""
    held_s: float = 0.0


def look_back(
    drafts: Iterable[LiveStream], owing: Collection[LiveStream], opened_at: float, closed_at: float
) -> Arrivals:
    """Say how the drafts of a round came that has just closed, and remember it of their agents.

    Args:
        drafts: the streams whose drafts it verifies.
        owing: those whose drafts it has waited for in vain.
        opened_at: when the engine was free, seconds.
        closed_at: when it was waited no longer.
    """
    # What came while its prompt was on the way was waited for by nobody.
    came = [live for live in drafts if live.way.arrived_at > -math.inf]
    came.sort(key=lambda live: live.way.arrived_at)
    for live in came:
        _remember(live, closed_at)
    slowest, held_s = _straggler(came, owing, opened_at, closed_at)
    if not came:
        return Arrivals(slowest=slowest, held_s=held_s)
    middle = came[(len(came) - 1) // 2]
    return Arrivals(middle.way.draft_s, middle.way.network_s, _waited_s(middle, closed_at), slowest, held_s)


def _waited_s(live: LiveStream, closed_at: float) -> float:
    # Guesses that came while the stream was in a pass itself wait from the next round on.
    return max(0.0, closed_at - max(live.way.arrived_at, live.asked_at))


def _remember(live: LiveStream, closed_at: float) -> None:
    account, way = live.account, live.way
    step = _STEP if account.draft_s or account.network_s else 1.0
    account.draft_s += step * (way.draft_s - account.draft_s)
    account.network_s += step * (way.network_s - account.network_s)
    account.wait_s += step * (_waited_s(live, closed_at) - account.wait_s)


def _straggler(
    came: Sequence[LiveStream], owing: Collection[LiveStream], opened_at: float, closed_at: float
) -> tuple[str, float]:
    """Who came last, and how long after all others: where everybody is slow, nobody is a straggler."""
    last: dict[AgentAccount, float] = {}
    for live in came:  # in order of arrival
        last[live.account] = live.way.arrived_at
    for live in owing:
        last[live.account] = closed_at
    if len(last) < 2:
        return "", 0.0
    slowest = max(last, key=last.__getitem__)
    others_at = max(at for account, at in last.items() if account is not slowest)
    held_s = min(last[slowest], closed_at) - max(others_at, opened_at)
    return (slowest.name, held_s) if held_s > 0 else ("", 0.0)
