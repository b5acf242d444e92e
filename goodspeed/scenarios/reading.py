"""Scenario files: read, checked, and refused by the path of the key that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct, inspect
from msgspec.structs import replace

from goodspeed.errors import InvalidRequest
from goodspeed.plugins import file_of
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

__all__ = ["problem_said", "read_scenario"]

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
_RANGE = re.compile(r"Expected `(int|float)` (<|>)=? .*")
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
        scenario = msgspec.convert(content, Scenario)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {problem_said(str(error))}") from None
    return _placed(scenario, path)


def _placed(scenario: Scenario, path: Path) -> Scenario:
    """With the files of one's own classes as they are found from here; what tables call them stays."""
    contenders: list[str | Contender] = []
    for place, contender in enumerate(scenario.schedulers):
        named = Contender(contender) if isinstance(contender, str) else contender
        scheduler = _found(named.scheduler, path, f"schedulers[{place}]")
        changed = scheduler != named.scheduler
        contenders.append(replace(named, scheduler=scheduler, name=named.label) if changed else contender)
    server = replace(scenario.server, rule=_found(scenario.server.rule, path, "server.rule"))
    return replace(scenario, server=server, schedulers=tuple(contenders))


def _found(given: str, path: Path, key: str) -> str:
    """A place whose file is looked for beside the scenario, and then in the working directory."""
    file = file_of(given)
    if file is None:
        return given
    beside = path.parent / file
    if beside.is_file():
        return f"{beside}{given.strip()[len(file) :]}"
    if not Path(file).is_file():
        looked = dict.fromkeys([str(beside.resolve()), str(Path(file).resolve())])
        raise InvalidRequest(f"{path}: {key} is {given}, and there is no {' nor '.join(looked)}")
    return given


def problem_said(problem: str) -> str:
    """Msgspec's message, in terms of the file."""
    parts = _PROBLEM.fullmatch(problem)
    assert parts is not None
    what, path = parts["what"], parts["path"] or ""
    unknown, missing = _UNKNOWN.fullmatch(what), _MISSING.fullmatch(what)
    if missing:
        return f"{_key(path, missing['key'])} is missing"
    if _RANGE.fullmatch(what):
        return f"{path} must be {_range(path)}"
    if not unknown:
        return f"{path}: {what}" if path else what
    known = list(_TABLES[_bare(path.rpartition(".")[2])].__struct_fields__)
    near = difflib.get_close_matches(unknown["key"], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no key {_key(path, unknown['key'])}: {hint}"


def _range(path: str) -> str:
    """What a number may be, by its field."""
    table, _, key = path.rpartition(".")
    # msgspec's type says only that it is some type; that of a struct has fields.
    fields = inspect.type_info(_TABLES[_bare(table.rpartition(".")[2])]).fields  # type: ignore[attr-defined]
    kind = next(field.type for field in fields if field.name == _bare(key))
    for place in re.findall(r"\[(.*?)\]", key):
        kind = kind.item_types[int(place)] if isinstance(kind, inspect.TupleType) else kind.item_type
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    number = next(each for each in kinds if isinstance(each, inspect.IntType | inspect.FloatType))
    whole = "a whole number, " if isinstance(number, inspect.IntType) else ""
    low = f"above {number.gt:g}" if number.gt is not None else f"{number.ge:g} or above"
    return f"{whole}{low} and at most {number.le:,.10g}"


def _bare(key: str) -> str:
    """Without the places in an array."""
    return re.sub(r"\[.*?\]", "", key)


def _key(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
