"""Drives a generation over a channel; drafts off the event loop, so that the link is never blocked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable

from goodspeed.errors import GoodSpeedError, Overloaded
from goodspeed.messages import Close, Failure, Opened, Verdict
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation
from goodspeed_agent.link import Channel, Relinked, refusal
from goodspeed_agent.lookahead import Lookahead

__all__ = ["Drafting", "tokens_of"]

_log = logging.getLogger(__name__)

_QUEUED_S = 2.0
"""A stream that has not been opened after so long is waiting for others to end."""
_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})
"""What the server calls a draft that it takes for an empty one; the stream goes on."""


class Drafting:
    """One stream's drafting: upon a verdict, and ahead of the next.

    Args:
        desk: where the agent drafts.
        lookahead: of the stream.
        ahead: decides how far to draft ahead.
    """

    def __init__(self, desk: Desk, lookahead: Lookahead, ahead: Ahead) -> None:
        self._desk = desk
        self._lookahead = lookahead
        self._policy = ahead
        self._ahead: asyncio.Task[None] | None = None
        self._sent_s: float | None = None

    async def upon(self, tokens: list[int], budget: int, price: float) -> tuple[list[Guess], float]:
        """A draft upon the committed tokens; also says how many seconds it took.

        Args:
            tokens: committed.
            budget: how many tokens at most.
            price: as `Lookahead.draft`.

        Raises:
            Exception: whatever the drafter raised, now or ahead.
        """

        def draft() -> tuple[list[Guess], float]:
            began_s = time.perf_counter()
            return self._lookahead.draft(tokens, budget, price), time.perf_counter() - began_s

        self._make_way()
        drafted = await self._desk.at_once(draft)
        await self._settle()
        return drafted

    def sent(self, budget: int) -> None:
        """The draft is on its way: go on guessing, as far as that pays."""
        self._sent_s = time.perf_counter()
        count = self._policy.tokens(budget)
        if count:
            self._ahead = asyncio.create_task(self._guess_on(count, self._sent_s))

    def answered(self) -> None:
        """The verdict is here, and what is guessed ahead has to make way."""
        if self._sent_s is not None:
            self._policy.waited(time.perf_counter() - self._sent_s)
            self._sent_s = None
        self._make_way()

    async def close(self) -> None:
        """The text is complete, or nobody wants it any more."""
        self._make_way()
        try:
            await self._settle()
        except Exception:
            _log.exception("the drafter failed ahead of a text that did not need it any more")

    def _make_way(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()

    async def _settle(self) -> None:
        """Wait until nothing is guessed ahead any more; raise what the drafter raised."""
        task, self._ahead = self._ahead, None
        if task is None:
            return
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _guess_on(self, count: int, since_s: float) -> None:
        token_s = 0.0
        for _ in range(count):
            began_s = time.perf_counter()
            if not self._policy.starts(began_s - since_s, token_s):
                return
            if not await self._desk.in_between(self._lookahead.extend):
                return
            token_s = time.perf_counter() - began_s


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
                    await channel.send(generation.opening())
                    continue
                case Failure(code=code) as failure if code in _BAD_DRAFT:
                    generation.draft_refused()
                    if not warned:
                        _log.warning("the server cannot use this drafter's drafts: %s", failure.message)
                    warned = True
                    continue
                case Failure() as failure:
                    await _wait_for_room(patience, refusal(failure))
                    await channel.send(generation.opening())
                    continue
                case Opened(budget=budget, price=price):
                    probe = 0
                    queued.cancel()
                    patience.succeeded()
                case Verdict(budget=budget, price=price, probe=probe) as verdict:
                    drafting.answered()
                    new = generation.commit(verdict)
                    if new:
                        yield new
            committed = list(generation.transcript.tokens)
            if generation.draft_due(budget):
                guesses, computed_s = await drafting.upon(committed, budget, price)
                await channel.send(generation.draft(guesses, computed_s))
                drafting.sent(budget)
            elif probe and generation.transcript.finish is None:
                guesses, computed_s = await drafting.upon(committed, probe, 0.0)
                await channel.send(generation.probe(guesses, computed_s))
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
