"""A drafter that can be exchanged for another while its streams go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

from goodspeed.errors import ModelError
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import BatchDrafter, Drafter, DraftSession, Guess

__all__ = ["Swappable", "try_out"]

_log = logging.getLogger(__name__)

_TRIED_TOKENS = 2


class Swappable:
    """Drafts with whatever it holds at the time.

    A stream goes over to the new drafter with its next guess. A drafter that fails has nothing to say, and the log is
    told so once: texts go on without it.

    Args:
        drafter: the first.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.current = drafter
        self._failed = False

    def exchange(self, drafter: Drafter) -> None:
        """Draft with another from now on."""
        self.current, self._failed = drafter, False

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

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return _Session(self, params, rule, vocab_size, prompt_tokens)

    @property
    def together(self) -> int:
        """For how many sessions the drafter computes at once."""
        drafter = self.current
        batching = self._batching(drafter)
        return 1 if batching is None else max(1, batching.together)

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """As `BatchDrafter.prepare`, for sessions opened here; what cannot compute together does when it is asked."""
        drafter = self.current
        ready = [True] * len(sessions)
        batching = self._batching(drafter)
        if batching is None:
            return ready
        numbers, inner = [], []
        for number, session in enumerate(sessions):
            if isinstance(session, _Session) and (begun := session.begun(drafter)) is not None:
                numbers.append(number)
                inner.append(begun)
        try:
            for number, done in zip(numbers, batching.prepare(inner), strict=True):
                ready[number] = done
        except Exception:
            # Each now meets its own failure, or none: one that cannot be drafted for spoils nobody else's text.
            self.failed(drafter)
        return ready

    def _batching(self, drafter: Drafter) -> BatchDrafter | None:
        """The same if it can compute together; looking reads its properties, which may be somebody's own."""
        try:
            return drafter if isinstance(drafter, BatchDrafter) else None
        except Exception:
            self.failed(drafter)
            return None

    def failed(self, drafter: Drafter) -> None:
        """One of its drafters raised what is being handled."""
        if drafter is self.current and not self._failed:
            self._failed = True
            _log.exception("the draft %s is broken: texts go on without it", drafter.name)


class _Session:
    def __init__(
        self, owner: Swappable, params: SamplingParams, rule: Rule, vocab_size: int, prompt_tokens: int
    ) -> None:
        self._owner = owner
        self._asked = (params, rule, vocab_size, prompt_tokens)
        self._drafter: Drafter | None = None
        self._session: DraftSession
        self._tokens: Sequence[int] = ()
        self._more: Iterator[Guess] | None = None
        """Of the drafter's own session; None before the first guess of a call."""

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """As the drafter that is held now guesses; it ends when that is exchanged."""
        self._tokens, self._more = tokens, None
        return self._checked()

    def begun(self, drafter: Drafter) -> DraftSession | None:
        """The drafter's session, at work on the tokens; None if it drafts nothing here or cannot begin."""
        try:
            self._begin(drafter)
        except Exception:
            self._more = iter(())
            self._owner.failed(drafter)
            return None
        if self._drafter is not drafter:
            # It has begun with one that was exchanged meanwhile.
            self._more = iter(())
            return None
        return self._session

    def _begin(self, drafter: Drafter) -> Iterator[Guess]:
        if self._more is None:
            if drafter is not self._drafter:
                params, rule, vocab_size, prompt_tokens = self._asked
                self._session = drafter.open(params, rule=rule, vocab_size=vocab_size, prompt_tokens=prompt_tokens)
                self._drafter = drafter
            self._more = self._session.guesses(self._tokens)
        return self._more

    def _checked(self) -> Iterator[Guess]:
        drafter, vocab_size = self._owner.current, self._asked[2]
        if self._more is not None and self._drafter is not drafter:
            # It was exchanged within the prompt: what has begun is not the new one's.
            return
        try:
            for guess in self._begin(drafter):
                _check(guess, vocab_size)
                yield guess
                if self._owner.current is not self._drafter:
                    return
        # Whatever a drafter raises, the target can do without it.
        except Exception:
            self._owner.failed(drafter)


def try_out(drafter: Drafter, tokens: Sequence[int], *, rule: Rule, vocab_size: int) -> None:
    """Let a drafter guess a little, so that one that is broken is refused rather than worked with. Blocks.

    Args:
        drafter: which.
        tokens: what to guess behind.
        rule: the server's.
        vocab_size: the target's.

    Raises:
        ModelError: it cannot guess, or what it guesses is no token or has no confidence.
    """
    params = SamplingParams(temperature=1.0)
    try:
        session = drafter.open(params, rule=rule, vocab_size=vocab_size)
        for number, guess in enumerate(session.guesses(tokens), 1):
            _check(guess, vocab_size)
            if number == _TRIED_TOKENS:
                break
    except Exception as error:
        raise ModelError(
            f"the draft {drafter.name!r} is broken: it cannot guess ({type(error).__name__}: {error}); "
            "take another, or --draft suffix, which fits every target"
        ) from error


def _check(guess: Guess, vocab_size: int) -> None:
    if not 0 <= guess.token < vocab_size:
        raise ValueError(f"it guessed token {guess.token} of {vocab_size}")
    if not (math.isfinite(guess.confidence) and 0.0 <= guess.confidence <= 1.0 + 1e-6):
        raise ValueError(f"its confidence in a guess is {guess.confidence}")
