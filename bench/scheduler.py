"""How long it takes to choose budgets: one plan for many streams, by every fairness on offer.

`python -m bench.scheduler [--json FILE]`
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from goodspeed.scheduling import Demand, GoodSpeedSched
from goodspeed.utility import AlphaFair

__all__ = ["main"]

CASES = ((100, 1_000), (1_000, 10_000), (10_000, 100_000))
AIM_MS = 10.0
app = typer.Typer(add_completion=False)


def _demand(streams: int, random: np.random.Generator) -> Demand:
    return Demand(
        alpha=random.uniform(0.05, 0.98, streams),
        goodput=random.uniform(1.0, 10.0, streams),
        weight=random.choice([1.0, 1.0, 2.0], streams),
        limit=random.integers(0, 65, streams),
    )


def _measure(streams: int, capacity: int, fairness: float, plans: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    scheduler = GoodSpeedSched(AlphaFair(fairness))
    wall_ms, cpu_ms = [], []
    for _ in range(plans):
        demand = _demand(streams, random)
        wall, cpu = time.perf_counter(), time.thread_time()
        scheduler.plan(demand, capacity)
        wall_ms.append((time.perf_counter() - wall) * 1e3)
        cpu_ms.append((time.thread_time() - cpu) * 1e3)
    return {
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
    print(f"{'streams':>8} {'C':>8} {'fairness':>9} {'median ms':>10} {'min ms':>8} {'max ms':>8} {'CPU ms':>8}  aim")
    figures = []
    for streams, capacity in CASES:
        for fairness in (0.0, 1.0, 2.0):
            figure = _measure(streams, capacity, fairness, plans)
            figures.append(figure)
            print(
                f"{streams:>8} {capacity:>8} {fairness:>9} {figure['median_ms']:>10.2f} {figure['min_ms']:>8.2f} "
                f"{figure['max_ms']:>8.2f} {figure['median_cpu_ms']:>8.2f}  {AIM_MS:.0f}"
            )
    if as_json:
        as_json.write_text(json.dumps({"plans": plans, "aim_ms": AIM_MS, "cases": figures}, indent=1) + "\n")


if __name__ == "__main__":
    app()
