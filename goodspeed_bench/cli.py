"""What `goodspeed bench` does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from goodspeed.event_loop import loop_factory
from goodspeed.scenarios import Results, Scenario
from goodspeed_bench.contest import bench_scenario

__all__ = ["bench"]


def bench(scenario: Scenario, folder: Path, *, rehearse: int, device: str, dtype: str, traces: Path | None) -> Results:
    """Run a scenario, and tell a terminal how far it is.

    Raises:
        GoodSpeedError: something in it cannot be run, or failed.
    """
    console = Console(stderr=True)
    with console.status("") as status, asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(
            bench_scenario(
                scenario, folder, rehearse=rehearse, device=device, dtype=dtype, watch=status.update, traces=traces
            )
        )
