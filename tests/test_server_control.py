"""Live control: what plans, and how rounds close, is changed while streams run, and no text notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from goodspeed.control import (
    Change,
    SetCapacity,
    SetRoundTimeout,
    SetScheduler,
    SetService,
    SetWeight,
)
from goodspeed.errors import InvalidRequest
from goodspeed.messages import Draft, Verdict, Welcome
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import SCHEDULERS, Demand, FixedS, Plan
from goodspeed.stream import Transcript
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.controlling import controlling
from goodspeed_server.observer import RoundRecord
from tests import stepping
from tests.controls import PROMPTS, QUICK, START, TEXT, WARM, controlled, heard, said, until_prefilled
from tests.serving import GREEDY, linked
from tests.stepping import SlowEngine, stepped
from tests.test_agent_with_server import drafters
from tests.test_server import PROMPT

CHANGES: list[Change] = [
    SetScheduler("goodspeed"),
    SetCapacity(3),
    SetWeight("edge", 4.0),
    SetScheduler("auto"),
    SetService("edge", "drained undrafted"),
    SetScheduler("fixed", fairness=2.0),
    SetService("edge", "served"),
    SetRoundTimeout(200.0),
    SetCapacity(None),
    SetScheduler("seconds"),
    SetWeight("edge", None),
    SetScheduler("random"),
    SetScheduler("seconds"),
    SetService("edge", "drained"),
    SetScheduler("throughput"),
    SetService("edge", "served"),
    SetScheduler("plain"),
    SetScheduler("seconds"),
]


@pytest.mark.parametrize(("rule", "params"), [("coupled", WARM), ("ratio", GREEDY)])
async def test_texts_are_the_same_whatever_is_changed_while_they_are_written(
    rule: Rule, params: SamplingParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round of texts undisturbed, and one with a change every few passes, until all kinds have met all others."""
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)
    requests = [TextRequest(prompt, params, max_new_tokens=80) for prompt in PROMPTS]
    async with controlled(scheduler="auto", rule=rule) as (server, address, controls):
        almost = next(drafter for drafter in drafters() if drafter.name == "almost")
        assert isinstance(almost, ModelDrafter)
        async with Agent(address, almost, name="edge", cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:

            async def texts() -> list[list[int]]:
                return [done.tokens for done in await asyncio.gather(*map(agent.complete, requests))]

            undisturbed = await texts()
            writing = asyncio.create_task(texts())
            while not server._rounds.live:
                await asyncio.sleep(0)
            for change in CHANGES:
                before = server.snapshot().rounds
                state = await controls.ask(change)
                assert state.changed
                while server.snapshot().rounds < before + 2 and not writing.done():
                    await asyncio.sleep(0)
            assert not writing.done(), "the changes were made while texts were written"
            assert await writing == undisturbed
            row = server.snapshot().agents[0]
            assert row.state == "ok", "nobody is blamed for what it was asked for before"
            assert row.accepted > 0


async def test_an_agent_is_told_in_the_same_place_on_every_stream_that_nobody_waits_any_more() -> None:
    async with controlled() as (server, address, controls), linked(address) as peer:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await until_prefilled(server)
        assert opened.budget > 0
        assert said(await controls.ask(SetScheduler("seconds"))) == [
            "scheduler: goodspeed -> seconds", "rounds: barrier -> rolling",
        ]  # fmt: skip
        assert (await peer.expect(Welcome)).waits is False
        asked = await peer.expect(Verdict)
        assert (asked.base, asked.accepted, asked.tokens, asked.finish) == (START, 0, [], None)
        # The draft it owed was never sent, and the server decodes on.
        text: list[int] = []
        while len(text) < 40:
            verdict = await peer.expect(Verdict)
            assert (verdict.base, verdict.accepted) == (START + len(text), 0)
            text += verdict.tokens
        assert text == TEXT
        assert server.snapshot().scheduler == "seconds"
        # Whoever links up from here on is greeted so.
        async with linked(address, greet=False) as other:
            assert (await other.greet()).waits is False


async def test_a_draft_that_is_here_when_the_rounds_change_is_verified_as_guesses(
    records: list[RoundRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)
    async with controlled() as (server, address, controls), linked(address) as peer, linked(address) as slow:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await slow.open(1, [8], max_new_tokens=40)
        await until_prefilled(server)
        await peer.send(Draft(1, START, TEXT[: opened.budget]))
        await heard(peer)
        # The other one's draft is waited for, and this one's is here: no pass has verified anything.
        assert not any(record.drafted for record in records)
        await controls.ask(SetScheduler("seconds"))
        await peer.expect(Welcome)
        assert (await peer.expect(Verdict)).tokens == []
        first = await peer.expect(Verdict)
        assert first.tokens == TEXT[: len(first.tokens)]
        assert 0 < sum(record.drafted for record in records) == sum(record.accepted for record in records)


async def test_what_was_guessed_for_rolling_rounds_is_no_draft_behind_the_barrier_unless_it_begins_there() -> None:
    async with asyncio.timeout(60), stepped(rounds={"rounds": "auto"}) as stream:
        server, peer = stream.server, stream.peer
        await stream.steps(2)
        await server._control.obey(SetCapacity(3), "a test")
        await server._control.obey(SetScheduler("goodspeed"), "a test")
        assert (await peer.expect(Welcome)).waits
        asked = await peer.expect(Verdict)
        assert (asked.base, asked.tokens, asked.budget) == (stream.base, [], 3)
        right, wrong = stepping.TEXT[2:], stepping.WRONG[2:]
        # The continuation of a chain, as it may have been on its way: it would be verified in a wrong place.
        await stream.guess(wrong[:2], offset=2)
        assert server._rounds._rounds.drafting == server._rounds.live
        # The beginning of one, longer than the new budget: it is cut, and its agent not blamed. And the draft that the
        # agent makes in answer, another one: the first that comes counts, for both sides.
        await stream.send(right[:8])
        await stream.send(wrong[:3])
        verdict = await peer.expect(Verdict)
        assert verdict.accepted == 0, "by number it would be counted in another draft"
        assert verdict.tokens == right[:4]
        # A draft that comes too late is answered with what its agent lacks, which does no harm.
        await stream.send(wrong[:3])
        late = await peer.expect(Verdict)
        transcript = Transcript([*PROMPT, *stream.text])
        assert transcript.apply(verdict, wrong[:3]) == right[:4]
        assert transcript.apply(late, []) == []
        assert server.snapshot().agents[0].state == "ok"


async def test_a_new_stream_is_answered_by_number_again() -> None:
    async with controlled(scheduler="seconds") as (_, address, controls), linked(address) as peer:
        await controls.ask(SetScheduler("goodspeed"))
        assert (await peer.expect(Welcome)).waits
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await peer.send(Draft(1, START, TEXT[: opened.budget]))
        verdict = await peer.expect(Verdict)
        assert (verdict.accepted, verdict.tokens) == (opened.budget, [TEXT[opened.budget]])


async def test_a_server_that_was_started_with_a_kind_of_rounds_keeps_it() -> None:
    rolling = controlled({"rounds": "rolling"}, scheduler="seconds")
    async with rolling as (server, address, controls), linked(address) as peer:
        assert said(await controls.ask(SetScheduler("goodspeed"))) == ["scheduler: seconds -> goodspeed"]
        assert not server._rounds.waits
        await heard(peer)  # and no Welcome before that


async def test_a_scheduler_that_fails_takes_no_text_with_it_and_another_can_be_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.py").write_text(
        "import numpy as np\nfrom goodspeed.scheduling import Plan\n\nclass Bad:\n    asked = 0\n"
        "    def plan(self, demand, capacity):\n        self.asked += 1\n"
        "        return Plan(np.minimum(demand.limit, min(1, capacity)) if self.asked < 4 else demand.limit + 1)\n"
    )
    place = f"{tmp_path / 'bad.py'}:Bad"
    async with controlled(scheduler=place) as (server, address, controls), linked(address) as peer:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        assert await peer.go_on(opened, PROMPT, TEXT) == TEXT
        assert server.snapshot().scheduler == f"plain ({place} failed)"
        state = await controls.ask(SetCapacity(5))
        assert (state.now.scheduler, state.at_start.scheduler) == (f"plain ({place} failed)", place)
        failed = [record for record in caplog.records if record.levelname == "ERROR"]
        assert [record.message.partition(":")[0] for record in failed] == ["Bad gave a stream a budget of 5"]
        assert said(await controls.ask(SetScheduler("goodspeed"))) == [
            f"scheduler: plain ({place} failed) -> goodspeed"
        ]
        assert server.snapshot().scheduler == "goodspeed"
        assert (await peer.open(2, PROMPT)).budget > 0


async def test_a_capacity_holds_from_the_next_grant_on(records: list[RoundRecord]) -> None:
    async with controlled({"capacity": 6}) as (server, address, controls), linked(address) as peer:
        opened = await peer.open(1, PROMPT, max_new_tokens=40, max_draft=8)
        assert opened.budget == 6
        assert said(await controls.ask(SetCapacity(2))) == ["capacity: 6 -> 2"]
        assert await peer.go_on(opened, PROMPT, TEXT) == TEXT
        drafted = [record.drafted for record in records if record.streams]
        assert (drafted[0], max(drafted[1:])) == (6, 2)
        assert server.snapshot().capacity == 2
        assert said(await controls.ask(SetCapacity(None))) == ["capacity: 2 -> auto"]


async def test_a_shorter_timeout_ends_a_round_that_waits() -> None:
    async with controlled() as (server, address, controls), linked(address) as peer, linked(address) as silent:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await silent.open(1, [8], max_new_tokens=40)
        await until_prefilled(server)
        await peer.send(Draft(1, START, TEXT[: opened.budget]))
        await heard(peer)
        assert said(await controls.ask(SetRoundTimeout(1.0))) == ["round timeout: 30000 ms -> 1 ms"]
        assert (await peer.expect(Verdict)).accepted == opened.budget


class OfThree(FixedS):
    """Plans for several streams, as it is tried with, and for none that is alone."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        if len(demand) < 3:
            raise ZeroDivisionError("nobody to compare with")
        return super().plan(demand, capacity)


@pytest.mark.parametrize("scheduler", ["seconds", "goodspeed"])
async def test_a_scheduler_that_cannot_plan_for_what_is_open_changes_nothing(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the kind of rounds would change, nor where it would not."""
    monkeypatch.setitem(SCHEDULERS, "of-three", OfThree)
    async with controlled(scheduler=scheduler) as (_, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        before = await controls.ask()
        with pytest.raises(InvalidRequest, match="cannot plan for the streams that are open"):
            await controls.ask(SetScheduler("of-three"))
        async with controlling(address) as again:
            assert await again.ask() == before
        assert await peer.go_on(opened, PROMPT, TEXT) == TEXT
