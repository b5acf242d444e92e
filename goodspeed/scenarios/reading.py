"""Scenario files: read, checked, and refused by the path of the key that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from goodspeed.errors import InvalidRequest
from goodspeed.scenarios.scenario import (
    Acceptance,
    AgentGroup,
    Arrivals,
    Contender,
    DatasetPrompts,
    Scenario,
    Server,
    Spread,
    Verification,
)

__all__ = ["read_scenario"]

_TABLES: dict[str, type[Struct]] = {
    "": Scenario,
    "server": Server,
    "verification": Verification,
    "schedulers": Contender,
    "agents": AgentGroup,
    "acceptance": Acceptance,
    "arrivals": Arrivals,
    "prompts": DatasetPrompts,
    "draft_ms": Spread,
    "round_trip_ms": Spread,
    "prompt_tokens": Spread,
    "new_tokens": Spread,
}
_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario.

    Raises:
        InvalidRequest: it cannot be read, or says something that cannot be; the sentence names the key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{path} is no TOML: {error}") from None
    try:
        return msgspec.convert(content, Scenario)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {_sentence(str(error))}") from None


def _sentence(problem: str) -> str:
    """Msgspec's message, in terms of the file."""
    parts = _PROBLEM.fullmatch(problem)
    assert parts is not None
    what, path = parts["what"], parts["path"] or ""
    unknown, missing = _UNKNOWN.fullmatch(what), _MISSING.fullmatch(what)
    if missing:
        return f"{_key(path, missing['key'])} is missing"
    if not unknown:
        return f"{path}: {what}" if path else what
    table = re.sub(r"\[.*?\]", "", path.rpartition(".")[2])
    known = list(_TABLES[table].__struct_fields__)
    near = difflib.get_close_matches(unknown["key"], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no key {_key(path, unknown['key'])}: {hint}"


def _key(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
