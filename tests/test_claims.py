"""Nobody gains by a claim: what the others are granted beside a liar, against what they are beside its honest twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from goodspeed.estimation import Goodput, RatioMean
from goodspeed.messages import Draft, DraftEnd
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import SCHEDULERS
from goodspeed.stream import ServedStream
from goodspeed.utility import AlphaFair
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.settings import what_auto_means
from tests.planted import Agent, make_planner

ROUNDS = 120
CAPACITY = 12
ALPHA = 0.5
VOCAB = 50


def stream(planner: Planner) -> LiveStream:
    agent = Agent()
    served = ServedStream([1, 2], 2, SamplingParams(), 5000, 16, 10_000, eos_tokens=())
    rate = Goodput(0.0, 10.0)
    return LiveStream(0, agent, agent.account, served, 0, planner.estimator(0.6), rate, agent.account.pace.copy())


Told = tuple[Sequence[int], Judgement, DraftEnd]
"""What was drafted, what became of it, and what was said to have ended it."""
Play = Callable[[np.random.Generator, int], Told]
"""From randomness, and a budget."""


def honest(random: np.random.Generator, budget: int) -> Told:
    """Its tokens stand with a chance of a half."""
    hits = random.random(budget) < ALPHA
    accepted = budget if hits.all() else int(hits.argmin())
    return [3] * budget, Judgement(accepted, 4, (ALPHA,) * budget, (1.0,) * budget), DraftEnd.FAR_ENOUGH


def tiny(random: np.random.Generator, budget: int) -> Told:
    """All of its tokens stand, which is what tiny claims are for; claim and target have next to nothing in common."""
    return [3] * budget, Judgement(budget, 4, (0.02,) * budget, (1e4,) * budget), DraftEnd.FAR_ENOUGH


def behind(random: np.random.Generator, budget: int) -> Told:
    """Nothing stands, and behind the first token everything would have."""
    ratios = (0.01, *(1.0,) * budget)[:budget]
    return [3] * budget, Judgement(0, 4, ratios, ratios), DraftEnd.FAR_ENOUGH


def silent(random: np.random.Generator, budget: int) -> Told:
    """Never sends anything, and says that nothing was worth its price."""
    return [], Judgement(0, 4, (), ()), DraftEnd.PRICED_OUT


def granted(scheduler: str, rule: Rule, other: Play) -> tuple[float, float]:
    """Mean budgets over the later rounds behind the barrier: of two honest streams, and of the third."""
    chosen = what_auto_means(scheduler, "barrier", AlphaFair())
    planner = make_planner(chosen.scheduler, rule, rounds="barrier", capacity=CAPACITY)
    streams = [stream(planner) for _ in range(3)]
    budgets = np.zeros((ROUNDS, 3))
    randoms = [np.random.default_rng(number) for number in range(3)]
    now = 0.0
    for turn in range(ROUNDS):
        planner.plan(streams, CAPACITY, now)
        budgets[turn] = [live.budget for live in streams]
        now += 0.1
        for live, play, random in zip(streams, (honest, honest, other), randoms, strict=True):
            drafted, judgement, end = play(random, live.budget)
            live.draft = Draft(0, live.stream.length, list(drafted), end=end) if live.budget else None
            commit = live.stream.commit(drafted, judgement)
            planner.committed(live, drafted, judgement, commit, now)
            live.draft = None
    later = budgets[ROUNDS // 2 :].mean(0)
    return float(later[:2].mean()), float(later[2])


@pytest.mark.parametrize(
    ("rule", "lie"),
    [("ratio", tiny), ("ratio", behind), ("ratio", silent), ("coupled", behind), ("coupled", silent)],
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_claim_takes_budget_from_others(scheduler: str, rule: Rule, lie: Play) -> None:
    beside_honest, own_honest = granted(scheduler, rule, honest)
    beside_liar, own = granted(scheduler, rule, lie)
    # Two honest streams never differ by so much; a liar that was believed had up to all of the capacity.
    assert beside_liar >= beside_honest - 0.35
    assert own <= own_honest + 0.7


@pytest.mark.parametrize("scheduler", ["goodspeed", "throughput"])
def test_the_paper_as_it_stands_is_taken_in(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test can tell: with equation (3) over all positions, what is drafted behind junk pays."""
    monkeypatch.setattr("goodspeed.estimation.ReachedMean.observe", RatioMean.observe)
    beside_honest, own_honest = granted(scheduler, "ratio", honest)
    beside_liar, own = granted(scheduler, "ratio", behind)
    assert beside_liar < beside_honest - 0.35
    assert own > own_honest + 0.7
