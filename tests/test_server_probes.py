"""Drafts on the side, wrong in every way that a peer can send them: it is told, nobody waits, and no text changes.

They are asked for under rolling rounds and the coupled rule alone. A stream that the server decodes waits for nobody,
so here it is made to wait for the test: a pass that carries it runs when it is stepped.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from goodspeed.messages import Draft, Verdict
from goodspeed.probing import PROBE_TOKENS
from goodspeed_server.live import LiveStream
from goodspeed_server.round_loop import RoundLoop
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text
from tests.test_server_bad_input import undisturbed
from tests.test_server_rolling import Priced
from tests.tiny_models import VOCAB

NUMBER = 1000
TEXT = target_text(PROMPT, 24)
WRONG = [(token + 1) % VOCAB for token in TEXT]


class Stepped:
    """A stream that the server decodes, stepwise, and its agent, who answers as a test says."""

    def __init__(self, peer: Peer, rounds: RoundLoop, passes: asyncio.Semaphore) -> None:
        (self.live,) = (live for live in rounds.live if live.number == NUMBER)
        self.rounds = rounds
        self.peer = peer
        self._passes = passes
        self.text: list[int] = []

    @property
    def base(self) -> int:
        return len(PROMPT) + len(self.text)

    async def step(self, drafted: Sequence[int] = ()) -> Verdict:
        """One pass, and what the server says of it and of nothing else."""
        self._passes.release()
        verdict = await self.peer.expect(Verdict)
        assert (verdict.stream, verdict.base) == (NUMBER, self.base)
        self.text += [*drafted[: verdict.accepted], *verdict.tokens]
        return verdict

    async def step_to_the_end(self) -> None:
        while len(self.text) < len(TEXT):
            await self.step()
        assert self.text == TEXT

    async def send(self, tokens: Sequence[int], base: int | None = None, q: bytes = b"") -> None:
        await self.peer.send(Draft(NUMBER, self.base if base is None else base, list(tokens), q, 10))

    async def refused(self, code: str) -> None:
        failure = await self.peer.failure()
        assert (failure.code, failure.stream) == (code, NUMBER)

    async def unanswered(self) -> None:
        """All that was sent has been dealt with, and nothing said: messages are taken in the order they come."""
        await self.peer.send(Draft(NUMBER + 1, 0, []))
        failure = await self.peer.failure()
        assert (failure.code, failure.stream) == ("unknown_stream", NUMBER + 1)


@contextlib.asynccontextmanager
async def stepwise(rounds: RoundLoop) -> AsyncIterator[asyncio.Semaphore]:
    """A pass that could carry the stream waits until it may."""
    passes, gather = asyncio.Semaphore(0), rounds._gather

    async def gather_when_allowed() -> list[LiveStream]:
        if any(live.number == NUMBER for live in rounds._rounds.ready):
            await passes.acquire()
        return await gather()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_gather", gather_when_allowed)
        try:
            yield passes
        finally:
            passes.release()


@contextlib.asynccontextmanager
async def decoded(*, capacity: int = 0, **changes: Any) -> AsyncIterator[Stepped]:
    """Beside a bystander, a stream that has a token; without capacity the server decodes whatever it schedules by."""
    settings = tiny_settings(**{"scheduler": "auto"} | changes, rounds={"rounds": "rolling", "capacity": capacity})
    async with (
        serving(settings) as (server, address),
        undisturbed(address, max_draft=0),
        linked(address) as peer,
        stepwise(server._rounds) as passes,
    ):
        opened = await peer.open(NUMBER, PROMPT, max_new_tokens=len(TEXT))
        assert opened.budget == 0
        stream = Stepped(peer, server._rounds, passes)
        verdict = await stream.step()
        assert verdict.probe == (PROBE_TOKENS if server.snapshot().rule == "coupled" else 0)
        yield stream


BAD_PROBES = {
    "no token": ([VOCAB], "draft_out_of_range"),
    "no token of any model": ([2**31 - 1], "draft_out_of_range"),
    "no token, behind right ones": ([*TEXT[1:PROBE_TOKENS], VOCAB], "draft_out_of_range"),
    "one token too many": (TEXT[1:][: PROBE_TOKENS + 1], "draft_too_long"),
    "many too many": ([5] * 1000, "draft_too_long"),
}


@pytest.mark.parametrize("what", BAD_PROBES)
async def test_one_that_cannot_be_used_is_refused_and_counts_as_a_miss(what: str) -> None:
    tokens, code = BAD_PROBES[what]
    async with decoded() as stream:
        before = stream.live.estimator.alpha
        await stream.send(tokens)
        await stream.refused(code)
        assert stream.live.account.bad_drafts == 1
        await stream.step()
        assert stream.live.estimator.alpha < before
        await stream.step_to_the_end()


async def test_the_first_answer_counts_and_a_repetition_is_dropped() -> None:
    async with decoded() as stream:
        before, base = stream.live.estimator.alpha, stream.base
        await stream.send(TEXT[1:][:PROBE_TOKENS])
        await stream.send(WRONG[1:][:PROBE_TOKENS])
        await stream.send([VOCAB] * 200)
        await stream.unanswered()
        while stream.live.probe is not None and stream.live.probe.base == base:
            await stream.step()
        assert stream.live.estimator.alpha > before
        await stream.step_to_the_end()


async def test_a_repetition_of_one_that_was_refused_is_dropped() -> None:
    async with decoded() as stream:
        await stream.send([VOCAB])
        await stream.refused("draft_out_of_range")
        await stream.send(TEXT[1:][:PROBE_TOKENS])
        await stream.unanswered()
        await stream.step_to_the_end()


async def test_a_repetition_that_is_stale_is_answered_with_what_is_missing() -> None:
    async with decoded() as stream:
        base = stream.base
        await stream.send(TEXT[1:][:PROBE_TOKENS])
        await stream.unanswered()
        await stream.step()
        await stream.send(TEXT[1:][:PROBE_TOKENS], base)
        assert await stream.peer.expect(Verdict) == Verdict(NUMBER, base, 0, TEXT[1:2], 0)
        await stream.step_to_the_end()


async def test_one_upon_less_than_was_asked_for_is_stale_and_the_right_one_may_still_come() -> None:
    async with decoded() as stream:
        before, base = stream.live.estimator.alpha, stream.base
        await stream.send([VOCAB] * 200, base - 1)
        assert await stream.peer.expect(Verdict) == Verdict(NUMBER, base - 1, 0, TEXT[:1], 0)
        # Nobody waits for it: it may come when the text has gone on.
        for _ in range(PROBE_TOKENS + 1):
            await stream.step()
        await stream.send(TEXT[1:][:PROBE_TOKENS], base)
        await stream.unanswered()
        assert stream.live.estimator.alpha > before
        await stream.step_to_the_end()


async def test_one_that_was_given_up_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_server.planner.PROBE_GIVE_UP_S", -math.inf)
    async with decoded() as stream:
        base = stream.base
        assert (await stream.step()).probe == PROBE_TOKENS
        await stream.send([VOCAB] * 200, base)
        assert await stream.peer.expect(Verdict) == Verdict(NUMBER, base, 0, TEXT[1:2], 0)
        await stream.step_to_the_end()


async def test_one_that_nobody_asked_for_is_longer_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_server.planner.PROBE_EVERY_S", math.inf)
    async with decoded() as stream:
        await stream.send([])
        await stream.unanswered()
        assert (await stream.step()).probe == 0
        before = stream.live.estimator.alpha
        await stream.send(TEXT[2:][:PROBE_TOKENS])
        await stream.refused("draft_too_long")
        await stream.step_to_the_end()
        assert stream.live.estimator.alpha == before


async def test_one_for_a_stream_that_has_ended_is_refused() -> None:
    async with decoded() as stream:
        base = stream.base
        await stream.step_to_the_end()
        await stream.send(TEXT[1:][:PROBE_TOKENS], base)
        await stream.refused("unknown_stream")


async def test_one_that_comes_when_a_draft_is_owed_is_not_mistaken_for_that_draft() -> None:
    async with decoded(scheduler="plain", capacity=8) as stream:
        base = stream.base
        stream.rounds.planner.scheduler = Priced()
        assert (await stream.step()).budget == 3
        await stream.send([VOCAB], base)
        # An agent that heard a complaint now would take it for one about the draft that it has sent meanwhile.
        await stream.unanswered()
        assert stream.live.account.bad_drafts == 1
        draft = TEXT[len(stream.text) :][:3]
        await stream.send(draft)
        assert (await stream.step(draft)).accepted == 3
        assert stream.text == TEXT[: len(stream.text)]


async def test_what_it_says_of_q_is_not_looked_at_where_nothing_depends_on_it() -> None:
    async with decoded() as stream:
        before, base = stream.live.estimator.alpha, stream.base
        await stream.send(TEXT[1:][:PROBE_TOKENS], q=b"\x01nonsense")
        await stream.unanswered()
        while stream.live.probe is not None and stream.live.probe.base == base:
            await stream.step()
        assert stream.live.estimator.alpha > before
        await stream.step_to_the_end()


@pytest.mark.parametrize(("tokens", "code"), [(TEXT[1:2], "draft_too_long"), ([], "invalid_q")])
async def test_the_ratio_rule_asks_for_none_and_takes_none(tokens: list[int], code: str) -> None:
    async with decoded(rule="ratio") as stream:
        await stream.send(tokens, q=b"\x01nonsense")
        await stream.refused(code)
        await stream.step_to_the_end()
