"""The results of a file of prompts: a run goes on with what an earlier one, that was cut off, has left behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import msgspec

from goodspeed.errors import InvalidRequest
from goodspeed.messages import Welcome
from goodspeed.paths import expanded
from goodspeed_agent.asking import TextRequest
from goodspeed_agent.locking import alone_with
from goodspeed_agent.prompts import PromptLine
from goodspeed_agent.targets import identity
from goodspeed_agent.working import note

__all__ = ["Results", "results_in"]


class _Line(msgspec.Struct):
    """What is read again of a result."""

    line: int
    request: str
    error: Any = None
    verified: bool = True

    @property
    def lasting(self) -> bool:
        """Whether nothing is left to be done for its prompt: no failure, nor the draft's own text."""
        return self.error is None and self.verified


@dataclass(slots=True)
class Results:
    """Where results go."""

    file: TextIO
    missing: Sequence[PromptLine]
    """What is to be completed."""
    kept: int = 0
    """How many results are there from an earlier run."""
    cut_off: bool = False
    """Whether the last of them was cut off, and has been dropped."""
    requests: dict[int, str] | None = None
    """What names each prompt's request, by its line, where results are to be known again."""

    def write(self, result: dict[str, Any]) -> None:
        """Write a result, as a line that is there at once."""
        if self.requests is not None:
            result = result | {"request": self.requests[result["line"]]}
        print(json.dumps(result, ensure_ascii=False), file=self.file, flush=True)


@contextlib.contextmanager
def results_in(output: Path | None, prompts: Sequence[PromptLine], welcome: Welcome) -> Iterator[Results]:
    """Open what results go to: a file, or standard output.

    Whole lines in the file stay; a last one that was cut off is dropped, and what failed or was not verified is done
    again. At the end the file holds one line for each prompt, in their order. Meanwhile no other run has it.

    Args:
        output: the file; None for standard output.
        prompts: all of them.
        welcome: of the server, whose target is to complete them.

    Raises:
        InvalidRequest: the file cannot be written, another run is at work on it, or it holds anything else: it is left
            as it is.
    """
    if output is None:
        yield Results(sys.stdout, prompts)
        return
    path = expanded(output)
    requests = {prompt.number: _name(prompt, welcome) for prompt in prompts}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone_with(path))
            file = stack.enter_context(path.open("a", encoding="utf-8"))
            # A pipe, or a device, has nothing to be kept.
            kept, cut_off = _keep(path, file, requests) if path.is_file() else ({}, False)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None
        done = {number for number, line in kept.items() if line.lasting}
        missing = [prompt for prompt in prompts if prompt.number not in done]
        yield Results(file, missing, len(done), cut_off, requests)
        file.close()
        if path.is_file():
            _put_in_order(path)


def _name(prompt: PromptLine, welcome: Welcome) -> str:
    """Names all that a result depends on, and the prompt's own id.

    Under the ratio rule a text also depends on what was drafted, and so on draft and budgets, which may change while it
    is written: there it is one draw of many that are as good, and any of them counts.
    """
    everything = [prompt.id, _asked(prompt.request), identity(welcome)]
    return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()[:16]


def _asked(request: TextRequest) -> dict[str, Any]:
    """What is not as it is by default: an option that is new here leaves the names of older results as they are."""
    plain = TextRequest("")
    options = {"params": _beyond(plain.params, request.params, request.params.__struct_fields__)}
    return _beyond(plain, request, [field.name for field in fields(request)]) | options


def _beyond(default: object, given: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(given, name)) != getattr(default, name)}


def _keep(path: Path, file: TextIO, requests: dict[int, str]) -> tuple[dict[int, _Line], bool]:
    """The results in a file, the last of each line of prompts; a line that was cut off is dropped from the file."""
    content = path.read_bytes()
    *whole, rest = content.split(b"\n")
    kept: dict[int, _Line] = {}
    for number, text in enumerate(whole, start=1):
        line = _read(text, requests)
        if line is None:
            raise _foreign(path, number)
        kept[line.line] = line
    if rest:
        if not _cut_off(rest, requests):
            raise _foreign(path, len(whole) + 1)
        file.truncate(len(content) - len(rest))
    return kept, bool(rest)


def _foreign(path: Path, number: int) -> InvalidRequest:
    return InvalidRequest(
        f"{path} is there already, and its line {number} is no result of these prompts with these options and "
        "this target: remove the file, or name another as --output"
    )


def _read(text: bytes, requests: dict[int, str]) -> _Line | None:
    """A line as a result of one of the prompts; None if it is none."""
    try:
        line = msgspec.json.decode(text, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return line if requests.get(line.line) == line.request else None


def _cut_off(rest: bytes, requests: dict[int, str]) -> bool:
    """Whether an unfinished line is the beginning of a result of one of the prompts, or lacks its end of line alone."""
    try:
        msgspec.json.decode(rest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        openings = (b'{"line": %d, ' % number for number in requests)
        return any(rest.startswith(opening) or opening.startswith(rest) for opening in openings)
    return _read(rest, requests) is not None


def _put_in_order(path: Path) -> None:
    """Let the last result of each prompt stand, in the order of the prompts; the next run reads any order."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        numbers = [msgspec.json.decode(line, type=_Line).line for line in lines]
        last = dict(zip(numbers, lines, strict=True))
        if sorted(last) != numbers:
            _replace(path.resolve(), b"".join(last[number] for number in sorted(last)))
    except OSError as error:
        note(
            f"all results are in {path}, but not in the order of the prompts, and what was done again is there twice, "
            f"the later line being the one that counts: it cannot be replaced ({error.strerror})"
        )


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename: whatever happens meanwhile, nothing is lost."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        new = Path(folder, path.name)
        new.write_bytes(content)
        shutil.copymode(path, new)
        os.replace(new, path)
