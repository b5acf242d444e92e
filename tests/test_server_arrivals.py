"""How drafts came to a round, and whom it waited for: against arithmetic by hand, and on a real server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import Goodput, HitOrMiss
from goodspeed.messages import Draft, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import PlainDecoding
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed_server.arrivals import Arrivals, look_back
from goodspeed_server.live import AgentAccount, DraftWay, LiveStream
from goodspeed_server.observer import RoundRecord
from tests.planted import Agent, make_planner
from tests.serving import linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text

OPENED_AT = 100.0


def stream(name: str, way: DraftWay | None = None, account: AgentAccount | None = None) -> LiveStream:
    agent = Agent(account=account or AgentAccount(name, "none", 0.5))
    served = ServedStream([1, 2], 2, SamplingParams(), 100, 8, 1000, eos_tokens=())
    live = LiveStream(0, agent, agent.account, served, 0, HitOrMiss(), Goodput(0.0, 10.0), Pace())
    live.asked_at = OPENED_AT - 1
    if way is not None:
        live.way = way
    return live


def test_a_straggler_is_named_with_what_it_cost() -> None:
    drafts = [
        stream("quick", DraftWay(0.01, 0.02, OPENED_AT + 0.03)),
        stream("middle", DraftWay(0.02, 0.03, OPENED_AT + 0.05)),
        stream("slow", DraftWay(0.02, 0.18, OPENED_AT + 0.2)),
    ]
    seen = look_back(drafts, [], OPENED_AT, OPENED_AT + 0.2)
    assert (seen.draft_s, seen.network_s) == (0.02, 0.03), "of the one in the middle"
    assert seen.wait_s == pytest.approx(0.15)
    assert seen.slowest == "slow"
    assert seen.held_s == pytest.approx(0.15)
    account = drafts[0].account
    assert (account.draft_s, account.network_s) == (0.01, 0.02)
    assert account.wait_s == pytest.approx(0.17)


def test_one_that_never_came_has_cost_the_whole_wait() -> None:
    drafts = [stream("quick", DraftWay(0.01, 0.02, OPENED_AT + 0.1))]
    seen = look_back(drafts, [stream("gone")], OPENED_AT, OPENED_AT + 0.5)
    assert seen.slowest == "gone"
    assert seen.held_s == pytest.approx(0.4)


def test_nobody_is_a_straggler_among_its_own_streams_or_where_nobody_waited() -> None:
    account = AgentAccount("alone", "none", 0.5)
    ways = [DraftWay(0.0, 0.1, OPENED_AT + 0.1), DraftWay(0.0, 0.9, OPENED_AT + 0.9)]
    own = [stream("alone", way, account) for way in ways]
    assert look_back(own, [], OPENED_AT, OPENED_AT + 0.9).slowest == ""
    early = [stream(name, DraftWay(0.0, 0.1, OPENED_AT - late)) for name, late in (("a", 0.5), ("b", 0.1))]
    assert look_back(early, [], OPENED_AT, OPENED_AT).slowest == "", "the engine was busy until then"
    assert look_back([], [], OPENED_AT, OPENED_AT) == Arrivals()
    assert look_back([stream("unheard")], [], OPENED_AT, OPENED_AT) == Arrivals()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_without_the_straggler_the_round_would_have_closed_so_much_sooner(late_s: list[float]) -> None:
    def closes_at(late: list[float]) -> float:
        return max([OPENED_AT, *(OPENED_AT + one for one in late)])

    drafts = [stream(f"{n}", DraftWay(0.0, 1.0, OPENED_AT + one)) for n, one in enumerate(late_s)]
    seen = look_back(drafts, [], OPENED_AT, closes_at(late_s))
    sooner = [closes_at(late_s) - closes_at(late_s[:n] + late_s[n + 1 :]) for n in range(len(late_s))]
    if len(late_s) == 1:
        assert (seen.slowest, seen.held_s) == ("", 0.0), "it held up nobody else"
    else:
        assert seen.held_s == pytest.approx(max(sooner), abs=1e-9)
        if seen.slowest:
            assert sooner[int(seen.slowest)] == max(sooner)
    assert seen.wait_s >= 0


@given(st.floats(0, 1e3), st.floats(-1e3, 1e4))
def test_an_agent_cannot_claim_more_than_was_seen_to_pass(elapsed_s: float, computed_s: float) -> None:
    way = DraftWay.of(elapsed_s, computed_s, now=5.0)
    assert 0 <= way.draft_s <= elapsed_s
    assert way.network_s >= 0
    assert way.draft_s + way.network_s == pytest.approx(elapsed_s)


def test_pieces_have_ways_of_their_own_and_one_upon_a_forgotten_length_has_none() -> None:
    planner, live = make_planner(PlainDecoding()), stream("guessing")
    planner.guessed(live, Draft(0, 2, [1], computed_us=1000), now=5000.0)
    assert live.way == DraftWay(), "the server does not remember when it told its agent of that length"
    live.told.append((3, 5000.0))
    planner.guessed(live, Draft(0, 3, [1], computed_us=1000), now=5000.5)
    assert live.way == pytest.approx((0.001, 0.499, 5000.5))
    planner.guessed(live, Draft(0, 3, [2], computed_us=1000, offset=1), now=5000.75)
    assert live.way == pytest.approx((0.001, 0.249, 5000.75))


async def test_a_real_round_names_the_link_it_waited_for(records: list[RoundRecord]) -> None:
    settings = tiny_settings(max_streams=2, rounds={"rounds": "barrier", "round_timeout_s": 60.0, "capacity": 8})
    prompt = PROMPT[:1]  # so that nothing has to be prefilled, and both are in the first round
    text = target_text(prompt, 8)
    async with (
        serving(settings) as (server, address),
        linked(address, greet=False) as quick,
        linked(address, greet=False) as slow,
    ):
        await quick.greet(name="quick")
        await slow.greet(name="slow")
        opened = {peer: await peer.open(0, prompt, max_new_tokens=8, max_draft=2) for peer in (quick, slow)}
        for peer in (quick, slow):
            await peer.send(Draft(0, opened[peer].base, text[: opened[peer].budget], computed_us=50))
        verdicts = {peer: await peer.expect(Verdict) for peer in (quick, slow)}
        for peer in (quick, slow):
            begun = verdicts[peer].base + verdicts[peer].accepted + len(verdicts[peer].tokens)
            done = begun - len(prompt)
            await peer.send(Draft(0, begun, text[done : done + verdicts[peer].budget], computed_us=50))
            if peer is quick:  # its draft is here before the other's is sent
                await peer.send(Draft(9, 0, []))
                assert (await peer.failure()).code == "unknown_stream"
        await slow.expect(Verdict)
        snapshot = server.snapshot()
    waited = [row for row in snapshot.recent if row.slowest]
    assert waited
    assert waited[-1].slowest == "slow"
    assert waited[-1].held_ms > 0
    assert {row.name for row in snapshot.agents if row.network_ms > 0} == {"quick", "slow"}
    assert [row.number for row in snapshot.recent] == list(range(1, snapshot.rounds + 1))
    assert records[-1].arrivals.slowest == "slow"
