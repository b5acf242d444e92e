"""Drives a generation over a channel; drafts off the event loop, so that the link is never blocked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from goodspeed.errors import GoodSpeedError, Overloaded
from goodspeed.messages import Close, DraftEnd, Failure, Opened, Verdict
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation
from goodspeed_agent.link import Channel, Relinked, refusal
from goodspeed_agent.lookahead import Lookahead, Wanted

__all__ = ["Drafted", "Drafting", "tokens_of"]

_log = logging.getLogger(__name__)

_QUEUED_S = 2.0
"""A stream that has not been opened after so long is waiting for others to end."""
_PIECE_S = 0.004
"""Guesses that take less than this are sent together."""
_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})
"""What the server calls a draft that it takes for an empty one; the stream goes on."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """What came of drafting."""

    guesses: list[Guess]
    end: DraftEnd
    computed_s: float


class Drafting:
    """One stream's drafting: upon a verdict and ahead of the next, or along with a server that does not wait.

    Args:
        desk: where the agent drafts.
        lookahead: of the stream.
        ahead: decides how far to draft ahead.
    """

    def __init__(self, desk: Desk, lookahead: Lookahead, ahead: Ahead) -> None:
        self._desk = desk
        self._lookahead = lookahead
        self._ahead = ahead
        self._guessing: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        """That task, and cancelled ones whose last guess is still being computed."""
        self._error: BaseException | None = None
        self._sent_s: float | None = None
        self._chain = -1
        """Which `Lookahead.follow` the pieces that were sent belong to."""
        self._computed_s = 0.0
        """What the guesses of the next piece have taken so far, those included that a verdict interrupted."""

    async def upon(self, tokens: list[int], budget: int, price: float) -> Drafted:
        """A draft upon the committed tokens.

        Args:
            tokens: committed.
            budget: how many tokens at most.
            price: as `Lookahead.draft`.

        Raises:
            Exception: whatever the drafter raised, now or ahead.
        """
        _cancel(self._guessing)
        drafted = await self._desk.at_once(lambda: self._timed(tokens, budget, price))
        await self._settle()
        return drafted

    def along(self, generation: Generation, channel: Channel, wanted: Wanted) -> None:
        """Guess on, upon what is committed now, and send every guess: the server decodes on meanwhile.

        Raises:
            Exception: whatever the drafter raised since the last call.
        """
        self.lost()
        if self._error is not None:
            raise self._error
        if wanted.lead:
            tokens = list(generation.transcript.tokens)
            self._start(self._send_along(tokens, generation, channel, wanted))

    def sent(self, budget: int, room: int) -> None:
        """A draft is on its way: go on guessing, as far as that pays; see `Ahead.tokens`."""
        self._sent_s = time.perf_counter()
        count = self._ahead.tokens(budget, room) - self._lookahead.spare
        if count > 0:
            self._start(self._guess_on(count, self._sent_s))

    def answered(self) -> None:
        """The verdict is here, and what is guessed ahead has to make way."""
        if self._sent_s is not None:
            self._ahead.waited(time.perf_counter() - self._sent_s)
        self.lost()

    def lost(self) -> None:
        """Nothing is on its way any more."""
        self._sent_s = None
        _cancel(self._guessing)

    async def close(self) -> None:
        """The text is complete, or nobody wants it any more."""
        _cancel(self._guessing)
        try:
            await self._settle()
        except Exception:
            _log.exception("the drafter failed beside a text that did not need it any more")

    def _start(self, guessing: Coroutine[Any, Any, None]) -> None:
        self._guessing = asyncio.create_task(guessing)
        self._under_way.add(self._guessing)
        self._guessing.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            self._error = self._error or task.exception()

    async def _settle(self) -> None:
        """Wait until nothing is guessed any more; raise what the drafter raised."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._error is not None:
            raise self._error

    async def _guess_on(self, count: int, since_s: float) -> None:
        def guess() -> bool:
            began_s = time.perf_counter()
            more = self._lookahead.extend()
            self._ahead.took(time.perf_counter() - began_s)
            return more

        for _ in range(count):
            if not self._ahead.starts(time.perf_counter() - since_s) or not await self._desk.in_between(guess):
                return

    async def _send_along(self, tokens: list[int], generation: Generation, channel: Channel, wanted: Wanted) -> None:
        asked = wanted.lead
        chain = await self._desk.in_between(partial(self._lookahead.follow, tokens, asked))
        if chain != self._chain or generation.sent_ahead < 0:
            generation.begin_guessing()
            self._chain, self._computed_s = chain, 0.0
        useful = generation.room - 1
        further = min(asked + self._ahead.tokens(asked, useful - asked), useful, generation.request.max_draft)
        wanted = wanted._replace(lead=further)
        piece: list[Guess] = []
        while True:
            guess = await self._further(generation.sent_ahead + len(piece), wanted)
            if isinstance(guess, Guess):
                piece.append(guess)
                if self._computed_s < _PIECE_S:
                    continue
            # A server that has nothing of this stream may be waiting for it: it is told that nothing comes.
            nothing_there = guess is DraftEnd.PRICED_OUT and generation.sent_ahead == 0
            if piece or nothing_there or guess is DraftEnd.NOTHING_TO_SAY:
                end = DraftEnd.FAR_ENOUGH if isinstance(guess, Guess) else guess
                message = generation.piece(piece, self._computed_s, end)
                # It counts as sent from here on, so a verdict that comes meanwhile must not stop it.
                await asyncio.shield(channel.send(message))
            piece, self._computed_s = [], 0.0
            if isinstance(guess, DraftEnd):
                return

    async def _further(self, sent: int, wanted: Wanted) -> Guess | DraftEnd:
        began_s = time.perf_counter()
        try:
            return await self._desk.in_between(partial(self._lookahead.further, sent, wanted))
        finally:
            self._computed_s += time.perf_counter() - began_s

    def _timed(self, tokens: list[int], budget: int, price: float) -> Drafted:
        began_s = time.perf_counter()
        guesses, end = self._lookahead.draft(tokens, budget, price)
        return Drafted(guesses, end, time.perf_counter() - began_s)


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()


