"""Schedulers, rules and drafters of one's own: a class, found by the name of an entry point or by where it is.

Wherever GoodSpeed takes a name it takes any of these, and keyword options behind each:

```
goodspeed                       what is built in
golden                          an installed package's entry point, in the group of its kind
my_module:Mine                  a class of a module, found where Python looks and in the working directory
experiments/mine.py:Mine        a class of a file
my_module:Mine(beta=0.3)        options of its constructor: Python literals
```

What the server knows besides is offered by name: a constructor that has a parameter `utility` is given the operator's.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from goodspeed.errors import InvalidRequest

__all__ = ["Kind", "file_of", "find", "installed", "make", "raised", "unknown"]

T = TypeVar("T")

_LONGEST = 4096
"""Characters of what is given, options included."""
_SHOWN = 80

_GIVEN = re.compile(r"(?P<name>[^()]+?)\s*(?:\((?P<options>.*)\))?", re.DOTALL)
_PLACE = re.compile(r"(?P<where>[^\0]+\.py|[A-Za-z_][\w.]*):(?P<what>[A-Za-z_][\w.]*)")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """Something of which one can have one's own."""

    name: str
    """In sentences: scheduler, rule, drafter."""
    group: str
    """Of entry points, in a package's metadata."""
    interface: type[T]
    """A protocol: whatever is public in it has to be there."""
    built_in: Mapping[str, Callable[..., T]]


def find(kind: Kind[T], given: str) -> tuple[Callable[..., T], dict[str, Any]] | None:
    """What makes the thing that is meant, and the options given with it.

    Returns:
        None where the name is neither built in, nor an entry point's, nor a place.

    Raises:
        InvalidRequest: the place cannot be imported or holds no such class, or the options cannot be read.
    """
    if len(given) > _LONGEST:
        raise InvalidRequest(
            f"the {kind.name} {_short(given)} has {len(given)} characters: at most {_LONGEST:,} can be"
        )
    parts = _GIVEN.fullmatch(given.strip())
    if parts is None:
        return None
    name, options = parts["name"], parts["options"]
    maker = _maker(kind, name)
    return None if maker is None else (maker, _options(given, options or ""))


def make(kind: Kind[T], given: str, **offered: object) -> T:
    """Find it, make one, and see that it has the interface of its kind.

    Args:
        kind: what is wanted.
        given: as the user named it.
        offered: what a constructor gets if it has parameters of these names.

    Raises:
        InvalidRequest: there is none, it cannot be made, or what is made lacks something.
    """
    found = find(kind, given)
    if found is None:
        raise unknown(kind, given)
    maker, options = found
    try:
        wanted = inspect.signature(maker).parameters
        made = maker(**{name: value for name, value in offered.items() if name in wanted} | options)
    except InvalidRequest:
        raise
    # Whatever a class of the user's raises, the user is who can do something about it.
    except Exception as error:
        raise InvalidRequest(f"the {kind.name} {given} cannot be made: {_described(error)}") from error
    lacking = _lacking(made, kind.interface)
    if lacking:
        raise InvalidRequest(
            f"{given} is no {kind.name}: {lacking}; what one needs is in {kind.interface.__module__}."
            f"{kind.interface.__name__}"
        )
    return made


def installed(kind: Kind[Any], given: str) -> bool:
    """Whether a name is built in or an entry point's, rather than a place."""
    parts = _GIVEN.fullmatch(given.strip()) if len(given) <= _LONGEST else None
    name = "" if parts is None else parts["name"]
    return name in kind.built_in or bool(entry_points(group=kind.group, name=name))


def file_of(given: str) -> str | None:
    """The file of a place, as the user named it; None where a name or a module is given."""
    parts = _GIVEN.fullmatch(given.strip()) if len(given) <= _LONGEST else None
    place = parts and _PLACE.fullmatch(parts["name"])
    return place["where"] if place and place["where"].endswith(".py") else None


