"""A scenario in real processes: a server, agents that are apart from it, links that are emulated."""

from __future__ import annotations

import asyncio
import functools
import re
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from transformers import PreTrainedModel

from goodspeed.catalog import load_model
from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest, RuleFault, SchedulerFault
from goodspeed.scenarios import AgentOutcome, Contender, Machine, Quantiles, Results, Run, Scenario, Versions
from goodspeed.scenarios.people import Person, people
from goodspeed.scenarios.results import command_line
from goodspeed.scenarios.scenario import AgentGroup
from goodspeed.scenarios.simulating import engine_of
from goodspeed_agent.ahead import AheadMode
from goodspeed_bench.errands import Prompts, busy_edges, read_prompts
from goodspeed_bench.fleet import Edge
from goodspeed_bench.host import Load, Rehearse, Report, Start, Stop, Workload
from goodspeed_bench.hosts import Ask, hosts
from goodspeed_bench.recorder import Recorder
from goodspeed_bench.target import EmulatedEngine, PassTime
from goodspeed_bench.texts import TextsCompared
from goodspeed_bench.trial import listening
from goodspeed_server.settings import RoundSettings, ServerSettings
from goodspeed_server.tokens import TokenStore

__all__ = ["bench_scenario", "settings_of"]

_PATIENCE_S = 10.0
"""How long the barrier waits: the paper's has no deadline, and this one is hardly reached."""
_UNHURRIED = Contender("plain", rounds="rolling")


@dataclass(frozen=True, slots=True)
class _Contest:
    """What stays the same from contender to contender."""

    scenario: Scenario
    model: PreTrainedModel
    prompts: Prompts
    ask: Ask
    folder: Path
    """For what lasts no longer than the contest."""
    traces: Path | None = None

    @property
    def coupled(self) -> bool:
        return self.scenario.server.rule == "coupled"


async def bench_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    rehearse: int,
    device: str,
    dtype: str,
    watch: Callable[[str], None],
    agents: Callable[[str], AbstractAsyncContextManager[Ask]] = hosts,
    traces: Path | None = None,
) -> Results:
    """Run every contender with every seed.

    Args:
        scenario: what to run.
        folder: what its prompts' paths are relative to.
        rehearse: draft so many tokens from each place in every text beforehand, so that while it counts no draft waits
            for the cores that all boxes share; under the coupled rule.
        device: of the target.
        dtype: of the target.
        watch: is told what comes next.
        agents: starts what agents live in, which is told the rule: processes of their own.
        traces: folder for a trace of each run; None keeps none.

    Raises:
        GoodSpeedError: something in it cannot be run, or failed.
    """
    began_s = time.monotonic()
    for contender in scenario.contenders:
        settings_of(scenario, contender, streams=1, tokens=None)
    prompts = read_prompts(scenario, folder)
    if traces is not None:
        _make(traces)
    watch(f"loading {scenario.server.model}")
    if device in ("auto", "cpu") and not torch.cuda.is_available():
        torch.set_num_threads(1)
    model = await asyncio.to_thread(load_model, scenario.server.model, device=device, dtype=dtype)
    runs, compared = [], TextsCompared()
    with tempfile.TemporaryDirectory() as scratch:
        async with agents(scenario.server.rule) as ask:
            await ask(Load(tuple({group.draft: None for group in scenario.agents})))
            contest = _Contest(scenario, model, prompts, ask, Path(scratch), traces)
            for seed in scenario.seeds:
                edges = _with_secrets(contest, busy_edges(scenario, prompts, seed), seed)
                if rehearse and contest.coupled:
                    watch(f"rehearsing, seed {seed}")
                    await _rehearse(contest, edges, rehearse)
                for contender in scenario.contenders:
                    watch(f"{contender.label}, seed {seed}")
                    try:
                        run, reports = await _run(contest, contender, edges, seed)
                    except (SchedulerFault, RuleFault) as fault:
                        raise type(fault)(f"{contender.label}, seed {seed}: {fault}") from fault
                    runs.append(run)
                    compared.note([_of_seed(report, seed) for report in reports])
    return Results(
        kind="real",
        command=command_line(),
        machine=Machine.here(),
        versions=Versions.here(),
        seeds=scenario.seeds,
        scenario=scenario,
        runs=runs,
        took_s=time.monotonic() - began_s,
        texts=compared.count if contest.coupled else 0,
        differing_texts=compared.differing if contest.coupled else 0,
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"no traces can be kept in {folder}: {error.strerror}; give another --traces") from None


def settings_of(scenario: Scenario, contender: Contender, *, streams: int, tokens: Path | None) -> ServerSettings:
    """The server's, under a contender.

    Raises:
        InvalidRequest: they cannot be.
    """
    server = scenario.server
    return ServerSettings(
        model=server.model,
        port=0,
        scheduler=contender.scheduler,
        fairness=server.fairness,
        rule=server.rule,
        max_streams=streams,
        tokens=tokens,
        rounds=RoundSettings(
            rounds=contender.rounds or server.rounds,
            capacity=server.capacity if contender.capacity is None else contender.capacity,
            round_timeout_s=_PATIENCE_S,
            prefill_chunk=server.prefill_chunk,
            early_stop=server.early_stop if contender.early_stop is None else contender.early_stop,
        ),
    )


