"""What is written: a target that is a function of every token before, and an engine that reads those in its slab."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import torch

from goodspeed.engine import Segment
from goodspeed.stream import Finish
from tests.planted import PlantedEngine

__all__ = ["EOS", "MAX_LENGTH", "VOCAB", "RememberingEngine", "next_token", "plain_text"]

VOCAB = 6
EOS = 5
MAX_LENGTH = 32
_EMPTY = 255


def next_token(tokens: Sequence[int]) -> int:
    """What the target writes: a function of every token before it. One in 25 ends; half of the others are alike, so
    that a draft upon the wrong length has a good chance to be taken for right."""
    digest = hashlib.sha256(bytes(tokens)).digest()
    if digest[0] < 10:
        return EOS
    return 1 if digest[1] < 128 else digest[2] % EOS


@cache
def plain_text(prompt: tuple[int, ...], max_new_tokens: int) -> tuple[list[int], Finish]:
    """What plain decoding writes, prompt included, and why it ends."""
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS:
            return tokens, "stop"
        if len(tokens) == MAX_LENGTH or len(tokens) - len(prompt) == max_new_tokens:
            return tokens, "length"


class RememberingEngine(PlantedEngine):
    """Attends to what was written into a row's slots, leftovers and all."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows, MAX_LENGTH)
        self.vocab_size = VOCAB
        self._slots = [[_EMPTY] * MAX_LENGTH for _ in range(rows)]

    def copy(self, source: int, target: int, end: int) -> None:
        super().copy(source, target, end)
        self._slots[target][:end] = self._slots[source][:end]

    def _run(self, segments: Sequence[Segment]) -> torch.Tensor:
        drawn = []
        for segment in segments:
            slots = self._slots[segment.row]
            slots[segment.start : segment.end] = segment.tokens
            drawn += [next_token(slots[: end + 1]) for end in range(segment.end - segment.logits, segment.end)]
        return torch.nn.functional.one_hot(torch.tensor(drawn, dtype=torch.long), VOCAB).float()
