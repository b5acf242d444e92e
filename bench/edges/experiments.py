"""The experiments: every policy against every other, over concurrency, and while the edges change."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence

from bench.edges.policies import OURS, PAPER, PLAIN
from bench.edges.results import Comparison, Concurrency, Event, Response, geometric_mean
from goodspeed.catalog import DEFAULT_DRAFT
from goodspeed_bench.fleet import Edge, co_located
from goodspeed_bench.host import Rehearse, Start, Stop, Swap
from goodspeed_bench.policies import Policy
from goodspeed_bench.texts import TextsCompared
from goodspeed_bench.trial import Setting, Trial, Window, run_trial, serving

__all__ = ["Say", "compare", "over_concurrency", "rehearse", "respond"]

Say = Callable[[str], None]
"""Tells whoever watches how far things are."""

TRACED = ("Fixed-S", "Random-S", PAPER.name, OURS.name)
_WEAKER = "pico-draft-s"


async def rehearse(setting: Setting, *, depth: int, co_located_depth: int, say: Say) -> None:
    """Let every draft that will be asked for be computed once; see `drafting.Remembering`."""
    began_s = time.monotonic()
    unhurried = dataclasses.replace(setting, pass_time=None)
    async with serving(PLAIN, unhurried) as (_, _, address):
        await setting.ask(Rehearse(address, tuple(setting.edges), setting.workload, depth))
        if co_located_depth:
            edges = tuple(co_located(edge, DEFAULT_DRAFT) for edge in setting.edges if edge.draft != DEFAULT_DRAFT)
            await setting.ask(Rehearse(address, edges, setting.workload, co_located_depth))
    say(f"drafts rehearsed in {time.monotonic() - began_s:.0f} s")


async def compare(
    target: str,
    setting: Setting,
    *,
    fixed: Sequence[Policy],
    swept: Sequence[Policy],
    capacities: Sequence[int],
    repetitions: int,
    sweep_window: Window,
    say: Say,
) -> Comparison:
    """Find each swept policy's best capacity in short runs, then let all policies take turns in longer ones."""
    texts = TextsCompared()
    sweep = []
    if len(capacities) > 1:
        short = dataclasses.replace(setting, window=sweep_window)
        for policy in (policy.with_capacity(capacity) for policy in swept for capacity in capacities):
            trial, _, reports = await run_trial(policy, short)
            texts.note(reports)
            sweep.append(trial)
            say(f"{target}, sweep: {_line(trial)}")
        swept = [_best(policy, sweep) for policy in swept]
    else:
        swept = [policy.with_capacity(capacities[0]) for policy in swept]
    turns, traces = [], {}
    for turn in range(repetitions):
        trials = []
        for policy in [*fixed, *swept]:
            trial, recorder, reports = await run_trial(policy, setting)
            texts.note(reports)
            trials.append(trial)
            if turn == 0 and policy.name in TRACED:
                traces[policy.name] = recorder.verdicts
            say(f"{target}, {turn + 1} of {repetitions}: {_line(trial)}")
        turns.append(tuple(trials))
    return Comparison(target, setting.pass_time, tuple(sweep), tuple(turns), traces, texts.differing, texts.count)


def _best(policy: Policy, sweep: Sequence[Trial]) -> Policy:
    own = [trial for trial in sweep if trial.policy.name == policy.name]
    return max(own, key=lambda trial: geometric_mean(trial.rates.values())).policy


async def over_concurrency(
    setting: Setting, policies: Sequence[Policy], counts: Sequence[int], say: Say
) -> tuple[Concurrency, ...]:
    """Each policy with so many streams: the first edges with one each, or all edges with several."""
    points = []
    for count in counts:
        here = len(setting.edges)
        at = dataclasses.replace(setting, edges=setting.edges[:count], streams=max(1, count // here))
        for policy in policies:
            trial, _, _ = await run_trial(policy, at)
            points.append(Concurrency(count, trial))
            say(f"{count} streams: {_line(trial)}")
    return tuple(points)


async def respond(policy: Policy, setting: Setting, phase_s: float, say: Say) -> Response:
    """One run of four phases: all edges but the last; it joins; the second leaves; the third one's drafts get worse."""
    *settled, joining = setting.edges
    # The third has good drafts and is near: if anybody drafts, it does.
    _, leaving, worsening, *_ = setting.edges
    events = []

    async with serving(policy, setting) as (_, recorder, address):

        def start(edges: Sequence[Edge]) -> Start:
            return Start(address, tuple(edges), setting.workload, policy.draft_ahead, setting.streams)

        def happened(what: str) -> None:
            events.append(Event(time.monotonic() - recorder.began_at, what))

        await setting.ask(start(settled))
        await asyncio.sleep(phase_s)
        await setting.ask(start([joining]))
        happened(f"{joining.name} joins")
        await asyncio.sleep(phase_s)
        await setting.ask(Stop((leaving.name,)))
        happened(f"{leaving.name} leaves")
        await asyncio.sleep(phase_s)
        await setting.ask(Swap(worsening.name, _WEAKER))
        happened(f"{worsening.name} drafts worse")
        await asyncio.sleep(phase_s)
        seconds = time.monotonic() - recorder.began_at
        await setting.ask(Stop())
    say(f"response: {', '.join(event.what for event in events)}")
    return Response(policy.name, seconds, tuple(events), recorder.verdicts)


def _line(trial: Trial) -> str:
    rates = trial.rates.values()
    capacity = "" if trial.policy.capacity is None else f", C = {trial.policy.capacity}"
    return (
        f"{trial.policy.name}{capacity}: {geometric_mean(rates):.2f} tokens/s an edge (geometric mean), least "
        f"{min(rates):.2f}; late passes {trial.pass_overrun_share:.0%}, late drafts {trial.draft_overrun_share:.1%}"
    )
