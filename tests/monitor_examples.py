"""Snapshots, and consoles to draw them on, for the tests of the monitor."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from rich.console import Console

from goodspeed.snapshot import AgentRow, PhaseTimes, RoundRow, ServerSnapshot
from goodspeed_server.monitor import draw

__all__ = [
    "AGENT",
    "ROUND",
    "SNAPSHOT",
    "any_agent",
    "any_snapshot",
    "any_text",
    "drawn",
    "make_console",
    "unhurried",
    "written",
]

AGENT = AgentRow(
    name="edge-1",
    drafter="suffix",
    streams=2,
    prefilling=1,
    budget=3.5,
    alpha=0.75,
    goodput=41.25,
    history=(10.0, 20.0, 40.0),
    drafted=1234,
    accepted=900,
    committed=1500,
    draft_ms=12.0,
    network_ms=48.0,
    wait_ms=20.0,
)

ROUND = RoundRow(
    number=100,
    draft_ms=10.0,
    network_ms=20.0,
    wait_ms=50.0,
    verify_ms=18.0,
    other_ms=2.0,
    streams=2,
    drafted=7,
    accepted=5,
    committed=7,
    slowest="edge-slow",
    held_ms=40.0,
)

SNAPSHOT = ServerSnapshot(
    model="tiny-target",
    scheduler="goodspeed",
    rule="coupled",
    layout="packed",
    capacity=32,
    uptime_s=3725.0,
    rounds=100,
    rounds_per_s=38.2,
    phases=PhaseTimes(gather_ms=4.0, plan_ms=1.0, verify_ms=20.0, commit_ms=1.5),
    agents=(AGENT,),
    streams=2,
    waiting=3,
    rows=16,
    free_rows=14,
    kv_used_tokens=512,
    kv_tokens=8192,
    fairness=1.0,
    utility=3.72,
    plain_utility=3.1,
    goodput=41.25,
    goodput_history=(10.0, 20.0, 40.0),
    committed=300,
    drafted=400,
    accepted=200,
    busy_s=10.0,
    judge_s=1.0,
    plain_busy_s=18.0,
    jain=0.91,
    recent=(ROUND,),
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

any_float = st.floats(allow_nan=True, allow_infinity=True)

any_int = st.integers(-(2**63), 2**64)

any_text = st.text(max_size=40)

any_agent = st.builds(
    AgentRow,
    name=any_text,
    drafter=any_text,
    streams=any_int,
    prefilling=any_int,
    budget=any_float,
    alpha=any_float,
    goodput=any_float,
    history=st.lists(any_float, max_size=70).map(tuple),
    drafted=any_int,
    accepted=any_int,
    committed=any_int,
    state=st.sampled_from(["ok", "slow", "\x1b[2J"]) | any_text,
    weight=any_float,
    draft_ms=any_float,
    network_ms=any_float,
    wait_ms=any_float,
)

any_round = st.builds(
    RoundRow,
    number=any_int,
    draft_ms=any_float,
    network_ms=any_float,
    wait_ms=any_float,
    verify_ms=any_float,
    other_ms=any_float,
    streams=any_int,
    drafted=any_int,
    accepted=any_int,
    committed=any_int,
    slowest=any_text,
    held_ms=any_float,
)

any_snapshot = st.builds(
    ServerSnapshot,
    model=any_text,
    scheduler=any_text,
    rule=any_text,
    layout=any_text,
    capacity=st.none() | any_int,
    uptime_s=any_float,
    rounds=any_int,
    rounds_per_s=any_float,
    phases=st.builds(PhaseTimes, gather_ms=any_float, plan_ms=any_float, verify_ms=any_float, commit_ms=any_float),
    agents=st.lists(any_agent, max_size=5).map(tuple),
    streams=any_int,
    waiting=any_int,
    rows=any_int,
    free_rows=any_int,
    kv_used_tokens=any_int,
    kv_tokens=any_int,
    fairness=any_float,
    utility=any_float,
    plain_utility=any_float,
    goodput=any_float,
    goodput_history=st.lists(any_float, max_size=70).map(tuple),
    committed=any_int,
    drafted=any_int,
    accepted=any_int,
    busy_s=any_float,
    judge_s=any_float,
    plain_busy_s=any_float,
    draining=st.booleans(),
    parked=any_int,
    resumed_parked=any_int,
    resumed_transcript=any_int,
    jain=any_float,
    recent=st.lists(any_round, max_size=4).map(tuple),
)


def make_console(width: int = 120, **options: Any) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(snapshot: ServerSnapshot, width: int, height: int | None = None, notice: str = "") -> list[str]:
    console = make_console(width)
    console.print(draw(snapshot, notice), height=height)
    return written(console).splitlines()
