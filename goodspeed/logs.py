"""What a process logs: readable on a terminal, or JSON lines; with the ids of whatever a line is about.

Code says once what it is about (`about`), and every line that is logged beneath carries it, whoever logs it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType

__all__ = ["JsonLines", "Readable", "about", "announce", "log_to", "say"]

Id = str | int

_LONGEST_NAME = 100
"""Characters: every line about an agent has its name, which is what it says of itself."""
_NOTHING: Mapping[str, Id] = MappingProxyType({})
_ids: ContextVar[Mapping[str, Id]] = ContextVar("ids", default=_NOTHING)


def about(*, agent: str | None = None, stream: int | None = None, round: int | None = None) -> _About:  # noqa: A002 - the word for it
    """Within the block, log lines of this task, and of those it starts, are about these.

    Args:
        agent: its name, as it says it.
        stream: its number on its agent's link.
        round: of the server.
    """
    return _About(agent, stream, round)


class _About:
    """A context manager that may be entered once; by hand, since every message of every link is in one."""

    __slots__ = ("_before", "_more")

    def __init__(self, agent: str | None, stream: int | None, round: int | None) -> None:  # noqa: A002 - likewise
        self._more: dict[str, Id] = {}
        if agent is not None:
            self._more["agent"] = agent[:_LONGEST_NAME]
        if stream is not None:
            self._more["stream"] = stream
        if round is not None:
            self._more["round"] = round

    def __enter__(self) -> None:
        self._before = _ids.set({**_ids.get(), **self._more})

    def __exit__(self, *_: object) -> None:
        _ids.reset(self._before)


class JsonLines(logging.Formatter):
    """One JSON object a line; a traceback is a field of it.

    Args:
        ids: of all lines, unless a line says otherwise.
    """

    def __init__(self, ids: Mapping[str, Id] = _NOTHING) -> None:
        super().__init__()
        self._always = ids

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        line: dict[str, Id] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **_ids.get(),
        }
        if record.exc_info:
            line["exc"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Readable(logging.Formatter):
    """A line for people, ids last; no peer's name makes it look like two.

    Args:
        layout: of what stands before them, as `logging` reads it.
    """

    def __init__(self, layout: str) -> None:
        super().__init__(layout)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line; a traceback comes beneath it."""
        ids = "".join(f" {name}={_value(value)}" for name, value in _ids.get().items())
        return _printable(super().formatMessage(record)) + (f" [{ids[1:]}]" if ids else "")


def log_to(
    handler: logging.Handler, formatter: JsonLines | Readable, *, ours: Sequence[str], verbose: bool = False
) -> None:
    """Set the log of this process up: warnings of everybody, and with `verbose` what ours have to say.

    As JSON lines, an exception that ends the process is one of them.

    Args:
        handler: where it goes.
        formatter: how it looks.
        ours: loggers.
        verbose: whether they say who comes and goes.
    """
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, JsonLines | Readable):
            root.removeHandler(old)
    root.addHandler(handler)
    for name in ours:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    if isinstance(formatter, JsonLines):
        logging.captureWarnings(True)
        sys.excepthook = _log_defect


def say(program: str, sentence: str, level: int = logging.INFO) -> None:
    """Tell whoever started this process something, on standard error: where that is JSON lines, as one of them.

    Args:
        program: which speaks.
        sentence: what it says.
        level: of the line, if it is one of the log's.
    """
    if _speaks_json():
        _log_whatever_the_level(program, sentence, level)
    else:
        print(f"{program}: {sentence}", file=sys.stderr, flush=True)


def announce(program: str, sentence: str) -> None:
    """Say what whoever started this process waits for, such as where it listens: on standard output, as it is.

    Where standard error is JSON lines it is one of them instead: a collector of logs reads both.
    """
    if _speaks_json():
        _log_whatever_the_level(program, sentence, logging.INFO)
    else:
        print(sentence, flush=True)


def _speaks_json() -> bool:
    return any(type(handler) is logging.StreamHandler and _is_json(handler) for handler in logging.getLogger().handlers)


def _log_whatever_the_level(program: str, sentence: str, level: int) -> None:
    """It is an answer to what was asked of the program."""
    log = logging.getLogger(program.replace("-", "_"))
    log.handle(log.makeRecord(log.name, level, "", 0, sentence, (), None))


def _is_json(handler: logging.Handler) -> bool:
    return isinstance(handler.formatter, JsonLines)


def _log_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("goodspeed").critical("ended by a defect: %s", error, exc_info=(kind, error, trace))


def _value(value: Id) -> str:
    """An id, in quotes where it would not be one word."""
    text = _printable(str(value))
    return text if text and not set(text) & set(' "=]') else json.dumps(text, ensure_ascii=False)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
