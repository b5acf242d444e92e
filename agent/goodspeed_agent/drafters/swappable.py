"""A drafter that can be exchanged for another while its streams go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import Drafter, DraftSession, Guess

__all__ = ["Swappable"]


class Swappable:
    """Drafts with whatever it holds at the time.

    A stream goes over to the new drafter when it next begins to guess; what was guessed before is sent as it is, since
    a guess carries all that verifying it needs.

    Args:
        drafter: the first.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.current = drafter

    @property
    def name(self) -> str:
        """Of the one it holds; so are the others."""
        return self.current.name

    @property
    def max_draft(self) -> int:
        """The longest draft worth asking for."""
        return self.current.max_draft

    @property
    def fingerprint(self) -> str | None:
        """Of its vocabulary."""
        return self.current.fingerprint

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int) -> DraftSession:
        """Begin a stream."""
        return _Session(self, params, rule, vocab_size)


class _Session:
    def __init__(self, owner: Swappable, params: SamplingParams, rule: Rule, vocab_size: int) -> None:
        self._owner = owner
        self._asked = (params, rule, vocab_size)
        self._take(owner.current)

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """As the drafter that is held now guesses."""
        current = self._owner.current
        if current is not self._drafter:
            self._take(current)
        return self._session.guesses(tokens)

    def _take(self, drafter: Drafter) -> None:
        params, rule, vocab_size = self._asked
        self._drafter = drafter
        self._session = drafter.open(params, rule=rule, vocab_size=vocab_size)
