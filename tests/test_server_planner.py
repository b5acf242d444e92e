"""The planner: what it grants, how far ahead it has agents guess, and what it asks for to know them."""

from __future__ import annotations

import re
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import HitOrMiss
from goodspeed.leads import PROBE_EVERY_S, PROBE_GIVE_UP_S, PROBE_TOKENS
from goodspeed.messages import Draft
from goodspeed.rules import RULES
from goodspeed.scheduling import Demand, Plan
from goodspeed.timing import Pace
from goodspeed.verification import Rule
from goodspeed_server.settings import CAPACITY_PER_STREAM, RoundsName
from tests.planning import QUICK, decode, guess, seen, stream
from tests.planted import PASS_S, make_planner
from tests.stepping import Grants


@pytest.mark.parametrize(
    ("by_price", "rounds", "granted"),
    [
        (True, {"rounds": "rolling"}, 8 + 3),  # as much as they can use: the price holds them back
        (False, {"rounds": "rolling"}, 2 * CAPACITY_PER_STREAM),
        (True, {"rounds": "barrier"}, 2 * CAPACITY_PER_STREAM),
        (False, {"rounds": "barrier"}, 2 * CAPACITY_PER_STREAM),
        (True, {"rounds": "rolling", "capacity": 5}, 5),
        (False, {"rounds": "barrier", "capacity": 5}, 5),
        (True, {"rounds": "rolling", "capacity": 0}, 0),
    ],
)
def test_what_may_be_granted_to_all_streams_together(by_price: bool, rounds: dict[str, Any], granted: int) -> None:
    streams = [stream(max_draft=longest) for longest in (8, 0, 3)]
    assert make_planner(Grants(needs_no_capacity=by_price), **rounds).capacity(streams) == granted


@pytest.mark.parametrize("rounds", get_args(RoundsName)[1:])
@pytest.mark.parametrize("early_stop", [True, False])
@given(st.integers(0, 12), st.none() | st.floats(0, 0.1), st.integers(1, 12))
def test_a_token_has_its_price_where_the_schedule_says_what_one_is_worth(
    rounds: RoundsName, early_stop: bool, granted: int, worth_s: float | None, max_draft: int
) -> None:
    live = stream(max_draft=max_draft)
    planner = make_planner(Grants(granted, worth_s), rounds=rounds, early_stop=early_stop)
    planner.plan([live], 100, now=0.0)
    assert live.budget == min(granted, max_draft)
    priced = worth_s if granted else None
    pays = min(1.0, planner.meter.load.cost.token_s / priced) if priced else None
    assert live.price == pays
    assert live.price_percent == (int(100 * pays) if pays and early_stop else 0)


def test_the_last_plans_price_is_kept() -> None:
    planner = make_planner(Grants(price=0.25))
    planner.plan([stream()], 100, now=0.0)
    assert planner.price == 0.25


@pytest.mark.parametrize("budget", [1, 3])
@pytest.mark.parametrize("turnaround", [0.03, 0.53, 1.07, 3.33])
@pytest.mark.parametrize("draft", [0.1, 0.5, 0.8])
def test_a_lead_is_what_will_be_overtaken_and_the_budget(turnaround: float, draft: float, budget: int) -> None:
    live = stream(max_draft=64, pace=Pace(draft * PASS_S, turnaround * PASS_S))
    live.estimator = HitOrMiss(0.97)
    # As many passes go by as begin before the guess behind those that they overtake is here.
    behind = next(passed for passed in range(1, 50) if turnaround + (passed + 1) * draft <= passed)
    planner = make_planner(Grants(budget, worth_s=1.0))
    planner.plan([live], 100, now=0.0)
    assert (live.budget, live.overtaken, live.lead) == (budget, behind, behind + budget)


@pytest.mark.parametrize(
    ("pace", "alpha"), [(Pace(PASS_S, 0.0), 0.97), (Pace(0.1 * PASS_S, 6 * PASS_S), 0.6), (QUICK, 0.2)]
)
def test_who_is_too_slow_or_hardly_ever_right_is_asked_only_to_be_known(pace: Pace, alpha: float) -> None:
    for rule in RULES:
        live, planner = stream(pace=pace), make_planner(Grants(3, worth_s=1.0), rule)
        live.estimator = live.matching = HitOrMiss(alpha, prior_weight=1000.0)
        planner.plan([live], 100, now=0.0)
        assert (live.budget, live.overtaken, live.lead, live.price_percent) == (0, 0, PROBE_TOKENS, 0)


