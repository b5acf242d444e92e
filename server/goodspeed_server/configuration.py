"""Where a server's settings come from: flags before the environment before a TOML file before what is built in."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from goodspeed.environment import ENVIRONMENT, OF_AGENTS
from goodspeed.errors import InvalidRequest
from goodspeed.given import variable
from goodspeed.paths import expanded

__all__ = ["checked", "lines_in_force", "use_file"]

T = TypeVar("T")

_NOT_IN_FILES = frozenset({"config", "help"})
_CHOSEN = frozenset(
    {
        "capacity", "failed_tokens_per_minute", "handshakes_per_minute", "max_length", "max_links_per_address",
        "max_streams", "threads",
    }
)  # fmt: skip
"""Without a value these are chosen by the server; whatever else has none is not there."""
_MADE = frozenset({"record", "trace", "log_file"})
"""Paths that a server makes; all others have to be there."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text, in quotes"}


def use_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take values from a file, for options that are given neither as flags nor in the environment.

    Paths in it are relative to the folder that it lies in, as what a scenario names is looked for beside that.

    Raises:
        typer.BadParameter: it cannot be read, or names an option that does not exist or a value that cannot be.
    """
    if path is None:
        return None
    try:
        path = expanded(path)
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except InvalidRequest as error:
        raise typer.BadParameter(str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{path} is no TOML: {error}") from None
    options = {option.name: option for option in ctx.command.params if option.name not in _NOT_IN_FILES}
    kinds = _kinds(ctx)
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in options:
            near = difflib.get_close_matches(name, [str(known) for known in options], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(map(str, options)))}"
            raise typer.BadParameter(f"{path}: there is no option {key}: {hint}")
        if name in written:
            raise typer.BadParameter(f"{path}: {written[name]} and {key} are one option: keep one of them")
        written[name] = key
        kind = kinds[name]
        wanted = str if kind is Path else kind
        # TOML's true is Python's True, which is an int; and it writes whole numbers without a point.
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise typer.BadParameter(f"{path}: {key} = {_as_toml(value)}: it must be {_KINDS[wanted]}")
        try:
            options[name].process_value(ctx, value)
            values[name] = str(path.parent / expanded(Path(str(value)))) if kind is Path else value
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{path}: {key} = {_as_toml(value)}: {error.message}") from None
        except InvalidRequest as error:
            raise typer.BadParameter(f"{path}: {key} = {_as_toml(value)}: {error}") from None
    ctx.default_map = values
    return path


def checked(ctx: typer.Context, check: Callable[[Mapping[str, Any]], T]) -> T:
    """Read all values together.

    Args:
        ctx: holds them.
        check: reads them.

    Raises:
        InvalidRequest: `check` refuses them. Where without one of them, from the environment or the file, it would not
            say the same, its sentence begins with that one and where it stands.
    """
    try:
        return check(ctx.params)
    except InvalidRequest as error:
        for option in ctx.command.params:
            place = _place(ctx, option)
            if place is not None and _complaint(check, {**ctx.params, str(option.name): option.default}) != str(error):
                raise InvalidRequest(f"{place}: {error}") from None
        raise


def _place(ctx: typer.Context, option: Any) -> str | None:
    """Where a value stands, and what it is; None if it is a flag's, or built in."""
    source = ctx.get_parameter_source(option.name)
    if source is not None and source.name == "DEFAULT_MAP":
        return f"{ctx.params['config']}: {option.name} = {_as_toml(ctx.params[option.name])}"
    return variable(ctx, option)


def _complaint(check: Callable[[Mapping[str, Any]], Any], values: Mapping[str, Any]) -> str | None:
    try:
        check(values)
    except InvalidRequest as error:
        return str(error)
    return None


def _kinds(ctx: typer.Context) -> dict[str, type]:
    """What kind of value each option takes: bool, int, float, str or Path."""
    assert ctx.command.callback is not None
    hints = get_type_hints(inspect.unwrap(ctx.command.callback))
    return {str(option.name): _kind(hints[str(option.name)]) for option in ctx.command.params if option.name in hints}


def _kind(hint: Any) -> type:
    if get_origin(hint) is UnionType:
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    return hint if isinstance(hint, type) else str  # a Literal's are names


def _as_toml(value: Any) -> str:
    """Texts, numbers, true and false are in JSON what they are in TOML."""
    return json.dumps(value, default=str)


def _absence(name: str, file: Path) -> str:
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return " (not there yet)" if name in _MADE else " (not there)"
    except OSError as error:
        return f" ({error.strerror})"
    return ""


def lines_in_force(ctx: typer.Context) -> Iterator[str]:
    """A line of TOML for every option, with where its value comes from: together they are a file to start with."""
    kinds = _kinds(ctx)
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
        elif kinds[name] is Path:
            # Whole, so that it means the same in a file that lies elsewhere.
            file = expanded(Path(value)).absolute()
            shown = f"{name} = {_as_toml(str(file))}"
            origin += _absence(name, file)
        else:
            shown = f"{name} = {_as_toml(value)}"
        yield f"{shown:<40}  # {origin}"
    for name in sorted(OF_AGENTS & os.environ.keys()):
        yield f"# {name} is in the environment: goodspeed-agent's, and nothing to a server"
