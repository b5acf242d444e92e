"""One stream's drafting, off the event loop, so that the link is never blocked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from goodspeed.messages import DraftEnd
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.channel import Channel
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation
from goodspeed_agent.lookahead import Lookahead, Wanted
from goodspeed_agent.steps import Steps

__all__ = ["Drafted", "Drafting"]

_log = logging.getLogger(__name__)

_PIECE_S = 0.004
"""Guesses that take less than this are sent together."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """What came of drafting."""

    guesses: list[Guess]
    end: DraftEnd
    computed_s: float


@dataclass(frozen=True, slots=True)
class News:
    """What a verdict of a server that does not wait says to a drafter."""

    tokens: list[int]
    """The transcript."""
    asked: int
    """How far ahead of it the server asks for guesses."""
    wanted: Wanted
    """The same, with what is drafted ahead of that."""


@dataclass(frozen=True, slots=True)
class Step:
    """One guess, or why there is none."""

    guess: Guess | DraftEnd
    chain: int
    """As `Lookahead.follow`."""
    upon: int
    """The committed length it was made upon."""
    computed_s: float
    """How long it took, with the time that the agent's other streams had the drafter meanwhile."""


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
        self._news: News | None = None
        """Of a server that does not wait; taken up with the next guess."""
        self._wanted, self._followed = Wanted(0), (0, 0)
        """What was last taken up: what is wanted; the chain, and the length of the transcript."""
        self._guessing: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        """That task, and cancelled ones whose last guess is still being computed."""
        self._error: BaseException | None = None
        self._sent_s: float | None = None
        self._chain: int | None = None
        """Which of `Lookahead.follow` the server holds the beginning of."""

    async def upon(self, tokens: list[int], budget: int, price: float) -> Drafted:
        """A draft upon the committed tokens.

        Args:
            tokens: committed.
            budget: how many tokens at most.
            price: as `Lookahead.draft`.

        Raises:
            Exception: whatever the drafter raised, now or ahead.
        """
        self._stop()
        # What is still under way ends with its step; two at work on one stream would be in each other's way.
        await self._settle()
        return await self._desk.at_once(lambda: self._timed(tokens, budget, price))

    def along(self, generation: Generation, channel: Channel, wanted: Wanted) -> None:
        """Guess on, upon what is committed now, and send every guess: the server decodes on meanwhile.

        A guess that is under way is sent too. Who guesses more slowly than the server decodes would else never send
        one, and the server would not know how slow it is, nor what its guesses are worth.

        Raises:
            Exception: whatever the drafter raised since the last call.
        """
        if self._error is not None:
            raise self._error
        useful = generation.room - 1
        ahead = self._ahead.tokens(wanted.lead, useful - wanted.lead) if wanted.lead else 0
        lead = min(wanted.lead + ahead, useful, generation.request.max_draft)
        self._news = News(list(generation.transcript.tokens), wanted.lead, wanted._replace(lead=lead))
        if wanted.lead and (self._guessing is None or self._guessing.done()):
            self._start(lambda: self._send_along(generation, channel))

    def sent(self, budget: int, room: int) -> None:
        """A draft is on its way: go on guessing, as far as that pays; see `Ahead.tokens`."""
        self._sent_s = time.perf_counter()
        count = self._ahead.tokens(budget, room) - self._lookahead.spare
        if count > 0:
            since_s = self._sent_s
            self._start(lambda: self._guess_on(count, since_s))

    def answered(self) -> None:
        """The verdict is here, and what is guessed ahead has to make way."""
        if self._sent_s is not None:
            self._ahead.waited(time.perf_counter() - self._sent_s)
            self.lost()

    def lost(self) -> None:
        """Nothing is on its way any more."""
        self._sent_s = self._chain = self._news = None
        self._stop()

    async def close(self) -> None:
        """The text is complete, or nobody wants it any more."""
        self._stop()
        try:
            await self._settle()
        except Exception:
            _log.exception("the drafter failed beside a text that did not need it any more")

    def _start(self, guessing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._guessing = asyncio.create_task(self._after(set(self._under_way), guessing))
        self._under_way.add(self._guessing)
        self._guessing.add_done_callback(self._over)

    async def _after(self, before: set[asyncio.Task[None]], guessing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if before:
            await asyncio.wait(before)
        await guessing()

    def _stop(self) -> None:
        if self._guessing is not None:
            self._guessing.cancel()
            self._guessing = None

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if task is self._guessing:
            self._guessing = None
        if not task.cancelled():
            self._error = self._error or task.exception()

    async def _settle(self) -> None:
        """Wait until nothing is guessed any more; raise what the drafter raised."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._error is not None:
            raise self._error

    async def _guess_on(self, count: int, since_s: float) -> None:
        def guess() -> Steps[bool]:
            began_s = time.perf_counter()
            more = yield from self._lookahead.extend()
            self._ahead.took(time.perf_counter() - began_s)
            return more

        for _ in range(count):
            if not self._ahead.starts(time.perf_counter() - since_s) or not await self._desk.in_between(lambda: guess):
                return

    async def _send_along(self, generation: Generation, channel: Channel) -> None:
        piece: list[Guess] = []
        computed_s = 0.0

        async def send(end: DraftEnd) -> None:
            nonlocal piece, computed_s
            message = generation.piece(piece, computed_s, end)
            piece, computed_s = [], 0.0
            await channel.send(message)

        while True:
            step = await self._desk.in_between(partial(self._brief, time.perf_counter()))
            if step.chain != self._chain:
                if piece:
                    await send(DraftEnd.FAR_ENOUGH)
                generation.begin_guessing(step.upon)
                self._chain = step.chain
            computed_s += step.computed_s
            if isinstance(step.guess, Guess):
                piece.append(step.guess)
                if computed_s >= _PIECE_S or self._news is not None:
                    await send(DraftEnd.FAR_ENOUGH)
                continue
            # A server that has nothing of this stream may be waiting for it: it is told that nothing comes.
            nothing_there = step.guess is DraftEnd.PRICED_OUT and not self._lookahead.handed
            if piece or nothing_there or step.guess is DraftEnd.NOTHING_TO_SAY:
                await send(step.guess)
            computed_s = 0.0
            if self._news is None:
                return

    def _brief(self, asked_s: float) -> Callable[[], Steps[Step]]:
        """The next guess, upon the latest news: on the drafting thread."""
        news, self._news, anew = self._news, None, self._chain is None
        waited_s = time.perf_counter() - asked_s

        def guess() -> Steps[Step]:
            if news is not None:
                self._followed = self._lookahead.follow(news.tokens, news.asked, anew=anew), len(news.tokens)
                self._wanted = news.wanted
            began_s = time.perf_counter()
            guess = yield from self._lookahead.further(self._wanted)
            return Step(guess, *self._followed, waited_s + time.perf_counter() - began_s)

        return guess

    def _timed(self, tokens: list[int], budget: int, price: float) -> Steps[Drafted]:
        began_s = time.perf_counter()
        guesses, end = yield from self._lookahead.draft(tokens, budget, price)
        return Drafted(guesses, end, time.perf_counter() - began_s)
