"""Rolling rounds in the server: nobody waits for a stream that is decoded alone, and a draft on the side counts."""

from __future__ import annotations

import pytest

from goodspeed.messages import Draft, Verdict
from goodspeed.probing import PROBE_TOKENS
from goodspeed.rounds import Barrier, Rolling
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


@pytest.mark.parametrize(("early_stop", "capacity"), [(True, None), (True, 8), (False, None)])
async def test_agents_are_told_the_price_and_may_then_go_further(early_stop: bool, capacity: int | None) -> None:
    """Twice as far as a draft of average quality pays, unless the operator has set the capacity."""
    rounds = {"rounds": "rolling", "early_stop": early_stop, "capacity": capacity}
    right = target_text(PROMPT, LONG)
    async with serving(tiny_settings(scheduler="seconds", rounds=rounds)) as (server, address), linked(address) as peer:
        opened = await peer.open(0, PROMPT, max_new_tokens=LONG)
        live = only_stream(server)
        asked: list[tuple[int, int, int, int]] = []
        text: list[int] = []
        budget, probe = opened.budget, 0
        while len(text) < LONG - 20:
            if budget or probe:
                await peer.send(Draft(0, len(PROMPT) + len(text), right[len(text) :][: budget or probe], b"", 10))
            verdict = await peer.expect(Verdict)
            text += [*right[len(text) :][: verdict.accepted], *verdict.tokens]
            budget, probe = verdict.budget, verdict.probe
            if budget:
                asked.append((budget, live.expected, live.stream.draft_limit, verdict.price_permille))
    assert text == right[: len(text)]
    assert asked
    for budget, expected, limit, price in asked:
        assert (price > 0) == early_stop
        assert budget == (min(2 * expected, limit) if early_stop and capacity is None else expected)


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
