"""Every stream that has a row, waits for one or is parked: who comes, who goes, and whose a row is next."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from itertools import islice

from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.estimation import Goodput
from goodspeed.logs import about
from goodspeed.messages import Failure, Open, Queued
from goodspeed.stream import ServedStream
from goodspeed_server.admission import Admission
from goodspeed_server.allowance import Back
from goodspeed_server.live import AgentAccount, LiveStream, Outbox, Session
from goodspeed_server.parking import Parked, Parking, name_of
from goodspeed_server.places import Places
from goodspeed_server.planner import Planner
from goodspeed_server.recording import Recorder
from goodspeed_server.telemetry import Telemetry

__all__ = ["Streams"]

logger = logging.getLogger(__name__)

StreamKey = tuple[Outbox, int]


class Streams:
    """The streams of all links, each known by its link and its number there.

    Args:
        engine: whose rows they are given.
        planner: knows where the estimates of a stream begin.
        telemetry: is told who comes and goes.
        recorder: is told which texts have ended.
        max_waiting: how many may wait for a row.
        max_waiting_tokens: how many tokens those may hold together.
        max_streams_per_agent: how many a link may have at a time, those that wait included; None for no limit.
        park_s: how long a parked stream is kept, and the place of one that waited; 0 keeps none.
        eos_tokens: any of them ends a stream.
        clock: seconds, monotonic.
        on_begin: called with a stream that has just been given its row.
        on_end: called with a stream that takes part in nothing any more.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        telemetry: Telemetry,
        recorder: Recorder | None,
        *,
        max_waiting: int,
        max_waiting_tokens: int,
        max_streams_per_agent: int | None,
        park_s: float,
        eos_tokens: frozenset[int],
        clock: Callable[[], float],
        on_begin: Callable[[LiveStream], None],
        on_end: Callable[[LiveStream], None],
    ) -> None:
        self._engine = engine
        self._planner = planner
        self._telemetry = telemetry
        self._recorder = recorder
        self._eos_tokens = eos_tokens
        self._clock = clock
        self._on_begin = on_begin
        self._on_end = on_end
        self._live: dict[StreamKey, LiveStream] = {}
        self.prefilling: dict[LiveStream, None] = {}
        """Whose prompt is still on its way into the slab, in order of admission."""
        self._max_streams_per_agent = max_streams_per_agent
        self._admission: Admission[StreamKey, Hashable, tuple[AgentAccount, ServedStream]] = Admission(
            engine.rows,
            max_waiting=max_waiting,
            max_tokens=max_waiting_tokens,
            keep_s=park_s,
            held_so_far_s=lambda now: now - sum(live.admitted_at for live in self) / len(self) if self._live else 0.0,
        )
        self._places: Places[StreamKey] = Places()
        self._moved = False
        """Whether somebody's place in the queue may have changed."""
        self._parking = Parking(park_s)
        self._parks = park_s > 0
        self._alarm: asyncio.TimerHandle | None = None
        """At which the first of the parked streams, or of the places that are kept, is given up."""

    def __iter__(self) -> Iterator[LiveStream]:
        """Those that have a row."""
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        """How many wait for a row."""
        return len(self._admission)

    @property
    def parked(self) -> int:
        """How many are parked; their rows are free to whoever needs one."""
        return len(self._parking)

    def find(self, outbox: Outbox, number: int) -> LiveStream | None:
        """A link's stream of that number, if it has a row."""
        return self._live.get((outbox, number))

    def of_link(self, outbox: Outbox) -> list[LiveStream]:
        """A link's streams that have a row."""
        return [live for (owner, _), live in self._live.items() if owner is outbox]

    def open(self, outbox: Outbox, account: AgentAccount, message: Open) -> None:
        """Admit a stream, or queue it; one that is parked goes on in its own row, unless others wait for that.

        Raises:
            InvalidRequest: a value is out of range, or the number is taken by a stream of the same link.
            Overloaded: no row is free and the queue is full, or the token or the operator allows no more.
        """
        key = (outbox, message.stream)
        if key in self._live or key in self._admission:
            raise InvalidRequest(
                f"stream {message.stream} is open already: close it first, or choose another number",
                code="duplicate_stream",
            )
        stream = ServedStream.opened(
            message,
            vocab_size=self._engine.vocab_size,
            max_length=self._engine.max_length,
            eos_tokens=self._eos_tokens,
        )
        stream.opened_at = self._clock()
        self._check_count(account)
        name = name_of(account.session, message.stream, stream)
        parked = self._taken_over(account, stream, message.stream, name)
        if parked is None and not self._engine.free_rows:
            self._reclaim(1)
        if parked is None and not self._engine.free_rows:
            self._queue(key, account, stream, name)
            return
        self._admission.absences.back(name)
        self._admit(key, account, stream, parked)

    def tell_places(self) -> float | None:
        """Tell those who wait where they stand, if that has changed; of very many not whenever somebody comes or goes.

        Returns:
            When to do so again, seconds; None where nobody's place has changed since.
        """
        now = self._clock()
        due_at = self._places.due_at(now, moved=self._moved)
        if due_at is not None and due_at <= now:
            self._moved = False
            for (outbox, number), place in self._places.due(self._admission.order(self._rows_held()), now):
                outbox.post(Queued(number, place))
            due_at = self._places.due_at(now, moved=False)
        return due_at

    def close(self, outbox: Outbox, number: int, session: Session | None = None) -> bool:
        """End a stream its agent wants no more of, or what is parked of it, if there is one; whether there was."""
        key = (outbox, number)
        if (waiting := self._admission.withdraw(key)) is not None:
            waiting[0].give_back()
            self._moved = True
        elif key in self._live:
            self.end(self._live[key])
        elif session is not None and (parked := self._parking.find((session, number))):
            self._parking.take(parked)
            self._give_up(parked)
        else:
            return False
        return True

    def drop(self, outbox: Outbox) -> None:
        """End every stream of a link that has gone."""
        for key in self._waiting_of(outbox):
            self.close(*key)
        self.end(*self.of_link(outbox))

    def turn_away(self, error: Overloaded) -> None:
        """Refuse all who wait for a row, and keep no place any more."""
        self._admission.absences.expire()
        for (outbox, number), (account, _) in self._admission.next(self._rows_held(), self.waiting):
            account.give_back()
            self._moved = True
            outbox.post(Failure(error.code, str(error), number, error.retry_after_s))

    def park(self, outbox: Outbox) -> None:
        """Take the streams of a link that has gone out of the rounds and out of the queue.

        Of those that have a row it is kept for a while, of those that wait their place. Those of a link without a
        session end, and so do all where none is parked.
        """
        now = self._clock()
        for key in self._waiting_of(outbox):
            self._leave_queue(key, now)
        ended = []
        for live in self.of_link(outbox):
            session = live.account.session
            if session is None or not self._parks:
                ended.append(live)
                continue
            with live.logged():
                logger.info("a text is parked: %d tokens of it cached, row %d", live.stream.cached, live.row)
            self._leave(live)
            self._parking.park(Parked.of(live, session, now))
        self.end(*ended)
        self._reclaim(self.waiting)
        self._wait_for_expiry()

    def give_up_parked(self, now: float) -> None:
        """Forget what nobody has come back for in time, and keep no place longer than that."""
        self._admission.absences.expire(now)
        expired = self._parking.expire(now)
        for parked in expired:
            with about(agent=parked.agent, stream=parked.key[1]):
                logger.info("a parked text is given up: its agent did not come back in time")
        self._give_up(*expired)
        self._wait_for_expiry()

    def end(self, *ended: LiveStream) -> None:
        """Forget streams; their rows are free at once, or when the pass they are in is over.

        Of several that end together the rows go to who waits together: who is next takes time to find.
        """
        for live in ended:
            with live.logged():
                stream, took_s = live.stream, self._clock() - live.stream.opened_at
                written = len(stream.tokens) - stream.prompt_tokens
                logger.info("a text ends (%s): %d tokens in %.2f s", stream.finish or "given up", written, took_s)
            if live.fresh is None:
                live.account.prior_alpha += 0.3 * (live.estimator.alpha - live.account.prior_alpha)
                live.account.pace = live.pace.copy()
            self._leave(live)
        self._give_up(*ended)

    def pass_over(self, live: LiveStream) -> bool:
        """The pass that was at a stream's row is over: whether the stream is still there."""
        live.use.in_pass = False
        if live.use.given_up:
            self._release(live.row)
        elif live.closed and self.waiting:
            self._reclaim(1)
        return not live.closed

    def _leave(self, live: LiveStream) -> None:
        """Take a stream out of everything but its row."""
        now = self._clock()
        live.closed = True
        live.account.give_back()
        self._admission.row_fell_free(live.account.queues_as, now - live.admitted_at)
        self._telemetry.ended(live, now)
        if self._recorder is not None:
            self._recorder.ended(live)
        self.prefilling.pop(live, None)
        del self._live[(live.outbox, live.number)]
        self._on_end(live)

    def _queue(self, key: StreamKey, account: AgentAccount, stream: ServedStream, name: Hashable) -> None:
        try:
            displaced = self._admission.wait(
                key,
                (account, stream),
                owner=account.queues_as,
                weight=lambda: account.weight,
                tokens=stream.length,
                now=stream.opened_at,
                name=name,
            )
        except Overloaded:
            account.give_back()
            raise
        account.answered(stream.opened_at)  # everybody's place is looked at
        logger.info("a text waits for a row, and %d others do", len(self._admission) - 1)
        for (its_outbox, number), (its_account, _) in displaced:
            its_account.give_back()
            refusal = self._admission.refusal(stream.opened_at)
            its_outbox.post(Failure(refusal.code, str(refusal), number, refusal.retry_after_s))
        self._places.forget(key)  # what another under this number was told
        self._moved = True
        self.tell_places()

    def _waiting_of(self, outbox: Outbox) -> list[StreamKey]:
        return self._admission.those(lambda key: key[0] is outbox)

    def _leave_queue(self, key: StreamKey, now: float) -> None:
        """A stream's link has gone: a row that falls free must not go to it."""
        account, stream = self._admission.request(key)
        name = name_of(account.session, key[1], stream)
        if name is None:
            self._admission.withdraw(key)
        else:
            self._admission.leave(key, name, now)
        account.give_back()
        self._moved = True

    def _check_count(self, account: AgentAccount) -> None:
        most = self._max_streams_per_agent
        if most is not None and account.streams >= most:
            raise Overloaded(
                f"an agent may have {most} streams at a time here, and {account.name!r} has them: wait for one to end "
                "(the server's operator can raise --max-streams-per-agent)",
                retry_after_s=1.0,
            )

    def _rows_held(self) -> Counter[Hashable]:
        return Counter(live.account.queues_as for live in self)

    def _taken_over(self, account: AgentAccount, stream: ServedStream, number: int, name: Hashable) -> Parked | None:
        """Count a stream that is opened, and take what is parked of it; None if there is nothing to take.

        Raises:
            Overloaded: as `AgentAccount.admit`; what is parked stays where it is.
        """
        parked = None
        if account.session is not None:
            self.give_up_parked(stream.opened_at)  # an alarm may be a little late
            parked = self._parking.find((account.session, number))
        continues = parked is not None and parked.begins_as(stream.tokens, stream.prompt_tokens)
        held = len(parked.tokens) if parked and continues else self._admission.absences.held(name)
        back = None if held is None else Back(name, max(0, held - stream.length))
        account.admit(stream.opened_at, begun=stream.generated > 0, back=back)
        if parked is None:
            return None
        self._parking.take(parked)
        if self.waiting:
            # Only a pass has kept the row from those who wait; it is theirs when that is over.
            self._give_up(parked)
            return None
        return parked

    def _admit(self, key: StreamKey, account: AgentAccount, stream: ServedStream, parked: Parked | None = None) -> None:
        outbox, number = key
        now = self._clock()
        live = LiveStream(
            number=number,
            outbox=outbox,
            account=account,
            stream=stream,
            row=self._engine.allocate() if parked is None else parked.row,
            estimator=self._planner.estimator(account.prior_alpha),
            rate=Goodput(now, 1.0 / self._planner.meter.load.pass_s),
            pace=account.pace.copy(),
            admitted_at=now,
        )
        continues = parked is not None and parked.begins_as(stream.tokens, stream.prompt_tokens)
        if parked is not None:
            parked.hand_over(live)
        self._live[key] = live
        if not stream.prefilled:
            self.prefilling[live] = None
        self._telemetry.opened(live, now)
        if continues or stream.generated:
            self._telemetry.resumed(by_row=continues)
        with live.logged():
            known = f", {stream.cached} tokens of it cached" if continues else ""
            logger.info("a text begins: prompt %d tokens, row %d%s", stream.prompt_tokens, live.row, known)
        self._on_begin(live)

    def _give_up(self, *held: LiveStream | Parked) -> None:
        """Nobody holds these rows any more: each is free at once, or when the pass that is at it is over."""
        for one in held:
            one.use.given_up = True
        self._release(*(one.row for one in held if not one.use.in_pass))

    def _reclaim(self, rows: int) -> None:
        """Free so many rows of parked streams for whoever needs them, as far as there are any that can be.

        Who comes back for one stands in the queue from here on.
        """
        reclaimed = list(islice(iter(self._parking.reclaim, None), rows))
        self._give_up(*reclaimed)
        for parked in reclaimed:
            self._admission.keep_place(parked.name, len(parked.tokens), self._clock())

    def _release(self, *rows: int) -> None:
        for row in rows:
            self._engine.release(row)
        if not rows or not self.waiting:
            return
        for key, (account, stream) in self._admission.next(self._rows_held(), len(rows)):
            self._moved = True
            self._admit(key, account, stream)

    def _wait_for_expiry(self) -> None:
        """Texts stay in memory for no longer than was said."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        dates = (self._parking.expires_at, self._admission.absences.expires_at)
        expires_at = min((at for at in dates if at is not None), default=None)
        if expires_at is not None:
            wait_s, expire = max(0.0, expires_at - self._clock()), lambda: self.give_up_parked(self._clock())
            self._alarm = asyncio.get_running_loop().call_later(wait_s, expire)