@pytest.mark.parametrize("known", [False, True])
def test_who_was_idle_is_due_as_long_after_it_is_asked_again_as_it_takes(known: bool) -> None:
    """Whether or not its last guesses were right, all of which are overtaken."""
    live, planner = stream(), make_planner(Grants(3, worth_s=1.0))
    if known:
        guess(planner, live, Draft(0, live.stream.length, [5]), now=1.0)
        decode(planner, live, [5, 5], now=2.0)
    assert live.lead == 0
    planner.plan([live], 100, now=100.0)
    assert (live.began_at, live.lead) == (100.0, 4)
    prospect = planner.prospect(live, 100.0)
    assert prospect is not None
    assert prospect.due_s == pytest.approx(live.pace.turnaround_s + live.pace.draft_s)
    planner.plan([live], 100, now=100.001)
    assert live.began_at == 100.0, "it is asked for more of the same"


def test_an_agent_that_was_asked_to_be_known_is_not_due_anew_with_every_pass() -> None:
    live = stream()
    for now in (100.0, 101.0):
        make_planner(Grants()).plan([live], 100, now)
        assert (live.began_at, live.lead) == (100.0, PROBE_TOKENS)


class Failing(Grants):
    """Plans well for a while."""

    def plan(self, demand: Demand, capacity: int) -> Plan:
        if self.asked:
            raise RuntimeError("enough")
        return super().plan(demand, capacity)


def test_a_scheduler_that_fails_leaves_plain_decoding_until_there_is_another(caplog: pytest.LogCaptureFixture) -> None:
    live, told = stream(), list[bool]()
    planner = make_planner(Failing(3), rounds="barrier")
    planner.on_fault = lambda: told.append(planner.fault is not None)
    budgets = []
    for now in (0.0, 1.0, 2.0):
        planner.plan([live], 100, now)
        budgets.append(live.budget)
    assert (budgets, told) == ([3, 0, 0], [True])
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert re.search(r"Failing raised RuntimeError: enough \(.*, line \d+\); texts are decoded plainly", record.message)
    planner.adopt(planner.scheduler, planner._settings)
    assert planner.fault is not None, "other settings are no other scheduler"
    planner.adopt(Grants(2), planner._settings)
    planner.plan([live], 100, 3.0)
    assert live.budget == 2
    assert planner.fault is None


def test_behind_the_barrier_a_lead_is_the_budget() -> None:
    live = stream(pace=Pace(100.0, 100.0))
    make_planner(Grants(3, worth_s=1.0, needs_no_capacity=True), rounds="barrier").plan([live], 100, now=0.0)
    assert (live.budget, live.overtaken, live.lead) == (3, 0, 3)


@pytest.mark.parametrize(
    ("rule", "rounds", "max_draft", "asked"),
    [
        ("coupled", "rolling", 8, PROBE_TOKENS),
        ("coupled", "rolling", 2, 2),
        ("coupled", "rolling", 0, 0),  # it has no drafter
        ("coupled", "barrier", 8, 0),
        ("ratio", "rolling", 8, PROBE_TOKENS),  # they say what outlives being overtaken
    ],
)
def test_who_is_asked_for_guesses_that_are_not_verified(rule: Rule, rounds: str, max_draft: int, asked: int) -> None:
    live = stream(max_draft=max_draft)
    make_planner(Grants(), rule, rounds=rounds).plan([live], 100, now=0.0)
    assert (live.budget, live.lead) == (0, asked)


def test_near_its_end_a_stream_is_asked_for_no_more_than_it_can_use() -> None:
    live = stream(max_new_tokens=3)
    make_planner(Grants()).plan([live], 100, now=0.0)
    assert live.lead == 2


@pytest.mark.parametrize("early", [False, True])
def test_they_are_asked_for_at_intervals_from_when_the_last_were_decided(early: bool) -> None:
    planner, live = make_planner(Grants()), stream()
    step_s = PROBE_EVERY_S / 4
    asked_at, asked = [], False
    for now in step_s * np.arange(13):
        base = live.stream.length
        if asked:
            if early:
                guess(planner, live, Draft(0, base, [9]), now)
                decode(planner, live, [5], now)
            else:
                decode(planner, live, [5], now)
                guess(planner, live, Draft(0, base, [9]), now)
        planner.plan([live], 100, now)
        asked = live.lead > 0
        if asked:
            asked_at.append(now)
    assert asked_at == [0.0, step_s + PROBE_EVERY_S, 2 * (step_s + PROBE_EVERY_S)]


def test_those_that_never_come_are_given_up_for_a_while_and_teach_nothing() -> None:
    planner, live = make_planner(Grants()), stream()
    leads = []
    for now in (0.0, PROBE_GIVE_UP_S, PROBE_GIVE_UP_S + 0.1, PROBE_GIVE_UP_S + 0.2 + PROBE_EVERY_S):
        planner.plan([live], 100, now)
        leads.append(live.lead)
        decode(planner, live, [5] * 10, now)
    assert leads == [PROBE_TOKENS, PROBE_TOKENS, 0, PROBE_TOKENS]
    assert seen(live) == []
