"""Replays of traces, held against worlds that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goodspeed.errors import InvalidRequest
from goodspeed.scenarios.cli import chosen
from goodspeed.scenarios.simulating import policy_of
from goodspeed.scheduling import CAPACITY_PER_STREAM
from goodspeed.simulation import Agent, Result, RoundsKind, Texts, simulate
from goodspeed.traces import (
    Closed,
    Ended,
    Event,
    Opened,
    Passed,
    Planned,
    Served,
    Trace,
    Verdict,
    Weighed,
    read_trace,
)
from goodspeed.traces.learning import learn, longest_of
from goodspeed.traces.replaying import RECORDED, replay, scenario_of
from goodspeed.traces.steering import changes_of_plans, weights
from tests.simulated_traces import simulate_and_trace
from tests.trace_examples import ENGINE, SHORT, only, opened, trace_of, written

AGENTS = [
    Agent(0.004, 0.01, 0.85, jitter_s=0.002),
    Agent(0.008, 0.02, 0.7, jitter_s=0.004),
    Agent(0.012, 0.05, 0.55, jitter_s=0.01),
]
TEXTS = Texts(lambda random: int(random.integers(10, 80)), lambda random: int(random.integers(40, 160)), think_s=0.3)
DURATION_S = 50.0
TOLERANCE = 0.1
"""Of each agent's goodput: that much chance is on either side."""


def per_stream(streams: int) -> int:
    return 2 * streams


def goodputs(result: Result) -> np.ndarray:
    """While the server had something of theirs to write, [agents]."""
    seconds = np.zeros(len(result.tokens))
    for span in result.spans:
        seconds[span.agent] += span.end - span.begin
    return result.tokens / seconds


@pytest.mark.parametrize(
    ("scheduler", "other", "texts"),
    [
        pytest.param("goodspeed", "seconds", TEXTS, id="texts in a closed loop"),
        pytest.param("seconds", "goodspeed", None, id="one text without an end"),
    ],
)
def test_a_replay_agrees_with_the_world_that_was_recorded(
    scheduler: str, other: str, texts: Texts | None, tmp_path: Path
) -> None:
    agents = [replace(agent, texts=texts) for agent in AGENTS]
    rounds: RoundsKind = "rolling" if scheduler == "seconds" else "barrier"
    capacity = None if scheduler == "seconds" else per_stream
    file = tmp_path / "run.trace"
    known = simulate_and_trace(
        file, agents, ENGINE, scheduler, rounds=rounds, capacity=capacity, duration_s=DURATION_S, seed=1
    )
    trace = read_trace(file)
    scenario = chosen(scenario_of(trace), [scheduler, other], None, None)
    results = replay(trace, scenario, closed_loop=texts is not None)
    assert results.labels == [RECORDED, scheduler, other]
    recorded, again, otherwise = results.runs
    assert recorded.goodputs == pytest.approx(goodputs(known), rel=1e-3)
    assert again.goodputs == pytest.approx(recorded.goodputs, rel=TOLERANCE)
    # The world itself under the other scheduler, by other chance than the trace's.
    policy = policy_of(scenario.server, scenario.contenders[1])
    truth = simulate(
        agents,
        ENGINE,
        policy.scheduler,
        rounds=policy.rounds,
        capacity=None if policy.unlimited else per_stream,
        duration_s=DURATION_S,
        warm_up_s=0.0,
        seed=7,
    )
    assert otherwise.goodputs == pytest.approx(goodputs(truth), rel=TOLERANCE)
    # It would not agree by being the same under any scheduler.
    assert abs(np.log(otherwise.goodputs / again.goodputs)).max() > 2 * TOLERANCE


FROM_S = 20.0


@pytest.mark.parametrize(
    ("agents", "change"),
    [
        pytest.param(
            [replace(AGENTS[0], weight=lambda now: 1.0 if now < FROM_S else 20.0), *AGENTS[1:]],
            Weighed(FROM_S, "agent-0", 20.0),
            id="a weight",
        ),
        pytest.param(
            [replace(AGENTS[0], undrafted=lambda now: now >= FROM_S), *AGENTS[1:]],
            Served(FROM_S, "agent-0", "drained undrafted"),
            id="a drain at once",
        ),
        pytest.param(AGENTS, Planned(FROM_S, "goodspeed", 1.0, "barrier", 60.0, 1), id="a capacity"),
    ],
)
def test_a_replay_follows_what_an_operator_changed(agents: Sequence[Agent], change: Event, tmp_path: Path) -> None:
    file = tmp_path / "run.trace"
    simulate_and_trace(
        file, agents, ENGINE, "goodspeed", rounds="barrier", capacity=6, duration_s=DURATION_S, seed=1,
        changes=[change],
    )  # fmt: skip
    trace = read_trace(file)
    deaf = Trace(trace.name, trace.header, tuple(event for event in trace.events if type(event) is not type(change)))
    contender = chosen(scenario_of(trace), ["goodspeed"], None, None)
    recorded, followed = replay(trace, contender).runs
    _, kept = replay(deaf, contender).runs
    assert followed.goodputs == pytest.approx(recorded.goodputs, rel=TOLERANCE)
    assert abs(np.log(np.array(kept.goodputs) / recorded.goodputs)).max() > TOLERANCE


