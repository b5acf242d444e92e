"""`goodspeed-server token`: hand out secrets, list what they stand for, take them back."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from goodspeed.paths import expanded
from goodspeed_server.errands import errors_named
from goodspeed_server.tokens import Role, Token, TokenStore

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Who may link up.")

Tokens = Annotated[
    Path, typer.Option(help="The file; give the same one to run as --tokens.", envvar="GOODSPEED_TOKENS")
]

_TOKENS = platformdirs.user_config_path("goodspeed") / "tokens.json"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    role: Annotated[Role, typer.Option(help="agent drafts, monitor watches, admin both, and ctl.")] = "agent",
    weight: Annotated[float, typer.Option(help="How much the utility of its agents counts.")] = 1.0,
    max_streams: Annotated[int | None, typer.Option(help="At a time, over all its links.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="With more, no new text is begun.")] = None,
    tokens: Tokens = _TOKENS,
) -> None:
    """Make a token, and print its secret: this once."""
    with errors_named():
        tokens = expanded(tokens)
        secret = TokenStore(tokens).create(
            name, role, weight=weight, max_streams=max_streams, tokens_per_minute=tokens_per_minute
        )
        print(secret)
        typer.echo(f"kept in {tokens} as a hash alone: whoever shows it is {name}. It is not shown again.", err=True)


@app.command("list")
def show(
    tokens: Tokens = _TOKENS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which tokens there are; their secrets nobody knows."""
    with errors_named():
        tokens = expanded(tokens)
        known = TokenStore(tokens).tokens()
        if not known:
            where = f"{tokens}" if tokens.exists() else f"{tokens}, which is not there"
            typer.echo(
                f"there are no tokens in {where}: goodspeed-server token create NAME makes one, --tokens names another "
                "file",
                err=True,
            )
        if as_json:
            print(json.dumps([{k: v for k, v in asdict(token).items() if k != "digest"} for token in known]))
            return
        if not known:
            return
        # Names come last and in one piece, however long: a terminal folds them, and what is copied is the name.
        rows = [("role", "weight", "streams", "tokens a minute", "created", "name"), *map(_row, known)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for *cells, name in rows:
            print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), name]))


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Whose it is.")], tokens: Tokens = _TOKENS) -> None:
    """Take a token back: its links are cut within seconds."""
    with errors_named():
        TokenStore(expanded(tokens)).revoke(name)


def _row(token: Token) -> tuple[str, ...]:
    limits = [str(limit or "no limit") for limit in (token.max_streams, token.tokens_per_minute)]
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(token.created_s))
    return token.role, f"{token.weight:g}", *limits, created, token.name
