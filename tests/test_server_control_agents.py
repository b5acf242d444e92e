"""Live control of single agents: weights and drains."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from goodspeed.control import (
    Service,
    SetService,
    SetWeight,
)
from goodspeed.errors import GoodSpeedError, Overloaded
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Draft, Open, Opened, Verdict
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.control import LiveControl
from goodspeed_server.controlling import controlling, drained
from goodspeed_server.live import AgentAccount
from tests.controls import START, TEXT, controlled, heard, said, until_prefilled
from tests.planted import PlantedEngine, make_rounds
from tests.serving import GREEDY, linked
from tests.test_server import PROMPT


async def test_a_draft_that_was_granted_before_a_drain_at_once_is_no_bad_one() -> None:
    async with controlled() as (server, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await until_prefilled(server)
        await controls.ask(SetService("edge", "drained undrafted"))
        await peer.send(Draft(1, START, TEXT[: opened.budget]))
        while not (await peer.expect(Verdict)).finish:
            pass
        await controls.ask(SetService("edge", "served"))
        assert server.snapshot().agents[0].state == "ok"


async def test_a_weight_is_the_agents_until_its_tokens_own_is_put_back() -> None:
    async with controlled() as (server, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        assert said(await controls.ask(SetWeight("edge", 4.0))) == ["weight of 'edge': 1 -> 4"]
        async with linked(address, greet=False) as other:
            await other.greet(name="edge")  # another link of the same name, or the same agent back again
            await heard(other)
            assert [row.weight for row in server.snapshot().agents] == [4.0, 4.0]
            await peer.open(1, PROMPT)
            await until_prefilled(server)
            demand = server._rounds.planner._demand(server._rounds.live)
            assert demand.weight.tolist() == [4.0]
            assert said(await controls.ask(SetWeight("edge", None))) == ["weight of 'edge': 4 -> 1"]
            assert [row.weight for row in server.snapshot().agents] == [1.0, 1.0]


async def test_an_agent_that_is_drained_finishes_and_begins_nothing(tmp_path: Path) -> None:
    async with controlled() as (server, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        assert said(await controls.ask(SetService("edge", "drained"))) == ["agent 'edge': served -> drained"]
        assert server.snapshot().agents[0].state == "drained"
        waiting = asyncio.create_task(drained(controls, "edge"))
        for number, agent in ((2, peer), (1, None)):
            async with linked(address, greet=False) as back:
                await back.greet(name="edge")
                await (agent or back).send(Open(number, PROMPT, START, GREEDY, 8, 4, True))
                refused = await (agent or back).failure()
            assert (refused.code, refused.stream) == ("overloaded", number)
            assert refused.retry_after_s == 10.0
            assert "drains the agent 'edge'" in refused.message
        # What it had begun, here or elsewhere, it may finish.
        async with linked(address, greet=False) as back:
            await back.greet(name="edge")
            await back.send(Open(1, [*PROMPT, *TEXT[:7]], START, GREEDY, 8, 0, True))
            assert (await back.expect(Opened)).base == START + 7
        assert not waiting.done()
        assert await peer.go_on(opened, PROMPT, TEXT) == TEXT
        state = await waiting
        assert [(agent.name, agent.streams, agent.service) for agent in state.agents] == [("edge", 0, "drained")]
        await controls.ask(SetService("edge", "served"))
        assert await peer.generate(3, PROMPT) == TEXT[:8]


async def test_an_agents_user_waits_for_a_short_drain_and_is_told_of_a_long_one(tmp_path: Path) -> None:
    async with controlled() as (_, address, controls):
        for patience_s in (0.0, 5.0):
            backoff = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=patience_s)
            cache = TokenizerCache(tmp_path)
            async with Agent(address, SuffixDrafter(), name="edge", cache=cache, backoff=backoff) as agent:
                await controls.ask(SetService("edge", "drained"))
                with pytest.raises(Overloaded, match="drains the agent 'edge'") as caught:
                    await agent.complete(TextRequest("w5", max_new_tokens=4))
                assert caught.value.retry_after_s == 10.0


async def test_who_waits_for_a_drain_is_told_that_it_was_taken_back() -> None:
    async with controlled() as (_, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        await peer.open(1, PROMPT)
        await controls.ask(SetService("edge", "drained"))
        waiting = asyncio.create_task(drained(controls, "edge"))
        async with controlling(address) as others:
            await others.ask(SetService("edge", "served"))
        with pytest.raises(GoodSpeedError, match="undrained 'edge' meanwhile"):
            await waiting


async def test_a_drain_at_once_waits_for_no_draft_of_the_agent() -> None:
    """Its drafts would be waited for for half a minute."""
    async with controlled() as (server, address, controls), linked(address, greet=False) as peer:
        await peer.greet(name="edge")
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        await until_prefilled(server)
        assert opened.budget > 0
        await controls.ask(SetService("edge", "drained undrafted"))
        text: list[int] = []
        while len(text) < 40:
            verdict = await peer.expect(Verdict)
            assert (verdict.accepted, verdict.budget) == (0, 0)
            text += verdict.tokens
        assert text == TEXT


@pytest.mark.parametrize("service", ["drained", "drained undrafted"])
async def test_who_is_away_may_still_be_served_again(service: Service) -> None:
    async with controlled() as (_, address, controls):
        async with linked(address, greet=False) as peer:
            await peer.greet(name="edge")
            await controls.ask(SetService("edge", service))
            await controls.ask(SetWeight("edge", 2.0))
        while (state := await controls.ask()).agents[0].links:
            await asyncio.sleep(0)
        assert (state.agents[0].weight, state.agents[0].own_weight) == (2.0, None)
        await controls.ask(SetWeight("edge", None))
        assert (await controls.ask(SetService("edge", "served"))).agents == ()


class Name(str):
    """Counts how often names are compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return super().__eq__(other)


async def test_what_is_in_force_is_told_of_many_agents_as_of_few() -> None:
    """Nothing else is done meanwhile."""
    rounds, agents = make_rounds(PlantedEngine(1)), 300
    control = LiveControl(
        rounds, rounds._telemetry, scheduler="plain", fairness=1.0, kind="rolling", announce=lambda: None
    )
    for number in range(agents):
        account = AgentAccount(Name(number), "none", PRIOR_ALPHA, holder=str(number))
        control.joined(account)
        account.standing.distrusted = True
    Name.compared = 0
    state = await control.obey(None, "test")
    assert {(agent.links, agent.distrusted) for agent in state.agents} == {(1, True)}
    assert len(state.agents) == agents
    assert Name.compared < 20 * agents
