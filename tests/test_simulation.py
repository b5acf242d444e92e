"""The simulated world: the same seed, the same run; and what must hold in any world holds in this one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulated.grid import Axes, walk
from bench.simulated.worlds import ENGINE, POLICIES, edges
from goodspeed.estimation import expected_tokens
from goodspeed.scheduling import FixedS, PlainDecoding, SecondsSched
from goodspeed.simulation import Agent, Engine, simulate
from goodspeed.simulation.acceptance import hits_in_a_row, judge_by_ratio
from goodspeed.verification import Judgement


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [
        simulate(edges(1), ENGINE, SecondsSched(), rounds="rolling", duration_s=10, seed=3, keep_records=True)
        for _ in range(2)
    ]
    assert runs[0].records == runs[1].records
    other = simulate(edges(1), ENGINE, SecondsSched(), rounds="rolling", duration_s=10, seed=4, keep_records=True)
    assert other.records != runs[0].records


def test_plain_decoding_takes_a_pass_a_token() -> None:
    result = simulate(edges(0), ENGINE, PlainDecoding(), rounds="rolling", duration_s=30)
    assert result.goodput == pytest.approx(1 / ENGINE.seconds(8, 8), rel=0.01)


def test_a_lone_agent_goes_round_as_computed() -> None:
    agent = Agent(draft_s=0.01, latency_s=0.02, alpha=0.7)
    result = simulate([agent], ENGINE, FixedS(4), rounds="barrier", capacity=4, duration_s=400, seed=1)
    cycle_s = 0.04 + 4 * 0.01 + ENGINE.seconds(1, 5)
    assert result.goodput[0] == pytest.approx(expected_tokens(0.7, 4) / cycle_s, rel=0.03)


def test_drafting_ahead_hides_drafting_when_the_guess_is_right() -> None:
    agent = Agent(draft_s=0.01, latency_s=0.02, alpha=1 - 1e-12, drafts_ahead=True)
    result = simulate([agent], ENGINE, FixedS(4), rounds="barrier", capacity=4, duration_s=100)
    assert result.goodput[0] == pytest.approx(5 / (0.04 + ENGINE.seconds(1, 5)), rel=0.02)


def test_a_barrier_with_a_deadline_does_not_wait_for_ever() -> None:
    agents = [Agent(0.004, 0.01, 0.8), Agent(0.004, 1.0, 0.8)]

    def near(round_timeout_s: float) -> float:
        result = simulate(
            agents, ENGINE, FixedS(2), rounds="barrier", capacity=4, round_timeout_s=round_timeout_s, duration_s=60
        )
        return float(result.goodput[0])

    alone = simulate(agents[:1], ENGINE, FixedS(2), rounds="barrier", capacity=2, duration_s=60)
    assert near(math.inf) < 0.1 * alone.goodput[0]
    # One deadline for each of the far agent's drafts, and rounds of its own meanwhile.
    assert near(0.1) > 0.6 * alone.goodput[0]


def test_who_joins_and_leaves_is_served_meanwhile_only() -> None:
    agents = [*edges(2), Agent(0.005, 0.01, 0.8, joins_at=8.0, leaves_at=12.0)]
    result = simulate(agents, ENGINE, SecondsSched(), rounds="rolling", duration_s=20, keep_records=True)
    seen = [record.at for record in result.records if 8 in record.streams]
    assert 8.0 < min(seen) < 8.5
    assert 11.5 < max(seen) <= 12.1
    assert result.seconds[8] == pytest.approx(4.0)
    assert result.goodput[8] > 10


def test_a_drop_in_acceptance_takes_the_budget_away_and_a_rise_brings_it_back() -> None:
    agent = Agent(0.002, 0.002, lambda now: 0.02 if 20 <= now < 40 else 0.95)
    result = simulate([agent], ENGINE, SecondsSched(), rounds="rolling", duration_s=60, keep_records=True)

    def mean_budget(since: float, until: float) -> float:
        return float(np.mean([r.budgets[0] for r in result.records if since <= r.at < until]))

    assert mean_budget(10, 20) > 5
    assert mean_budget(25, 40) < 0.5
    assert mean_budget(45, 60) > 5


def test_colocated_drafts_take_the_engines_time() -> None:
    drafter = Engine(fixed_s=0.004, row_s=0.0, token_s=0.0001)
    engine = replace(ENGINE, drafter=drafter)
    agent = Agent(draft_s=0.0, latency_s=0.0, alpha=0.7)
    result = simulate([agent] * 3, engine, FixedS(4), rounds="barrier", duration_s=100, warm_up_s=0.0)
    cycle_s = 4 * drafter.seconds(3, 3) + engine.seconds(3, 15)
    assert result.goodput == pytest.approx(expected_tokens(0.7, 4) / cycle_s, rel=0.05)
    assert result.busy_s == pytest.approx(100, rel=0.01)


def test_drafting_on_the_engine_carries_who_still_drafts() -> None:
    drafter = Engine(fixed_s=1.0, row_s=0.0, token_s=0.1)
    assert Engine(1.0, 0.0, 0.0, drafter=drafter).drafting_s([3, 0, 1]) == pytest.approx(1.2 + 1.1 + 1.1)
    assert Engine(1.0, 0.0, 0.0).drafting_s([3, 0, 1]) == 0.0


@settings(max_examples=30)
@given(st.floats(0.0, 1.0))
def test_tokens_are_accepted_as_often_as_they_are_said_to_be(alpha: float) -> None:
    random = np.random.default_rng(5)
    runs = np.minimum(hits_in_a_row(np.full(4000, alpha), random), 6)
    assert runs.mean() + 1 == pytest.approx(expected_tokens(alpha, 6), rel=0.08)
    judged = judge_by_ratio(np.full(2000, alpha), [6] * 2000, random)
    assert np.mean([one.accepted for one in judged]) + 1 == pytest.approx(expected_tokens(alpha, 6), rel=0.1)
    assert np.mean([one.ratios for one in judged]) == pytest.approx(alpha, abs=0.02)


def test_a_budget_of_nothing_is_judged_too() -> None:
    judged = judge_by_ratio(np.array([0.5, 0.5]), [0, 2], np.random.default_rng(0))
    assert judged[0] == Judgement(0, 0, ())
    assert len(judged[1].ratios or ()) == 2


@pytest.mark.parametrize("seed", range(3))
def test_seconds_beat_rounds_fixed_lengths_and_plain_decoding(seed: int) -> None:
    run = {
        name: POLICIES[name].run(edges(seed), duration_s=20, seed=seed)
        for name in ("seconds", "GoodSpeed-Sched", "best fixed", "plain")
    }
    ours = run["seconds"]
    assert ours.geometric_mean > 1.4 * run["GoodSpeed-Sched"].geometric_mean
    assert ours.geometric_mean > 1.25 * run["best fixed"].geometric_mean
    assert ours.geometric_mean > 0.98 * run["plain"].geometric_mean
    assert ours.goodput.min() >= run["GoodSpeed-Sched"].goodput.min()


def test_speculation_is_never_worse_than_central_decoding() -> None:
    axes = Axes(alpha=(0.2, 0.7, 0.95), draft_ms=(3.0,), round_trip_ms=(0.0, 100.0), streams=(1, 12))
    cells = walk(axes, duration_s=12.0)
    worst = min(cells, key=lambda cell: cell.ratio)
    assert worst.ratio >= 0.98, worst
    assert max(cell.ratio for cell in cells) > 3.0
