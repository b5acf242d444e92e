"""Drives a generation over a channel; drafts off the event loop, so that the link is never blocked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from goodspeed.errors import GoodSpeedError, Overloaded
from goodspeed.messages import Close, Failure, Opened, Verdict
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation
from goodspeed_agent.link import Channel, Relinked, refusal
from goodspeed_agent.lookahead import Lookahead

__all__ = ["Drafted", "Drafting", "tokens_of"]

_log = logging.getLogger(__name__)

_QUEUED_S = 2.0
"""A stream that has not been opened after so long is waiting for others to end."""
_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})
"""What the server calls a draft that it takes for an empty one; the stream goes on."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """What came of drafting."""

    guesses: list[Guess]
    priced_out: bool
    """Whether the price ended it."""
    computed_s: float


class Drafting:
    """One stream's drafting: upon a verdict, ahead of the next, and on the side.

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
        self._on_the_side: asyncio.Task[None] | None = None
        self._sent_s: float | None = None

    async def upon(self, tokens: list[int], budget: int, price: float) -> Drafted:
        """A draft upon the committed tokens.

        Args:
            tokens: committed.
            budget: how many tokens at most.
            price: as `Lookahead.draft`.

        Raises:
            Exception: whatever the drafter raised, now, ahead or on the side.
        """
        for task in (self._guessing, self._on_the_side):
            _cancel(task)
        drafted = await self._desk.at_once(lambda: self._timed(tokens, budget, price))
        await self._settle()
        return drafted

    def on_the_side(self, tokens: list[int], size: int, send: Callable[[Drafted], Awaitable[None]]) -> None:
        """Draft upon the committed tokens when there is nothing better to do, and send it: nobody waits for it."""
        _cancel(self._on_the_side)
        self._on_the_side = asyncio.create_task(self._in_pieces(tokens, size, send))

    def sent(self, budget: int, room: int) -> None:
        """A draft is on its way: go on guessing, as far as that pays; see `Ahead.tokens`."""
        self._sent_s = time.perf_counter()
        count = self._ahead.tokens(budget, room) - self._lookahead.spare
        if count > 0:
            self._guessing = asyncio.create_task(self._guess_on(count, self._sent_s))

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
        for task in (self._guessing, self._on_the_side):
            _cancel(task)
        try:
            await self._settle()
        except Exception:
            _log.exception("the drafter failed beside a text that did not need it any more")

    async def _settle(self) -> None:
        """Wait until nothing is guessed ahead or on the side any more; raise what the drafter raised."""
        tasks = [task for task in (self._guessing, self._on_the_side) if task is not None]
        self._guessing = self._on_the_side = None
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _guess_on(self, count: int, since_s: float) -> None:
        def guess() -> bool:
            began_s = time.perf_counter()
            more = self._lookahead.extend()
            self._ahead.took(time.perf_counter() - began_s)
            return more

        for _ in range(count):
            if not self._ahead.starts(time.perf_counter() - since_s) or not await self._desk.in_between(guess):
                return

    async def _in_pieces(self, tokens: list[int], size: int, send: Callable[[Drafted], Awaitable[None]]) -> None:
        computed_s = 0.0
        for count in range(1, size + 1):
            drafted = await self._desk.in_between(partial(self._timed, tokens, count, 0.0))
            computed_s += drafted.computed_s
            if len(drafted.guesses) < count:
                break
        await send(replace(drafted, computed_s=computed_s))

    def _timed(self, tokens: list[int], budget: int, price: float) -> Drafted:
        began_s = time.perf_counter()
        guesses, priced_out = self._lookahead.draft(tokens, budget, price)
        return Drafted(guesses, priced_out, time.perf_counter() - began_s)


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()


async def tokens_of(
    generation: Generation,
    channel: Channel,
    drafting: Drafting,
    backoff: Backoff,
    on_queued: Callable[[], None] | None = None,
) -> AsyncGenerator[list[int], None]:
    """Generate: yield newly committed tokens as verdicts bring them, then end.

    Leaving early (`aclosing`) closes the stream at the server.

    Args:
        generation: what to generate; holds the transcript and the counters afterwards.
        channel: the stream's end of the link.
        drafting: of this stream.
        backoff: how patiently an overloaded server is asked again.
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
                case Opened(budget=budget, price_permille=price_permille):
                    probe = 0
                    queued.cancel()
                    patience.succeeded()
                case Verdict(budget=budget, price_permille=price_permille, probe=probe) as verdict:
                    drafting.answered()
                    new = generation.commit(verdict)
                    if new:
                        yield new
            committed = list(generation.transcript.tokens)
            if generation.draft_due(budget):
                drafted = await drafting.upon(committed, budget, price_permille / 1000)
                await channel.send(generation.draft(drafted.guesses, drafted.computed_s, priced_out=drafted.priced_out))
                drafting.sent(budget, generation.room - len(drafted.guesses))
            elif probe and generation.transcript.finish is None:
                drafting.on_the_side(committed, probe, partial(_send_probe, generation, channel, len(committed)))
    finally:
        queued.cancel()
        channel.close()
        await drafting.close()
        if generation.transcript.finish is None:
            await channel.send(Close(generation.stream))


async def _send_probe(generation: Generation, channel: Channel, base: int, drafted: Drafted) -> None:
    await channel.send(generation.probe(base, drafted.guesses, drafted.computed_s))


async def _wait_for_room(patience: Patience, error: GoodSpeedError) -> None:
    """Wait as long as an overloaded server asked for; raise anything else, and that too when it lasts too long."""
    if not isinstance(error, Overloaded):
        raise error
    wait_s = patience.failed(asyncio.get_running_loop().time(), at_least_s=error.retry_after_s)
    if wait_s is None:
        raise error
    await asyncio.sleep(wait_s)
