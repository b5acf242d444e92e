"""Budgets: what every stream may draft next, within what is left of the capacity, and whom a round waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from goodspeed.messages import Opened
from goodspeed.rounds import Barrier, Rolling, Rounds
from goodspeed.scheduling import Scheduler
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.settings import OVERDUE, RoundSettings
from goodspeed_server.slices import many
from goodspeed_server.streams import Streams
from goodspeed_server.telemetry import Telemetry

__all__ = ["Granting"]


class Granting:
    """Has budgets planned, and keeps the rounds that wait for what is drafted.

    Args:
        streams: that have a row.
        planner: chooses the budgets.
        settings: the operator's choices.
        telemetry: is told of drafts that were here before their streams took part.
        most: how many tokens a pass may carry, if that is known.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        streams: Streams,
        planner: Planner,
        settings: RoundSettings,
        telemetry: Telemetry,
        *,
        most: Callable[[], int | None],
        clock: Callable[[], float],
    ) -> None:
        self._streams = streams
        self._planner = planner
        self._telemetry = telemetry
        self._most = most
        self._clock = clock
        self.settings = settings
        self.rounds = self.make_rounds()
        self.price = 0.0
        """Of a drafted token, as of the last `schedule`; a newcomer's first budget has one of its own."""
        self._reserved = 0
        """Draft tokens that are dealt out, and not yet to whom."""

    @property
    def waits(self) -> bool:
        """Whether streams are verified only once their drafts are here."""
        return self.settings.rounds == "barrier"

    @property
    def capacity(self) -> int:
        """Draft tokens the next pass may verify."""
        capacity, most = self._planner.capacity(tuple(self._streams)), self._most()
        return capacity if most is None else min(capacity, max(0, most - len(self._streams)))

    @property
    def _granted(self) -> int:
        """Draft tokens that agents have been granted and that no pass has verified yet."""
        return self.rounds.outstanding + self._reserved + sum(live.budget for live in self._streams.prefilling)

    def _free(self) -> int:
        """Draft tokens that may be granted yet."""
        return max(0, self.capacity - self._granted)

    def make_rounds(self) -> Rounds[LiveStream]:
        """Rounds as the settings want them, in which nobody takes part."""
        if not self.waits:
            return Rolling(load=lambda: self._planner.meter.load, holder=lambda live: live.account.holder)
        timeout_s = self.settings.round_timeout_s
        return Barrier(timeout_s=timeout_s, overdue_s=OVERDUE * timeout_s)

    def begin(self, live: LiveStream) -> None:
        """Grant a stream that has its row a first budget, and tell its agent."""
        # A fair share of what is left; the first round's plan corrects it.
        capacity, now = self.capacity, self._clock()
        share = min(capacity // len(self._streams), max(0, capacity - self._granted))
        self._planner.plan([live], share, now)
        live.began_at = now
        live.told.append((live.stream.length, now))
        live.account.asked(live.lead)
        live.outbox.post(Opened(live.number, live.stream.length, live.lead, live.price_percent, live.overtaken))
        if live.stream.prefilled:
            self.join(live)

    def join(self, live: LiveStream) -> None:
        """Have a stream take part in the rounds from now on; its draft may be here already."""
        self.expect(live, self._clock())
        if live.draft is not None:
            # It came while the prompt was on its way, which says nothing of its agent's pace.
            self._telemetry.came(live, live.draft, None)
            self.rounds.arrive(live, self._clock(), len(live.draft.tokens))

    def schedule(self, streams: Sequence[LiveStream]) -> Iterator[None]:
        """Choose the next budget of each of some streams and wait for their drafts; pauses, if they are many."""
        if not streams:
            return
        priced = False
        try:
            for dealt in self._planner.planning(streams, self._free, self._clock):
                if dealt.streams and not priced:
                    self.price, priced = self._planner.price, True
                self._reserved, now = dealt.left, self._clock()
                for live in dealt.streams:
                    if not live.closed:
                        self.expect(live, now)
                if many(streams):
                    yield
        finally:
            self._reserved = 0

    def expect(self, live: LiveStream, now: float) -> None:
        """Wait for a stream's draft, of what it is granted."""
        live.asked_at = now
        self.rounds.expect(live, live.budget, now, None if self.waits else self._planner.prospect(live, now))

    def adopt(self, scheduler: Scheduler, settings: RoundSettings, announce: Callable[[], None]) -> None:
        """Plan by another scheduler and other settings from now on; all streams go on. Only while no pass runs.

        Args:
            scheduler: chooses the budgets.
            settings: how rounds close, and what they may hold.
            announce: tells all agents whether they are waited for, where that is no longer as it was.

        Raises:
            InvalidRequest: the scheduler cannot plan for the streams that are open; nothing has changed.
        """
        self._planner.try_out(scheduler, tuple(self._streams), self.capacity)
        before, waited = self.settings, self.waits
        self.settings = settings
        self._planner.adopt(scheduler, settings)
        if (before.rounds, before.round_timeout_s) == (settings.rounds, settings.round_timeout_s):
            return
        ready = set(self.rounds.ready)
        self.rounds = self.make_rounds()
        if self.waits != waited:
            announce()
            self._ask_all_anew()
        for live in self._streams:
            if live in self._streams.prefilling:
                continue
            asked_at = live.asked_at
            self.join(live)
            if self.waits and waited:
                live.asked_at = asked_at
                if live.budget and live in ready and live.draft is None:
                    self.rounds.arrive(live, self._clock(), 0)  # it was not waited for any more

    def ask_no_more(self, account: AgentAccount) -> None:
        """Decode a link's streams without its drafts, whatever it was granted. Only while no pass runs."""
        now = self._clock()
        for live in self._streams:
            if live.account is account:
                live.spelled_out = True  # a draft that is on its way is as it was granted
                live.budget = live.lead = live.price_percent = live.overtaken = 0
                if live in self.rounds:
                    self.expect(live, now)

    def _ask_all_anew(self) -> None:
        """All that was granted is granted anew, to those too whose prompts are still on their way."""
        now, everybody = self._clock(), tuple(self._streams)
        for live in everybody:
            live.change_rounds(now, waits=self.waits)
        if everybody:
            self._planner.plan(everybody, self.capacity, now)
        for live in everybody:
            live.ask(now)
