"""Nobody keeps others waiting by what it lets hope for: rolling rounds beside an agent that copies verdicts."""

from __future__ import annotations

import pytest

from goodspeed.estimation import PRIOR_ALPHA, Goodput
from goodspeed.messages import Draft
from goodspeed.rounds import Prospect, Rolling
from goodspeed.rounds.patience import ALLOWANCE_PASSES, REGAINED_PASSES
from goodspeed.sampling import SamplingParams
from goodspeed.stream import ServedStream
from goodspeed.timing import EngineMeter, Pace, PassCost, PassSample
from goodspeed.utility import AlphaFair
from goodspeed.verification import Judgement
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.settings import RoundSettings, what_auto_means
from tests.planted import PASS_S, Agent, PlantedEngine, make_planner, make_rounds
from tests.stepping import Grants

TOKEN = 5
ROUNDS = 100
PROMPT = 2
PASSES = [PassSample(rows, tokens, PASS_S * (1.0 + 0.001 * tokens)) for rows, tokens in ((1, 1), (8, 8), (8, 64))]
"""That tokens cost next to nothing, so that many guesses are worth a lot."""
DUE_S = 0.8 * PASS_S
"""A round waits for no longer than a pass takes."""


def stream(planner: Planner, max_draft: int, holder: str = "") -> LiveStream:
    agent = Agent(account=AgentAccount("agent", "none", PRIOR_ALPHA, holder=holder))
    served = ServedStream([1] * PROMPT, PROMPT, SamplingParams(), 5000, max_draft, 10_000, eos_tokens=())
    return LiveStream(
        0, agent, agent.account, served, 0, planner.estimator(0.6), Goodput(0.0, 1 / PASS_S), agent.account.pace.copy()
    )


def copy(planner: Planner, live: LiveStream, now: float) -> None:
    """Say what is wrong, so that guesses begin anew and are due again; and then what was told, which is right.

    That was computed in no time, so that further guesses look near. What is claimed of the first makes it due shortly
    before a round would have waited for too long. In the end there is nothing left of all this but what it promises.
    """
    elapsed_s, base = min((now - at, length) for length, at in live.told if length < live.stream.length)
    wrong = [TOKEN] * (live.stream.length - base - 1) + [9]
    say(planner, live, Draft(0, base, wrong, round(1e6 * (elapsed_s - DUE_S))), now)
    for _ in range(30):
        say(planner, live, Draft(0, PROMPT, live.stream.tokens[PROMPT:][:1000]), now)
    say(planner, live, Draft(0, PROMPT, []), now)


def say(planner: Planner, live: LiveStream, draft: Draft, now: float) -> None:
    live.guesses.take(draft.base, draft.offset, draft.tokens)
    planner.guessed(live, draft, now)


def seconds(others: int, *, hostile: bool) -> float:
    """How long the rounds take in which streams that are decoded plainly share an engine with one more."""
    scheduler = what_auto_means("auto", "rolling", AlphaFair()).scheduler
    planner = Planner(scheduler, "coupled", RoundSettings(rounds="rolling"), EngineMeter(PassCost(PASSES)))
    rounds: Rolling[LiveStream] = Rolling(load=lambda: planner.meter.load, holder=lambda live: live.account.holder)
    hoped_for = stream(planner, 64)
    streams, now = [hoped_for, *(stream(planner, 0) for _ in range(others))], 0.0
    for turn in range(ROUNDS):
        planner.plan(streams, planner.capacity(streams), now)
        for live in streams:
            live.told.append((live.stream.length, now))
            rounds.expect(live, live.budget, now, planner.prospect(live, now))
        while not rounds.close(now):
            closes_at = rounds.closes_at()
            assert closes_at is not None
            now = closes_at
        now += PASS_S
        if hostile and turn > 32:
            copy(planner, hoped_for, now)
        for live in streams:
            judgement = Judgement(0, TOKEN)
            planner.committed(live, [], judgement, live.stream.commit([], judgement), now)
    return now


@pytest.mark.parametrize("others", [1, 3])
def test_copies_of_verdicts_let_nobody_wait(others: int) -> None:
    assert seconds(others, hostile=False) == pytest.approx(ROUNDS * PASS_S)
    assert seconds(others, hostile=True) < 1.05 * ROUNDS * PASS_S


def test_who_is_idle_again_and_again_and_says_nothing_when_asked_is_waited_for_as_long_as_anybody_is() -> None:
    planner = make_planner(Grants(3, worth_s=1.0))
    rounds: Rolling[LiveStream] = Rolling(load=lambda: planner.meter.load, holder=lambda live: live.account.holder)
    silent, now, waited_s = stream(planner, 64), 0.0, 0.0
    silent.pace = Pace(0.1 * PASS_S, DUE_S - 0.1 * PASS_S)
    for _ in range(ROUNDS):
        silent.lead = 0
        planner.plan([silent], 64, now)
        rounds.expect(silent, silent.budget, now, planner.prospect(silent, now))
        opened_at = now
        while not rounds.close(now):
            closes_at = rounds.closes_at()
            assert closes_at is not None
            now = closes_at
        waited_s += now - opened_at
        now += PASS_S
    assert ALLOWANCE_PASSES * PASS_S < waited_s < (ALLOWANCE_PASSES + ROUNDS * REGAINED_PASSES) * PASS_S


def test_what_one_link_of_a_holder_has_others_wait_for_in_vain_is_held_against_its_next() -> None:
    loop = make_rounds(PlantedEngine(rows=1), rounds="rolling")
    rounds, promise, now = loop._granting.make_rounds(), Prospect(DUE_S, PASS_S, chance=0.9, worth_s=20 * PASS_S), 0.0

    def is_waited_for(live: LiveStream) -> bool:
        nonlocal now
        rounds.expect(live, 1, now, promise)
        opened_at = now
        while not rounds.close(now):
            closes_at = rounds.closes_at()
            assert closes_at is not None
            now = closes_at
        rounds.leave(live)
        return now > opened_at

    links = [stream(loop.planner, 8, holder="token a") for _ in range(4)]
    assert [is_waited_for(live) for live in links] == [True, True, False, False]
    assert is_waited_for(stream(loop.planner, 8, holder="token b"))
