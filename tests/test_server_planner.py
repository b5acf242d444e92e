"""The planner: what it grants, what it asks on the side, and what it learns from what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import PRIOR_ALPHA, Goodput, HitOrMiss
from goodspeed.messages import Draft
from goodspeed.probing import PROBE_EVERY_S, PROBE_GIVE_UP_S, PROBE_TOKENS
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import Demand, PlainDecoding, Plan
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import LiveStream
from goodspeed_server.planner import STRETCH, Planner
from goodspeed_server.settings import CAPACITY_PER_STREAM
from tests.planted import Agent, PlantedEngine, make_planner, make_rounds


class Grants:
    """So many tokens for everybody, as far as they may, at a price; remembers what it was asked."""

    def __init__(self, budget: int = 0, least_chance: float | None = None, *, needs_no_capacity: bool = False) -> None:
        self.needs_no_capacity = needs_no_capacity
        self._budget = budget
        self._least_chance = least_chance
        self.asked: list[Demand] = []

    def plan(self, demand: Demand, capacity: int) -> Plan:
        self.asked.append(demand)
        chance = None if self._least_chance is None else np.full(len(demand), self._least_chance)
        return Plan(np.minimum(demand.limit, self._budget), 0.0, chance)


class Observations(HitOrMiss):
    """Remembers what it is told: how many tokens were asked for, and how many were right."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def observe(self, budget: int, judgement: Judgement) -> None:
        super().observe(budget, judgement)
        self.seen.append((budget, judgement.accepted))


def stream(*, max_draft: int = 8, max_new_tokens: int = 100) -> LiveStream:
    agent = Agent()
    served = ServedStream([1, 2], 2, SamplingParams(), max_new_tokens, max_draft, 1000, eos_tokens=())
    return LiveStream(0, agent, agent.account, served, 0, Observations(), Goodput(0.0, 10.0), Pace())


def seen(live: LiveStream) -> list[tuple[int, int]]:
    assert isinstance(live.estimator, Observations)
    return live.estimator.seen


def decode(planner: Planner, live: LiveStream, tokens: Sequence[int], now: float) -> None:
    """The server commits tokens one by one, none of them drafted."""
    for token in tokens:
        judgement = Judgement(0, token)
        planner.committed(live, judgement, live.stream.commit([], judgement), now)


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


@pytest.mark.parametrize(
    ("heeds_price", "by_price", "rounds", "free"),
    [
        (True, True, {}, True),
        (False, True, {}, False),
        (True, False, {}, False),
        (True, True, {"rounds": "barrier"}, False),
        (True, True, {"capacity": 100}, False),
        (True, True, {"early_stop": False}, False),
    ],
)
@given(st.integers(0, 12), st.none() | st.floats(0, 1), st.integers(0, 12))
def test_only_who_heeds_a_price_drafts_beyond_the_schedule_and_only_where_nothing_else_limits_it(
    heeds_price: bool,
    by_price: bool,
    rounds: dict[str, Any],
    free: bool,
    budget: int,
    least_chance: float | None,
    max_draft: int,
) -> None:
    live = stream(max_draft=max_draft)
    live.account.heeds_price = heeds_price
    make_planner(Grants(budget, least_chance, needs_no_capacity=by_price), **rounds).plan([live], 100, now=0.0)
    assert live.expected == min(budget, max_draft)
    told = int(1000 * (least_chance or 0.0)) if rounds.get("early_stop", True) and live.expected else 0
    assert live.price_permille == told
    assert live.budget == (min(STRETCH * live.expected, max_draft) if free and told else live.expected)


def test_the_schedule_is_given_the_highest_plausible_rate_where_no_probes_keep_the_estimate_fresh() -> None:
    for rule in get_args(Rule):
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


@pytest.mark.parametrize("rule", get_args(Rule))
def test_an_estimate_starts_from_the_agents_earlier_ones(rule: Rule) -> None:
    assert make_planner(Grants(), rule).estimator(0.85).alpha == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("rule", "rounds", "budget", "max_draft", "asked"),
    [
        ("coupled", "rolling", 0, 8, PROBE_TOKENS),
        ("coupled", "rolling", 0, 2, 2),
        ("coupled", "rolling", 0, 0, None),  # it has no drafter
        ("coupled", "rolling", 1, 8, None),  # its draft says as much
        ("coupled", "barrier", 0, 8, None),
        ("ratio", "rolling", 0, 8, None),  # the target's distributions will be gone
    ],
)
def test_who_is_asked_for_a_draft_on_the_side(
    rule: Rule, rounds: str, budget: int, max_draft: int, asked: int | None
) -> None:
    live = stream(max_draft=max_draft)
    make_planner(Grants(budget), rule, rounds=rounds).plan([live], 100, now=0.0)
    assert (live.probe.size if live.probe else None) == asked


def test_near_its_end_a_stream_is_asked_for_no_more_than_it_can_use() -> None:
    live = stream(max_new_tokens=3)
    make_planner(Grants()).plan([live], 100, now=0.0)
    assert live.probe is not None
    assert live.probe.size == 2