async def _run(
    contest: _Contest, contender: Contender, edges: Sequence[Edge], seed: int
) -> tuple[Run, Sequence[Report]]:
    scenario, everybody = contest.scenario, people(contest.scenario, seed)
    ahead = scenario.server.drafts_ahead if contender.drafts_ahead is None else contender.drafts_ahead
    settings = settings_of(scenario, contender, streams=len(edges), tokens=_tokens(contest, seed))
    if contest.traces is not None:
        settings = replace(settings, trace=contest.traces / _file_name(contender, seed))
    reports: list[Report] = []
    async with listening(settings, contest.model, _engine_maker(scenario)) as (engine, recorder, address):

        async def come(some: Sequence[Edge]) -> None:
            draft_ahead: AheadMode = "auto" if ahead else "off"
            await contest.ask(Start(address, tuple(some), Workload(), draft_ahead, remember=contest.coupled))

        async def go(some: Sequence[Edge]) -> None:
            reports.extend((await contest.ask(Stop(tuple(edge.name for edge in some)))).reports)

        # The clock begins when those who are there from the start are linked.
        first = [edge for edge, person in zip(edges, everybody, strict=True) if not person.group.joins_at_s]
        if first:
            await come(first)
        recorder.began_at = time.monotonic()
        for at_s, what in _timeline(scenario, edges, everybody, come, go):
            await asyncio.sleep(max(0.0, recorder.began_at + at_s - time.monotonic()))
            await what()
    return _figures(scenario, contender, everybody, engine, recorder, reports, seed), reports


def _file_name(contender: Contender, seed: int) -> str:
    return re.sub(r"[^\w.-]+", "_", contender.label) + f"-{seed}.jsonl"


def _timeline(
    scenario: Scenario,
    edges: Sequence[Edge],
    everybody: Sequence[Person],
    come: Callable[[Sequence[Edge]], Coroutine[None, None, None]],
    go: Callable[[Sequence[Edge]], Coroutine[None, None, None]],
) -> list[tuple[float, Callable[[], Coroutine[None, None, None]]]]:
    """Who comes and goes when, the end included."""
    events: dict[tuple[float, bool], list[Edge]] = {}
    for edge, person in zip(edges, everybody, strict=True):
        joins_s, leaves_s = person.group.joins_at_s, _leaves_s(scenario, person.group)
        if joins_s >= scenario.duration_s or leaves_s <= joins_s:
            continue
        if joins_s:
            events.setdefault((joins_s, True), []).append(edge)
        events.setdefault((leaves_s, False), []).append(edge)
    return [
        (at_s, functools.partial(come if joining else go, events[at_s, joining])) for at_s, joining in sorted(events)
    ]


def _leaves_s(scenario: Scenario, group: AgentGroup) -> float:
    return min(scenario.duration_s, scenario.duration_s if group.leaves_at_s is None else group.leaves_at_s)


async def _rehearse(contest: _Contest, edges: Sequence[Edge], depth: int) -> None:
    settings = settings_of(contest.scenario, _UNHURRIED, streams=len(edges), tokens=None)
    async with listening(settings, contest.model, Engine) as (_, _, address):
        await contest.ask(Rehearse(address, tuple(edges), Workload(), depth))


def _engine_maker(scenario: Scenario) -> Callable[..., Engine]:
    verification = scenario.server.verification
    if not verification.emulated:
        return Engine
    engine = engine_of(verification)
    pass_time = PassTime(1e3 * engine.fixed_s, 1e3 * engine.token_s, 1e3 * engine.row_s)
    return functools.partial(EmulatedEngine, pass_time=pass_time)


def _tokens(contest: _Contest, seed: int) -> Path | None:
    """Weights are given by tokens; who weighs as much as everybody needs none."""
    weighted = any(group.weight != 1.0 for group in contest.scenario.agents)
    return contest.folder / f"tokens-{seed}.json" if weighted else None


def _with_secrets(contest: _Contest, edges: Sequence[Edge], seed: int) -> list[Edge]:
    file = _tokens(contest, seed)
    if file is None:
        return list(edges)
    store = TokenStore(file)
    return [
        msgspec.structs.replace(edge, secret=store.create(edge.name, "agent", weight=person.group.weight))
        for edge, person in zip(edges, people(contest.scenario, seed), strict=True)
    ]


def _of_seed(report: Report, seed: int) -> Report:
    """Texts of another seed are other texts."""
    return msgspec.structs.replace(report, name=f"{report.name}, seed {seed}")


def _figures(
    scenario: Scenario,
    contender: Contender,
    everybody: Sequence[Person],
    engine: Engine,
    recorder: Recorder,
    reports: Sequence[Report],
    seed: int,
) -> Run:
    since_s, until_s = scenario.warm_up_s, scenario.duration_s
    rounds = recorder.within(since_s, until_s)
    told = {report.name: report.told for report in reports}
    guesses = sum(report.pace.guesses for report in reports)
    outcomes = []
    for person in everybody:
        group = person.group
        from_s, to_s = max(since_s, group.joins_at_s), _leaves_s(scenario, group)
        texts = [text for text in told.get(person.name, []) if text.asked_at - recorder.began_at >= since_s]
        goodput = recorder.tokens(person.name, from_s, to_s) / (to_s - from_s) if to_s > from_s else 0.0
        outcomes.append(AgentOutcome.of(person, goodput, texts))
    return Run(
        scheduler=contender.label,
        seed=seed,
        agents=outcomes,
        rounds=len(rounds),
        round_ms=Quantiles.of((1e3 * np.diff([record.at for record in rounds])).tolist()),
        busy=sum(record.verify_s for record in rounds) / (until_s - since_s),
        late_drafts=sum(report.pace.overruns for report in reports) / max(guesses, 1),
        late_passes=engine.overruns / engine.passes if isinstance(engine, EmulatedEngine) else 0.0,
    )
