"""The planner: what it grants, how far ahead it has agents guess, and what it learns from what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import PRIOR_ALPHA, Goodput, HitOrMiss
from goodspeed.leads import PROBE_EVERY_S, PROBE_GIVE_UP_S, PROBE_TOKENS
from goodspeed.messages import Draft, DraftEnd
from goodspeed.rules import RULES
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import Demand, PlainDecoding, Plan
from goodspeed.stream import Commit, ServedStream
from goodspeed.timing import Pace
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.settings import CAPACITY_PER_STREAM, RoundsName
from tests.planted import PASS_S, Agent, PlantedEngine, make_planner, make_rounds
from tests.stepping import Grants


class Observations(HitOrMiss):
    """Remembers what it is told: how many tokens were asked for, and how many were right."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def observe(self, budget: int, judgement: Judgement) -> None:
        super().observe(budget, judgement)
        self.seen.append((budget, judgement.accepted))


QUICK = Pace(draft_s=0.1 * PASS_S, turnaround_s=0.1 * PASS_S)
"""Only its first guess is overtaken."""


def stream(*, max_draft: int = 8, max_new_tokens: int = 100, pace: Pace = QUICK) -> LiveStream:
    agent = Agent()
    served = ServedStream([1, 2], 2, SamplingParams(), max_new_tokens, max_draft, 1000, eos_tokens=())
    return LiveStream(0, agent, agent.account, served, 0, Observations(), Goodput(0.0, 10.0), pace.copy())


def seen(live: LiveStream) -> list[tuple[int, int]]:
    assert isinstance(live.estimator, Observations)
    return live.estimator.seen


def decode(planner: Planner, live: LiveStream, tokens: Sequence[int], now: float) -> None:
    """The server commits tokens one by one, none of them drafted."""
    for token in tokens:
        judgement = Judgement(0, token)
        planner.committed(live, [], judgement, live.stream.commit([], judgement), now)


def parts(pace: Pace) -> tuple[float, float]:
    return pace.draft_s, pace.turnaround_s


def guess(planner: Planner, live: LiveStream, draft: Draft, now: float) -> None:
    """Guesses come that nobody waited for."""
    live.guesses.take(draft.base, draft.offset, draft.tokens, ended=draft.end is DraftEnd.NOTHING_TO_SAY)
    planner.guessed(live, draft, now)


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


@pytest.mark.parametrize(("told", "misses"), [(30, 0), (0, 1)])
def test_behind_the_barrier_a_draft_that_the_price_ended_shows_no_miss(told: int, misses: int) -> None:
    planner, live = make_planner(Grants(), rounds="barrier"), stream()
    live.budget, live.price_percent = 4, told
    live.draft = Draft(0, 2, [5, 6], end=DraftEnd.PRICED_OUT)
    estimator = HitOrMiss()
    estimator.observe(2 + misses, Judgement(2, 0))
    planner.committed(live, [5, 6], Judgement(2, 0), Commit(2, 2, (7,), None, 2), now=1.0)
    assert live.estimator.alpha == estimator.alpha


def test_who_says_that_not_even_a_token_was_worth_its_price_raises_no_hope() -> None:
    """Or else who never drafts would be granted more and more, and others the less."""
    planner, live = make_planner(Grants(4, worth_s=1.0), rounds="barrier"), stream(max_new_tokens=900)
    live.budget, live.price_percent = 4, 30
    before = live.estimator.optimistic
    for _ in range(60):
        live.draft = Draft(0, live.stream.length, [], end=DraftEnd.PRICED_OUT)
        planner.committed(live, [], Judgement(0, 7), live.stream.commit([], Judgement(0, 7)), now=1.0)
    assert live.estimator.optimistic < min(before, 0.2)


def test_the_schedule_is_given_the_highest_plausible_rate_where_no_probes_keep_the_estimate_fresh() -> None:
    for rule in RULES:
        for rounds in ("rolling", "barrier"):
            scheduler, live = Grants(), stream()
            planner = make_planner(scheduler, rule, rounds=rounds)
            live.estimator = planner.estimator(0.4)
            decode(planner, live, range(10), now=0.0)
            planner.plan([live], 0, now=0.0)
            probed = (rule, rounds) == ("coupled", "rolling")
            expected = live.estimator.alpha if probed else live.estimator.optimistic
            assert live.estimator.alpha < live.estimator.optimistic
            assert scheduler.asked[0].alpha.tolist() == [expected]


