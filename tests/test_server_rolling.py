"""Rolling rounds in the server: nobody waits for a stream that is decoded alone, and a draft on the side counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from goodspeed.messages import Draft, Verdict
from goodspeed.probing import PROBE_TOKENS
from goodspeed.rounds import Barrier, Rolling
from goodspeed.scheduling import Demand, Plan
from goodspeed_server.live import LiveStream
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import ServerSettings
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text

LONG = 60


def rolling(**changes: object) -> ServerSettings:
    return tiny_settings(scheduler="seconds", rounds={"rounds": "rolling"}, **changes)


def only_stream(server: VerificationServer) -> LiveStream:
    (live,) = server._rounds.live
    return live


async def answer_everything(peer: Peer, guess: list[int], prompt: list[int], limit: int) -> list[int]:
    """Draft from `guess` whenever a verdict asks, be it on the side; returns the text."""
    opened = await peer.open(0, prompt, max_new_tokens=limit)
    text: list[int] = []
    drafted: list[int] = []
    budget, probe = opened.budget, 0
    while len(text) < limit:
        wanted = budget or probe
        if wanted:
            drafted = guess[len(text) : len(text) + wanted]
            await peer.send(Draft(0, len(prompt) + len(text), drafted, b"", 10))
        verdict = await peer.expect(Verdict)
        assert verdict.base == len(prompt) + len(text)
        text += [*drafted[: verdict.accepted], *verdict.tokens]
        budget, probe = verdict.budget, verdict.probe
        if not budget:
            drafted = []
    return text


async def test_the_text_is_the_targets_whoever_drafts() -> None:
    right = target_text(PROMPT, LONG)
    wrong = [(token + 1) % 50 for token in right]
    async with serving(rolling()) as (_, address):
        for guess in (right, wrong, []):
            async with linked(address) as peer:
                assert await answer_everything(peer, guess, PROMPT, LONG) == right


async def test_an_agent_that_says_nothing_is_decoded_alone_and_holds_nobody_up() -> None:
    async with serving(rolling()) as (_, address), linked(address) as silent, linked(address) as other:
        await silent.open(0, PROMPT, max_new_tokens=4, max_draft=0)
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        heard: list[int] = []
        while len(heard) < 4:
            heard += (await silent.expect(Verdict)).tokens
        assert heard == target_text(PROMPT, 4)


@pytest.mark.parametrize("good", [True, False])
async def test_a_draft_on_the_side_teaches_and_is_not_waited_for(good: bool) -> None:
    right = target_text(PROMPT, LONG)
    guess = right if good else [(token + 1) % 50 for token in right]
    # Under plain decoding nothing else can teach the server anything.
    settings = tiny_settings(scheduler="plain", rounds={"rounds": "rolling"})
    async with serving(settings) as (server, address), linked(address) as peer:
        await peer.open(0, PROMPT, max_new_tokens=LONG)
        live = only_stream(server)
        before, probes = live.estimator.alpha, 0
        text: list[int] = []
        while len(text) < LONG:
            verdict = await peer.expect(Verdict)
            assert (verdict.base, verdict.accepted, verdict.budget) == (len(PROMPT) + len(text), 0, 0)
            text += verdict.tokens
            if verdict.probe and len(text) < LONG - 2 * PROBE_TOKENS:
                probes += 1
                on_the_side = guess[len(text) : len(text) + verdict.probe]
                await peer.send(Draft(0, len(PROMPT) + len(text), on_the_side, b"", 10))
        assert probes
        assert text == right
    assert (live.estimator.alpha > before) == good


class Priced:
    """Three tokens for everybody, at a price."""

    needs_no_capacity = True

    def plan(self, demand: Demand, capacity: int) -> Plan:
        return Plan(np.minimum(demand.limit, 3), 0.0, np.full(len(demand), 0.4))


@pytest.mark.parametrize(
    ("rounds", "told", "stretched"),
    [
        ({"rounds": "rolling"}, 400, 6),
        ({"rounds": "rolling", "capacity": 8}, 400, 3),
        ({"rounds": "barrier", "capacity": 8}, 400, 3),
        ({"rounds": "rolling", "early_stop": False}, 0, 3),
    ],
)
async def test_who_heeds_the_price_may_go_further(rounds: dict[str, Any], told: int, stretched: int) -> None:
    """Twice as far as the schedule counts on, where it is the price alone that holds drafts back."""
    right = target_text(PROMPT, LONG)
    async with serving(tiny_settings(rounds=rounds)) as (server, address), linked(address) as peer:
        server._rounds.planner.scheduler = Priced()
        opened = await peer.open(0, PROMPT, max_new_tokens=LONG, max_draft=8)
        budgets, text = [opened.budget], list[int]()
        for priced_out in (False, True, False):
            draft = right[len(text) :][:2]
            await peer.send(Draft(0, len(PROMPT) + len(text), draft, b"", 10, priced_out))
            verdict = await peer.expect(Verdict)
            assert (verdict.accepted, verdict.price_permille) == (2, told)
            text += [*draft, *verdict.tokens]
            budgets.append(verdict.budget)
            assert only_stream(server).expected == 3
    assert budgets == [3, 3, stretched, stretched]


async def test_a_draft_that_the_price_ended_shows_no_miss() -> None:
    right = target_text(PROMPT, LONG)
    alphas = {}
    for priced_out in (False, True):
        async with serving(tiny_settings(rounds={"rounds": "rolling"})) as (server, address), linked(address) as peer:
            server._rounds.planner.scheduler = Priced()
            await peer.open(0, PROMPT, max_new_tokens=LONG)
            text: list[int] = []
            for _ in range(8):
                draft = right[len(text) :][:2]
                await peer.send(Draft(0, len(PROMPT) + len(text), draft, b"", 10, priced_out))
                text += [*draft, *(await peer.expect(Verdict)).tokens]
            alphas[priced_out] = only_stream(server).estimator.alpha
    assert alphas[True] > 0.9
    assert alphas[False] == pytest.approx(2 / 3, abs=0.05), "two hits and, behind them, nothing to say"


@pytest.mark.parametrize(
    ("scheduler", "rounds", "expected"),
    [
        ("auto", "auto", ("seconds", Rolling)),
        ("auto", "barrier", ("goodspeed", Barrier)),
        ("auto", "rolling", ("seconds", Rolling)),
        ("goodspeed", "auto", ("goodspeed", Barrier)),
        ("seconds", "barrier", ("seconds", Barrier)),
    ],
)
async def test_what_auto_stands_for(scheduler: str, rounds: str, expected: tuple[str, type]) -> None:
    async with serving(tiny_settings(scheduler=scheduler, rounds={"rounds": rounds})) as (server, _):
        assert (server.snapshot().scheduler, type(server._rounds._rounds)) == expected
