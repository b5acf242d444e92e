"""The planner: what it learns from what comes back."""

from __future__ import annotations

import pytest

from goodspeed.estimation import PRIOR_ALPHA, HitOrMiss
from goodspeed.messages import Draft, DraftEnd
from goodspeed.rules import RULES
from goodspeed.scheduling import PlainDecoding
from goodspeed.stream import Commit
from goodspeed.timing import Pace
from goodspeed.verification import Judgement, Rule
from goodspeed_server.live import LiveStream
from goodspeed_server.planner import Planner
from tests.planning import decode, guess, parts, seen, stream
from tests.planted import Agent, PlantedEngine, make_planner, make_rounds
from tests.stepping import Grants


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