def two_texts() -> Trace:
    """Ten tokens, a pause of two seconds, ten more."""
    first = [Verdict(1.0 + n / 10, 0, 0, 0, 0, 1) for n in range(10)]
    second = [Verdict(4.0 + n / 10, 1, 0, 0, 0, 1) for n in range(10)]
    passes: list[Event] = [Passed(verdict.at, 1, 1, 0.09, 0.01) for verdict in (*first, *second)]
    both: list[Event] = sorted([*first, *second, *passes], key=lambda event: event.at)
    return trace_of(
        opened(0.9, 0), *both[:20], Ended(1.9, 0, "length"), opened(3.9, 1), *both[20:], Ended(4.9, 1, "length"),
        scheduler="plain", rounds="barrier",
    )  # fmt: skip


def test_the_recorded_run_is_told_as_it_was() -> None:
    trace = two_texts()
    run = only(replay(trace, chosen(scenario_of(trace), ["plain"], None, None)), RECORDED)
    (box,) = run.agents
    assert box.goodput == pytest.approx(20 / 2.0)  # the pause does not count
    assert (box.texts, run.rounds) == (2, 20)
    assert run.busy == pytest.approx(20 * 0.09 / 4.9)
    until_3 = replay(trace, chosen(scenario_of(trace), ["plain"], None, 3.0))
    assert only(until_3, RECORDED).agents[0].texts == 1


@pytest.mark.parametrize(("closed_loop", "texts"), [(False, 1), (True, 2)])
def test_texts_are_asked_for_when_they_were_or_behind_each_other(closed_loop: bool, texts: int) -> None:
    trace = two_texts()
    # Passes of a tenth of the time: by the clock the second text begins at 3.9 s, and behind the first at 3 s.
    fast = Trace(trace.name, trace.header, tuple(_sped_up(event) for event in trace.events))
    results = replay(fast, chosen(scenario_of(fast), ["plain"], None, 3.5), closed_loop=closed_loop)
    assert only(results, "plain").agents[0].texts == texts


def _sped_up(event: Event) -> Event:
    return Passed(event.at, event.rows, event.tokens, 0.009, 0.0) if isinstance(event, Passed) else event


def test_rolling_rounds_are_not_replayed_by_a_rule_that_shares_no_noise(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t", *SHORT, Closed(2.0, "stopped"), rule="ratio"))
    with pytest.raises(InvalidRequest, match="seconds: under the rule ratio a trace does not say"):
        replay(trace, chosen(scenario_of(trace), ["seconds"], None, None))
    behind = replay(trace, chosen(scenario_of(trace), ["fixed"], None, None))
    assert only(behind, "fixed").total > 0


def test_what_is_taken_for_granted_is_told(tmp_path: Path) -> None:
    silent = trace_of(opened(0.1, waited_s=0.05), Verdict(0.2, 0, 0, 0, 0, 1), Passed(0.2, 1, 1, 0.04, 0.0))
    remarks = replay(silent, chosen(scenario_of(silent), ["plain"], None, None)).remarks
    assert "box never drafted: how fast, how far away and how good they are is taken for granted" in remarks
    assert "1 texts waited for one of 64 rows: a replay has a row for each" in remarks


def test_an_agent_whose_weight_is_taken_back_weighs_what_it_did() -> None:
    trace = trace_of(
        opened(0.1), Weighed(0.2, "box", 4.0), Opened(0.3, 1, 0, 5, 20, 0.0, 8, 4.0, 0.0), Weighed(0.4, "box", None)
    )
    (box,) = learn(trace).agents
    weight = weights(trace.events, box.name, box.own_weight)
    assert callable(weight)
    assert [weight(at) for at in (0.0, 0.2, 0.3, 0.4)] == [1.0, 4.0, 4.0, 1.0]
    assert weights(trace.events, "another", 2.0) == 2.0


def test_fairness_and_the_barriers_timeout_are_followed_and_what_a_contender_is_stays() -> None:
    trace = trace_of(
        opened(0.1), Planned(1.0, "plain", 2.0, "barrier", 0.25, None),
        scheduler="goodspeed", rounds="barrier", capacity=7,
    )  # fmt: skip
    scenario = chosen(scenario_of(trace), ["goodspeed", "seconds"], None, None)
    for contender, capacity in zip(scenario.contenders, (3 * CAPACITY_PER_STREAM, None), strict=True):
        policy = policy_of(scenario.server, contender)
        ((at, changed),) = changes_of_plans(trace, contender, policy)
        assert (at, type(changed.scheduler), changed.round_timeout_s) == (1.0, type(policy.scheduler), 0.25)
        assert changed.scheduler is not policy.scheduler
        assert (changed.capacity(3) if callable(changed.capacity) else changed.capacity) == capacity


def test_who_has_nothing_to_say_takes_no_time_for_it() -> None:
    """Neither its own nor the engine's: a draft of nothing is a token decoded."""
    events: list[Event] = [opened(0.1, wanted=20)]
    round_s = 0.035 + ENGINE.seconds(1, 1)
    for number in range(20):
        at = 0.2 + round_s * number
        said = 1 if number == 9 else 0
        verdict = Verdict(at, 0, 8, said, 0, 1, said, 20.0 * said, 35.0, 0.0, "nothing to say")
        events += [verdict, Passed(at, 1, 1 + said, ENGINE.seconds(1, 1 + said), 0.0)]
    trace = trace_of(*events, Ended(at, 0, "length"), scheduler="fixed", rounds="barrier", capacity=8)
    (box,) = learn(trace).agents
    assert sorted(box.lengths)[-2:] == [0, 1]
    known = longest_of(box.texts[0], box.lengths, np.random.default_rng(0))
    assert known is not None
    assert known.tolist() == [0] * 9 + [1] + [0] * 10
    recorded, again = replay(trace, chosen(scenario_of(trace), ["fixed"], None, None)).runs
    assert again.goodputs == pytest.approx(recorded.goodputs, rel=TOLERANCE)
