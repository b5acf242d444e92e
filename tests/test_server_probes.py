"""Guesses of an agent whose stream is decoded alone: they are held against the text, and no pass verifies any."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import numpy as np
import pytest

from goodspeed.leads import PROBE_TOKENS
from goodspeed.messages import DraftEnd
from goodspeed.rules import RULES
from goodspeed.verification import DraftDistribution, Rule, pack_q
from goodspeed_server.settings import RoundsName
from tests.serving import linked, serving, tiny_settings
from tests.stepping import TEXT, WRONG, Grants, Stepped, stepped
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

START = len(PROMPT)


@asynccontextmanager
async def decoded(**changes: Any) -> AsyncIterator[Stepped]:
    """A stream of which nothing is verified; in the end its text is the target's."""
    async with stepped(Grants(0), **changes) as stream:
        account = stream.live.account
        yield stream
        await stream.step_to_the_end()
        assert (stream.passes, account.drafted) == (len(TEXT), 0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next guesses are asked for as soon as the last were decided."""
    monkeypatch.setattr("goodspeed.leads.PROBE_EVERY_S", 0.0)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never again once any were decided."""
    monkeypatch.setattr("goodspeed.leads.PROBE_EVERY_S", math.inf)


@pytest.mark.parametrize("good", [True, False])
async def test_they_teach_and_are_not_verified(good: bool) -> None:
    async with decoded() as stream:
        before = stream.live.estimator.alpha
        assert stream.lead == PROBE_TOKENS
        await stream.guess((TEXT if good else WRONG)[:PROBE_TOKENS])
        assert await stream.steps(PROBE_TOKENS) == [1] * PROBE_TOKENS
        assert (stream.live.estimator.alpha > before) == good


@pytest.mark.parametrize("good", [True, False])
async def test_nobody_waits_for_them_and_they_count_however_late_they_come(good: bool) -> None:
    async with decoded() as stream:
        before = stream.live.estimator.alpha
        await stream.steps(PROBE_TOKENS + 3)
        await stream.guess((TEXT if good else WRONG)[:PROBE_TOKENS], START)
        assert (stream.live.estimator.alpha > before) == good


async def test_they_are_asked_for_until_something_came_of_them() -> None:
    async with decoded() as stream:
        for _ in range(3):
            await stream.step()
            assert stream.lead == PROBE_TOKENS
        await stream.guess(TEXT[3:4])
        await stream.step()
        assert stream.lead == 0


@pytest.mark.usefixtures("once")
async def test_they_are_not_asked_for_again_before_it_is_time() -> None:
    async with decoded() as stream:
        await stream.guess(WRONG[:1])
        for _ in range(len(TEXT) - 1):
            await stream.step()
            assert stream.lead == 0


@pytest.mark.usefixtures("at_once")
async def test_they_are_asked_for_again_when_it_is_time_and_never_beyond_the_end() -> None:
    async with decoded() as stream:
        leads = []
        while len(stream.text) < len(TEXT) - 1:
            await stream.guess(TEXT[len(stream.text) :][:1])
            await stream.step()
            leads.append(stream.lead)
        assert leads == [PROBE_TOKENS] * (len(leads) - 4) + [3, 2, 1, 0]


async def test_who_has_no_drafter_is_asked_for_none() -> None:
    async with decoded(max_draft=0) as stream:
        for _ in range(3):
            assert stream.lead == 0
            await stream.step()


@pytest.mark.parametrize("rounds", get_args(RoundsName))
@pytest.mark.parametrize("rule", RULES)
async def test_plain_decoding_asks_for_none(rule: Rule, rounds: RoundsName) -> None:
    settings = tiny_settings(scheduler="plain", rule=rule, rounds={"rounds": rounds})
    async with serving(settings) as (_, address), linked(address) as peer:
        opened = await peer.open(0, PROMPT)
        assert opened.budget == 0
        assert await peer.go_on(opened, PROMPT) == target_text(PROMPT, 8)


async def test_what_is_guessed_unasked_is_held_against_the_text_all_the_same() -> None:
    async with decoded() as stream:
        await stream.guess(WRONG[:1])
        await stream.step()
        assert stream.lead == 0
        before = stream.live.estimator.alpha
        await stream.guess(TEXT[1:3])
        await stream.steps(2)
        assert stream.live.estimator.alpha > before


@pytest.mark.parametrize(("guess", "right"), [(TEXT, True), (WRONG, False)])
async def test_the_ratio_rule_learns_from_what_is_overtaken_how_often_it_matches(guess: list[int], right: bool) -> None:
    async with decoded(rule="ratio") as stream:
        before, matching = stream.live.estimator.alpha, stream.live.matching.alpha
        await stream.guess(guess[:1], q=sure_of(guess[0]))
        await stream.steps(2)
        assert stream.live.estimator.alpha == before
        assert (stream.live.matching.alpha > matching) == right
        assert (stream.live.matching.alpha < matching) == (not right)


@pytest.mark.parametrize(("guess", "better"), [(TEXT, True), (WRONG, False)])
async def test_the_ratio_rule_learns_from_what_is_verified(guess: list[int], better: bool) -> None:
    async with stepped(rule="ratio") as stream:
        before = stream.live.estimator.alpha
        await stream.steps(2)
        assert stream.live.estimator.alpha == before, "nobody was asked in vain"
        # The first two were right, and are overtaken.
        guess = [*TEXT[:2], *guess[2:5]]
        await stream.guess(guess, START, q=b"".join(map(sure_of, guess)))
        assert stream.live.estimator.alpha == before
        assert await stream.steps(1) == [4 if better else 1]
        assert stream.live.account.drafted == 3
        assert (stream.live.estimator.alpha > before) == better
        await stream.step_to_the_end()


def sure_of(token: int) -> bytes:
    """A draft distribution with that token only."""
    return pack_q([DraftDistribution(np.array([token]), np.array([1]))])


BAD = {
    "no token": ([VOCAB], "draft_out_of_range"),
    "no token of any model": ([2**31 - 1], "draft_out_of_range"),
    "no token, behind right ones": ([*TEXT[: PROBE_TOKENS - 1], VOCAB], "draft_out_of_range"),
    "more than its drafter drafts": (TEXT[:9], "draft_too_long"),
    "many too many": ([5] * 1000, "draft_too_long"),
}


@pytest.mark.parametrize("what", BAD)
async def test_one_that_cannot_be_used_is_refused_and_counts_as_a_miss(what: str) -> None:
    tokens, code = BAD[what]
    async with decoded() as stream:
        before = stream.live.estimator.alpha
        await stream.send(tokens)
        await stream.refused(code)
        assert stream.live.account.bad_drafts == 1
        await stream.step()
        assert stream.live.estimator.alpha < before


async def test_a_piece_that_cannot_be_used_takes_nothing_from_those_before_it() -> None:
    async with stepped() as stream:
        await stream.guess(TEXT[:2])
        await stream.send([VOCAB], offset=2)
        await stream.refused("draft_out_of_range")
        assert await stream.steps(2) == [3, 1]


@pytest.mark.parametrize("end", [DraftEnd.FAR_ENOUGH, DraftEnd.NOTHING_TO_SAY])
async def test_pieces_may_not_add_up_to_more_than_its_drafter_drafts(end: DraftEnd) -> None:
    async with stepped() as stream:
        await stream.steps(2)
        await stream.guess(TEXT[:6], START)
        await stream.send(TEXT[6:11], START, offset=6, end=end)
        await stream.refused("draft_too_long")
        assert await stream.steps(2) == [4, 1]
        await stream.guess(TEXT[len(stream.text) :][:8])
        assert await stream.steps(1) == [4]


async def test_nothing_comes_behind_what_was_said_to_be_the_end() -> None:
    async with stepped() as stream:
        await stream.guess(TEXT[:1], end=DraftEnd.NOTHING_TO_SAY)
        for offset in (1, 2):
            await stream.guess(TEXT[1:2], offset=offset)
        assert await stream.steps(2) == [2, 1]


async def test_one_for_a_stream_that_has_ended_is_refused() -> None:
    async with stepped() as stream:
        await stream.step_to_the_end()
        await stream.send(TEXT[1:][:PROBE_TOKENS], START)
        await stream.refused("unknown_stream")


async def test_what_it_says_of_q_is_not_looked_at_where_nothing_depends_on_it() -> None:
    async with decoded() as stream:
        before = stream.live.estimator.alpha
        await stream.guess(TEXT[:PROBE_TOKENS], q=b"\x01nonsense")
        await stream.steps(PROBE_TOKENS)
        assert stream.live.estimator.alpha > before


@pytest.mark.parametrize(("tokens", "q"), [(TEXT[:1], b"\x01nonsense"), ([], b"\x01nonsense"), (TEXT[:2], b"")])
async def test_the_ratio_rule_refuses_a_q_that_cannot_be(tokens: list[int], q: bytes) -> None:
    async with stepped(rule="ratio") as stream:
        await stream.send(tokens, q=q)
        await stream.refused("invalid_q")
        assert await stream.steps(1) == [1]
