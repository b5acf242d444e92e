"""Every stream that has a row or waits for one: who comes, who goes, and whose a row is next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.estimation import Goodput
from goodspeed.messages import Failure, Open
from goodspeed.stream import ServedStream
from goodspeed_server.admission import Admission
from goodspeed_server.live import AgentAccount, LiveStream, Outbox
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
        self._admission: Admission[StreamKey, tuple[AgentAccount, ServedStream]] = Admission(max_waiting=max_waiting)

    def __iter__(self) -> Iterator[LiveStream]:
        """Those that have a row."""
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        """How many wait for a row."""
        return len(self._admission)

    def find(self, outbox: Outbox, number: int) -> LiveStream | None:
        """A link's stream of that number, if it has a row."""
        return self._live.get((outbox, number))

    def of_link(self, outbox: Outbox) -> list[LiveStream]:
        """A link's streams that have a row."""
        return [live for (owner, _), live in self._live.items() if owner is outbox]

    def count(self, account: AgentAccount) -> int:
        """How many streams of an account have a row or wait for one."""
        return sum(live.account is account for live in self) + sum(waiting is account for waiting, _ in self._admission)

    def open(self, outbox: Outbox, account: AgentAccount, message: Open) -> None:
        """Admit a stream, or queue it.

        Raises:
            InvalidRequest: a value is out of range, or the number is taken by a stream of the same link.
            Overloaded: no row is free and the queue is full, or the token allows no more.
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
        account.admit(stream.opened_at, begun=stream.generated > 0)
        if self._engine.free_rows:
            self._admit(key, account, stream)
            return
        try:
            self._admission.wait(key, (account, stream))
        except Overloaded:
            account.give_back()
            raise
        logger.info("a text waits for a row: %d before it", len(self._admission) - 1)

    def close(self, outbox: Outbox, number: int) -> None:
        """End a stream its agent wants no more of; one that is not open is no error, since verdicts cross closes."""
        key = (outbox, number)
        waiting = self._admission.withdraw(key)
        if waiting is not None:
            waiting[0].give_back()
        elif key in self._live:
            self.end(self._live[key])

    def drop(self, outbox: Outbox) -> None:
        """End every stream of a link that has gone."""
        # The queue first: a row that falls free must not go to a stream of the same link.
        for account, _ in self._admission.withdraw_all(lambda key: key[0] is outbox):
            account.give_back()
        for live in self.of_link(outbox):
            self.end(live)

    def turn_away(self, error: Overloaded) -> None:
        """Refuse all who wait for a row."""
        while (waiting := self._admission.next()) is not None:
            (outbox, number), (account, _) = waiting
            account.give_back()
            outbox.post(Failure(error.code, str(error), number, error.retry_after_s))

    def end(self, live: LiveStream) -> None:
        """Forget a stream; its row is free at once, or when the pass it is in is over."""
        live.closed = True
        with live.logged():
            stream, took_s = live.stream, self._clock() - live.stream.opened_at
            written = len(stream.tokens) - stream.prompt_tokens
            logger.info("a text ends (%s): %d tokens in %.2f s", stream.finish or "given up", written, took_s)
        live.account.give_back()
        self._telemetry.ended(live, self._clock())
        if self._recorder is not None:
            self._recorder.ended(live)
        if live.fresh is None:
            live.account.prior_alpha += 0.3 * (live.estimator.alpha - live.account.prior_alpha)
            live.account.pace = live.pace.copy()
        self.prefilling.pop(live, None)
        del self._live[(live.outbox, live.number)]
        self._on_end(live)
        if not live.in_pass:
            self._release(live)

    def pass_over(self, live: LiveStream) -> bool:
        """The pass that was at a stream's row is over: whether the stream is still there."""
        live.in_pass = False
        if live.closed:
            self._release(live)
        return not live.closed

    def _admit(self, key: StreamKey, account: AgentAccount, stream: ServedStream) -> None:
        outbox, number = key
        now = self._clock()
        live = LiveStream(
            number=number,
            outbox=outbox,
            account=account,
            stream=stream,
            row=self._engine.allocate(),
            estimator=self._planner.estimator(account.prior_alpha),
            rate=Goodput(now, 1.0 / self._planner.meter.load.pass_s),
            pace=account.pace.copy(),
        )
        self._live[key] = live
        if not stream.prefilled:
            self.prefilling[live] = None
        self._telemetry.opened(live, now)
        with live.logged():
            logger.info("a text begins: prompt %d tokens, row %d", stream.prompt_tokens, live.row)
        self._on_begin(live)

    def _release(self, live: LiveStream) -> None:
        self._engine.release(live.row)
        waiting = self._admission.next()
        if waiting is not None:
            key, (account, stream) = waiting
            self._admit(key, account, stream)
