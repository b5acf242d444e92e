"""Tokens to text as they come: no character is ever split, and stop strings are found across any boundary.

Both steps work token by token, so that text and end do not depend on how many tokens a verdict brought; both look at a
bounded window, so that the cost of a long text is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer", "StopFinder", "TextStream", "printable"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_WINDOW = 32
_KEPT_WINDOW = 4
"""No character is longer than four bytes, and no token shorter than one."""
_CONTROLS = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """The text without what a terminal would take for an order."""
    return text.translate(_CONTROLS)


class Detokenizer:
    """Incremental decoding.

    A token's text can depend on what stands before it (leading spaces, bytes of one character), so a few tokens that
    were written already are decoded again as context, and only what is new is returned.

    Args:
        decode: token ids to text.
        prompt: the tokens before the first one: they decide whether it begins with a space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt[-_KEPT_WINDOW:])
        self._new = 0
        """How many tokens at the window's end have not been written whole."""
        self._written = len(decode(self._window))
        """How many characters of the window's text have been."""

    def push(self, token: int) -> str:
        """Take one more token; return the text that is certain now."""
        self._window.append(token)
        self._new += 1
        text = self._decode(self._window)
        # What ends in replacement characters may still become a character; what stands before them will not change.
        certain = text.rstrip(_INCOMPLETE)
        if len(self._window) > _LONGEST_WINDOW:
            # No character takes that many tokens: only the last can be the beginning of one.
            certain = text.removesuffix(_INCOMPLETE)
            return self._write(certain, uncertain=len(text) - len(certain), keep=_KEPT_WINDOW)
        if len(certain) == len(text) > self._written:
            return self._write(text, uncertain=0, keep=self._new)
        piece = certain[self._written :]
        self._written = max(self._written, len(certain))
        return piece

    def finish(self) -> str:
        """No more tokens: return what was held back."""
        return self._write(self._decode(self._window), uncertain=0, keep=0)

    def _write(self, text: str, uncertain: int, keep: int) -> str:
        """Return what is new in `text`, and go on with a window of the last `keep` tokens."""
        piece = text[self._written :]
        self._window = self._window[len(self._window) - keep :]
        self._written = len(self._decode(self._window)) - uncertain
        self._new = 0
        return piece


class StopFinder:
    """Finds stop strings in text that comes in pieces.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str) -> str:
        """Take more text; return what certainly stands before any stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            # The one that is complete first, however the text was cut into pieces.
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """No more text: return what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class TextStream:
    """The text of one generation, and where it ends.

    Args:
        decode: token ids to text.
        stops: the stop strings.
        prompt: the tokens before the first one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt)
        self._finder = StopFinder(stops)
        self.tokens: list[int] = []
        """The tokens the text is made of, up to and including the one that completed a stop string."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; nothing more may be pushed."""
        return self._finder.found is not None

    def push(self, token: int) -> str:
        """Take one more token; return the text that is certain now."""
        assert not self.stopped
        self.tokens.append(token)
        return self._finder.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """No more tokens: return what was held back."""
        if self.stopped:
            return ""
        return self._finder.push(self._detokenizer.finish()) + ("" if self.stopped else self._finder.finish())
