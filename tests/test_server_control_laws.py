"""Whatever is changed and whenever agents hear of it: every stream is in one place, and its text is the target's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from goodspeed.control import Change, SetCapacity, SetRoundTimeout, SetScheduler, SetService
from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Draft, Failure, Open, Opened, ServerMessage, Verdict, Welcome
from goodspeed.rounds import Barrier
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Transcript
from goodspeed_server.control import LiveControl
from goodspeed_server.live import AgentAccount
from goodspeed_server.round_loop import RoundLoop
from tests.planted import PlantedEngine, make_rounds
from tests.test_monitor_top import WELCOME

NEW_TOKENS = 12
PROMPT = [1, 2, 3]


class Laggard:
    """An agent of one stream, who hears what it is told one message at a time, whenever a test says so."""

    def __init__(self, rounds: RoundLoop, number: int) -> None:
        self.account = AgentAccount("edge", "none", PRIOR_ALPHA)
        self.inbox: list[ServerMessage] = []
        self.transcript = Transcript(PROMPT)
        self._rounds = rounds
        self._number = number
        self._waited_for = rounds.waits
        self._drafted: list[int] = []
        self._drafted_upon = -1

    def post(self, message: ServerMessage) -> None:
        self.inbox.append(message)

    def open(self) -> None:
        params = SamplingParams()
        self._rounds.open(self, self.account, Open(self._number, PROMPT, len(PROMPT), params, NEW_TOKENS, 4, True))

    def read(self, guess: int) -> None:
        """Hear one message, and draft as it asks for: zeros are right."""
        if not self.inbox:
            return
        match self.inbox.pop(0):
            case Welcome(waits=waits):
                self._waited_for, self._drafted, self._drafted_upon = waits, [], -1
            case Verdict() | Opened() as asking:
                if isinstance(asking, Verdict):
                    here = self._drafted if asking.base == self._drafted_upon else []
                    self.transcript.apply(asking, here)
                if asking.budget and self.transcript.finish is None:
                    self._draft(asking.budget, guess)
            case other:
                # A draft may cross the end of its stream, and nothing else is ever refused.
                assert isinstance(other, Failure), other
                assert other.code == "unknown_stream"

    def _draft(self, budget: int, guess: int) -> None:
        length, offset, tokens = self.transcript.length, 0, [guess] * budget
        if self._waited_for:
            if self._drafted_upon == length:
                return
            self._drafted, self._drafted_upon = tokens, length
        elif self._drafted_upon >= 0 and guess:
            # One that goes on where it was, as far as it knows.
            length, offset = self._drafted_upon, len(self._drafted)
            self._drafted += tokens
        else:
            self._drafted, self._drafted_upon = tokens, length
        with contextlib.suppress(InvalidRequest):  # the stream has ended, which is on its way here
            self._rounds.draft(self, Draft(self._number, length, tokens, 10, offset))


Event = Change | Callable[[Sequence[Laggard]], None]

changes: st.SearchStrategy[Change] = st.one_of(
    st.sampled_from(["seconds", "goodspeed", "fixed", "random", "throughput", "plain"]).map(SetScheduler),
    st.sampled_from(["seconds", "goodspeed"]).map(SetScheduler),
    st.sampled_from([None, 0, 1, 5, 50]).map(SetCapacity),
    st.sampled_from([0.0, 1.0]).map(SetRoundTimeout),
    st.builds(SetService, st.just("edge"), st.sampled_from(["served", "drained", "drained undrafted"])),
)
readings = st.tuples(st.integers(0, 2), st.integers(0, 1))
events = st.lists(changes | readings, max_size=25)


def check(rounds: RoundLoop) -> None:
    """Between two rounds."""
    inside = [*rounds._rounds.ready, *rounds._rounds.drafting]
    prefilling = [live for live in rounds.live if rounds.is_prefilling(live)]
    assert len(set(inside)) == len(inside) == len(rounds._rounds)
    assert set(inside) | set(prefilling) == set(rounds.live)
    assert not set(inside) & set(prefilling)
    assert rounds._rounds.outstanding == sum(live.budget for live in inside)
    assert isinstance(rounds._rounds, Barrier) == rounds.waits
    for live in rounds.live:
        assert 0 <= live.budget <= live.stream.draft_limit
        assert live.budget == 0 or live.account.service != "drained undrafted"
        assert rounds.waits or live.draft is None


async def play(script: Sequence[Change | tuple[int, int]]) -> None:
    engine = PlantedEngine(rows=3)
    rounds = make_rounds(engine, rounds="rolling", round_timeout_s=0.001)
    agents = [Laggard(rounds, number) for number in range(3)]

    def announce() -> None:
        for agent in agents:
            agent.post(replace(WELCOME, waits=rounds.waits))

    control = LiveControl(
        rounds, rounds._telemetry, scheduler="plain", fairness=1.0, kind="auto", announce=announce
    )  # fmt: skip
    running = asyncio.create_task(rounds.run())
    for agent in agents:
        rounds._telemetry.joined(agent.account, 0.0)
        control.joined(agent.account)
        agent.open()
    for event in script:
        if isinstance(event, tuple):
            agents[event[0]].read(event[1])
        else:
            await control.obey(event, "a test")
        await rounds.boundary.reached(lambda: check(rounds))
    async with asyncio.timeout(20):
        while any(agent.transcript.finish is None for agent in agents):
            for agent in agents:
                agent.read(0)
            await asyncio.sleep(0)
    assert [agent.transcript.generated for agent in agents] == [[0] * NEW_TOKENS] * 3
    assert engine.free_rows == 3
    with contextlib.suppress(Overloaded):
        agents[0].open()
        assert agents[0].account.service == "served"
    rounds.stop()
    await running


@given(events)
@settings(max_examples=40)
def test_any_order_of_changes_leaves_every_stream_in_one_place_and_its_text_as_it_was(
    script: list[Change | tuple[int, int]],
) -> None:
    asyncio.run(play(script))
