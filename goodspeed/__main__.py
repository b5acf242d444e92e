"""`goodspeed`: what belongs to neither the server nor an agent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import goodspeed
from goodspeed.catalog import BundledModel, bundled
from goodspeed.scenarios.cli import bench, check, simulate
from goodspeed.tuning.cli import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distributed speculative decoding, fairly scheduled.",
)


app.command()(tune)
app.command()(simulate)
app.command()(bench)
app.command("check-rule")(check)

_ROOM_FOR_DESCRIPTIONS = 120
"""Characters a line; on a narrower terminal names and figures need all of it."""


@app.callback()
def main() -> None:
    """Distributed speculative decoding, fairly scheduled."""


@app.command()
def version() -> None:
    """Print the version."""
    print(goodspeed.__version__)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for scripts.")] = False) -> None:
    """List the bundled models."""
    listed = bundled()
    if as_json:
        print(json.dumps([asdict(model) | {"path": str(model.path)} for model in listed], indent=2))
    else:
        console = Console()
        console.print(_table(listed, described=console.width >= _ROOM_FOR_DESCRIPTIONS))


def _table(listed: list[BundledModel], *, described: bool) -> Table:
    caption = "by temperature: accepted under the coupled/ratio rule"
    table = Table(title="Bundled models", caption=caption, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("name", "role"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "size", "T=0", "T=0.7", "T=1"):
        table.add_column(heading, justify="right")
    if described:
        table.add_column("what it is")
    for model in listed:
        by_rule = (model.acceptance_coupled, model.acceptance)
        rates = ["/".join(f"{rate[t]:.2f}" for rate in by_rule if rate) for t in ("0", "0.7", "1")]
        size = f"{model.bytes / 1e6:.1f} MB"
        figures = (model.name, model.role, f"{model.parameters / 1e6:.2f}M", size, *rates)
        table.add_row(*figures, *([model.description] if described else []))
    return table


if __name__ == "__main__":
    app()
