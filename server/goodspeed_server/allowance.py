"""What the holder of a token may use, and has used."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from goodspeed.errors import Overloaded

__all__ = ["REPEATED", "Allowance", "Back"]

_MINUTE_S = 60.0
_LONGEST_S = 86_400.0
"""What a message can say."""
REPEATED = 256
"""A text of which more tokens were had twice comes back no more while the minute is overdrawn."""


class Back(NamedTuple):
    """A text whose link broke, and that goes on."""

    name: Hashable
    """By which it is known."""
    repeats: int
    """How many tokens that were committed to it are to be had once more."""


class Allowance:
    """Shared by all links of one token.

    Tokens are counted in a bucket that runs out over a minute. Who has filled it begins no new text; those that were
    begun are finished, on another link too where one broke. Without a limit nothing is counted: what was had freely is
    no debt under a limit set later.

    What comes back has the tokens again that its agent has not heard of, or says so: links that are broken on purpose
    would make many texts out of one. So a text comes back freely until more than `REPEATED` of its tokens were had
    twice, little by little or at once, and then waits until the minute is in order. Of a text that was begun in good
    standing a holder has, beyond its minute, at most twice what a stream holds, and `REPEATED` tokens; with unbroken
    links it would have that once.

    Args:
        name: the token's.
        max_streams: at a time; None for no limit.
        tokens_per_minute: committed; None for no limit.
    """

    def __init__(self, name: str, max_streams: int | None = None, tokens_per_minute: int | None = None) -> None:
        self._name = name
        self._max_streams = max_streams
        self._tokens_per_minute = tokens_per_minute
        self._level = 0.0
        self._at = 0.0
        self._repeated: dict[Hashable, int] = {}
        """How many tokens were had twice of the texts that have come back since the minute was last in order."""
        self.streams = 0
        """Open or waiting now."""

    def limit(self, max_streams: int | None, tokens_per_minute: int | None) -> None:
        """Other limits from now on."""
        if self._tokens_per_minute is None:
            self._level = 0.0
        self._max_streams, self._tokens_per_minute = max_streams, tokens_per_minute

    def spend(self, tokens: int, now: float) -> None:
        """Tokens have been committed."""
        self._run_out(now)
        if self._tokens_per_minute is not None:
            self._level += tokens

    def admit(self, now: float, back: Back | None = None) -> None:
        """Count one more stream.

        Args:
            now: seconds.
            back: what it goes on with; None for a text that begins.

        Raises:
            Overloaded: there are as many as may be, or too many tokens in the last minute.
        """
        if self._max_streams is not None and self.streams >= self._max_streams:
            raise Overloaded(
                f"the token {self._name!r} may have {self._max_streams} streams at a time, and has them: "
                "wait for one to end",
                retry_after_s=1.0,
            )
        self._run_out(now)
        if self._tokens_per_minute is not None:
            self._check_minute(self._tokens_per_minute, back)
        self.streams += 1

    def ended(self) -> None:
        """One stream less."""
        assert self.streams > 0
        self.streams -= 1

    def _check_minute(self, most: int, back: Back | None) -> None:
        if self._level < most:
            self._repeated.clear()
            return
        if back is not None and (before := self._repeated.get(back.name, 0)) <= REPEATED:
            self._repeated[back.name] = before + back.repeats
            return
        wait_s = min((self._level - most) / most * _MINUTE_S + 1.0, _LONGEST_S)
        raise Overloaded(
            f"the token {self._name!r} may have {most} tokens a minute, and had them: go on in {wait_s:.0f} s",
            retry_after_s=wait_s,
        )

    def _run_out(self, now: float) -> None:
        if self._tokens_per_minute is not None:
            self._level = max(0.0, self._level - (now - self._at) * self._tokens_per_minute / _MINUTE_S)
        self._at = now
