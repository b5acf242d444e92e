"""The target's own draws, at every drafted position of a pass and one past each draft: what the coupled rule judges by.

```
turns -> Drawing (parameters and noise keys, on the device) -> [the forward] -> draw -> one copy back
```

What drawing needs is brought to the device before the forward, since a copy behind it would wait for it; the draws are
queued behind it, and whether logits are numbers comes back with them, in the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goodspeed.sampling import Domain, SamplingParams, position_keys
from goodspeed.sampling.warping import UNDECIDED, RowParams, draw, draw_whole

if TYPE_CHECKING:
    from goodspeed_server.verifier import Turn

__all__ = ["UNSOUND", "Drawing"]

UNSOUND = -2
"""In the place of a token: the logits are such that none can be drawn."""
assert UNSOUND != UNDECIDED


class Drawing:
    """The draws of one pass.

    Args:
        turns: whose they are.
        device: where their logits will be.
    """

    def __init__(self, turns: Sequence[Turn], device: torch.device) -> None:
        params: list[SamplingParams] = []
        seeds: list[int] = []
        positions: list[int] = []
        for turn in turns:
            params += [turn.params] * turn.size
            seeds += [turn.params.seed] * turn.size
            positions += range(turn.base, turn.base + turn.size)
        self._greedy = all(turn.params.greedy for turn in turns)
        if not self._greedy:
            self._rows = RowParams.of(params, device)
            self._keys = torch.from_numpy(position_keys(seeds, positions, Domain.SHARED)).to(device)

    def queue(self, logits: Tensor, finite: Tensor) -> Tensor:
        """Draw at every position; nothing is read, so that it does not wait for the logits.

        Args:
            logits: float32 [sum(S_i + 1), vocab], as they are judged by.
            finite: bool [sum(S_i + 1)], where a token can be drawn.

        Returns:
            int64 [sum(S_i + 1)]: tokens, `UNSOUND`, or `UNDECIDED`.
        """
        drawn = logits.argmax(-1) if self._greedy else draw(logits, self._rows, self._keys)
        return drawn.masked_fill(~finite, UNSOUND)

    def tokens(self, logits: Tensor, finite: Tensor) -> list[int]:
        """Wait for the draws: tokens, or `UNSOUND`.

        It is one read, and another where a nucleus has more tokens than is usual.
        """
        tokens: list[int] = self.queue(logits, finite).tolist()
        if left := [index for index, token in enumerate(tokens) if token == UNDECIDED]:
            some = torch.tensor(left, device=logits.device)
            for index, token in zip(left, draw_whole(logits, self._rows, self._keys, some).tolist(), strict=True):
                tokens[index] = token
        return tokens
