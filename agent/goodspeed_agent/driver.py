"""Drives a generation over a channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from goodspeed.errors import GoodSpeedError, LinkLost, Overloaded
from goodspeed.messages import Failure, Opened, Queued, Verdict, Welcome
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.channel import Alone, Channel, Relinked
from goodspeed_agent.connecting import refusal
from goodspeed_agent.drafting import Drafting
from goodspeed_agent.generation import Generation
from goodspeed_agent.lookahead import Wanted
from goodspeed_agent.silence import PATIENCE_S, Silence

__all__ = ["NotBegun", "tokens_of"]

_log = logging.getLogger(__name__)

_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})
"""What the server calls a draft that it takes for an empty one; the stream goes on."""
_CROSSED = "unknown_stream"
"""What it answers to a draft of a stream that it has just ended."""


class NotBegun(LinkLost):
    """There is no link, and no server has begun the text: the draft may answer."""


async def tokens_of(
    generation: Generation,
    channel: Channel,
    drafting: Drafting,
    backoff: Backoff,
    waits: Callable[[], bool],
    on_queued: Callable[[int], None] | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> AsyncGenerator[list[int], None]:
    """Generate: yield newly committed tokens as verdicts bring them, then end.

    Leaving early (`aclosing`) closes the stream at the server.

    Args:
        generation: what to generate; holds the transcript and the counters afterwards.
        channel: the stream's end of the link.
        drafting: of this stream.
        backoff: how patiently an overloaded server is asked again.
        waits: whether the server waits for drafts, as it said last; see `messages.Welcome`.
        on_queued: called with the stream's place as long as the server has no row for it: 1 is next.
        patience_s: how long the server may say nothing; see `Silence`.

    Raises:
        Refused: the server refused the stream.
        Overloaded: it had no room for too long.
        NotBegun: there is no link (`channel.Alone`), and nothing of the text yet.
        LinkLost: the link could not be made again, or no server says anything.
        ProtocolError: the server contradicts itself.
    """
    patience, silence = Patience(backoff), Silence(channel, patience_s)
    warned = opened = False
    waited_for = waits()
    try:
        await channel.send(generation.opening())
        while generation.transcript.finish is None:
            match await silence.broken():
                case Relinked():
                    opened = False
                    drafting.lost()
                    waited_for = waits()
                    await channel.send(generation.opening())
                    continue
                case Alone():
                    drafting.lost()
                    if not generation.transcript.generated:
                        raise NotBegun("no server can be reached, and none has begun the text")
                    continue
                case Welcome() as welcome:
                    # What was drafted for the other kind of rounds is on its way; the server says what it wants now.
                    drafting.lost()
                    generation.begin_guessing(-1)
                    waited_for = welcome.waits
                    continue
                case Failure(code=code) as failure if code in _BAD_DRAFT:
                    drafting.lost()
                    generation.draft_refused()
                    if not warned:
                        _log.warning("the server cannot use this drafter's drafts: %s", failure.message)
                    warned = True
                    continue
                case Failure(code=code) if code == _CROSSED and not opened:
                    continue  # why the stream was ended stood before that
                case Failure() as failure:
                    opened = False
                    drafting.lost()
                    if await _room_again(patience, refusal(failure), channel):
                        await channel.send(generation.opening())
                    continue
                case Queued(place=place):
                    patience.succeeded()
                    if on_queued is not None:
                        on_queued(place)
                    continue
                case Opened() as asking:
                    opened = True  # which is no success yet: a server without memory has rows, and commits nothing
                case Verdict() as asking:
                    drafting.answered()
                    new = generation.commit(asking)
                    if asking.finish:
                        drafting.lost()
                    if new:
                        patience.succeeded()
                        yield new
            budget, price = asking.budget, asking.price_percent / 100
            generation.asked(budget)
            if not waited_for:
                if generation.transcript.finish is None:
                    drafting.along(generation, channel, Wanted(budget, price, asking.overtaken))
            elif generation.draft_due(budget):
                committed = list(generation.transcript.tokens)
                drafted = await drafting.upon(committed, budget, price)
                await channel.send(generation.draft(drafted.guesses, drafted.computed_s, drafted.end))
                drafting.sent(budget, generation.room - len(drafted.guesses))
    finally:
        drafting.lost()
        # The server is told first of all: who is cancelled once more meanwhile would leave the stream open there.
        if generation.transcript.finish is None:
            await channel.give_up()
        else:
            channel.close()
        await drafting.close()


async def _room_again(patience: Patience, error: GoodSpeedError, channel: Channel) -> bool:
    """Wait as long as an overloaded server asked for; raise anything else, and that too when it lasts too long.

    Returns:
        Whether to ask the same server again; False if that is of no use: the channel says why.
    """
    if not isinstance(error, Overloaded):
        raise error
    wait_s = patience.failed(asyncio.get_running_loop().time(), at_least_s=error.retry_after_s)
    if wait_s is None:
        raise error
    try:
        async with asyncio.timeout(wait_s):
            await channel.elsewhere()
    except TimeoutError:
        return True
    return False
