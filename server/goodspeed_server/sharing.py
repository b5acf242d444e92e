"""Prompts that begin alike are run once: what a row holds of one is copied, and what is on its way is waited for.

```
begin(batch, prompts) -> which prompts go on in this pass, and what is copied before it
wrote(live), forget(live)  what came of it
```

A row is as good a source whoever has it: a stream, a parked one, or nobody any more. What nobody has any more is copied
to a free row when a newcomer is about to write over it, in place of what was of use the longest ago: so the low rows,
which go first, are used again and again, and a conversation that pauses still finds its beginning.

What is copied are keys and values of the very tokens at the very positions, so that the text is what it would have
been, up to the arithmetic: the passes that computed them had other shapes.

A prompt that begins like one that is on its way already waits for that, and goes on from where the two part. Where a
pass carries as many prompt tokens as it may it loses nothing by it: those of both would have shared them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from goodspeed.prefixes import PrefixIndex, Shared
from goodspeed_server.live import LiveStream
from goodspeed_server.settings import PrefixSharing
from goodspeed_server.verifier import Copy

__all__ = ["SHORTEST_SHARED", "Beginning", "Sharing"]

SHORTEST_SHARED = 16
"""Tokens: less is run again."""


class Beginning(NamedTuple):
    """How prompts go into a pass."""

    going_on: Sequence[LiveStream]
    """Those that go on in it, in order of admission."""
    copies: Sequence[Copy] = ()
    """What is copied before it, in this order."""
    reused: int = 0
    """How many of their tokens do not have to be run, since a row held them."""


class Sharing:
    """What every row holds, by whose text it is, and which prompts wait for one that begins alike.

    Args:
        among: whose texts may share.
        free: which rows nobody has.
        shortest: beginning that is worth it, tokens.
    """

    def __init__(
        self, among: PrefixSharing, free: Callable[[], Sequence[int]], shortest: int = SHORTEST_SHARED
    ) -> None:
        self._among = among
        self._free = free
        self._shortest = shortest
        self._rows: PrefixIndex[int] = PrefixIndex()
        self._used_at: dict[int, int] = {}
        """In which pass a row was last written to, or copied from."""
        self._passes = 0
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
            return Beginning(prompts)
        self._passes += 1
        self._look_for_leaders(prompts)
        for live in (*batch, *(live for live in prompts if live.stream.cached)):
            self._rows.cut(live.row, live.stream.cached)
        going_on, copies, reused = list[LiveStream](), list[Copy](), 0
        for live in prompts:
            if not live.stream.cached:
                if self._waits(live):
                    continue
                copies += self._begin(live)
                reused += live.stream.cached
            going_on.append(live)
        return Beginning(going_on, copies, reused)

    def wrote(self, live: LiveStream) -> None:
        """All that a stream counts as cached stands in its row."""
        if self._among != "off":
            self._rows.hold(live.row, self._scope(live), live.stream.tokens, live.stream.cached)
            self._used_at[live.row] = self._passes

    def forget(self, live: LiveStream) -> None:
        """A text came to no numbers: neither its row nor what another has in common with it is to be relied on.

        Whatever made them may have been copied to or fro. A stream whose pass has numbers is believed again with that.
        """
        self._rows.cut(live.row, 0)
        scope, text = self._scope(live), live.stream.tokens
        while (found := self._rows.longest(scope, text)) is not None and found.tokens >= self._shortest:
            self._rows.cut(found.holder, 0)

    def _look_for_leaders(self, prompts: Sequence[LiveStream]) -> None:
        gone = self._ahead.keys() - set(prompts)
        for live in gone:
            del self._ahead[live]
            self._prompts.cut(live, 0)
        for live, ahead in self._ahead.items():
            if ahead is not None and ahead.holder in gone:
                # It may come back, behind those that waited for it: were it waited for then, nobody would go on.
                self._ahead[live] = None
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

    def _begin(self, live: LiveStream) -> list[Copy]:
        """Have a prompt begin behind what some row holds of it; its own row holds no more than that from here on."""
        scope, prompt, row = self._scope(live), _to_run(live), live.row
        source, tokens = self._rows.longest(scope, prompt, prefer=row) or Shared(row, 0)
        if tokens < self._shortest:
            source, tokens = row, 0
        stays = tokens if source == row else 0
        copies = self._keep(row, stays, needed=source)
        self._rows.cut(row, stays)
        if source != row:
            copies.append(Copy(source, row, tokens))
            self._rows.hold(row, scope, prompt, tokens)
        self._used_at[source] = self._used_at[row] = self._passes
        live.stream.cached = tokens
        return copies

    def _keep(self, row: int, stays: int, needed: int) -> list[Copy]:
        """Copy what a row is about to lose to a free one, unless that is needed or holds what was of use since."""
        tokens = self._rows.held(row)
        free = [other for other in self._free() if other not in (row, needed)]
        if tokens - stays < self._shortest or not free:
            return []
        to = min(free, key=lambda other: (self._rows.held(other) > 0, self._used_at.get(other, 0)))
        if self._rows.held(to) and self._used_at[to] >= self._used_at[row]:
            return []
        self._rows.copy(row, to)
        self._used_at[to] = self._used_at[row]
        return [Copy(row, to, tokens)]

    def _scope(self, live: LiveStream) -> Hashable:
        return live.account.holder if self._among == "holder" else None


def _to_run(live: LiveStream) -> list[int]:
    """What is to stand in a stream's row before it takes part in rounds: all but its last token."""
    return live.stream.tokens[:-1]
