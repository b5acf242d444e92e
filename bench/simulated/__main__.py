"""Everything under a virtual clock: `python -m bench.simulated rounds | instances | grid | scale | servers | all`.

`--quick` runs less of it. Figures are printed, and written as JSON and pictures where `--out` says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.simulated import grid as grids
from bench.simulated import instances as comparisons
from bench.simulated import rounds as per_round
from bench.simulated import scale as scales
from bench.simulated import servers as fleets
from bench.simulated.plots import draw_grid, draw_instances, draw_rounds, draw_servers

__all__ = ["app"]

RESULTS = Path(__file__).parents[1] / "results" / "simulated"
LEAST = 0.98

app = typer.Typer(add_completion=False, no_args_is_help=True)
Quick = Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")]
Out = Annotated[Path, typer.Option(help="Folder for JSON and pictures.")]


@app.command()
def rounds(quick: Quick = False, out: Out = RESULTS) -> None:
    """The paper's own model: convergence to the true optimum, and its figures 3 and 4."""
    gaps = per_round.converge(3 if quick else 12)
    replays = per_round.replay_all(3 if quick else 12, rounds=200 if quick else per_round.FIGURE_ROUNDS)
    found = per_round.figures(gaps, replays)
    print(f"{'gap to U(x*) after 200 rounds':<32} {'median':>9} {'largest':>9} {'within 1%':>10}")
    for name, rows in gaps.items():
        last = rows[:, -1]
        print(f"{name:<32} {np.median(last):>9.2%} {last.max():>9.2%} {(last <= 0.01).sum():>6} of {len(last)}")
    print(f"{'seconds for 1,000 tokens':<32} {'receiving':>9} {'verifying':>9} {'wall':>10} {'utility':>8}")
    for name, runs in replays.items():
        columns = [(run.receiving_s, run.verification_s, run.wall_s, run.utility[-1]) for run in runs]
        print(f"{name:<32} " + "{:>9.1f} {:>9.1f} {:>10.1f} {:>8.2f}".format(*np.mean(columns, axis=0)))
    _keep(out, "rounds", found)
    draw_rounds(gaps, replays, out / "rounds.png")


@app.command()
def instances(quick: Quick = False, out: Out = RESULTS) -> None:
    """Every policy on random instances of eight heterogeneous agents."""
    comparison = comparisons.compare(6 if quick else 32, duration_s=15.0 if quick else 30.0)
    print(f"{'tokens/s per agent':<26} {'geo. mean':>9} {'slowest':>8} {'sum':>7} {'Jain':>6}")
    found = comparison.figures()
    for policy, row in comparison.policies().items():
        print(f"{policy:<26} " + "{:>9.1f} {:>8.1f} {:>7.0f} {:>6.2f}".format(*row.values()))
    print(f"{'goodput, ours over theirs':<46} {'mean':>6} {'min':>6} {'25%':>6} {'50%':>6} {'75%':>6} {'max':>6}")
    for rival, spread in comparison.ratios().items():
        print(f"{comparisons.OURS:<24} / {rival:<19} " + " ".join(f"{value:>6.2f}" for value in spread.values()))
    count = comparison.slowest_no_worse()
    print(f"the slowest agent is no worse off than under the paper's in {count} of {len(comparison)} instances")
    _keep(out, "instances", found)
    draw_instances(comparison, out / "instances.png")


@app.command()
def grid(quick: Quick = False, out: Out = RESULTS) -> None:
    """Never worse than no speculation, over acceptance, draft speed, round trip and load."""
    cells = grids.walk(grids.QUICK if quick else grids.AXES, duration_s=30.0 if quick else 60.0)
    low = sorted(cells, key=lambda cell: cell.ratio)
    below = sum(cell.ratio < LEAST for cell in cells)
    print(f"{len(cells)} cells, {below} below {LEAST} of central decoding's goodput")
    print("the worst:")
    for cell in low[:5]:
        print(
            f"  {cell.ratio:.3f}: {cell.streams} stream(s), alpha {cell.alpha}, "
            f"{cell.draft_ms} ms/token, round trip {cell.round_trip_ms} ms"
        )
    _keep(out, "grid", grids.figures(cells))
    draw_grid(cells, out / "grid.png")


@app.command()
def scale(quick: Quick = False, out: Out = RESULTS) -> None:
    """Ten thousand streams for a virtual minute."""
    found = scales.measure(streams=2_000 if quick else 10_000, virtual_s=10.0 if quick else 60.0)
    print("{streams} streams, {virtual_s:.0f} virtual seconds, {passes} passes".format(**found))
    print("took {wall_s:.1f} s, of which {cpu_s:.1f} s on the processor".format(**found))
    print("{geometric_mean:.2f} tokens/s a stream; central decoding {central_decoding:.2f}".format(**found))
    _keep(out, "scale", found)


@app.command()
def servers(quick: Quick = False, out: Out = RESULTS) -> None:
    """Where 100,000 streams go among a hundred servers, and how alike the prices of their places become."""
    course = fleets.QUICK if quick else fleets.FULL
    runs = fleets.compare(course)
    print(f"{course.streams} streams on {course.servers} servers")
    print(f"{'':<24} {'spread':>7} {'geo. mean':>9} {'Jain':>6} {'a tenth below':>13}  settled after death, return")
    for name, found in runs.items():
        row = fleets.Summary.of(found, course)
        settled = (
            "not" if s is None else f"{s:.0f} s" for s in (row.settled_after_death_s, row.settled_after_return_s)
        )
        print(
            f"{name:<24} {row.price_spread:>7.4f} {row.geometric_mean:>9.3f} {row.jain:>6.3f} {row.tenth:>13.2f}  "
            + ", ".join(settled)
        )
    _keep(out, "servers", fleets.figures(runs, course))
    draw_servers(runs, course, out / "servers.png")


@app.command(name="all")
def everything(quick: Quick = False, out: Out = RESULTS) -> None:
    """All of it."""
    for command in (rounds, instances, grid, scale, servers):
        command(quick=quick, out=out)


def _keep(out: Path, name: str, figures: object) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app()
