"""What a server makes of an agent that says it drafts with something else from now on."""

from __future__ import annotations

import asyncio

import pytest

from goodspeed.errors import TokenizerMismatch
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Draft, Redraft, Verdict
from goodspeed.stream import Transcript
from goodspeed_server import intake
from goodspeed_server.live import LiveStream
from goodspeed_server.server import VerificationServer
from tests.serving import Peer, linked, serving, tiny_settings
from tests.tiny_models import VOCAB

PROMPT = [5, 17, 3]


def live_of(server: VerificationServer, number: int) -> LiveStream:
    return next(live for live in server._rounds.live if live.number == number)


async def wrong_draft(peer: Peer, stream: int, transcript: Transcript, budget: int) -> None:
    """Tokens that the tiny target never says one after another."""
    await peer.send(Draft(stream, transcript.length, [VOCAB - 1] * budget))


async def test_a_draft_that_was_here_already_says_nothing_of_the_new_drafter() -> None:
    async with serving() as (server, address), linked(address) as peer, linked(address) as other:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        beside = await other.open(2, PROMPT, max_new_tokens=40)
        while any(map(server._rounds.is_prefilling, server._rounds.live)):
            await asyncio.sleep(0)
        # From here on no round closes before both have drafted.
        mine, theirs = Transcript(PROMPT), Transcript(PROMPT)
        await wrong_draft(peer, 1, mine, opened.budget)
        await peer.send(Redraft("another"))
        # Answers come in order: by this one the server has taken both.
        await peer.send(Draft(9, 0, []))
        assert (await peer.failure()).code == "unknown_stream"
        await wrong_draft(other, 2, theirs, beside.budget)
        verdict = await peer.expect(Verdict)
        assert verdict.accepted == 0
        live = live_of(server, 1)
        assert live.account.drafter == "another"
        assert live.estimator.alpha == pytest.approx(PRIOR_ALPHA)
        mine.apply(verdict, [])
        theirs.apply(await other.expect(Verdict), [])
        await wrong_draft(peer, 1, mine, verdict.budget)
        await wrong_draft(other, 2, theirs, 0)
        await peer.expect(Verdict)
        assert live.estimator.alpha < PRIOR_ALPHA - 0.05


@pytest.mark.parametrize(("least_s", "restarts"), [(1e9, False), (0.0, True)])
async def test_who_says_so_all_the_time_keeps_no_estimate_up(
    least_s: float, restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_REDRAFT_S", least_s)
    async with serving() as (server, address), linked(address) as peer:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        transcript, budget = Transcript(PROMPT), opened.budget
        for number in range(8):
            await peer.send(Redraft(f"draft {number}"))
            await wrong_draft(peer, 1, transcript, budget)
            verdict = await peer.expect(Verdict)
            transcript.apply(verdict, [])
            budget = verdict.budget
        live = live_of(server, 1)
        assert live.account.drafter == "draft 7"
        assert (live.estimator.alpha > PRIOR_ALPHA / 2) == restarts


async def test_a_drafter_of_another_vocabulary_is_refused() -> None:
    async with serving() as (server, address), linked(address) as peer:
        await peer.open(1, PROMPT)
        await peer.send(Redraft("foreign", "another"))
        assert (await peer.failure()).code == TokenizerMismatch.code
        assert [row.drafter for row in server.snapshot().agents] in ([], [""])


async def test_guesses_of_the_old_drafter_are_dropped_where_the_server_does_not_wait() -> None:
    settings = tiny_settings(scheduler="seconds", rounds={"rounds": "rolling", "capacity": 16})
    async with serving(settings) as (server, address), linked(address) as peer:
        await peer.open(1, PROMPT, max_new_tokens=60)
        live = live_of(server, 1)
        account = live.account
        await peer.send(Draft(1, len(PROMPT), [VOCAB - 1] * 4))
        await peer.send(Redraft("another"))
        await peer.send(Draft(9, 0, []))
        while not hasattr(message := await peer.receive(), "code"):
            assert isinstance(message, Verdict)
        assert account.drafter == "another"
        assert len(live.guesses) == 0
