"""A scenario on the virtual clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from goodspeed.catalog import bundled
from goodspeed.errors import InvalidRequest, RuleFault, SchedulerFault
from goodspeed.rules import use_rule
from goodspeed.scenarios.people import Person, draw, people
from goodspeed.scenarios.results import AgentOutcome, Machine, Quantiles, Results, Run, Versions, command_line
from goodspeed.scenarios.scenario import AgentGroup, Arrivals, Contender, Scenario, Server, Spread, Verification
from goodspeed.scheduling import CAPACITY_PER_STREAM, Scheduler, make_scheduler, needs_no_capacity
from goodspeed.simulation import Agent, Engine, Result, RoundsKind, Texts, simulate
from goodspeed.simulation.texts import Length
from goodspeed.timing import PassCost, PassSample
from goodspeed.utility import AlphaFair

__all__ = ["Policy", "agents_of", "engine_of", "policy_of", "simulate_scenario", "texts_of"]


def simulate_scenario(scenario: Scenario, watch: Callable[[str, int], None] = lambda _label, _seed: None) -> Results:
    """Run every contender with every seed; contenders of one seed have the same agents, who ask for the same.

    Args:
        scenario: what to run.
        watch: is told what comes next.

    Raises:
        InvalidRequest: something in it cannot be simulated.
        SchedulerFault: a scheduler plans what cannot be, or raises something; the sentence names contender and seed.
        RuleFault: so does the rule.
    """
    began_s = time.monotonic()
    runs = []
    for seed in scenario.seeds:
        everybody = people(scenario, seed)
        agents = agents_of(scenario, everybody)
        for contender in scenario.contenders:
            watch(contender.label, seed)
            try:
                runs.append(_run(scenario, contender, everybody, agents, seed))
            except (SchedulerFault, RuleFault) as fault:
                raise type(fault)(f"{contender.label}, seed {seed}: {fault}") from fault
    return Results(
        kind="simulated",
        command=command_line(),
        machine=Machine.here(),
        versions=Versions.here(),
        seeds=scenario.seeds,
        scenario=scenario,
        runs=runs,
        took_s=time.monotonic() - began_s,
    )


class Policy(NamedTuple):
    """What a contender is, for the simulator."""

    scheduler: Scheduler
    rounds: RoundsKind
    capacity: int | None
    """None: what it chooses, or `CAPACITY_PER_STREAM`, where it needs one."""

    @property
    def unlimited(self) -> bool:
        """Whether no number of tokens holds drafts back."""
        return self.capacity is None and self.rounds == "rolling" and needs_no_capacity(self.scheduler)


def policy_of(server: Server, contender: Contender) -> Policy:
    """What a contender is; what it does not say is the server's.

    Raises:
        InvalidRequest: there is no such scheduler.
    """
    scheduler = make_scheduler(contender.scheduler, AlphaFair(server.fairness))
    rounds = contender.rounds or server.rounds
    if rounds == "auto":
        rounds = "rolling" if needs_no_capacity(scheduler) else "barrier"
    return Policy(scheduler, rounds, server.capacity if contender.capacity is None else contender.capacity)


def _run(scenario: Scenario, contender: Contender, everybody: list[Person], agents: list[Agent], seed: int) -> Run:
    server = scenario.server
    rule = use_rule(server.rule)
    policy = policy_of(server, contender)
    if policy.rounds == "rolling" and rule != "coupled":
        raise InvalidRequest(
            f"{contender.label}: rolling rounds are simulated under the coupled rule only: "
            'give server.rule = "coupled", or rounds = "barrier"'
        )
    capacity = policy.capacity
    if capacity is None and not policy.unlimited:
        capacity = CAPACITY_PER_STREAM * len(agents)
    ahead = server.drafts_ahead if contender.drafts_ahead is None else contender.drafts_ahead
    result = simulate(
        [replace(agent, drafts_ahead=ahead) for agent in agents],
        engine_of(server.verification),
        policy.scheduler,
        rounds=policy.rounds,
        rule=rule,
        capacity=capacity,
        prefill_chunk=server.prefill_chunk,
        duration_s=scenario.duration_s,
        warm_up_s=scenario.warm_up_s,
        seed=seed,
        keep_records=True,
    )
    return _figures(scenario, contender, everybody, result, seed)


def _figures(scenario: Scenario, contender: Contender, everybody: list[Person], result: Result, seed: int) -> Run:
    ends = np.array([record.at for record in result.records if record.at >= scenario.warm_up_s])
    outcomes = []
    for person, goodput in zip(everybody, result.goodput.tolist(), strict=True):
        texts = [text for text in result.written if text.agent == person.number]
        outcomes.append(AgentOutcome.of(person, goodput, texts))
    return Run(
        scheduler=contender.label,
        seed=seed,
        agents=outcomes,
        rounds=len(ends),
        round_ms=Quantiles.of((1e3 * np.diff(ends)).tolist()),
        busy=result.busy_s / scenario.duration_s,
    )


def agents_of(scenario: Scenario, everybody: list[Person]) -> list[Agent]:
    """As the simulator knows them.

    Raises:
        InvalidRequest: nothing is known of a draft's acceptance.
    """
    return [
        Agent(
            draft_s=person.draft_ms / 1e3,
            latency_s=person.round_trip_ms / 2e3,
            alpha=_acceptance(person, scenario.server.rule),
            jitter_s=person.group.jitter_ms / 1e3,
            weight=person.group.weight,
            max_draft=person.group.max_draft,
            joins_at=person.group.joins_at_s,
            leaves_at=math.inf if person.group.leaves_at_s is None else person.group.leaves_at_s,
            texts=texts_of(person.group),
        )
        for person in everybody
    ]


def engine_of(verification: Verification) -> Engine:
    """The engine whose passes take that long."""
    if not verification.passes:
        fixed_s, row_s, token_s = verification.fixed_ms, verification.row_ms, verification.token_ms
        return Engine(fixed_s / 1e3, row_s / 1e3, token_s / 1e3, verification.noise)
    cost = PassCost(PassSample(rows, tokens, ms / 1e3) for rows, tokens, ms in verification.passes)
    return Engine(cost.fixed_s, cost.row_s, cost.token_s, verification.noise)


def _acceptance(person: Person, rule: str) -> float | Callable[[float], float]:
    group, acceptance = person.group, person.group.acceptance
    if isinstance(acceptance, float | int):
        return acceptance
    if acceptance is None or acceptance.measured is not None:
        return _measured(group, (acceptance and acceptance.measured) or group.draft, rule)
    if acceptance.low is not None and acceptance.high is not None:
        return acceptance.low + person.standing * (acceptance.high - acceptance.low)
    return partial(_between, tuple(acceptance.at_s), tuple(acceptance.rate))


def _between(at_s: tuple[float, ...], rate: tuple[float, ...], now: float) -> float:
    return float(np.interp(now, at_s, rate))


def _measured(group: AgentGroup, draft: str, rule: str) -> float:
    """By the draft's card; straight lines between the temperatures it was measured at."""
    card = next((model for model in bundled() if model.name == draft), None)
    rates = card and (card.acceptance if rule == "ratio" else card.acceptance_coupled)
    if not rates:
        raise InvalidRequest(
            f"agents called {group.name} need an acceptance: {draft} is no bundled draft, whose card would say"
        )
    temperatures = sorted(rates, key=float)
    return float(np.interp(group.temperature, [float(each) for each in temperatures], [rates[t] for t in temperatures]))


def texts_of(group: AgentGroup) -> Texts | None:
    """What the user of one of its agents asks for; None: a text without an end."""
    if group.new_tokens is None:
        return None
    arrivals = group.arrivals
    return Texts(
        prompt_tokens=_length(group.prompt_tokens),
        new_tokens=_length(group.new_tokens),
        rate=None if arrivals is None else arrivals.at,
        peak_rate=0.0 if arrivals is None else _peak(arrivals),
        think_s=group.think_s,
    )


def _peak(arrivals: Arrivals) -> float:
    return arrivals.per_s * (1.0 + arrivals.swing)


def _length(tokens: int | Spread) -> Length:
    return lambda random: round(draw(tokens, random))
