"""Parked streams: the store by itself, and the rows that others get as if nothing were parked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import Overloaded
from goodspeed.estimation import PRIOR_ALPHA, Goodput, HitOrMiss
from goodspeed.messages import Open, Opened, Queued, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.verification import Judgement
from goodspeed_server.allowance import Allowance
from goodspeed_server.live import AgentAccount, LiveStream, RowUse
from goodspeed_server.parking import Parked, Parking
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.sessions import Sessions
from tests.planted import Agent, Held, PlantedEngine, make_rounds

KEEP_S = 30.0
SESSION = ("", b"0123456789abcdef")


def parked(number: int = 0, *, since: float = 0.0, tokens: Sequence[int] = (1,), cached: int = 0) -> Parked:
    return Parked(
        (SESSION, number), 0, RowUse(), list(tokens), 1, cached, "agent", "none", HitOrMiss(), HitOrMiss(), Pace(),
        PRIOR_ALPHA, since,
    )  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(["park", "take", "reclaim", "pass", "wait"]), st.integers(0, 2), st.floats(0, 20)),
        max_size=40,
    )
)
def test_the_oldest_goes_first_and_nobody_stays_longer_than_was_said(actions: list[tuple[str, int, float]]) -> None:
    parking, here, now = Parking(KEEP_S), dict[int, Parked](), 0.0
    for action, number, seconds in actions:
        if action == "park" and number not in here:
            here[number] = parked(number, since=now)
            parking.park(here[number])
        elif action == "take" and number in here:
            assert parking.find((SESSION, number)) is here[number]
            parking.take(here.pop(number))
        elif action == "reclaim":
            idle = [number for number, one in here.items() if not one.use.in_pass]
            assert parking.reclaim() is (here.pop(idle[0]) if idle else None)
        elif action == "pass":
            for one in list(here.values())[: number + 1]:
                one.use.in_pass = not one.use.in_pass
        elif action == "wait":
            now += seconds
            over = [one for one in here.values() if now - one.since >= KEEP_S]
            due = parking.expires_at
            assert (due is not None and due <= now) == bool(over)
            assert parking.expire(now) == over
            here = {number: one for number, one in here.items() if one not in over}
        assert len(parking) == len(here)
        assert parking.expires_at == min((one.since + KEEP_S for one in here.values()), default=None)
        assert [parking.find((SESSION, number)) for number in range(3)] == [here.get(number) for number in range(3)]
        assert parking.find((("other", SESSION[1]), number)) is None
    parking.expire(math.inf)
    assert len(parking) == 0


few = st.lists(st.integers(0, 1), min_size=1, max_size=8)


@given(few, few, st.integers(0, 8))
def test_as_much_is_kept_as_both_transcripts_and_the_row_have(ours: list[int], theirs: list[int], cached: int) -> None:
    most = min(cached, len(ours) - 1)
    kept = parked(tokens=ours, cached=most).cached_of(theirs)
    usable = [size for size in range(most + 1) if size < len(theirs) and ours[:size] == theirs[:size]]
    assert kept == max(usable)


def test_what_was_learned_of_a_drafter_is_the_same_drafters() -> None:
    def live(drafter: str) -> LiveStream:
        agent = Agent(account=AgentAccount("agent", drafter, PRIOR_ALPHA, session=SESSION))
        served = ServedStream([1, 2, 3], 2, SamplingParams(), 9, 4, 64, eos_tokens=(), cached=2)
        return LiveStream(0, agent, agent.account, served, 5, HitOrMiss(), Goodput(0.0, 10.0), Pace())

    before = live("suffix")
    before.account.prior_alpha = 0.9
    for _ in range(20):
        before.estimator.observe(4, Judgement(4, 0))
    before.pace.observe(4, 0.5, 0.4)
    kept = Parked.of(before, SESSION, now=1.0)
    again, other = live("suffix"), live("model")
    kept.hand_over(again)
    assert (again.estimator, again.pace) == (before.estimator, before.pace)
    assert again.account.prior_alpha == 0.9
    assert again.account.pace.draft_s == before.pace.draft_s != Pace().draft_s
    fresh = other.estimator
    kept.hand_over(other)
    assert other.estimator is fresh
    assert other.account.prior_alpha == PRIOR_ALPHA
    assert other.use is again.use is before.use
    assert other.stream.cached == 2

    # Another drafter was announced, and the last draft in the pass was still the old one's.
    before.account.drafter, before.fresh = "model", HitOrMiss(0.1)
    assert Parked.of(before, SESSION, now=1.0).estimator.alpha == pytest.approx(0.1)


def test_a_session_has_one_link() -> None:
    class Line:
        ended = False

        def supersede(self) -> None:
            self.ended = True

    sessions, first, second, late, other = Sessions(), Line(), Line(), Line(), Line()
    assert sessions.begin(SESSION, 1, first)
    assert sessions.begin(("edge", SESSION[1]), 0, other), "another token's is another session"
    assert sessions.begin(SESSION, 3, second)
    assert not sessions.begin(SESSION, 2, late)
    assert [line.ended for line in (first, second, late, other)] == [True, False, False, False]
    for gone in (first, late):
        sessions.end(SESSION, gone)
        assert len(sessions) == 2, "the newest link has not gone"
    sessions.end(SESSION, second)
    assert sessions.begin(SESSION, 1, first)


@dataclass
class World:
    """A round loop whose passes a test begins and ends, and agents that lose their links and come back."""

    rows: int
    max_waiting: int
    park_s: float
    now: float = 0.0
    agents: list[Agent] = field(default_factory=list)
    passing: list[LiveStream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = PlantedEngine(self.rows)
        self.rounds: RoundLoop = make_rounds(self.engine, max_waiting=self.max_waiting, park_s=self.park_s)
        self.streams = self.rounds._streams
        self.agents = [self.linked(who) for who in range(AGENTS)]

    def linked(self, who: int) -> Agent:
        account = AgentAccount(f"agent {who}", "none", PRIOR_ALPHA, session=("", bytes([who])))
        return Agent(account=account)

    def act(self, action: str, who: int, number: int) -> bool:
        """Whether it was refused."""
        agent = self.agents[who]
        try:
            match action:
                case "open":
                    agent.open(self.rounds, number)
                case "close":
                    self.rounds.close(agent, number)
                case "lose" | "lose what runs":
                    if action == "lose what runs":
                        for key in self.streams._waiting_of(agent):
                            self.rounds.close(*key)
                    self.rounds.park(agent)
                    self.agents[who] = self.linked(who)
                case "drop":
                    self.rounds.drop(agent)
                    self.agents[who] = self.linked(who)
                case "begin" if not self.passing:
                    self.passing = list(self.rounds.live)
                    for live in self.passing:
                        live.use.in_pass = True
                case "end":
                    passing, self.passing = self.passing, []
                    for live in passing:
                        assert self.streams.pass_over(live) is (live in self.rounds.live)
        except Overloaded:
            return True
        return False

    def served(self) -> list[tuple[str, int]]:
        return sorted((live.account.name, live.number) for live in self.rounds.live)

    def check(self) -> None:
        """Every row is somebody's, or free, and nobody waits for a row that is nobody's."""
        held = [live.row for live in self.rounds.live]
        kept = [one.row for one in self.streams._parking._parked.values()]
        ending = {live.row for live in self.passing if live.use.given_up}
        assert len(set(held) | set(kept) | ending) == len(held) + len(kept) + len(ending)
        assert len(held) + len(kept) + len(ending) + self.engine.free_rows == self.rows
        if self.rounds.waiting:
            assert self.engine.free_rows == 0
            assert all(one.use.in_pass for one in self.streams._parking._parked.values())


AGENTS = 3
whos, numbers = st.integers(0, AGENTS - 1), st.integers(0, 2)
between_passes = st.tuples(st.sampled_from(["open", "open", "open", "close", "lose what runs", "drop"]), whos, numbers)
in_passes = st.tuples(st.sampled_from(["open", "open", "close", "lose", "begin", "end"]), whos, numbers)


def duplicate(world: World, action: str, who: int, number: int) -> bool:
    key = (world.agents[who], number)
    return action == "open" and (key in world.streams._live or key in world.streams._admission)


@given(st.integers(1, 3), st.integers(0, 2), st.lists(between_passes, max_size=40))
def test_parking_refuses_and_delays_nobody(rows: int, max_waiting: int, actions: list[tuple[str, int, int]]) -> None:
    """Served, waiting and refused are as in a world that parks nothing, as long as nobody is back in the queue."""

    async def run() -> None:
        parking, twin = World(rows, max_waiting, KEEP_S), World(rows, max_waiting, 0.0)
        for action, who, number in actions:
            if duplicate(twin, action, who, number):
                continue
            assert parking.act(action, who, number) == twin.act(action, who, number)
            assert parking.served() == twin.served()
            assert parking.rounds.waiting == twin.rounds.waiting
            assert twin.rounds.parked == 0
            parking.check()

    asyncio.run(run())


@given(st.integers(1, 3), st.integers(0, 2), st.lists(in_passes, max_size=60))
def test_a_row_at_which_a_pass_is_goes_to_nobody_but_its_own_stream(
    rows: int, max_waiting: int, actions: list[tuple[str, int, int]]
) -> None:
    async def run() -> None:
        world = World(rows, max_waiting, KEEP_S)
        for action, who, number in actions:
            if duplicate(world, action, who, number):
                continue
            whose = {live.row: (live.account.name, live.number) for live in world.passing}
            world.act(action, who, number)
            if action not in ("begin", "end"):
                for live in world.rounds.live:
                    assert whose.get(live.row, (live.account.name, live.number)) == (live.account.name, live.number)
            world.check()
        world.act("end", 0, 0)
        for who in range(AGENTS):
            world.act("drop", who, 0)
        world.streams.give_up_parked(math.inf)
        assert world.engine.free_rows == rows

    asyncio.run(run())


def open_again(agent: Agent, rounds: RoundLoop, tokens: list[int], prompt_tokens: int, **changes: Any) -> None:
    rounds.open(agent, agent.account, Open(0, tokens, prompt_tokens, SamplingParams(), 8, 0, True, **changes))


def known(session: bytes = SESSION[1], **account: Any) -> Agent:
    return Agent(account=AgentAccount("a", "none", PRIOR_ALPHA, session=("", session), **account))


async def test_who_waits_keeps_its_place_while_its_link_is_made_anew() -> None:
    rounds = make_rounds(PlantedEngine(1), max_waiting=2)
    first, before, behind = Agent(), known(), Agent()
    for agent in (first, before, behind):
        agent.open(rounds, 0)
    rounds.park(before)
    assert (rounds.waiting, rounds.parked) == (1, 0)
    after = known()
    after.open(rounds, 0)
    assert after.posted == [Queued(0, 1)]
    rounds.park(after)
    rounds.close(first, 0)
    assert [live.outbox for live in rounds.live] == [behind], "no row waits for who is not there"
    assert rounds.waiting == 0
    rounds.close(behind, 0)
    back = known()
    back.open(rounds, 0)
    assert [live.outbox for live in rounds.live] == [back]
    assert len(rounds._streams._admission.absences) == 0


@pytest.mark.parametrize("leave", [RoundLoop.drop, RoundLoop.park])
async def test_a_place_is_kept_for_nobody_who_left_in_order_or_cannot_be_known_again(leave: Any) -> None:
    rounds = make_rounds(PlantedEngine(1))
    Agent().open(rounds, 0)
    agent = known() if leave is RoundLoop.drop else Agent()
    agent.open(rounds, 0)
    leave(rounds, agent)
    assert (rounds.waiting, len(rounds._streams._admission.absences)) == (0, 0)


async def test_no_place_is_kept_for_longer_than_was_said_nor_while_the_server_goes_away() -> None:
    rounds, now = make_rounds(PlantedEngine(1), park_s=KEEP_S), 0.0
    rounds._streams._clock = lambda: now
    places = rounds._streams._admission.absences
    Agent().open(rounds, 0)
    for session in (b"one", b"two"):
        agent = known(session)
        agent.open(rounds, 0)
        rounds.park(agent)
        now += 1.0
    alarm = rounds._streams._alarm
    assert alarm is not None
    now = KEEP_S
    alarm._run()
    assert len(places) == 1
    rounds.turn_away(Overloaded("the server is going away", retry_after_s=1.0))
    assert len(places) == 0


async def test_who_waited_was_admitted_and_begins_nothing_when_it_is_back() -> None:
    token = Allowance("edge", max_streams=1, tokens_per_minute=5)
    rounds, other = make_rounds(PlantedEngine(1)), Agent()
    other.open(rounds, 0)
    before, after = known(allowance=token), known(allowance=token, service="drained")
    before.open(rounds, 0)
    rounds.park(before)
    assert token.streams == 0
    token.spend(100, 0.0)
    after.open(rounds, 0)
    assert after.posted == [Queued(0, 1)]
    assert token.streams == 1


async def test_who_lost_its_row_to_others_has_a_place_and_begins_nothing() -> None:
    token = Allowance("edge", tokens_per_minute=5)
    rounds, other, behind = make_rounds(PlantedEngine(1)), Agent(), Agent()
    before, after = known(allowance=token), known(allowance=token)
    before.open(rounds, 0)
    token.spend(100, 0.0)
    rounds.park(before)
    other.open(rounds, 0)
    assert rounds.parked == 0
    behind.open(rounds, 0)
    with pytest.raises(Overloaded, match="5 tokens a minute"):
        open_again(after, rounds, [2, 1], 2)
    after.open(rounds, 0)
    assert after.posted == [Queued(0, 1)], "it has waited for longer"


async def test_a_drained_agent_goes_on_with_what_is_parked_and_begins_nothing() -> None:
    rounds = make_rounds(PlantedEngine(2))
    before, after = (Agent(account=AgentAccount("a", "none", PRIOR_ALPHA, session=SESSION)) for _ in range(2))
    open_again(before, rounds, [1, 2], 2)
    rounds.park(before)
    after.account.service = "drained"
    with pytest.raises(Overloaded, match="begins no new text"):
        open_again(after, rounds, [2, 1], 2)
    assert rounds.parked == 1, "who is refused may still come back for it"
    open_again(after, rounds, [1, 2], 2)
    assert (len(rounds.live), rounds.parked) == (1, 0)


async def test_nothing_is_parked_for_who_has_no_session_nor_once_the_rounds_are_over() -> None:
    rounds = make_rounds(PlantedEngine(2))
    stranger, known = Agent(), Agent(account=AgentAccount("a", "none", PRIOR_ALPHA, session=SESSION))
    stranger.open(rounds, 0)
    rounds.park(stranger)
    known.open(rounds, 0)
    assert rounds.parked == 0
    rounds.stop()
    rounds.park(known)
    assert (rounds.live, rounds.parked) == ((), 0)


@pytest.mark.parametrize("back", [True, False])
async def test_what_a_pass_brings_for_a_stream_that_was_parked_is_void(back: bool) -> None:
    held = Held()
    rounds = make_rounds(PlantedEngine(rows=1, cost=held))
    before, after, other = (Agent(account=AgentAccount("a", "none", PRIOR_ALPHA, session=SESSION)) for _ in range(3))
    other.account.session = None
    open_again(before, rounds, [1], 1)
    async with asyncio.timeout(60):
        running = asyncio.create_task(rounds.run())
        await held.began.wait()
        try:
            rounds.park(before)
            if back:
                open_again(after, rounds, [1], 1)
                assert [live.row for live in rounds.live] == [0], "nobody waits for the row, and the pass is its own"
                assert isinstance(after.posted[-1], Opened)
            other.open(rounds, 0)
            assert (len(rounds.live), rounds.waiting) == (int(back), 1), "not before the pass is over"
            if not back:
                open_again(after, rounds, [1], 1)
                assert rounds.waiting == 2, "who waits for the row goes first"
        finally:
            rounds.stop()
            held.go_on.set()
        await running
    assert not any(isinstance(message, Verdict) for message in [*before.posted, *after.posted])
    assert [live.outbox for live in rounds.live] == [after if back else other]
    assert rounds.live[0].stream.tokens == [1]
