"""`python -m bench.tuning losses|clients|live`."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.recipe.lessons import make_lessons
from bench.tuning import clients as sharing
from bench.tuning import losses as comparing
from bench.tuning.live import DOMAINS, run
from bench.tuning.plots import draw
from goodspeed.tuning.trainer import quiet

RESULTS = Path(__file__).parents[1] / "results" / "tuning"

Work = Annotated[Path, typer.Option(help="Folder for everything on the way; what is there is not done again.")]
Rows = Annotated[int, typer.Option(help="Rows of 256 tokens that are read, and as many written, to learn from.")]
Seeds = Annotated[int, typer.Option(help="How many.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


def _prepare() -> Console:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    quiet()
    RESULTS.mkdir(parents=True, exist_ok=True)
    return Console(width=180)


@app.command()
def losses(
    work: Work = Path("build/tuning"),
    rows: Rows = 1500,
    seeds: Seeds = 2,
    only: Annotated[list[str] | None, typer.Option(help="A loss; may be repeated. All by default.")] = None,
    steps: Annotated[int, typer.Option(help="Updates, of every loss.")] = 300,
    batch_rows: Annotated[int, typer.Option(help="Rows of a batch.")] = 16,
    settling: Annotated[int, typer.Option(help="Updates of cross-entropy before, at most.")] = 450,
    name: Annotated[str, typer.Option(help="Of the file with the results.")] = "losses",
) -> None:
    """Compare the losses on the bundled pair."""
    console = _prepare()
    lessons = make_lessons(work, rows)
    settled = comparing.settle(lessons, work, settling, batch_rows)
    compared = only or comparing.COMPARED
    cards = comparing.compare(settled, lessons, work, compared, range(seeds), steps, batch_rows)
    title = f"From the settled draft, {steps} steps of {batch_rows} rows, {seeds} seeds: mean ± half spread"
    console.print(comparing.report(cards, title))
    (RESULTS / f"{name}.json").write_text(json.dumps(cards, indent=1) + "\n")


@app.command()
def clients(
    work: Work = Path("build/tuning"),
    rows: Rows = 1500,
    seeds: Seeds = 3,
    steps: Annotated[int, typer.Option(help="Updates, of every loss.")] = 300,
) -> None:
    """Compare ways of weighing clients of one shared draft."""
    console = _prepare()
    cards = sharing.compare(make_lessons(work, rows), work, range(seeds), steps)
    console.print(sharing.report(cards))
    (RESULTS / "clients.json").write_text(json.dumps(cards, indent=1) + "\n")


@app.command()
def live(
    work: Annotated[Path, typer.Option(help="Folder for everything on the way; emptied first.")] = Path(
        "build/tuning-live"
    ),
    seconds: Annotated[float, typer.Option(help="Of each phase that is compared.")] = 80.0,
    steps: Annotated[int, typer.Option(help="Of the tuning.")] = 200,
    rows: Annotated[
        int, typer.Option(help="Rows of 256 tokens that the target writes beside what was recorded.")
    ] = 150,
) -> None:
    """Record, tune and swap in a running deployment."""
    console = _prepare()
    seen = asyncio.run(run(work, seconds=seconds, steps=steps, rows=rows))
    table = Table(title="Committed tokens per second, by the server's count")
    compared = [phase for phase in seen.phases if phase.name != "tuning"]
    for heading in ("agent", *(phase.name for phase in compared), "tuned : raw", "tuned : raw again"):
        table.add_column(heading, justify="left" if heading == "agent" else "right")
    for domain in DOMAINS:
        raw, tuned, again = (seen.goodput(f"edge-{domain}", phase) for phase in compared)
        cells = (f"{raw:.1f}", f"{tuned:.1f}", f"{again:.1f}", f"{tuned / raw:.2f}", f"{tuned / again:.2f}")
        table.add_row(f"edge-{domain}", *cells)
    console.print(table)
    console.print(f"{seen.texts} texts finished meanwhile; {seen.different} differ from what the target writes alone")
    (RESULTS / "live.json").write_text(json.dumps(asdict(seen)) + "\n")
    draw(seen, RESULTS / "live.png")
    if seen.different:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
