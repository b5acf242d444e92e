"""What `--data` and `--prompts` name: recorded shards, text files, or prompts for the target to go on from."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.tuning.measuring import TEMPERATURES
from goodspeed.tuning.passages import SHARD_SUFFIX, Passage, read_shard, read_shards
from goodspeed.tuning.teaching import read_texts, write_texts

__all__ = ["PROMPT_TOKENS", "DataSpec", "load_source"]

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 64
"""How much of a prompt the target goes on from."""

_TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".jsonl"})
_WRITE_ROWS = 64
_ENCODED_TEXTS = 32
_CHOICE = 4
"""Of so many times the rows that are wanted they are chosen, so that no few documents make them all."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """One place to learn from."""

    path: Path
    share: float = 1.0
    """Relative to the others'."""
    kind: Literal["read", "write"] = "read"
    """Whether its texts are what is learned, or the beginnings of what the target shall write."""

    @classmethod
    def parse(cls, text: str, kind: Literal["read", "write"]) -> DataSpec:
        """Read `PATH` or `PATH=SHARE`.

        Raises:
            InvalidRequest: there is nothing there, or the share is no number above 0.
        """
        name, equals, number = text.rpartition("=")
        path, share = (Path(name), number) if equals and not Path(text).exists() else (Path(text), "1")
        try:
            value = float(share)
        except ValueError:
            raise InvalidRequest(f"{text!r}: {share!r} is no share; write PATH=0.5, say") from None
        if not 0 < value < float("inf"):
            raise InvalidRequest(f"{text!r}: a share is above 0, and only its proportion to the others' counts")
        if not path.expanduser().exists():
            raise InvalidRequest(f"there is no file or folder {str(path)!r}: see --data and --prompts")
        return cls(path.expanduser(), value, kind)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What the target is to go on from."""

    tokens: Sequence[int]
    client: str
    temperature: float


@dataclass(frozen=True, slots=True)
class _Text:
    """One document, and whose it is."""

    text: str
    client: str


def load_source(
    spec: DataSpec,
    target: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    row_tokens: int,
    at_most: int,
    seed: int,
) -> list[Passage]:
    """Read a source, and ask the target about whatever it has not been asked about yet.

    Args:
        spec: what to read.
        target: the one that drafts are tuned toward.
        tokenizer: its own.
        row_tokens: the length of the rows that text is cut into, and that the target writes.
        at_most: how many rows of text; recorded passages are all read.
        seed: chooses rows, and draws what the target writes.

    Raises:
        CorruptData: nothing in it can be read.
    """
    if spec.path.suffix == SHARD_SUFFIX:
        return read_shard(spec.path)
    if spec.path.is_dir() and any(spec.path.glob(f"*{SHARD_SUFFIX}")):
        return read_shards(spec.path)
    generator = torch.Generator().manual_seed(seed)
    texts = _texts(spec.path)
    clients = sorted({text.client for text in texts})
    share = -(-at_most // max(1, len(clients)))
    passages: list[Passage] = []
    prompts: list[_Prompt] = []
    for client in clients:
        own = [text.text for text in texts if text.client == client]
        order = torch.randperm(len(own), generator=generator).tolist()
        documents = _encoded([own[place] for place in order], tokenizer)
        if spec.kind == "read":
            rows = _windows(documents, row_tokens, _CHOICE * share)
            if len(rows):
                chosen = rows[torch.randperm(len(rows), generator=generator)[:share]]
                passages += read_texts(target, chosen, client=client)
        else:
            length = min(PROMPT_TOKENS, row_tokens // 2)
            prompts += _prompts(client, [ids[:length] for ids in itertools.islice(documents, share) if ids], share)
    passages += _written(target, prompts, row_tokens, generator)
    if not passages:
        raise CorruptData(f"{spec.path} has no text of {row_tokens} tokens: give more of it, or shorter --row-tokens")
    logger.info("%s: %d passages of %d clients", spec.path, len(passages), len(clients))
    return passages


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The texts as tokens, no more of them than are asked for."""
    for begin in range(0, len(texts), _ENCODED_TEXTS):
        for encoding in tokenizer.encode_batch(texts[begin : begin + _ENCODED_TEXTS], add_special_tokens=False):
            yield encoding.ids


def _windows(documents: Iterable[Sequence[int]], length: int, enough: int) -> Tensor:
    """Cut documents into rows, int64 [rows, length], until there are enough; what is left over of each is dropped."""
    rows: list[Sequence[int]] = []
    for ids in documents:
        rows += [ids[begin : begin + length] for begin in range(0, len(ids) - length + 1, length)]
        if len(rows) >= enough:
            break
    return torch.tensor(rows, dtype=torch.int64).view(-1, length)


def _prompts(client: str, beginnings: Sequence[Sequence[int]], count: int) -> list[_Prompt]:
    """`count` prompts, for the served temperatures in turn; beginnings are taken again where there are too few."""
    if not beginnings:
        return []
    return [
        _Prompt(beginnings[number % len(beginnings)], client, TEMPERATURES[number % len(TEMPERATURES)])
        for number in range(count)
    ]


def _written(
    target: PreTrainedModel, prompts: Sequence[_Prompt], row_tokens: int, generator: torch.Generator
) -> list[Passage]:
    """What the target makes of prompts, those of one length and temperature together."""
    on_device = torch.Generator(target.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
    by_kind: dict[tuple[int, float], list[_Prompt]] = {}
    for prompt in prompts:
        by_kind.setdefault((len(prompt.tokens), prompt.temperature), []).append(prompt)
    passages: list[Passage] = []
    for (length, temperature), alike in by_kind.items():
        for begin in range(0, len(alike), _WRITE_ROWS):
            some = alike[begin : begin + _WRITE_ROWS]
            rows = torch.tensor([prompt.tokens for prompt in some], dtype=torch.int64)
            texts = write_texts(target, rows, row_tokens - length, temperature, on_device)
            read = read_texts(target, texts, start=length, temperature=temperature)
            passages += [replace(passage, client=prompt.client) for passage, prompt in zip(read, some, strict=True)]
    return passages


def _texts(path: Path) -> list[_Text]:
    """All documents of a file or a folder; a folder's clients are its subfolders, a file's are its lines' or itself."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _TEXT_SUFFIXES)
        if not files:
            suffixes = ", ".join(sorted(_TEXT_SUFFIXES))
            raise CorruptData(f"{path} holds no recorded shards and no text files ({suffixes})")
        return [text for file in files for text in _file_texts(file, _client_of(file, path))]
    return _file_texts(path, path.stem)


def _client_of(file: Path, folder: Path) -> str:
    inside = file.relative_to(folder).parts
    return inside[0] if len(inside) > 1 else folder.name


def _file_texts(file: Path, client: str) -> list[_Text]:
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptData(f"{file} is no text: {error}") from None
    if file.suffix != ".jsonl":
        return [_Text(content, client)]
    texts = []
    # Not `splitlines`: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry.get("text") or entry["prompt"]
            texts.append(_Text(text + "", str(entry.get("client", client))))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CorruptData(
                f"{file}, line {number}: not a JSON object with a text or a prompt, and if you like a client"
            ) from None
    return texts
