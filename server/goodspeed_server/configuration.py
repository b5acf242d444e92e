"""Where a server's settings come from: flags before the environment before a TOML file before what is built in."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import typer

__all__ = ["ENVIRONMENT", "lines_in_force", "use_file"]

ENVIRONMENT = "GOODSPEED"
"""`--max-streams` is `GOODSPEED_MAX_STREAMS` there, and `max_streams` or `max-streams` in a file."""

_NOT_IN_FILES = frozenset({"config", "help"})
_CHOSEN = frozenset(
    {
        "capacity", "failed_tokens_per_minute", "handshakes_per_minute", "max_length", "max_links_per_address",
        "max_streams", "threads",
    }
)  # fmt: skip
"""Without a value these are chosen by the server; whatever else has none is not there."""


def use_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take values from a file, for options that are given neither as flags nor in the environment.

    Raises:
        typer.BadParameter: it cannot be read, or names an option that does not exist or a value that cannot be.
    """
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{path} is no TOML: {error}") from None
    options = {option.name: option for option in ctx.command.params if option.name not in _NOT_IN_FILES}
    values = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in options:
            near = difflib.get_close_matches(name, [str(known) for known in options], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(map(str, options)))}"
            raise typer.BadParameter(f"{path}: there is no option {key}: {hint}")
        try:
            options[name].process_value(ctx, value)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{path}: {key} = {value!r}: {error.message}") from None
        values[name] = value
    ctx.default_map = values
    return path


def lines_in_force(ctx: typer.Context) -> Iterator[str]:
    """A line of TOML for every option, with where its value comes from: together they are a file to start with."""
    for option in ctx.command.params:
        name = str(option.name)
        if name in _NOT_IN_FILES:
            continue
        value = ctx.params[name]
        source = ctx.get_parameter_source(name)
        origin = {
            "COMMANDLINE": "flag",
            "ENVIRONMENT": f"environment, {ENVIRONMENT}_{name.upper()}",
            "DEFAULT_MAP": f"file, {ctx.params['config']}",
        }.get("" if source is None else source.name, "built in")
        if value is None:
            shown = f"# {name} is {'chosen by itself' if name in _CHOSEN else 'not set'}"
        else:
            # Texts, numbers, true and false are in JSON what they are in TOML.
            shown = f"{name} = {json.dumps(value, default=str)}"
        yield f"{shown:<40}  # {origin}"
