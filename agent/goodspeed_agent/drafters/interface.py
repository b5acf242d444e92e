"""What a drafter is: something that guesses how the target will go on.

Nothing a drafter does can change a text, only how fast it comes; so it may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule

__all__ = ["BatchDrafter", "DraftSession", "Drafter", "Guess", "StandaloneDrafter", "common_prefix"]


@dataclass(frozen=True, slots=True)
class Guess:
    """One token that a drafter expects."""

    token: int
    confidence: float
    """How sure the drafter is, in [0, 1]: what it knew before it drew the token, and so no news of the draw."""
    q: bytes = b""
    """What the server's rule wants sent with the token: see `rules`."""


class DraftSession(Protocol):
    """A drafter at work on one stream."""

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """The tokens that follow, one after another, for as long as there is something to say.

        Each is computed when it is asked for. A new call ends the one before. There is nothing to commit or to roll
        back: a session compares `tokens` with what it saw before, and drops what was not accepted by itself.

        Args:
            tokens: the transcript, at least one token; left as it is while there is more to guess.
        """


class Drafter(Protocol):
    """Opens a session for every stream."""

    @property
    def name(self) -> str:
        """What users and the server's monitor call it."""

    @property
    def max_draft(self) -> int:
        """The longest draft worth asking for; 0 never drafts."""

    @property
    def fingerprint(self) -> str | None:
        """Of the vocabulary it drafts in (`catalog.fingerprint`).

        None if any will do, or if there is only a list of tokens to compare (`vocabulary.TokenLister`).
        """

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream.

        Args:
            params: how the target draws; the drafter draws the same way, with the same noise.
            rule: the server's, by name; `rules.rule_named` has what it wants drawn, and sent with each token.
            vocab_size: of the target: no token at or beyond it is drafted.
            prompt_tokens: how many tokens of the transcript are the prompt: penalties are for those behind it.
        """


@runtime_checkable
class BatchDrafter(Drafter, Protocol):
    """A drafter that computes for several of its sessions at once."""

    @property
    def together(self) -> int:
        """For how many at most."""

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """Compute, in one batch, what the next guess of each of these sessions takes, or a good piece of it.

        A session that is asked for a guess without it computes alone.

        Args:
            sessions: of this drafter, `together` at most; each at work on the tokens of its last `guesses`.

        Returns:
            Of each, whether its guess is ready; others are to be prepared once more.
        """


@runtime_checkable
class StandaloneDrafter(Drafter, Protocol):
    """A language model by itself: it has a next token for every text that it has room for."""

    @property
    def context(self) -> int:
        """How many tokens a text may have, prompt included."""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix, quick where one is the other's prefix."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    return next((i for i in range(size) if left[i] != right[i]), size)
