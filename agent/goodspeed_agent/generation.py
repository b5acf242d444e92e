"""One stream's life: open, draft, hear the verdict, and again, until the target has finished.

`Generation` is the pure part: messages in, messages out. `tokens_of` drives it over a channel and drafts off the event
loop, so that the link is never blocked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from goodspeed.errors import GoodSpeedError, InvalidRequest, Overloaded
from goodspeed.messages import MAX_DRAFT_TOKENS, Close, Draft, Failure, Open, Opened, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Transcript
from goodspeed_agent.backoff import Backoff, Patience
from goodspeed_agent.drafters.interface import DraftSession, Proposal
from goodspeed_agent.link import Channel, Relinked, refusal
from goodspeed_agent.report import Speculation

__all__ = ["Generation", "Request", "tokens_of"]

_log = logging.getLogger(__name__)

_QUEUED_S = 2.0
"""A stream that has not been opened after so long is waiting for others to end."""
_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})
"""What the server calls a draft that it takes for an empty one; the stream goes on."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 128
    max_draft: int = 0
    ignore_eos: bool = False

    def validate(self) -> None:
        """Check every value that can be checked here.

        Raises:
            InvalidRequest: naming the value, and the range it has to be in.
        """
        self.params.validate()
        if not self.prompt:
            raise InvalidRequest("the prompt is empty: it needs at least one token", code="empty_prompt")
        if not 1 <= self.max_new_tokens < 2**31:
            raise InvalidRequest(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or above")
        if not 0 <= self.max_draft <= MAX_DRAFT_TOKENS:
            raise InvalidRequest(f"max_draft is {self.max_draft}: it must be between 0 and {MAX_DRAFT_TOKENS}")


class Generation:
    """The agent's side of a stream.

    Args:
        stream: its number on the link.
        request: validated.
    """

    def __init__(self, stream: int, request: Request) -> None:
        self.stream = stream
        self.request = request
        self.transcript = Transcript(request.prompt)
        self.speculation = Speculation()
        self._drafted: list[int] = []
        self._drafted_upon = -1
        """The length that the draft under way builds on."""

    def opening(self) -> Open:
        """The message that opens the stream, or opens it again from what is committed."""
        self._drafted, self._drafted_upon = [], -1
        return Open(
            self.stream,
            list(self.transcript.tokens),
            self.transcript.prompt_tokens,
            self.request.params,
            self.request.max_new_tokens,
            self.request.max_draft,
            self.request.ignore_eos,
        )

    def draft(self, tokens: list[int], q: bytes = b"", computed_s: float = 0.0) -> Draft:
        """The message that sends a draft upon the committed length."""
        self._drafted, self._drafted_upon = tokens, self.transcript.length
        return Draft(self.stream, self.transcript.length, tokens, q, _microseconds(computed_s))

    def probe(self, tokens: list[int], computed_s: float) -> Draft:
        """The message that sends a draft on the side, which no verdict will answer."""
        return Draft(self.stream, self.transcript.length, tokens, b"", _microseconds(computed_s))

    def draft_refused(self) -> None:
        """The draft under way counts as an empty one; its verdict is still to come."""
        self._drafted = []

    def commit(self, verdict: Verdict) -> list[int]:
        """Take a verdict in.

        Returns:
            The tokens that are new.

        Raises:
            ProtocolError: it does not fit what was drafted and committed.
        """
        answers_draft = verdict.base == self.transcript.length == self._drafted_upon
        drafted = self._drafted if answers_draft else []
        new = self.transcript.apply(verdict, drafted)
        if drafted and new:
            self.speculation.count(len(drafted), verdict.accepted)
        return new

    def draft_due(self, budget: int) -> bool:
        """Whether the server waits for a draft, and none is under way upon the committed length."""
        return budget > 0 and self.transcript.finish is None and self._drafted_upon != self.transcript.length


async def tokens_of(
    generation: Generation,
    channel: Channel,
    session: DraftSession,
    executor: Executor,
    backoff: Backoff,
    on_queued: Callable[[], None] | None = None,
) -> AsyncGenerator[list[int], None]:
    """Generate: yield newly committed tokens as verdicts bring them, then end.

    Leaving early (`aclosing`) closes the stream at the server.

    Args:
        generation: what to generate; holds the transcript and the counters afterwards.
        channel: the stream's end of the link.
        session: the drafter's.
        executor: where drafting runs.
        backoff: how patiently an overloaded server is asked again.
        on_queued: called once if the server has no row for the stream yet.

    Raises:
        Refused: the server refused the stream.
        Overloaded: it had no room for too long.
        LinkLost: the link could not be made again.
        ProtocolError: the server contradicts itself.
    """
    loop = asyncio.get_running_loop()
    patience = Patience(backoff)
    warned = False
    queued = loop.call_later(_QUEUED_S, on_queued or (lambda: None))
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
                case Opened(budget=budget):
                    probe = 0
                    queued.cancel()
                    patience.succeeded()
                case Verdict(budget=budget, probe=probe) as verdict:
                    new = generation.commit(verdict)
                    if new:
                        yield new
            if generation.draft_due(budget):
                guess, computed_s = await _drafted(executor, session, generation, budget)
                await channel.send(generation.draft(guess.tokens, guess.q, computed_s))
            elif probe and generation.transcript.finish is None:
                guess, computed_s = await _drafted(executor, session, generation, probe)
                await channel.send(generation.probe(guess.tokens, computed_s))
    finally:
        queued.cancel()
        channel.close()
        if generation.transcript.finish is None:
            await channel.send(Close(generation.stream))


async def _drafted(
    executor: Executor, session: DraftSession, generation: Generation, budget: int
) -> tuple[Proposal, float]:
    """Draft upon what is committed; also says how many seconds that took."""
    tokens = list(generation.transcript.tokens)

    def draft() -> tuple[Proposal, float]:
        began_s = time.perf_counter()
        return session.draft(tokens, budget), time.perf_counter() - began_s

    return await asyncio.get_running_loop().run_in_executor(executor, draft)


def _microseconds(seconds: float) -> int:
    return min(int(seconds * 1e6), 2**31 - 1)


async def _wait_for_room(patience: Patience, error: GoodSpeedError) -> None:
    """Wait as long as an overloaded server asked for; raise anything else, and that too when it lasts too long."""
    if not isinstance(error, Overloaded):
        raise error
    wait_s = patience.failed(asyncio.get_running_loop().time(), at_least_s=error.retry_after_s)
    if wait_s is None:
        raise error
    await asyncio.sleep(wait_s)
