"""Guesses on their way, against a simulation that moves them one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulated.worlds import ENGINE, edges
from goodspeed.scheduling import Demand, PlainDecoding, Plan, SecondsSched
from goodspeed.simulation import Agent, simulate
from goodspeed.simulation.guessing import Guessing


@given(st.integers(0, 12), st.integers(1, 8), st.integers(0, 5), st.lists(st.tuples(st.integers(1, 9), st.booleans())))
def test_guesses_are_here_and_judged_as_one_by_one(
    run: int, every: int, away: int, passes: list[tuple[int, bool]]
) -> None:
    """The lead is far, so that the agent never stops guessing."""
    guessing = Guessing(lead=10**6)
    guessing.begin(0.0, float(away), float(every), run)
    now = passed = judged = 0
    for gap, verifies in passes:
        now += gap
        arrivals = [at for at in range(now + 1) if at > away and (at - away) % every == 0]
        beyond = max(0, len(arrivals) - passed)
        assert guessing.beyond(4, now) == min(4, beyond)
        budget = min(4, beyond) if verifies else 0
        accepted = sum(1 for number in range(passed, passed + budget) if number < run)
        assert guessing.accepted(budget) == accepted
        passed += accepted + 1
        overtaken = range(judged, min(len(arrivals), passed))
        right = sum(1 for number in overtaken if number < run)
        missed = any(number >= run for number in overtaken)
        judged += len(overtaken)
        assert guessing.overtake(accepted + 1, now) == (right, missed)
        if passed > run:
            assert not guessing.under_way
            return
        due = guessing.next_at(now)
        assert (due is None) == (len(arrivals) > passed)
        assert due is None or due == away + (passed + 1) * every


@pytest.mark.parametrize(("draft_s", "latency_s", "alpha"), [(0.05, 0.1, 0.9), (0.005, 0.3, 0.5), (0.02, 0.0, 0.1)])
def test_hopeless_agents_cost_plain_decoding_next_to_nothing(draft_s: float, latency_s: float, alpha: float) -> None:
    agents = [Agent(draft_s, latency_s, alpha)] * 4
    ours, plain = (
        simulate(agents, ENGINE, scheduler, rounds="rolling", duration_s=20)
        for scheduler in (SecondsSched(), PlainDecoding())
    )
    assert ours.geometric_mean > 0.98 * plain.geometric_mean


@pytest.mark.parametrize("seed", [11, 12])
def test_no_mixture_of_agents_is_worse_off_than_under_plain_decoding(seed: int) -> None:
    ours, plain = (
        simulate(edges(seed), ENGINE, scheduler, rounds="rolling", duration_s=15, seed=seed)
        for scheduler in (SecondsSched(), PlainDecoding())
    )
    assert ours.geometric_mean > 0.98 * plain.geometric_mean


class Hasty(SecondsSched):
    """Waits for nobody."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        return replace(super().plan(demand, capacity), worth_s=None)


def test_waiting_helps_a_lone_near_agent() -> None:
    agent = Agent(draft_s=0.001, latency_s=0.001, alpha=0.6)
    waiting, hasty = (
        simulate([agent], ENGINE, scheduler, rounds="rolling", duration_s=60) for scheduler in (SecondsSched(), Hasty())
    )
    assert waiting.goodput[0] > 1.1 * hasty.goodput[0]
