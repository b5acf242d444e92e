"""One run: a server under a policy, edges at work, a warm-up, a measured window."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from msgspec import Struct
from transformers import PreTrainedModel

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.engine import Engine
from goodspeed_bench.drafting import Pace
from goodspeed_bench.fleet import Edge, co_located
from goodspeed_bench.host import Report, Start, Stop, Workload
from goodspeed_bench.hosts import Ask
from goodspeed_bench.policies import Policy
from goodspeed_bench.recorder import Recorder, Times
from goodspeed_bench.target import ColocatedEngine, DraftSteps, EmulatedEngine, PassTime
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["Setting", "Trial", "Window", "listening", "run_trial", "serving"]

_PATIENCE_S = 10.0
"""The paper's barrier has no deadline; this one is never reached."""
_LOOK_EVERY_S = 0.25
_FULL_HOUSE = 8
"""The streams that a policy's capacity is meant for."""


class Window(Struct, frozen=True):
    """How long a run takes."""

    warmup_s: float = 3.0
    measured_s: float = 8.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same from policy to policy."""

    ask: Ask
    edges: Sequence[Edge]
    workload: Workload
    window: Window
    pass_time: PassTime | None
    """Of the emulated target; None: the bundled target's own."""
    streams: int = 1
    """Of each edge."""


class Trial(Struct, frozen=True):
    """What came of a run."""

    policy: Policy
    rates: dict[str, float]
    """Tokens per second of each edge, all its streams together, inside the window."""
    times: Times
    drafted: int
    accepted: int
    committed: int
    pass_overrun_share: float
    """Passes that took longer than the emulated target's; nothing is emulated: 0."""
    draft_overrun_share: float
    """Guesses that took longer to compute than on the emulated boxes."""
    draft_overrun_time_share: float
    """By how much, of the time that guesses were to take."""
    torn: int
    """Texts that did not come out as they had earlier in the run."""


async def run_trial(policy: Policy, setting: Setting) -> tuple[Trial, Recorder, Sequence[Report]]:
    """Run once.

    Returns:
        The figures, all that was recorded, and what the edges reported.

    Raises:
        GoodSpeedError: server or agents failed.
    """
    edges = [co_located(edge, DEFAULT_DRAFT) for edge in setting.edges] if policy.co_located else setting.edges
    async with serving(policy, setting) as (engine, recorder, address):
        await setting.ask(Start(address, tuple(edges), setting.workload, policy.draft_ahead, setting.streams))
        await asyncio.sleep(setting.window.warmup_s)
        since_s = time.monotonic() - recorder.began_at
        await asyncio.sleep(setting.window.measured_s)
        until_s = time.monotonic() - recorder.began_at
        reports = (await setting.ask(Stop())).reports
    return _figures(policy, setting, engine, recorder, reports, since_s, until_s), recorder, reports


@contextlib.asynccontextmanager
async def serving(policy: Policy, setting: Setting) -> AsyncIterator[tuple[Engine, Recorder, str]]:
    """A server under a policy: its engine, its observer, and its address."""
    streams = len(setting.edges) * setting.streams
    capacity = None if policy.capacity is None else round(policy.capacity * streams / _FULL_HOUSE)
    settings = ServerSettings(
        port=0,
        scheduler=policy.scheduler,
        max_streams=streams,
        rule="coupled",
        dtype="float32",
        device="cpu",
        rounds=RoundSettings(
            rounds=policy.rounds, capacity=capacity, round_timeout_s=_PATIENCE_S, early_stop=policy.early_stop
        ),
    )
    torch.set_num_threads(1)
    model = load_model(DEFAULT_TARGET, device="cpu", dtype="float32")
    async with listening(settings, model, _engine_maker(policy, setting.pass_time)) as at_work:
        yield at_work


@contextlib.asynccontextmanager
async def listening(
    settings: ServerSettings, model: PreTrainedModel, make: Callable[..., Engine]
) -> AsyncIterator[tuple[Engine, Recorder, str]]:
    """A server around a target and an engine of one's own making: its engine, its observer, and its address.

    Raises:
        SchedulerFault: the scheduler failed; the context is left at once, since what follows is plain decoding.
        Exception: whatever else ended the rounds meanwhile, rather than what came of that.
    """
    engines: list[Engine] = []

    def make_engine(*what: Any, **how: Any) -> Engine:
        engines.append(make(*what, **how))
        return engines[0]

    recorder = Recorder(time.monotonic())
    server = VerificationServer(
        settings, model, tokenizer_files(settings.model), make_engine=make_engine, observer=recorder
    )
    try:
        async with server.listen() as address, asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(server))
            recorder.began_at = time.monotonic()
            yield engines[0], recorder, address
            watching.cancel()
            if server.failure is not None:
                raise server.failure  # since it was last looked at
    except ExceptionGroup as troubles:
        raise server.failure or troubles.exceptions[0] from None


async def _watch(server: VerificationServer) -> None:
    """Leave the context with what the server failed by."""
    while server.failure is None:  # noqa: ASYNC110  # rounds and scheduler fail in two places, which tell nobody
        await asyncio.sleep(_LOOK_EVERY_S)
    raise server.failure


def _engine_maker(policy: Policy, pass_time: PassTime | None) -> Callable[..., Engine]:
    if pass_time is None:
        return Engine
    if policy.co_located:
        return functools.partial(ColocatedEngine, pass_time=pass_time, draft_steps=DraftSteps(pass_time.fixed_ms / 10))
    return functools.partial(EmulatedEngine, pass_time=pass_time)


def _figures(
    policy: Policy,
    setting: Setting,
    engine: Engine,
    recorder: Recorder,
    reports: Sequence[Report],
    since_s: float,
    until_s: float,
) -> Trial:
    span_s = until_s - since_s
    rounds = recorder.within(since_s, until_s)
    pace = Pace(
        sum(report.pace.guesses for report in reports),
        sum(report.pace.overruns for report in reports),
        sum(report.pace.overrun_s for report in reports),
        sum(report.pace.emulated_s for report in reports),
    )
    return Trial(
        policy=policy,
        rates={edge.name: recorder.tokens(edge.name, since_s, until_s) / span_s for edge in setting.edges},
        times=recorder.times(since_s, until_s),
        drafted=sum(record.drafted for record in rounds),
        accepted=sum(record.accepted for record in rounds),
        committed=sum(record.committed for record in rounds),
        pass_overrun_share=engine.overruns / engine.passes if isinstance(engine, EmulatedEngine) else 0.0,
        draft_overrun_share=pace.overruns / max(pace.guesses, 1),
        draft_overrun_time_share=pace.overrun_s / pace.emulated_s if pace.emulated_s else 0.0,
        torn=sum(report.torn for report in reports),
    )
