"""How long rounds may yet wait in vain for each holder of streams.

An agent promises nothing: it may let everybody wait, round by round, for guesses that never come. So a round waits at
the cost of those that it waits for. Each moment of it is charged to every holder whose guesses are pledged then, and
shared among the holder's streams by what these guesses are worth. Guesses that come take back their part of what was
charged, by their worth among all that is still pledged of their stream, and no more: who keeps all that was pledged has
paid nothing. What is not taken back when a stream is waited for no longer was in vain, whatever ended it: the guesses
were overdue, the stream was closed, or a prompt came in between.

A holder is waited for while it has something left of `ALLOWANCE_PASSES`, and regains `REGAINED_PASSES` in every round.
So, however it deals, and however many streams and links it has, the rounds wait for one holder in vain, over any `n` of
them, for at most `ALLOWANCE_PASSES + n REGAINED_PASSES` passes. It earns nothing by keeping promises that is not taken
from what was waited for them.

Only who owes something is remembered, and nobody owes it for longer than `ALLOWANCE_PASSES / REGAINED_PASSES` rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["ALLOWANCE_PASSES", "REGAINED_PASSES", "Patience"]

StreamT = TypeVar("StreamT", bound=Hashable)

ALLOWANCE_PASSES = 2.0
"""No round waits for more than one: so who has let others wait in vain now and then is waited for as anybody is."""
REGAINED_PASSES = 0.05


@dataclass(slots=True)
class _Pledge:
    """Guesses of one stream that the open round waits for."""

    holder: Hashable
    worth_s: float
    waited_s: float = 0.0


class Patience(Generic[StreamT]):
    """With holders of streams.

    Args:
        holder: whose a stream is.
        pass_s: how long a pass takes at present, seconds; asked whenever that is needed.
    """

    def __init__(self, *, holder: Callable[[StreamT], Hashable], pass_s: Callable[[], float]) -> None:
        self._holder = holder
        self._pass_s = pass_s
        self._pledges: dict[StreamT, _Pledge] = {}
        self._charged_to = 0.0
        self._waited_s: dict[Hashable, float] = {}
        """By holder, as of then."""
        self._round = 0
        self._quits_at: dict[Hashable, float] = {}
        """In which round a holder will owe nothing any more, by holder; of those that owe something."""

    def __len__(self) -> int:
        """How many holders are remembered."""
        return len(self._quits_at)

    def left_s(self, stream: StreamT) -> float:
        """For how long a round may go on waiting for a stream's holder, seconds; as of the last `charge`."""
        holder = self._holder(stream)
        owed_passes = REGAINED_PASSES * (self._quits_at.get(holder, self._round) - self._round)
        return (ALLOWANCE_PASSES - owed_passes) * self._pass_s() - self._waited_s.get(holder, 0.0)

    def charge(self, now: float) -> None:
        """Charge what was waited up to now."""
        elapsed_s, self._charged_to = now - self._charged_to, now
        pledged_s: dict[Hashable, float] = defaultdict(float)
        for pledge in self._pledges.values():
            pledged_s[pledge.holder] += pledge.worth_s
        for pledge in self._pledges.values():
            pledge.waited_s += elapsed_s * pledge.worth_s / pledged_s[pledge.holder]
        self._waited_s = defaultdict(float)
        for pledge in self._pledges.values():
            self._waited_s[pledge.holder] += pledge.waited_s

    def kept(self, stream: StreamT, worth_s: float, now: float) -> None:
        """Guesses worth that much have come."""
        self.charge(now)
        pledge = self._pledges.get(stream)
        if pledge is None:
            return
        if worth_s >= pledge.worth_s:
            del self._pledges[stream]
            return
        pledge.waited_s *= 1.0 - worth_s / pledge.worth_s
        pledge.worth_s -= worth_s

    def wait_for(self, pledged_s: Mapping[StreamT, float], now: float) -> None:
        """The round waits on, for guesses of these streams and no others: with what they are worth, above 0."""
        self.charge(now)
        for stream in [stream for stream in self._pledges if stream not in pledged_s]:
            self._in_vain(self._pledges.pop(stream))
        for stream, worth_s in pledged_s.items():
            pledge = self._pledges.setdefault(stream, _Pledge(self._holder(stream), worth_s))
            # What no longer fits into the wait was waited for all the same.
            pledge.worth_s = max(pledge.worth_s, worth_s)

    def round_over(self, now: float) -> None:
        """A round has closed."""
        self.wait_for({}, now)
        self._round += 1
        self._quits_at = {holder: at for holder, at in self._quits_at.items() if at > self._round}

    def _in_vain(self, pledge: _Pledge) -> None:
        if pledge.waited_s > 0:
            owes_until = self._quits_at.get(pledge.holder, self._round)
            self._quits_at[pledge.holder] = owes_until + pledge.waited_s / self._pass_s() / REGAINED_PASSES
