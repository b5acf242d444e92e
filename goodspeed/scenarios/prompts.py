"""Prompts: those that ship, a JSONL file's, or a Hugging Face data set's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from goodspeed.errors import InvalidRequest
from goodspeed.extras import how_to_install
from goodspeed.scenarios.scenario import DatasetPrompts

__all__ = ["Prompt", "bundled_prompts", "load_prompts"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One opening."""

    id: str
    text: str

    @property
    def domain(self) -> str:
        """What kind of text a bundled one opens."""
        return self.id.partition("-")[0]


def bundled_prompts() -> list[Prompt]:
    """Openings of code, prose and tests, what the bundled models know; interleaved: the first few are of all kinds."""
    content = Path(__file__).with_name("prompts.jsonl").read_text(encoding="utf-8")
    prompts = [Prompt(entry["id"], entry["prompt"]) for entry in map(json.loads, content.rstrip("\n").split("\n"))]
    by_domain = [[prompt for prompt in prompts if prompt.domain == domain] for domain in ("code", "prose", "tests")]
    return [prompt for group in zip(*by_domain, strict=True) for prompt in group]


def load_prompts(prompts: str | DatasetPrompts, folder: Path) -> list[Prompt]:
    """What a group of agents is asked.

    Args:
        prompts: as a scenario has them.
        folder: what a file's path is relative to: the scenario's own.

    Raises:
        InvalidRequest: there are none, or they cannot be read.
    """
    if isinstance(prompts, DatasetPrompts):
        found = list(_of_dataset(prompts))
        where = f"column {prompts.column} of {prompts.dataset}"
    elif prompts == "bundled":
        return bundled_prompts()
    else:
        where = str(folder / prompts)
        found = list(_of_lines(folder / prompts))
    if not found:
        raise InvalidRequest(f"there are no prompts in {where}")
    return found


def _of_lines(file: Path) -> Iterator[Prompt]:
    """Lines of `{"prompt": "..."}` or `{"messages": [...]}`."""
    try:
        # Not `splitlines`: JSON may hold U+2028 and its like as they are.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the prompts in {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = _text(entry["prompt"] if "prompt" in entry else entry["messages"])
        except (ValueError, KeyError, TypeError):
            text = None
        if not text:
            raise InvalidRequest(
                f'line {number} of {file} is no prompt: it should be like {{"prompt": "..."}} or {{"messages": [...]}}'
            )
        yield Prompt(f"{file.stem}-{number}", text)


def _of_dataset(wanted: DatasetPrompts) -> Iterator[Prompt]:
    rows = _rows(wanted)
    known = list(rows.column_names or [])
    if known and wanted.column not in known:
        raise InvalidRequest(f"{wanted.dataset} has no column {wanted.column}: there are {', '.join(known)}")
    try:
        for number, row in enumerate(islice(rows, wanted.limit)):
            text = _text(row[wanted.column])
            if not text:
                raise InvalidRequest(
                    f"column {wanted.column} of {wanted.dataset} is neither text nor a conversation's messages"
                )
            yield Prompt(f"{Path(wanted.dataset).name}-{number}", text)
    except (OSError, ValueError) as error:
        raise _unreachable(wanted, error) from error


def _rows(wanted: DatasetPrompts) -> Any:
    """A data set's rows as they come, so that no more of it is fetched than is used."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise InvalidRequest(
            f"prompts from {wanted.dataset} need the datasets library, which is missing: {how_to_install('bench')}"
        ) from None
    folder = Path(wanted.dataset)
    try:
        if (folder / "state.json").exists():
            return datasets.load_from_disk(folder)
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(folder)[wanted.split]
        return datasets.load_dataset(wanted.dataset, wanted.subset, split=wanted.split, streaming=not folder.exists())
    # The library raises what its many ways of fetching raise.
    except Exception as error:
        raise _unreachable(wanted, error) from error


def _unreachable(wanted: DatasetPrompts, error: Exception) -> InvalidRequest:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidRequest(
        f"the data set {wanted.dataset} cannot be had: {reason} (is its name right, is the hub in reach, and have its "
        "conditions been accepted with `hf auth login`, where it has any?)"
    )


def _text(value: object) -> str | None:
    """A text, or what the user says first in a conversation."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        for message in value:
            if isinstance(message, Mapping) and message.get("role") == "user":
                return _text(message.get("content"))
    return None
