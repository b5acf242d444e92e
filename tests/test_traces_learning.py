"""What a trace shows of guesses, texts, links and passes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goodspeed.simulation import Agent, Script, Text
from goodspeed.simulation.texts import Reading
from goodspeed.traces import (
    Ended,
    Event,
    Known,
    Passed,
    Verdict,
)
from goodspeed.traces.learning import RecordedAgent, RecordedText, hits_of, learn, rates
from tests.trace_examples import SHORT, opened, trace_of


def text_of(*events: Event) -> RecordedText:
    (agent,) = learn(trace_of(opened(0.0), *events)).agents
    (text,) = agent.texts
    return text


def seen(text: RecordedText) -> str:
    """Of what was written: + right, - wrong, ? unknown."""
    return "".join("-+?"[known] for known in text.known()[: text.written])


def test_verdicts_say_where_the_misses_are() -> None:
    text = text_of(
        Verdict(1.0, 0, 4, 4, 2, 3),  # two right, the third wrong
        Verdict(2.0, 0, 0, 0, 0, 1),  # the server alone
        Verdict(3.0, 0, 2, 2, 2, 3),  # all right, and a bonus token that nobody guessed
        Verdict(4.0, 0, 3, 1, 1, 2, end="nothing to say"),
        Verdict(5.0, 0, 3, 1, 1, 2, end="priced out"),
    )
    assert seen(text) == "++-" + "?" + "++?" + "+-" + "+?"


def test_a_text_that_ends_within_its_draft_says_nothing_of_the_rest() -> None:
    text = text_of(Verdict(1.0, 0, 4, 4, 2, 2), Ended(1.0, 0, "stop"))
    assert (seen(text), text.new_tokens) == ("++", 2)


def test_guesses_that_were_overtaken_are_known_too() -> None:
    text = text_of(Known(1.0, 0, 0, 2, True), Verdict(1.0, 0, 0, 0, 0, 4))
    assert seen(text) == "++-?"


@settings(max_examples=40)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 99))
def test_what_is_known_stays_and_the_rest_is_drawn_by_the_rate(known: list[int], rate: float, seed: int) -> None:
    text = RecordedText(opened(0.0, wanted=len(known)), 1.0)
    text.facts = [(place, hit, not hit) for place, hit in enumerate(known) if hit >= 0]
    hits = hits_of(text, rate, np.random.default_rng(seed))
    assert [hit for hit, was in zip(hits.tolist(), known, strict=True) if was >= 0] == [w == 1 for w in known if w >= 0]
    likely = rates(text.known(), rate)
    assert np.all((likely >= 0) & (likely <= 1))
    if all(was < 0 for was in known):
        assert likely == pytest.approx(rate)


def test_unknown_positions_are_as_good_as_those_nearby() -> None:
    known = np.full(400, -1, np.int8)
    known[:200:2], known[200::2] = 1, 0
    likely = rates(known, 0.5)
    assert likely[100] > 0.8
    assert likely[300] < 0.2


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_runs_count_the_right_guesses_up_to_the_next_miss(hits: list[bool]) -> None:
    user = Reading(Script([Text(0.0, 0.0, 0, len(hits), np.array(hits))]))
    user.lengths()
    counted = [next((n for n, hit in enumerate(hits[at:]) if not hit), len(hits) - at) for at in range(len(hits))]
    assert user.runs().tolist() == counted


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=20))
def test_lanes_are_as_few_as_can_be(times: list[tuple[int, int]]) -> None:
    agent = RecordedAgent("box", "a draft", [RecordedText(opened(float(at)), float(at + took)) for at, took in times])
    lanes = agent.lanes()
    assert sorted(map(id, agent.texts)) == sorted(id(text) for lane in lanes for text in lane)
    for lane in lanes:
        assert all(before.ended_at <= after.asked_at for before, after in itertools.pairwise(lane))
    at_once = max(sum(at <= when < at + took for at, took in times) for when, _ in times)
    assert len(lanes) == at_once


def test_ways_are_drawn_as_they_were_measured() -> None:
    measured = (0.01, 0.02, 0.02, 0.05)
    agent = Agent(0.01, 0.0125, 0.5, ways_s=measured)
    jitters = np.random.default_rng(0).standard_exponential((4000, 2)).sum(-1).tolist()
    drawn = [agent.away_s(jitter) for jitter in jitters]
    assert set(drawn) == set(measured)
    assert np.mean(drawn) == pytest.approx(np.mean(measured), rel=0.03)


def test_a_pass_whose_agents_have_gone_teaches_nothing() -> None:
    gone = trace_of(*SHORT, Passed(0.5, 0, 0, 9.0, 0.0))
    assert learn(gone).engine == learn(trace_of(*SHORT)).engine


def test_an_agent_that_draws_nothing_more_is_done() -> None:
    user = Reading(Script([Text(1.0, 0.5, 3, 4, np.ones(4, bool))]))
    assert (user.first_at(0.0), user.next_at(1.0)) == (1.0, math.inf)
