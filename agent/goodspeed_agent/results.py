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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from goodspeed.errors import InvalidRequest
from goodspeed.messages import Welcome
from goodspeed.paths import expanded
from goodspeed_agent.prompts import PromptLine

__all__ = ["Results", "results_in"]


class _Line(msgspec.Struct):
    """What is read again of a result."""

    line: int
    request: str
    error: Any = None


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

    Whole lines in the file stay; a last one that was cut off is dropped, and what failed is done again. At the end the
    file holds one line for each prompt, in their order.

    Args:
        output: the file; None for standard output.
        prompts: all of them.
        welcome: of the server, whose target is to complete them.

    Raises:
        InvalidRequest: the file cannot be written, or holds anything else: it is left as it is.
    """
    if output is None:
        yield Results(sys.stdout, prompts)
        return
    path = expanded(output)
    requests = {prompt.number: _name(prompt, welcome) for prompt in prompts}
    try:
        # A pipe, or a device, has nothing to be kept.
        kept, cut_off = _keep(path, requests) if path.is_file() else ({}, False)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None
    done = {number for number, line in kept.items() if line.error is None}
    with file:
        yield Results(file, [prompt for prompt in prompts if prompt.number not in done], len(done), cut_off, requests)
    if path.is_file():
        _put_in_order(path)


def _name(prompt: PromptLine, welcome: Welcome) -> str:
    """Names all that a result depends on, and the prompt's own id."""
    everything = [prompt.id, prompt.request, welcome.weights, welcome.rule]
    return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()[:16]


def _keep(path: Path, requests: dict[int, str]) -> tuple[dict[int, _Line], bool]:
    """The results in a file, the last of each line of prompts; a line that was cut off is dropped from the file."""
    *whole, rest = path.read_bytes().split(b"\n")
    kept: dict[int, _Line] = {}
    for number, text in enumerate(whole, start=1):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            line = None
        if line is None or requests.get(line.line) != line.request:
            raise InvalidRequest(
                f"{path} is there already, and its line {number} is no result of these prompts with these options and "
                "this target: remove the file, or name another as --output"
            )
        kept[line.line] = line
    if rest:
        os.truncate(path, path.stat().st_size - len(rest))
    return kept, bool(rest)


def _put_in_order(path: Path) -> None:
    """Let the last result of each prompt stand, in the order of the prompts."""
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = [msgspec.json.decode(line, type=_Line).line for line in lines]
    last = dict(sorted(zip(numbers, lines, strict=True)))
    if list(last) == numbers:
        return
    path = path.resolve()
    # Written beside and renamed: whatever happens meanwhile, nothing is lost.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        new = Path(folder, path.name)
        new.write_bytes(b"".join(last.values()))
        shutil.copymode(path, new)
        os.replace(new, path)