async def tokens_of(
    generation: Generation,
    channel: Channel,
    drafting: Drafting,
    backoff: Backoff,
    waits: Callable[[], bool],
    on_queued: Callable[[], None] | None = None,
) -> AsyncGenerator[list[int], None]:
    """Generate: yield newly committed tokens as verdicts bring them, then end.

    Leaving early (`aclosing`) closes the stream at the server.

    Args:
        generation: what to generate; holds the transcript and the counters afterwards.
        channel: the stream's end of the link.
        drafting: of this stream.
        backoff: how patiently an overloaded server is asked again.
        waits: whether the server waits for drafts; see `messages.Welcome`.
        on_queued: called once if the server has no row for the stream yet.

    Raises:
        Refused: the server refused the stream.
        Overloaded: it had no room for too long.
        LinkLost: the link could not be made again.
        ProtocolError: the server contradicts itself.
    """
    patience = Patience(backoff)
    warned = False
    queued = asyncio.get_running_loop().call_later(_QUEUED_S, on_queued or (lambda: None))
    try:
        await channel.send(generation.opening())
        while generation.transcript.finish is None:
            match await channel.receive():
                case Relinked():
                    drafting.lost()
                    await channel.send(generation.opening())
                    continue
                case Failure(code=code) as failure if code in _BAD_DRAFT:
                    drafting.lost()
                    generation.draft_refused()
                    if not warned:
                        _log.warning("the server cannot use this drafter's drafts: %s", failure.message)
                    warned = True
                    continue
                case Failure() as failure:
                    drafting.lost()
                    await _wait_for_room(patience, refusal(failure))
                    await channel.send(generation.opening())
                    continue
                case Opened() as asking:
                    queued.cancel()
                    patience.succeeded()
                case Verdict() as asking:
                    drafting.answered()
                    new = generation.commit(asking)
                    if new:
                        yield new
            budget, price = asking.budget, asking.price_percent / 100
            if not waits():
                if generation.transcript.finish is None:
                    drafting.along(generation, channel, Wanted(budget, price, asking.overtaken))
            elif generation.draft_due(budget):
                committed = list(generation.transcript.tokens)
                drafted = await drafting.upon(committed, budget, price)
                await channel.send(generation.draft(drafted.guesses, drafted.computed_s, drafted.end))
                drafting.sent(budget, generation.room - len(drafted.guesses))
    finally:
        queued.cancel()
        channel.close()
        await drafting.close()
        if generation.transcript.finish is None:
            await channel.send(Close(generation.stream))


async def _wait_for_room(patience: Patience, error: GoodSpeedError) -> None:
    """Wait as long as an overloaded server asked for; raise anything else, and that too when it lasts too long."""
    if not isinstance(error, Overloaded):
        raise error
    wait_s = patience.failed(asyncio.get_running_loop().time(), at_least_s=error.retry_after_s)
    if wait_s is None:
        raise error
    await asyncio.sleep(wait_s)
