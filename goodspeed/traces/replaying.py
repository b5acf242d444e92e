"""A trace on the virtual clock: the recorded run beside what other schedulers would have made of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import msgspec
import numpy as np

from goodspeed.errors import InvalidRequest
from goodspeed.messages import MAX_DRAFT_TOKENS
from goodspeed.plugins import installed
from goodspeed.rules import rule_named
from goodspeed.scenarios.results import AgentOutcome, Machine, Quantiles, Results, Run, Versions, command_line
from goodspeed.scenarios.scenario import AgentGroup, Contender, Scenario, Server, Verification
from goodspeed.scenarios.simulating import policy_of
from goodspeed.scheduling import SCHEDULER
from goodspeed.simulation import Agent, Result, Script, Span, Text, simulate
from goodspeed.traces.learning import Recorded, RecordedAgent, RecordedText, hits_of, learn, longest_of
from goodspeed.traces.reading import Trace, printable
from goodspeed.traces.steering import capacity_of, changes_of_plans, undrafted, weights

__all__ = ["RECORDED", "replay", "scenario_of"]

RECORDED = "recorded"
"""The label of the real run, beside its replays."""
_LITTLE_KNOWN = 0.5
"""An agent of whose guesses a smaller share is known is named."""


_AT_ONCE_S = 0.01
"""Who got a row within that did not queue for it."""


@dataclass(frozen=True, slots=True)
class _Box:
    """An agent of the simulator, and whose it is: a row of texts that did not overlap."""

    owner: int
    agent: Agent


def scenario_of(trace: Trace, trusted: Collection[str] = ()) -> Scenario:
    """What a trace amounts to, as a scenario: it stands in the results, and names who contends.

    Contending are the recorded scheduler, as it was run, and those that a scenario has by default. A recorded one that
    is neither built in nor installed contends only if it is trusted: it is code, and a trace may come from anyone.

    Args:
        trace: what was recorded.
        trusted: schedulers that the user has named.

    Raises:
        InvalidRequest: nothing was written in it.
    """
    header, recorded = trace.header, learn(trace)
    engine = recorded.engine
    same = Contender(scheduler=header.scheduler, rounds=header.rounds, capacity=header.capacity)
    known = header.scheduler in trusted or installed(SCHEDULER, header.scheduler)
    others = [name for name in Scenario.__struct_defaults__[-1] if name != header.scheduler]
    return Scenario(
        name=f"{trace.name}, recorded {printable(header.began)}",
        about=f"{header.model} on {header.machine.cpu}, {header.machine.cores} cores",
        agents=tuple(map(_group, recorded.agents)),
        duration_s=math.ceil(10 * trace.duration_s) / 10 or 0.1,
        warm_up_s=0.0,
        server=Server(
            model=header.model,
            capacity=header.capacity,
            rule=header.rule,
            fairness=header.fairness,
            prefill_chunk=header.prefill_chunk,
            verification=Verification(1e3 * engine.fixed_s, 1e3 * engine.row_s, 1e3 * engine.token_s, engine.noise),
        ),
        schedulers=(same, *others) if known else tuple(others),
    )


def _group(agent: RecordedAgent) -> AgentGroup:
    return AgentGroup(
        name=agent.name,
        draft=agent.drafter,
        draft_ms=1e3 * agent.draft_s,
        acceptance=agent.rate,
        max_draft=max(1, *(text.opened.max_draft for text in agent.texts), 1),
        round_trip_ms=1e3 * fmean(agent.ways_s),
        weight=agent.weight,
        joins_at_s=min(text.asked_at for text in agent.texts),
        temperature=agent.texts[-1].opened.temperature,
    )


def replay(
    trace: Trace,
    scenario: Scenario,
    *,
    closed_loop: bool = False,
    watch: Callable[[str, int], None] = lambda _label, _seed: None,
) -> Results:
    """Run a trace again under every contender, with every seed; the recorded run comes first in what comes of it.

    All contenders of a seed are asked for the same texts, in which the same guesses are right.

    Args:
        trace: what was recorded.
        scenario: `scenario_of` it, in which contenders, seeds and the duration may be others.
        closed_loop: whether texts are asked for as long behind each other's ends as they were, rather than when they
            were.
        watch: is told what comes next.

    Raises:
        InvalidRequest: a contender cannot be simulated.
    """
    began_s = time.monotonic()
    recorded = learn(trace)
    contenders = scenario.contenders
    for contender in contenders:
        _check(trace, scenario, contender)
    real = Contender(scheduler=trace.header.scheduler, name=RECORDED, rounds=trace.header.rounds)
    # Checked anew: a contender may have that very name.
    shown = msgspec.structs.replace(scenario, schedulers=(real, *contenders))
    runs = []
    for seed in scenario.seeds:
        runs.append(_as_recorded(recorded, scenario, seed))
        boxes = _boxes(trace, recorded, closed_loop, seed)
        for contender in contenders:
            watch(contender.label, seed)
            runs.append(_again(trace, recorded, scenario, contender, boxes, seed))
    return Results(
        kind="simulated",
        command=command_line(),
        machine=Machine.here(),
        versions=Versions.here(),
        seeds=scenario.seeds,
        scenario=shown,
        runs=runs,
        took_s=time.monotonic() - began_s,
        remarks=tuple(_remarks(trace, recorded, {contender.scheduler for contender in contenders})),
    )


def _check(trace: Trace, scenario: Scenario, contender: Contender) -> None:
    if policy_of(scenario.server, contender).rounds != "rolling":
        return
    rule = printable(trace.header.rule)
    try:
        # By its name, as from a peer: what a trace names is never imported unless it is installed.
        shares_noise = rule_named(trace.header.rule).shares_noise
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{contender.label}: the trace was recorded under the rule {rule}, which is not here, so nobody knows "
            "whether rolling rounds can be replayed: install the package that has it, name its class, "
            "GOODSPEED_RULE=module:Class, or choose other rounds, such as --scheduler goodspeed"
        ) from error
    if not shares_noise:
        raise InvalidRequest(
            f"{contender.label}: under the rule {rule} a trace does not say which guesses outlive what the server "
            "writes meanwhile, so rolling rounds cannot be replayed: choose others, such as --scheduler goodspeed"
        )


def _boxes(trace: Trace, recorded: Recorded, closed_loop: bool, seed: int) -> list[_Box]:
    boxes = []
    for owner, agent in enumerate(recorded.agents):
        weight = weights(trace.events, agent.name, agent.own_weight)
        drained = undrafted(trace.events, agent.name)
        for number, lane in enumerate(agent.lanes()):
            box = _agent(agent, lane, closed_loop, np.random.default_rng([seed, owner, number]))
            boxes.append(_Box(owner, replace(box, weight=weight, undrafted=drained)))
    return boxes


def _agent(agent: RecordedAgent, lane: Sequence[RecordedText], closed_loop: bool, random: np.random.Generator) -> Agent:
    latency_s, rate = fmean(agent.ways_s) / 2, agent.rate
    texts: list[Text] = []
    ended_at = 0.0
    for text in lane:
        # A pause as its user saw it: the server sees the way there and the way back besides.
        pause_s = max(0.0, text.asked_at - ended_at - (2 if texts else 1) * latency_s)
        asked_at = max(0.0, text.asked_at - latency_s)
        # The last token of a prompt goes through the target with the first draft.
        hits, longest = hits_of(text, rate, random), longest_of(text, agent.lengths, random)
        texts.append(Text(asked_at, pause_s, text.opened.prompt - 1, text.new_tokens, hits, longest))
        ended_at = text.ended_at
    return Agent(
        draft_s=agent.draft_s,
        latency_s=latency_s,
        alpha=rate,
        max_draft=min(MAX_DRAFT_TOKENS, max(text.opened.max_draft for text in lane)),
        texts=Script(texts, closed_loop),
        ways_s=agent.ways_s,
    )


def _again(
    trace: Trace, recorded: Recorded, scenario: Scenario, contender: Contender, boxes: Sequence[_Box], seed: int
) -> Run:
    policy = policy_of(scenario.server, contender)
    result = simulate(
        [box.agent for box in boxes],
        recorded.engine,
        policy.scheduler,
        rounds=policy.rounds,
        capacity=capacity_of(policy, policy.capacity),
        round_timeout_s=trace.header.round_timeout_s,
        steered=list(changes_of_plans(trace, contender, policy)),
        prefill_chunk=scenario.server.prefill_chunk,
        duration_s=scenario.duration_s,
        warm_up_s=0.0,
        seed=seed,
        keep_records=True,
    )
    return _figures(recorded, scenario, contender, boxes, result, seed)


def _figures(
    recorded: Recorded, scenario: Scenario, contender: Contender, boxes: Sequence[_Box], result: Result, seed: int
) -> Run:
    outcomes = []
    for owner, agent in enumerate(recorded.agents):
        own = {number for number, box in enumerate(boxes) if box.owner == owner}
        texts = [text for text in result.written if text.agent in own]
        outcomes.append(
            _outcome(
                agent,
                tokens=float(result.tokens[sorted(own)].sum()),
                spans=[span for span in result.spans if span.agent in own],
                first_s=[text.first_at - text.asked_at for text in texts],
                whole_s=[text.done_at - text.asked_at for text in texts],
            )
        )
    ends = [record.at for record in result.records]
    return _run(contender.label, seed, outcomes, ends, result.busy_s / scenario.duration_s)


def _as_recorded(recorded: Recorded, scenario: Scenario, seed: int) -> Run:
    until_s, spans = scenario.duration_s, recorded.spans(scenario.duration_s)
    outcomes = []
    for number, agent in enumerate(recorded.agents):
        texts = [text for text in agent.texts if text.complete and text.ended_at <= until_s and text.written]
        way_s = fmean(agent.ways_s)  # what its user waited longer than the server saw
        outcomes.append(
            _outcome(
                agent,
                tokens=sum(size for text in agent.texts for at, size in text.commits if at <= until_s),
                spans=[span for span in spans if span.agent == number],
                first_s=[text.first_at - text.asked_at + way_s for text in texts],
                whole_s=[text.ended_at - text.asked_at + way_s for text in texts],
            )
        )
    ends = [at for at in recorded.verdicts_at if at <= until_s]
    busy_s = sum(each.seconds for each in recorded.passes if each.at <= until_s)
    return _run(RECORDED, seed, outcomes, ends, busy_s / until_s)


def _outcome(
    agent: RecordedAgent, tokens: float, spans: Sequence[Span], first_s: Sequence[float], whole_s: Sequence[float]
) -> AgentOutcome:
    served_s = _covered_s(spans)
    return AgentOutcome(
        name=agent.name,
        group=agent.drafter,
        weight=agent.weight,
        goodput=tokens / served_s if served_s > 0 else 0.0,
        texts=len(whole_s),
        first_token_ms=Quantiles.of([1e3 * seconds for seconds in first_s]),
        text_s=Quantiles.of(whole_s),
    )


def _covered_s(spans: Sequence[Span]) -> float:
    """How long it is that at least one of them lasts."""
    covered, until = 0.0, -math.inf
    for span in sorted(spans, key=lambda span: span.begin):
        covered += max(0.0, span.end - max(span.begin, until))
        until = max(until, span.end)
    return covered


def _run(label: str, seed: int, outcomes: list[AgentOutcome], ends: Sequence[float], busy: float) -> Run:
    round_ms = Quantiles.of((1e3 * np.diff(ends)).tolist())
    return Run(scheduler=label, seed=seed, agents=outcomes, rounds=len(ends), round_ms=round_ms, busy=busy)


def _remarks(trace: Trace, recorded: Recorded, replayed: Collection[str]) -> Iterator[str]:
    yield from trace.remarks()
    own = trace.header.scheduler
    if own not in replayed and not installed(SCHEDULER, own):
        yield (
            f"recorded under {printable(own)}, a class of somebody's own, which is not replayed: if you trust its "
            "code, name it with --scheduler"
        )
    waited = sum(text.opened.waited_s > _AT_ONCE_S for agent in recorded.agents for text in agent.texts)
    if waited:
        yield f"{waited} texts waited for one of {trace.header.rows} rows: a replay has a row for each"
    silent = [agent.name for agent in recorded.agents if not agent.drafted]
    if silent:
        yield f"{', '.join(silent)} never drafted: how fast, how far away and how good they are is taken for granted"
    little = [
        f"{agent.name} {agent.known_share:.0%}"
        for agent in recorded.agents
        if agent.drafted and agent.known_share < _LITTLE_KNOWN
    ]
    if little:
        yield f"known of few guesses whether they would be right, chance decides the others: {', '.join(little)}"