def chance(planner: Planner, live: LiveStream) -> float:
    """What the schedule is given."""
    assert isinstance(planner.scheduler, Grants)
    planner.plan([live], 100, now=0.0)
    return float(planner.scheduler.asked[-1].alpha[0])


def test_guesses_that_are_copied_from_verdicts_outweigh_no_miss_that_came_in_time() -> None:
    """What is late may be a copy of what its agent was told; what it guesses by itself is what it is taken for."""
    planner, live = make_planner(Grants(4, worth_s=1.0)), stream(max_new_tokens=900)
    for _ in range(40):
        base = live.stream.length
        guess(planner, live, Draft(0, base, [9]), now=0.0)
        decode(planner, live, [5, 6, 7, 8], now=0.0)
        guess(planner, live, Draft(0, base, [5, 6, 7, 8]), now=0.0)
    assert live.estimator.alpha > 0.75
    assert chance(planner, live) < 0.1


def test_who_is_always_late_is_believed_while_nothing_speaks_against_it() -> None:
    planner, live = make_planner(Grants(4, worth_s=1.0)), stream(max_new_tokens=900)
    for _ in range(40):
        base = live.stream.length
        decode(planner, live, [5, 6, 7, 8], now=0.0)
        guess(planner, live, Draft(0, base, [5, 6, 7, 9]), now=0.0)
    assert chance(planner, live) == live.estimator.alpha == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("right", [1, 3])
