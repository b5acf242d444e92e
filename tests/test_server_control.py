"""Live control: what is changed while streams run, and that no text notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from goodspeed.control import (
    Change,
    Changed,
    ControlState,
    Service,
    SetCapacity,
    SetRoundTimeout,
    SetScheduler,
    SetService,
    SetWeight,
)
from goodspeed.credentials import Credentials
from goodspeed.errors import GoodSpeedError, InvalidRequest, Overloaded, Refused
from goodspeed.messages import Control, Draft, Hello, Open, Opened, Verdict, Welcome
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import SCHEDULERS, Demand, FixedS, Plan
from goodspeed.stream import Transcript
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.controlling import Controls, controlling, drained
from goodspeed_server.observer import RoundRecord
from goodspeed_server.server import VerificationServer
from goodspeed_server.tokens import TokenStore
from tests import stepping
from tests.serving import GREEDY, Peer, linked, serving, tiny_settings
from tests.stepping import SlowEngine, stepped
from tests.test_agent_with_server import drafters
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

START = len(PROMPT)
TEXT = target_text(PROMPT, 40)
WRONG = [(token + 1) % VOCAB for token in TEXT]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
PROMPTS = ["w5 w17 w3", "w8", "w1 w2 w3 w4 w5 w6 w7"]
QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)


@contextlib.asynccontextmanager
async def controlled(
    rounds: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[VerificationServer, str, Controls]]:
    """A server behind the paper's barrier, and a link that controls it."""
    how = {"rounds": "auto"} | dict(rounds or {})
    async with (
        asyncio.timeout(180),
        serving(tiny_settings(rounds=how, **settings)) as (server, address),
        controlling(address) as controls,
    ):
        yield server, address, controls


async def until_prefilled(server: VerificationServer) -> None:
    while any(map(server._rounds.is_prefilling, server._rounds.live)):
        await asyncio.sleep(0)


async def heard(peer: Peer) -> None:
    """All that was sent has been dealt with: messages are taken in the order they come."""
    await peer.send(Draft(999, 0, []))
    assert (await peer.failure()).code == "unknown_stream"


def said(state: ControlState) -> list[str]:
    return [str(changed) for changed in state.changed]


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            SetScheduler("goodspede"),
            "scheduler 'goodspede' does not exist: did you mean goodspeed? choose auto, sec",
        ),
        (SetScheduler("lottery"), "scheduler 'lottery' does not exist: choose auto, seconds, goodspeed"),
        (SetScheduler("seconds", -1.0), "fairness is -1.0: it must be 0"),
        (SetScheduler("seconds", float("nan")), "fairness is nan: it must be 0"),
        (SetCapacity(-3), "capacity is -3: it must be 0 to 2,147,483,647, or auto"),
        (SetCapacity(2**31), "capacity is 2147483648: it must be 0 to 2,147,483,647, or auto"),
        (SetScheduler("x" * 300), "a scheduler's name has 200 characters at most"),
        (SetScheduler("goodspeed", fairness=1e7), "fairness is 10000000.0: it must be 0 (throughput) to 1e+06"),
        (SetWeight("edge", 0.0), "weight is 0: it must be above 0 and at most 1,000,000"),
        (SetWeight("edge", float("nan")), "weight is nan: it must be above 0"),
        (SetWeight("edgy", 1.0), "no agent 'edgy' is linked up: there are 'edge', 'wedge'"),
        (SetService("edgy", "drained"), "no agent 'edgy' is linked up: there are 'edge', 'wedge'"),
        (SetRoundTimeout(-1.0), "round-timeout is -1 ms: it must be 0 or above"),
        (SetRoundTimeout(float("inf")), "round-timeout is inf ms: it must be 0 or above, and finite"),
    ],
)
async def test_what_cannot_be_changes_nothing(change: Change, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        controlled() as (server, address, controls),
        linked(address, greet=False) as peer,
        linked(address, greet=False) as other,
    ):
        await peer.greet(name="edge")
        await other.greet(name="wedge")
        before = await controls.ask()
        # The server looks for itself, whatever the other side has looked at.
        with pytest.raises(InvalidRequest) as caught:
            await server._control.obey(change, "a test")
        assert str(caught.value).startswith(sentence)
        with pytest.raises(InvalidRequest) as told:
            await controls.ask(change)
        assert str(told.value) == str(caught.value)
        async with controlling(address) as again:
            assert await again.ask() == before


async def test_the_log_says_once_who_changed_what(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    admin = Credentials(store.create("the boss", "admin"))
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        settings = tiny_settings(tokens=tmp_path / "tokens.json")
        async with serving(settings) as (_, address), controlling(address, admin) as controls:
            for _ in range(2):
                state = await controls.ask(SetCapacity(5))
            await controls.ask()
    assert state.changed == (Changed("capacity", "5", "5"),)
    assert said(state) == ["capacity is 5 already"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("capacity: auto -> 5, by '")
    assert line.endswith("with the token 'the boss'")


async def test_the_log_says_who_asked_for_what_cannot_be(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    admin = Credentials(store.create("the boss", "admin"))
    settings = tiny_settings(tokens=tmp_path / "tokens.json")
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        async with serving(settings) as (_, address), controlling(address, admin) as controls:
            with pytest.raises(InvalidRequest, match="does not exist"):
                await controls.ask(SetScheduler("sceonds"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "with the token 'the boss' is closed: scheduler 'sceonds' does not exist" in line


async def test_an_admins_token_controls_and_no_other(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (_, address):
        for role in ("agent", "monitor"):
            token = Credentials(store.create(f"a {role}", role))
            with pytest.raises(Refused, match="who controls the server needs one of role admin") as caught:
                async with controlling(address, token):
                    raise AssertionError
            assert caught.value.code == "forbidden"
        with pytest.raises(Refused, match="this server wants a token"):
            async with controlling(address):
                raise AssertionError
        async with controlling(address, Credentials(store.create("admin", "admin"))) as controls:
            assert (await controls.ask(SetCapacity(1))).now.capacity == 1


async def test_a_server_that_others_reach_without_tokens_takes_no_orders() -> None:
    """Not even from its own machine: whatever forwards to it would look like that."""
    async with serving(tiny_settings(host="0.0.0.0", insecure=True)) as (_, address):
        local = address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(Refused, match="start it with --tokens, and show an admin's"):
            async with controlling(local):
                raise AssertionError
        async with linked(local) as peer:
            assert await peer.generate(1, PROMPT) == TEXT[:8]


async def test_an_agents_link_does_not_control_and_a_controlling_one_does_not_generate() -> None:
    async with serving() as (_, address):
        async with linked(address) as peer:
            await peer.send(Control(SetCapacity(1)))
            assert (await peer.failure()).code == "protocol_error"
        async with linked(address, greet=False) as peer:
            await peer.send(Hello(1, "control", "x"))
            await peer.expect(Welcome)
            await peer.send(Open(1, PROMPT, START, GREEDY, 8, 4, True))
            assert (await peer.failure()).code == "protocol_error"


async def test_a_server_that_shuts_down_says_so_to_who_waits_for_a_change() -> None:
    async with serving() as (server, address), controlling(address) as controls:
        server._rounds.stop()
        assert server._running is not None
        await asyncio.wait([server._running])
        with pytest.raises(Refused, match="shutting down, and changes nothing any more"):
            await controls.ask(SetCapacity(1))
