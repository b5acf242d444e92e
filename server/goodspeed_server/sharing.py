"""Prompts that begin alike are run once: what a row holds of one is copied, and what is on its way is waited for.

```
begin(batch, prompts) -> which prompts go on in this pass, and what is copied before it
wrote(live), forget(row)   what came of it
```

A row is as good a source whoever has it: a stream, a parked one, or nobody any more, until its next owner begins to
write. What is copied are keys and values of the very tokens at the very positions, so that the text is what it would
have been, up to the arithmetic: the passes that computed them had other shapes.

A prompt that begins like one that is on its way already waits for that, and goes on from where the two part. It loses
nothing by it: the pass carries so many prompt tokens, and those of both would have shared them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from goodspeed.prefixes import PrefixIndex, Shared
from goodspeed_server.live import LiveStream
from goodspeed_server.settings import PrefixSharing
from goodspeed_server.verifier import Reuse

__all__ = ["SHORTEST_SHARED", "Beginning", "Sharing"]

SHORTEST_SHARED = 16
"""Tokens: less is run again."""


class Beginning(NamedTuple):
    """How prompts go into a pass."""

    going_on: Sequence[LiveStream]
    """Those that go on in it, in order of admission."""
    reused: Sequence[Reuse]
    """What is copied for them before it."""


class Sharing:
    """What every row holds, by whose text it is, and which prompts wait for one that begins alike.

    Args:
        among: whose texts may share.
        shortest: beginning that is worth it, tokens.
    """

    def __init__(self, among: PrefixSharing, shortest: int = SHORTEST_SHARED) -> None:
        self._among = among
        self._shortest = shortest
        self._rows: PrefixIndex[int] = PrefixIndex()
        self._prompts: PrefixIndex[LiveStream] = PrefixIndex()
        """Those that are on their way."""
        self._ahead: dict[LiveStream, Shared[LiveStream] | None] = {}
        """The same, each with the prompt that it waits for, and up to where."""

    def begin(self, batch: Sequence[LiveStream], prompts: Sequence[LiveStream]) -> Beginning:
        """Prepare a pass: note what it will overwrite, and have new prompts begin behind what is held of them.

        Args:
            batch: the streams that it verifies.
            prompts: those that are on their way, in order of admission.
        """
        if self._among == "off":
            return Beginning(prompts, ())
        self._look_for_leaders(prompts)
        begun = [live for live in prompts if live.stream.cached]
        for live in (*batch, *begun):
            self._rows.cut(live.row, live.stream.cached)
        going_on, reused = [], []
        for live in prompts:
            if not live.stream.cached:
                if self._waits(live):
                    continue
                reused += self._reuse(live)
            going_on.append(live)
        return Beginning(going_on, reused)

    def wrote(self, live: LiveStream) -> None:
        """All that a stream counts as cached stands in its row."""
        if self._among != "off":
            self._rows.hold(live.row, self._scope(live), live.stream.tokens, live.stream.cached)

    def forget(self, row: int) -> None:
        """What stands in a row is nothing to rely on."""
        self._rows.cut(row, 0)

    def _look_for_leaders(self, prompts: Sequence[LiveStream]) -> None:
        gone = self._ahead.keys() - set(prompts)
        for live in gone:
            del self._ahead[live]
            self._prompts.cut(live, 0)
        for live in prompts:
            if live in self._ahead:
                continue
            scope, prompt = self._scope(live), _to_run(live)
            here, coming = self._rows.longest(scope, prompt), self._prompts.longest(scope, prompt)
            least = self._shortest + (0 if here is None else here.tokens)
            self._ahead[live] = None if coming is None or coming.tokens < least else coming
            self._prompts.hold(live, scope, prompt, len(prompt))

    def _waits(self, live: LiveStream) -> bool:
        ahead = self._ahead[live]
        return ahead is not None and ahead.holder in self._ahead and ahead.holder.stream.cached < ahead.tokens

    def _reuse(self, live: LiveStream) -> list[Reuse]:
        """Have a prompt begin behind what some row holds of it; its own row holds no more than that from here on."""
        scope, prompt = self._scope(live), _to_run(live)
        found = self._rows.longest(scope, prompt, prefer=live.row)
        if found is None or found.tokens < self._shortest:
            self._rows.cut(live.row, 0)
            return []
        self._rows.cut(live.row, found.tokens if found.holder == live.row else 0)
        self._rows.hold(live.row, scope, prompt, found.tokens)
        live.stream.cached = found.tokens
        return [Reuse(live.row, found.holder, found.tokens)]

    def _scope(self, live: LiveStream) -> Hashable:
        return live.account.holder if self._among == "holder" else None


def _to_run(live: LiveStream) -> list[int]:
    """What is to stand in a stream's row before it takes part in rounds: all but its last token."""
    return live.stream.tokens[:-1]