def test_who_is_in_time_is_believed(right: int) -> None:
    planner, live = make_planner(Grants(4, worth_s=1.0)), stream(max_new_tokens=900)
    for _ in range(40):
        tokens = [5] * right + [9]
        guess(planner, live, Draft(0, live.stream.length, tokens), now=0.0)
        decode(planner, live, [5] * (right + 1), now=0.0)
    assert chance(planner, live) == live.estimator.alpha == pytest.approx(right / (right + 1), abs=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_an_estimate_starts_from_the_agents_earlier_ones(rule: Rule) -> None:
    assert make_planner(Grants(), rule).estimator(0.85).alpha == pytest.approx(0.85)


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


@pytest.mark.parametrize(
    ("draft", "right", "missed"),
    [
        (Draft(0, 2, [5, 6, 7, 8]), 4, 0),
        (Draft(0, 2, [5, 6, 1, 8]), 2, 1),
        (Draft(0, 2, [5, 6]), 2, 0),
        (Draft(0, 2, [5, 6], end=DraftEnd.NOTHING_TO_SAY), 2, 1),  # what it has no guess for, it misses
        (Draft(0, 2, [], end=DraftEnd.NOTHING_TO_SAY), 0, 1),
        (Draft(0, 2, []), 0, 0),
        (Draft(0, 2, [1]), 0, 1),
    ],
)
@pytest.mark.parametrize("early", [0, 2, 5])
@pytest.mark.parametrize("budget", [0, 3])
def test_guesses_are_held_against_the_text_once_however_late_they_come(
    draft: Draft, right: int, missed: int, early: int, budget: int
) -> None:
    planner, live = make_planner(Grants(budget)), stream()
    planner.plan([live], 100, now=0.0)
    text = [5, 6, 7, 8, 9]
    decode(planner, live, text[:early], now=0.1)
    guess(planner, live, draft, now=0.1)
    decode(planner, live, [*text[early:], 3, 3], now=0.2)
    assert sum(accepted for _, accepted in seen(live)) == right
    assert sum(asked for asked, _ in seen(live)) == right + missed


def test_what_was_verified_counts_no_more_than_what_was_overtaken() -> None:
    planner, live = make_planner(Grants(3)), stream()
    planner.plan([live], 100, now=0.0)
    guess(planner, live, Draft(0, 2, [5, 6, 1, 8]), now=0.1)
    drafted, _ = live.to_verify()
    judgement = Judgement(2, 7)
    planner.committed(live, drafted, judgement, live.stream.commit(drafted, judgement), now=0.2)
    assert seen(live) == [(3, 2)]
    assert live.to_verify() == ([], [])


@pytest.mark.parametrize(
    ("budget", "drafted", "ratios", "taught"),
    [
        (4, [5, 6], (1.0, 0.5), [(2, 1)]),
        (4, [], (), []),  # nothing was here in time: that says nothing of its guesses
        (0, [], (), [(0, 0)]),  # nobody was asked, so that it is tried again some day
    ],
)
def test_under_the_ratio_rule_only_what_was_verified_teaches(
    budget: int, drafted: list[int], ratios: tuple[float, ...], taught: list[tuple[int, int]]
) -> None:
    planner, live = make_planner(Grants(), "ratio"), stream()
    live.budget = budget
    guess(planner, live, Draft(0, 2, [5, 1]), now=0.1)
    judgement = Judgement(min(1, len(drafted)), 9, ratios)
    planner.committed(live, drafted, judgement, live.stream.commit(drafted, judgement), now=0.2)
    assert seen(live) == taught


@pytest.mark.parametrize(
    ("budget", "draft", "accepted", "taught"),
    [
        (4, Draft(0, 2, [5, 6, 7, 8]), 3, [(4, 3)]),
        (4, Draft(0, 2, [5, 6]), 2, [(4, 2)]),  # nothing more to say: a miss
        (4, Draft(0, 2, []), 0, [(4, 0)]),
        (4, None, 0, []),  # overdue: that says nothing of its guesses
        (0, None, 0, [(0, 0)]),
    ],
)
def test_what_a_draft_teaches_that_was_waited_for(
    budget: int, draft: Draft | None, accepted: int, taught: list[tuple[int, int]]
) -> None:
    planner, live = make_planner(Grants(), rounds="barrier"), stream()
    live.budget, live.draft = budget, draft
    drafted, judgement = draft.tokens if draft else [], Judgement(accepted, 9)
    planner.committed(live, drafted, judgement, live.stream.commit(drafted, judgement), now=0.1)
    assert seen(live) == taught


def test_a_new_stream_starts_from_what_its_agents_earlier_ones_showed() -> None:
    rounds = make_rounds(PlantedEngine(rows=2), PlainDecoding())
    known, unknown = Agent(), Agent()
    known.open(rounds, 0)
    (first,) = rounds.live
    for _ in range(50):
        first.estimator.observe(4, Judgement(4, 0))
        first.pace.observe(4, elapsed_s=2.0, computed_s=1.0)
    rounds.close(known, 0)
    known.open(rounds, 1)
    unknown.open(rounds, 0)
    second, stranger = rounds.live
    assert PRIOR_ALPHA == stranger.estimator.alpha < second.estimator.alpha < first.estimator.alpha
    assert parts(second.pace) == pytest.approx((0.25, 1.0))
    assert parts(stranger.pace) == parts(Pace())


def test_streams_of_one_agent_that_are_open_together_learn_apart() -> None:
    rounds = make_rounds(PlantedEngine(rows=2), PlainDecoding())
    agent = Agent()
    for number in range(2):
        agent.open(rounds, number)
    one, other = rounds.live
    one.estimator.observe(4, Judgement(0, 0))
    one.pace.observe(4, elapsed_s=2.0, computed_s=1.0)
    assert other.estimator.alpha == agent.account.prior_alpha == PRIOR_ALPHA
    assert parts(other.pace) == parts(agent.account.pace) == parts(Pace())


def test_an_agents_pace_is_seen_from_when_it_was_told_of_what_it_guesses_upon() -> None:
    planner, live = make_planner(Grants()), stream(pace=Pace())
    live.told += [(2, 10.0), (3, 20.0)]
    guess(planner, live, Draft(0, 2, [5, 6], computed_us=1_000_000), now=13.0)
    assert (live.pace.draft_s, live.pace.turnaround_s) == pytest.approx((0.5, 2.0))
    turnaround_s = live.pace.turnaround_s
    for piece in range(100):
        now = 14.0 + piece
        guess(planner, live, Draft(0, 2, [5], offset=2 + piece, computed_us=300_000), now)
    assert live.pace.draft_s == pytest.approx(0.3, abs=0.01)
    assert live.pace.turnaround_s == turnaround_s