def unknown(kind: Kind[Any], given: str, also: tuple[str, ...] = (), *, places: bool = True) -> InvalidRequest:
    """That there is no such name.

    Args:
        kind: what was wanted.
        given: as the user named it.
        also: names that have a meaning where it was given.
        places: whether a class may be named by where it is.
    """
    names = [*also, *kind.built_in, *(point.name for point in entry_points(group=kind.group))]
    near = difflib.get_close_matches(given, names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    own = ", or name a class of your own: module:Class or file.py:Class" if places else ""
    return InvalidRequest(f"{kind.name} {given!r} does not exist: {hint}choose {', '.join(names)}{own}")


def raised(error: BaseException) -> str:
    """What somebody's class raised, and where: an assertion says nothing else."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    said = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{said} ({frame.filename}, line {frame.lineno})"


def _maker(kind: Kind[T], name: str) -> Callable[..., T] | None:
    if name in kind.built_in:
        return kind.built_in[name]
    points = entry_points(group=kind.group, name=name)
    place = _place_of(next(iter(points)), kind) if points else name
    parts = _PLACE.fullmatch(place)
    if parts is None:
        return None
    module = _module(kind, parts["where"])
    try:
        maker = operator.attrgetter(parts["what"])(module)
    except AttributeError:
        near = difflib.get_close_matches(parts["what"], vars(module), 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InvalidRequest(f"{parts['where']} has no {parts['what']}{hint}") from None
    if not callable(maker):
        raise InvalidRequest(f"{place} is a {type(maker).__name__}: name the class of your {kind.name}")
    return maker  # type: ignore[no-any-return]  # what it makes is looked at by `make`


def _place_of(point: EntryPoint, kind: Kind[Any]) -> str:
    """What an entry point names, without the extras that it may ask for."""
    place = point.value.partition("[")[0].replace(" ", "")
    if _PLACE.fullmatch(place) is None:
        raise InvalidRequest(
            f"the entry point {point.name} names no {kind.name}: it is {point.value!r}, and should be like module:Class"
        )
    return place


def _module(kind: Kind[Any], where: str) -> ModuleType:
    """Import it; a file's module is kept under its path, and so imported once."""
    file = Path(where).resolve() if where.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InvalidRequest(f"there is no {file}, where the {kind.name} should be")
    try:
        if file is None:
            # Where a console script is started is not on the path; behind everything else, so that it hides nothing.
            if not {"", os.getcwd()} & set(sys.path):
                sys.path.append(os.getcwd())
            return importlib.import_module(where)
        if str(file) not in sys.modules:
            _run_file(file)
        return sys.modules[str(file)]
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise InvalidRequest(f"there is no {where}, where the {kind.name} should be") from None
        raise InvalidRequest(f"{where}, where the {kind.name} should be, fails: {_described(error)}") from error


def _run_file(file: Path) -> None:
    spec = importlib.util.spec_from_file_location(str(file), file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[str(file)] = importlib.util.module_from_spec(spec)
    # As if it were run: what lies beside it can be imported.
    beside = str(file.parent)
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(file)]
        raise
    finally:
        if beside in sys.path:
            sys.path.remove(beside)


def _options(given: str, text: str) -> dict[str, Any]:
    unreadable = InvalidRequest(f"the options of {_short(given)} cannot be read: they are like (beta=0.3, name='x')")
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            if None not in options and len(options) == len(call.keywords):
                return {str(name): value for name, value in options.items()}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass  # what Python says of it is about Python's parser
    raise unreadable


def _short(given: str) -> str:
    return given if len(given) <= _SHOWN else f"{given[:_SHOWN]}..."


def _lacking(made: object, interface: type[Any]) -> str:
    """What of an interface is not there, in words; empty if all of it is."""
    who = type(made).__name__
    for name, asked in vars(interface).items():
        if name.startswith("_"):
            continue
        if not hasattr(made, name):
            return f"{who} has no {name}"
        if inspect.isfunction(asked):
            lacking = _uncallable(getattr(made, name), asked)
            if lacking:
                return f"{who}.{name} cannot be called as {name}{_shown(asked)}: {lacking}"
    return ""


def _uncallable(offered: object, asked: Callable[..., Any]) -> str:
    if not callable(offered):
        return f"it is a {type(offered).__name__}"
    _, *parameters = inspect.signature(asked).parameters.values()
    by_name = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    try:
        inspect.signature(offered).bind(*[None] * (len(parameters) - len(by_name)), **by_name)
    except TypeError as error:
        return str(error)
    except ValueError:
        return ""  # a built-in without a signature: calling it will tell
    return ""


def _shown(asked: Callable[..., Any]) -> str:
    return f"({', '.join(list(inspect.signature(asked).parameters)[1:])})"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
