"""How long it takes to choose budgets: one plan for many streams, by either scheduler and every fairness on offer.

And how long all of a server's planning takes, with what is known of the streams gathered from them, and every stream
told of its budget. That is Python's work for each stream, as reading and writing its messages is.

`python -m bench.scheduler [--json FILE]`
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer

from goodspeed.estimation import PRIOR_ALPHA, Goodput, HitOrMiss
from goodspeed.messages import ServerMessage
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import Demand, GoodSpeedSched, Scheduler, SecondsSched, Timing
from goodspeed.stream import ServedStream
from goodspeed.timing import EngineLoad, EngineMeter, Pace, PassCost, PassSample
from goodspeed.utility import AlphaFair
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.settings import RoundSettings

__all__ = ["main"]

T = TypeVar("T")

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


def _cost() -> PassCost:
    """Of the passes of an engine that is made up."""
    return PassCost(
        [PassSample(rows, rows * each, 0.02 + rows * 2e-5 * each) for rows in (1, 8, 64) for each in (1, 5)]
    )


def _demand(streams: int, random: np.random.Generator) -> Demand:
    cost = _cost()
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
    demands = (_demand(streams, random) for _ in range(plans))
    times = _times(lambda demand: scheduler.plan(demand, UNLIMITED if capacity is None else capacity), demands)
    return {"scheduler": name, "streams": streams, "capacity": capacity, "fairness": fairness, **times}


def _times(work: Callable[[T], object], items: Iterable[T]) -> dict[str, float]:
    """Milliseconds for one of the items; making it does not count."""
    wall_ms, cpu_ms = [], []
    for item in items:
        wall, cpu = time.perf_counter(), time.thread_time()
        work(item)
        wall_ms.append((time.perf_counter() - wall) * 1e3)
        cpu_ms.append((time.thread_time() - cpu) * 1e3)
    return {
        "median_ms": statistics.median(wall_ms),
        "min_ms": min(wall_ms),
        "max_ms": max(wall_ms),
        "median_cpu_ms": statistics.median(cpu_ms),
    }


class _Nowhere:
    """Takes what would be sent to an agent."""

    def post(self, message: ServerMessage) -> None:
        pass


def _measure_planning(streams: int, plans: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    planner = Planner(SecondsSched(), "coupled", RoundSettings(rounds="rolling"), EngineMeter(_cost()))
    account = AgentAccount("agent", "drafter", PRIOR_ALPHA)
    live = [
        LiveStream(
            number=number,
            outbox=_Nowhere(),
            account=account,
            stream=ServedStream([1], 1, SamplingParams(), 256, 8, 512, eos_tokens=()),
            row=number,
            estimator=HitOrMiss(alpha),
            rate=Goodput(0.0, 10.0),
            pace=Pace(draft_s, 0.05),
        )
        for number, (alpha, draft_s) in enumerate(
            zip(random.uniform(0.05, 0.98, streams), random.uniform(0.001, 0.050, streams), strict=True)
        )
    ]
    return {"streams": streams, **_times(lambda now: planner.plan(live, 8 * streams, now), map(float, range(plans)))}


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
    whole = [_measure_planning(streams, max(1, plans // 10)) for streams in (100, 1_000, 10_000)]
    for planned in whole:
        print(
            f"{'a server':<10} {planned['streams']:>8} {'none':>8} {1.0:>9} {planned['median_ms']:>10.2f} "
            f"{planned['min_ms']:>8.2f} {planned['median_cpu_ms']:>8.2f}"
        )
    if as_json:
        figures_of = {"plans": plans, "aim_ms": AIM_MS, "cases": figures, "a_server": whole}
        as_json.write_text(json.dumps(figures_of, indent=1) + "\n")


if __name__ == "__main__":
    app()
