"""What the holder of a token may use, and has used."""

from __future__ import annotations

from goodspeed.errors import Overloaded

__all__ = ["Allowance"]

_MINUTE_S = 60.0
_LONGEST_S = 86_400.0
"""What a message can say."""


class Allowance:
    """Shared by all links of one token.

    Tokens are counted in a bucket that runs out over a minute. Who has filled it begins no new text; those that were
    begun are finished. Without a limit nothing is counted: what was had freely is no debt under a limit set later.

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

    def admit(self, now: float, *, begins: bool = True) -> None:
        """Count one more stream.

        Args:
            now: seconds.
            begins: whether a text begins with it, so that it takes tokens of the minute to have it.

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
        if begins and self._tokens_per_minute is not None and self._level >= self._tokens_per_minute:
            wait_s = (self._level - self._tokens_per_minute) / self._tokens_per_minute * _MINUTE_S + 1.0
            wait_s = min(wait_s, _LONGEST_S)
            raise Overloaded(
                f"the token {self._name!r} may have {self._tokens_per_minute} tokens a minute, and had them: "
                f"go on in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        self.streams += 1

    def ended(self) -> None:
        """One stream less."""
        assert self.streams > 0
        self.streams -= 1

    def _run_out(self, now: float) -> None:
        if self._tokens_per_minute is not None:
            self._level = max(0.0, self._level - (now - self._at) * self._tokens_per_minute / _MINUTE_S)
        self._at = now
