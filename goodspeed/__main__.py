"""`goodspeed`: what belongs to neither the server nor an agent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import goodspeed
from goodspeed.catalog import BundledModel, bundled

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Distributed speculative decoding, fairly scheduled."
)


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
        Console().print(_table(listed))


def _table(listed: list[BundledModel]) -> Table:
    table = Table(title="Bundled models")
    for heading in ("name", "role", "parameters", "size", "accepted at T=0", "0.7", "1", "what it is"):
        table.add_column(heading, justify="left" if heading in ("name", "role", "what it is") else "right")
    for model in listed:
        rates = [f"{rate:.2f}" for rate in model.acceptance.values()] if model.acceptance else ["", "", ""]
        size = f"{model.bytes / 1e6:.1f} MB"
        table.add_row(model.name, model.role, f"{model.parameters / 1e6:.2f}M", size, *rates, model.description)
    return table


if __name__ == "__main__":
    app()
