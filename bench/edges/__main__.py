"""`make bench`: emulated edges, all policies, figures and a reading. `python -m bench.edges [--quick]`."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from bench.edges.experiments import compare, over_concurrency, rehearse, respond
from bench.edges.figures import draw
from bench.edges.policies import OURS, PAPER, PLAIN, SECONDS, candidates, swept
from bench.edges.reading import write_reading
from bench.edges.results import Results
from goodspeed.scenarios import read_scenario
from goodspeed_bench.fleet import Edge, edges_of
from goodspeed_bench.host import Workload
from goodspeed_bench.hosts import hosts
from goodspeed_bench.target import PassTime
from goodspeed_bench.trial import Setting, Window

__all__ = ["main"]

FOLDER = Path("bench/results/edges")
SCENARIO = Path("bench/scenarios/edges.toml")
"""Of which this benchmark takes the edges; the policies are its own, since it sweeps their capacities."""
FAST, SLOW = PassTime(35.0, 0.6), PassTime(100.0, 1.0)
"""A target whose pass takes what the simulations of the project assume, and one that is three times as slow."""


class Plan(msgspec.Struct, frozen=True):
    """How much is run."""

    workload: Workload
    window: Window
    sweep_window: Window
    repetitions: int
    counts: tuple[int, ...]
    phase_s: float
    depth: int
    co_located_depth: int


FULL = Plan(Workload(texts=3), Window(4.0, 8.0), Window(1.5, 4.0), 3, (1, 4, 8, 16), 12.0, depth=8, co_located_depth=3)
# Probes are four tokens long: a rehearsal that is less deep would leave those who answer them at work.
QUICK = Plan(
    Workload(texts=1), Window(1.0, 2.5), Window(1.0, 2.0), 2, (2, 8), 3.0, depth=4, co_located_depth=0
)  # fmt: skip


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few policies, short runs: under three minutes.")] = False,
    engine: Annotated[
        str, typer.Option(help="`emulated`: passes last as long as larger targets'; `real`: as the bundled target's.")
    ] = "emulated",
    folder: Annotated[Path, typer.Option(help="Where figures, plots and reading go.")] = FOLDER,
    scenario: Annotated[Path, typer.Option(help="Whose edges.")] = SCENARIO,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only plots and reading, of what was measured.")] = False,
) -> None:
    """Compare policies on emulated edges."""
    if engine not in ("emulated", "real"):
        raise typer.BadParameter("it is emulated or real", param_hint="--engine")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    if redraw:
        results = msgspec.json.decode(file.read_bytes(), type=Results)
    else:
        results = uvloop.run(_measure(edges_of(read_scenario(scenario), seed=0), quick, engine))
        file.write_bytes(msgspec.json.encode(results) + b"\n")
    draw(results, folder)
    write_reading(results, folder / "README.md")
    print(f"figures, plots and their reading are in {folder}")


async def _measure(edges: Sequence[Edge], quick: bool, engine: str) -> Results:
    plan = QUICK if quick else FULL
    began_s = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {line}", flush=True)

    targets: dict[str, PassTime | None] = {"bundled": None}
    if engine == "emulated":
        targets = {"fast": FAST} if quick else {"fast": FAST, "slow": SLOW}
    main_target = next(iter(targets))
    async with hosts() as ask:
        setting = Setting(ask, edges, plan.workload, plan.window, targets[main_target])
        await rehearse(setting, depth=plan.depth, co_located_depth=plan.co_located_depth, say=say)
        comparisons = []
        for target, pass_time in targets.items():
            all_of_them = target == main_target
            policies = [policy for policy in swept(quick) if all_of_them or policy.name in ("Fixed-S", PAPER.name)]
            comparisons.append(
                await compare(
                    target,
                    dataclasses.replace(setting, pass_time=pass_time),
                    fixed=[PLAIN, SECONDS, OURS],
                    swept=policies,
                    capacities=candidates(quick),
                    repetitions=plan.repetitions,
                    sweep_window=plan.sweep_window,
                    say=say,
                )
            )
        # Where a pass takes long, drafting pays more, and there is more to see.
        last = dataclasses.replace(setting, pass_time=SLOW if engine == "emulated" else None)
        paper = comparisons[-1].trials(PAPER.name)[0].policy
        concurrency = await over_concurrency(last, [PLAIN, paper, OURS], plan.counts, say)
        response = await respond(OURS, last, plan.phase_s, say)
    return Results(
        command=" ".join(["python -m bench.edges", *sys.argv[1:]]),
        machine=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        edges=tuple(edges),
        workload=plan.workload,
        window=plan.window,
        comparisons=tuple(comparisons),
        concurrency=concurrency,
        response=response,
        pass_time=last.pass_time,
        took_s=time.monotonic() - began_s,
    )


if __name__ == "__main__":
    typer.run(main)
