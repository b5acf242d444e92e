"""A drafter at its box's pace, on a machine that all boxes share.

`Remembering` computes each guess once: what a draft model says is a function of the text so far, of the parameters and
of the seed, and benches give every policy the same prompts and seeds. So after a rehearsal the shared cores are hardly
touched by drafting, whatever the boxes are supposed to do meanwhile. `Paced` lets each guess take as long as on the
emulated box: it sleeps for what is left of that after the real computation. Where the computation took longer, the
guess is late, and counted in `Pace.overruns`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters import Drafter, DraftSession, Guess

__all__ = ["Pace", "Paced", "Remembering"]


class Remembering:
    """A draft model that computes nothing twice; safe to share between threads, which take turns in it.

    Args:
        drafter: the one that computes.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.name, self.max_draft, self.fingerprint = drafter.name, drafter.max_draft, drafter.fingerprint
        self._drafter = drafter
        self._turn = threading.Lock()
        self._known: dict[SamplingParams, dict[tuple[int, ...], Guess | None]] = {}

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream; only under the coupled rule is a guess a function of what went before."""
        assert rule == "coupled"
        session = self._drafter.open(params, rule=rule, vocab_size=vocab_size, prompt_tokens=prompt_tokens)
        return _RememberingSession(session, self._known.setdefault(params, {}), self._turn)


class _RememberingSession:
    def __init__(self, session: DraftSession, known: dict[tuple[int, ...], Guess | None], turn: threading.Lock) -> None:
        self._session = session
        self._known = known
        self._turn = turn

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        context = tuple(tokens)
        computing: Iterator[Guess] | None = None
        while True:
            if context in self._known:
                computing = None  # where it stands is behind what is known
            else:
                with self._turn:
                    computing = computing or self._session.guesses(list(context))
                    self._known[context] = next(computing, None)
            guess = self._known[context]
            if guess is None:
                return
            yield guess
            context = (*context, guess.token)


class Pace(Struct):
    """How well a box kept its pace."""

    guesses: int = 0
    overruns: int = 0
    """Guesses that took longer to compute than they were to take."""
    overrun_s: float = 0.0
    """By how much, together."""
    emulated_s: float = 0.0
    """How long all guesses were to take."""


class Paced:
    """A drafter that takes its box's time.

    Args:
        drafter: what it drafts with.
        draft_ms: time for one token; 0 leaves every guess as quick as it is.
        clock: seconds, monotonic.
        sleep: blocks for so many seconds of that clock.
    """

    def __init__(
        self,
        drafter: Drafter,
        draft_ms: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name, self.max_draft, self.fingerprint = drafter.name, drafter.max_draft, drafter.fingerprint
        self.pace = Pace()
        self._drafter = drafter
        self._draft_s = draft_ms / 1e3
        self._clock = clock
        self._sleep = sleep

    def swap(self, drafter: Drafter) -> None:
        """Draft with another from the next guess on, streams that are open included."""
        self._drafter = drafter

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return _PacedSession(self, params, rule, vocab_size, prompt_tokens)

    def wait(self, began_s: float) -> None:
        """Let a guess that was begun then end when it would on the box."""
        left_s = self._draft_s - (self._clock() - began_s)
        self.pace.guesses += 1
        self.pace.emulated_s += self._draft_s
        if left_s >= 0:
            self._sleep(left_s)
        elif self._draft_s:
            self.pace.overruns += 1
            self.pace.overrun_s -= left_s

    def now(self) -> float:
        """On its clock."""
        return self._clock()

    @property
    def drafter(self) -> Drafter:
        """What it drafts with at present."""
        return self._drafter


class _PacedSession:
    def __init__(self, paced: Paced, params: SamplingParams, rule: Rule, vocab_size: int, prompt_tokens: int) -> None:
        self._paced = paced
        self._params, self._rule, self._vocab_size, self._prompt_tokens = params, rule, vocab_size, prompt_tokens
        self._drafter: Drafter | None = None
        self._session: DraftSession

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        text = list(tokens)
        more: Iterator[Guess] | None = None
        while True:
            began_s = self._paced.now()
            if self._drafter is not self._paced.drafter:
                self._drafter, more = self._paced.drafter, None
                self._session = self._drafter.open(
                    self._params, rule=self._rule, vocab_size=self._vocab_size, prompt_tokens=self._prompt_tokens
                )
            more = more or self._session.guesses(list(text))
            guess = next(more, None)
            if guess is None:
                return
            self._paced.wait(began_s)
            yield guess
            text.append(guess.token)