def test_drafts_on_the_side_are_asked_for_at_intervals_from_when_the_last_was_decided() -> None:
    planner, live = make_planner(Grants()), stream()
    step_s = PROBE_EVERY_S / 4
    asked_at = []
    for now in step_s * np.arange(13):
        if live.probe is not None:
            planner.probed(live, [9], 0.0, now)
            decode(planner, live, [5], now)
        planner.plan([live], 100, now)
        if live.probe is not None:
            asked_at.append(now)
    assert asked_at == [0.0, step_s + PROBE_EVERY_S, 2 * (step_s + PROBE_EVERY_S)]


def test_a_draft_on_the_side_that_never_comes_is_given_up_and_teaches_nothing() -> None:
    planner, live = make_planner(Grants()), stream()
    planner.plan([live], 100, now=0.0)
    first = live.probe
    for now in (1.0, PROBE_GIVE_UP_S):
        decode(planner, live, [5] * 10, now)
        planner.plan([live], 100, now)
        assert live.probe is first
    planner.plan([live], 100, now=PROBE_GIVE_UP_S + 1.0)
    assert live.probe is not None
    assert (live.probe.base, live.probe.asked_at) == (live.stream.length, PROBE_GIVE_UP_S + 1.0)
    assert seen(live) == []


@pytest.mark.parametrize(
    ("drafted", "right"),
    [
        ([5, 6, 7, 8], 4),
        ([5, 6, 1, 8], 2),
        ([5, 6], 2),  # shorter than it was to be: what it had no guess for, it missed
        ([], 0),
    ],
)
@pytest.mark.parametrize("early", [0, 2, 5])
def test_a_draft_on_the_side_is_held_against_the_text_once_however_late_it_comes(
    drafted: list[int], right: int, early: int
) -> None:
    planner, live = make_planner(Grants()), stream()
    planner.plan([live], 100, now=0.0)
    text = [5, 6, 7, 8, 9]
    decode(planner, live, text[:early], now=0.1)
    planner.probed(live, drafted, 0.0, now=0.1)
    decode(planner, live, [*text[early:], 3, 3], now=0.2)
    assert live.probe is None
    assert seen(live) == [(PROBE_TOKENS, right)]


@pytest.mark.parametrize(
    ("budget", "draft", "accepted", "taught"),
    [
        (4, Draft(0, 2, [5, 6, 7, 8]), 3, [(4, 3)]),
        (4, Draft(0, 2, [5, 6]), 2, [(4, 2)]),  # nothing more to say: a miss
        (4, Draft(0, 2, [5, 6], priced_out=True), 2, [(2, 2)]),  # it stopped because of the price: no miss
        (4, Draft(0, 2, [], priced_out=True), 0, [(1, 0)]),  # not one token was worth it: as good as a miss
        (4, Draft(0, 2, []), 0, [(4, 0)]),
        (4, None, 0, []),  # overdue: that says nothing of its guesses
    ],
)
@pytest.mark.parametrize("rounds", ["rolling", "barrier"])
def test_what_a_draft_teaches(
    rounds: str, budget: int, draft: Draft | None, accepted: int, taught: list[tuple[int, int]]
) -> None:
    planner, live = make_planner(Grants(), rounds=rounds), stream()
    live.budget, live.draft, live.price_permille = budget, draft, 300
    judgement = Judgement(accepted, 9)
    planner.committed(live, judgement, live.stream.commit(draft.tokens if draft else [], judgement), now=0.1)
    assert seen(live) == taught


@pytest.mark.parametrize(("rounds", "taught"), [("rolling", []), ("barrier", [(0, 0)])])
def test_that_no_draft_was_asked_for_is_noted_where_no_probes_are(rounds: str, taught: list[tuple[int, int]]) -> None:
    planner, live = make_planner(Grants(), rounds=rounds), stream()
    decode(planner, live, [5], now=0.1)
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
    assert second.pace.expect(8) == pytest.approx(3.0)
    assert stranger.pace.expect(8) == Pace().expect(8)


def test_streams_of_one_agent_that_are_open_together_learn_apart() -> None:
    rounds = make_rounds(PlantedEngine(rows=2), PlainDecoding())
    agent = Agent()
    for number in range(2):
        agent.open(rounds, number)
    one, other = rounds.live
    one.estimator.observe(4, Judgement(0, 0))
    one.pace.observe(4, elapsed_s=2.0, computed_s=1.0)
    assert other.estimator.alpha == agent.account.prior_alpha == PRIOR_ALPHA
    assert other.pace.expect(4) == agent.account.pace.expect(4) == Pace().expect(4)


def test_no_price_ends_a_draft_where_none_was_told() -> None:
    planner, live = make_planner(Grants(), rounds="rolling"), stream()
    live.budget, live.draft = 4, Draft(0, 2, [5], priced_out=True)
    judgement = Judgement(1, 9)
    planner.committed(live, judgement, live.stream.commit([5], judgement), now=0.1)
    planner.drafted(live, live.draft, 0.1)
    assert seen(live) == [(4, 1)]
    assert not live.account.heeds_price
