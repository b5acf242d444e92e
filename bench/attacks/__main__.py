"""`make bench-attacks`: every attacker of the registries, what it gets, and what honest agents keep beside it.

*Claims* (`claims.py`) are about drafts and their `q`; how they are measured, `seats.py` says. *Floods* (`strangers.py`,
`holders.py`) go for the server's time and memory; how those are measured, `beside.py` says. What either is compared
with, `pairing.py` says.
`python -m bench.attacks [--json FILE] [--only NAME ...]`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
import uvloop

from bench.attacks.attacker import REGISTERED
from bench.attacks.beside import beside
from bench.attacks.claims import CLAIMS
from bench.attacks.figures import Row, claim_lines, flood_lines, row_of, shortfalls
from bench.attacks.floods import FLOODS, Flood
from bench.attacks.seats import beside_claims
from goodspeed.catalog import DEFAULT_DRAFT
from goodspeed.errors import InvalidRequest

__all__ = ["main"]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Of the registries; all by default.")] = None,
    turns: Annotated[int, typer.Option(help="How often each runs.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="How long a flood counts.", min=1.0)] = 6.0,
    agents: Annotated[int, typer.Option(help="Honest agents beside a claim.", min=1)] = 3,
    new_tokens: Annotated[int, typer.Option(help="That each of these writes.", min=1)] = 96,
    draft: Annotated[str, typer.Option(help="Of these.")] = DEFAULT_DRAFT,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here; with --only beside those of others.")
    ] = None,
) -> None:
    """Measure, and print what came of it; exit with 1 if a flood was not met, or honest agents keep too little."""
    assert REGISTERED
    unknown = set(only or ()) - CLAIMS.keys() - FLOODS.keys()
    if unknown:
        raise InvalidRequest(f"there is no attack {sorted(unknown)}: there are {', '.join([*CLAIMS, *FLOODS])}")
    torch.set_num_threads(1)
    claims = [one for name, one in CLAIMS.items() if not only or name in only]
    floods = [one for name, one in FLOODS.items() if not only or name in only]
    of_claims = beside_claims(claims, turns, agents, new_tokens, draft)
    if claims:
        typer.echo("\n".join(claim_lines(of_claims)))
    rows = _beside_floods(floods, turns, seconds)
    if floods:
        typer.echo("\n".join(flood_lines(rows)))
    if json_file is not None:
        how = {"turns": turns, "agents": agents, "new_tokens": new_tokens, "draft": draft}
        figures = {
            "claims": {name: how | dict(ratios) for name, ratios in of_claims.items()},
            "floods": {row.name: {"turns": turns, "seconds": seconds} | row.to_json() for row in rows},
        }
        if only and json_file.exists():
            of_others = json.loads(json_file.read_text(encoding="utf-8"))
            figures = {kind: of_others[kind] | found for kind, found in figures.items()}
        json_file.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    short = shortfalls(rows, of_claims)
    for sentence in short:
        typer.echo(sentence, err=True)
    raise typer.Exit(1 if short else 0)


def _beside_floods(floods: list[Flood], turns: int, seconds: float) -> list[Row]:
    rows = []
    for rounds, control in dict.fromkeys((one.rounds, one.beside) for one in floods):
        mine = {one.name: one for one in floods if (one.rounds, one.beside) == (rounds, control)}
        found = uvloop.run(beside(rounds, control, list(mine), turns, seconds))
        rows += [row_of(mine[name], compared) for name, compared in found.items()]
    return rows


if __name__ == "__main__":
    typer.run(main)
