"""How long it takes to choose budgets: one plan for many streams, by either scheduler and every fairness on offer.

`python -m bench.scheduler [--json FILE]`
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from goodspeed.scheduling import Demand, GoodSpeedSched, Scheduler, SecondsSched, Timing
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed.utility import AlphaFair

__all__ = ["main"]

SCHEDULERS: Mapping[str, Callable[[AlphaFair], Scheduler]] = {"goodspeed": GoodSpeedSched, "seconds": SecondsSched}
CASES = (
    ("goodspeed", 100, 1_000),
    ("goodspeed", 1_000, 10_000),
    ("goodspeed", 10_000, 100_000),
    ("seconds", 100, None),
    ("seconds", 1_000, None),
    ("seconds", 10_000, None),
    ("seconds", 10_000, 2_000),
)
"""Scheduler, streams, capacity; `seconds` needs none, and the last case gives it one that binds."""
AIM_MS = 5.0
UNLIMITED = 2**31
app = typer.Typer(add_completion=False)


def _demand(streams: int, random: np.random.Generator) -> Demand:
    cost = PassCost(
        [PassSample(rows, rows * each, 0.02 + rows * 2e-5 * each) for rows in (1, 8, 64) for each in (1, 5)]
    )
    engine = EngineLoad(cost, pass_s=cost.seconds(streams, 2 * streams), rows=streams)
    return Demand(
        alpha=random.uniform(0.05, 0.98, streams),
        goodput=random.uniform(1.0, 10.0, streams),
        weight=random.choice([1.0, 1.0, 2.0], streams),
        limit=random.integers(0, 65, streams),
        timing=Timing(
            rate=random.uniform(1.0, 20.0, streams),
            draft_s=random.uniform(0.001, 0.050, streams),
            turnaround_s=random.uniform(0.005, 0.300, streams),
            engine=engine,
        ),
    )


def _measure(
    name: str, streams: int, capacity: int | None, fairness: float, plans: int
) -> dict[str, str | float | None]:
    random = np.random.default_rng(0)
    scheduler = SCHEDULERS[name](AlphaFair(fairness))
    wall_ms, cpu_ms = [], []
    for _ in range(plans):
        demand = _demand(streams, random)
        wall, cpu = time.perf_counter(), time.thread_time()
        scheduler.plan(demand, UNLIMITED if capacity is None else capacity)
        wall_ms.append((time.perf_counter() - wall) * 1e3)
        cpu_ms.append((time.thread_time() - cpu) * 1e3)
    return {
        "scheduler": name,
        "streams": streams,
        "capacity": capacity,
        "fairness": fairness,
        "median_ms": statistics.median(wall_ms),
        "min_ms": min(wall_ms),
        "max_ms": max(wall_ms),
        "median_cpu_ms": statistics.median(cpu_ms),
    }


@app.command()
def main(
    plans: Annotated[int, typer.Option(help="Plans measured for each case, each with streams of its own.")] = 200,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print milliseconds per plan."""
    print(
        f"{'scheduler':<10} {'streams':>8} {'C':>8} {'fairness':>9} {'median ms':>10} {'min ms':>8} {'CPU ms':>8}  aim"
    )
    figures = []
    for name, streams, capacity in CASES:
        for fairness in (0.0, 1.0, 2.0):
            figure = _measure(name, streams, capacity, fairness, plans)
            figures.append(figure)
            print(
                f"{name:<10} {streams:>8} {capacity or 'none':>8} {fairness:>9} {figure['median_ms']:>10.2f} "
                f"{figure['min_ms']:>8.2f} {figure['median_cpu_ms']:>8.2f}  {AIM_MS:.0f}"
            )
    if as_json:
        as_json.write_text(json.dumps({"plans": plans, "aim_ms": AIM_MS, "cases": figures}, indent=1) + "\n")


if __name__ == "__main__":
    app()
