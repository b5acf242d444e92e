"""Texts with what the target thought of them, and the shards that hold them on disk.

A *passage* is one text and the target's distribution at a run of its positions, truncated to the likeliest tokens. A
server records them from its verdicts; `teaching` makes them from a file's text. A *shard* is a safetensors file of
some passages, written beside its place and then moved there, so that a reader never sees half of one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import CorruptData
from goodspeed.reasons import reason

__all__ = ["BLOCK_FIELDS", "SHARD_SUFFIX", "Passage", "read_shard", "read_shards", "write_shard"]

logger = logging.getLogger(__name__)

SHARD_SUFFIX = ".safetensors"
BLOCK_FIELDS = ("base", "budget", "drafted", "accepted")
"""The columns of `Passage.blocks`."""

_FORMAT = "goodspeed passages 1"
_FACTS_BYTES = 256
"""A passage's numbers in the head of a shard."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One text, and the target's distributions along it."""

    tokens: NDArray[np.int32]
    """[length], from the beginning of the prompt."""
    start: int
    """At least 1: the distributions are those of `tokens[start:start + known]`, each given all tokens before it."""
    support: NDArray[np.int32]
    """[known, k]: the target's likeliest tokens at each position."""
    log_p: NDArray[np.float16]
    """[known, k]: their log-probabilities, at temperature 1 and before any truncation."""
    client: str = ""
    """Whose text it is: the agent's name."""
    domain: str = ""
    """What it is about, where anybody said so."""
    drafter: str = ""
    """What drafted it, where anything did."""
    temperature: float = 1.0
    """At which its tokens were drawn."""
    blocks: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, len(BLOCK_FIELDS)), np.int32))
    """[blocks, 4]: for every verdict, see `BLOCK_FIELDS`: where it began, what was granted, drafted and accepted."""

    @property
    def known(self) -> int:
        """At how many positions the target's distribution is known."""
        return len(self.support)

    @property
    def nbytes(self) -> int:
        """About how much room it takes, in memory as on disk."""
        arrays = (self.tokens, self.support, self.log_p, self.blocks)
        names = (self.client, self.domain, self.drafter)
        return sum(array.nbytes for array in arrays) + sum(map(len, names)) + _FACTS_BYTES


def write_shard(path: Path, passages: Sequence[Passage]) -> None:
    """Write some passages to one file, which nobody but its owner may read.

    Args:
        path: the file; its folder has to exist.
        passages: at least one, all with the same `k`.

    Raises:
        OSError: the disk is full, or whatever else keeps a file from being written; nothing is left behind.
    """
    from safetensors.numpy import save

    about = [
        {
            "length": len(passage.tokens),
            "start": passage.start,
            "known": passage.known,
            "blocks": len(passage.blocks),
            "client": passage.client,
            "domain": passage.domain,
            "drafter": passage.drafter,
            "temperature": passage.temperature,
        }
        for passage in passages
    ]
    tensors = {
        "tokens": np.concatenate([passage.tokens for passage in passages]),
        "support": np.concatenate([passage.support for passage in passages]),
        "log_p": np.concatenate([passage.log_p for passage in passages]),
        "blocks": np.concatenate([passage.blocks for passage in passages]),
    }
    data = save(tensors, {"format": _FORMAT, "passages": json.dumps(about)})
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with open(unfinished, "wb", opener=_private) as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_shard(path: Path) -> list[Passage]:
    """Read what `write_shard` wrote.

    Raises:
        CorruptData: it is cut off, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.offset_keys()}
        if metadata.get("format") != _FORMAT:
            raise CorruptData(f"{path} is no shard of passages: it says {metadata.get('format')!r}, not {_FORMAT!r}")
        return list(_passages(tensors, json.loads(metadata["passages"])))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"{path} cannot be read ({reason(error)}): delete it") from None


def _passages(tensors: dict[str, Any], about: Sequence[dict[str, Any]]) -> Iterable[Passage]:
    token = position = block = 0
    for facts in about:
        token_end, position_end = token + facts["length"], position + facts["known"]
        block_end = block + facts["blocks"]
        passage = Passage(
            tokens=tensors["tokens"][token:token_end],
            start=facts["start"],
            support=tensors["support"][position:position_end],
            log_p=tensors["log_p"][position:position_end],
            client=facts["client"],
            domain=facts["domain"],
            drafter=facts["drafter"],
            temperature=facts["temperature"],
            blocks=tensors["blocks"][block:block_end],
        )
        if len(passage.tokens) != facts["length"] or passage.known != facts["known"]:
            raise ValueError("it holds less than it says")
        if not 1 <= passage.start <= len(passage.tokens) - passage.known:
            raise ValueError("its distributions do not fit its text")
        yield passage
        token, position, block = token_end, position_end, block_end


def read_shards(folder: Path) -> list[Passage]:
    """Read all shards of a folder, oldest first; one that is corrupt is named in the log and left out.

    Raises:
        CorruptData: there is none that can be read.
    """
    passages: list[Passage] = []
    paths = sorted(folder.glob(f"*{SHARD_SUFFIX}"))
    for path in paths:
        try:
            passages += read_shard(path)
        except CorruptData as error:
            logger.warning("left out: %s", error)
    if not passages:
        found = f"none of its {len(paths)} shards can be read" if paths else f"it has no *{SHARD_SUFFIX} files"
        raise CorruptData(
            f"{folder} holds no recorded passages: {found}; record some with goodspeed-server run --record"
        )
    return passages
