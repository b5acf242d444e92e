"""The simulated world: the same seed, the same run; and what must hold in any world holds in this one."""

import numpy as np
import pytest

from goodspeed.estimation import expected_tokens
from goodspeed.scheduling import FixedS, GoodSpeedSched, PlainDecoding, SecondsSched
from goodspeed.simulation import Agent, Engine, simulate

ENGINE = Engine(fixed_s=0.035, row_s=0.0, token_s=0.0006)


def edges(seed: int, count: int = 8) -> list[Agent]:
    """Heterogeneous edges: drafts of 4 to 30 ms a token, round trips of 5 to 80 ms, acceptance 0.4 to 0.92."""
    random = np.random.default_rng(seed)
    draft_s = np.exp(random.uniform(np.log(0.004), np.log(0.030), count))
    round_trip_s = np.exp(random.uniform(np.log(0.005), np.log(0.080), count))
    alpha = random.uniform(0.40, 0.92, count)
    return [Agent(*columns, jitter_s=0.001) for columns in zip(draft_s, round_trip_s / 2, alpha, strict=True)]


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


@pytest.mark.parametrize("seed", range(3))
def test_seconds_beat_rounds_and_plain_decoding(seed: int) -> None:
    ours = simulate(edges(seed), ENGINE, SecondsSched(), rounds="rolling", duration_s=30, seed=seed)
    paper = simulate(edges(seed), ENGINE, GoodSpeedSched(), rounds="barrier", capacity=28, duration_s=30, seed=seed)
    plain = simulate(edges(seed), ENGINE, PlainDecoding(), rounds="rolling", duration_s=30, seed=seed)
    assert ours.geometric_mean > 1.4 * paper.geometric_mean
    assert ours.geometric_mean > 0.98 * plain.geometric_mean
    assert ours.goodput.min() >= paper.goodput.min()
