"""A drafter at its box's pace, on a machine that all boxes share.

`Remembering` computes each draft once: what a drafter says is a function of the text so far, of the parameters and of
the seed, and benches give every policy the same prompts and seeds. So after a rehearsal the shared cores are hardly
touched by drafting, whatever the boxes are supposed to do meanwhile. `Paced` lets a draft of k tokens take k times as
long as one does on the emulated box: it sleeps for what is left of that after the real computation. Where the
computation took longer, the draft is late, and counted in `Pace.overruns`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters import Drafter, DraftSession, Proposal

__all__ = ["Pace", "Paced", "Remembering"]


class Remembering:
    """A drafter that computes nothing twice; safe to share between threads, which take turns in it.

    Args:
        drafter: the one that computes.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.name, self.max_draft, self.fingerprint = drafter.name, drafter.max_draft, drafter.fingerprint
        self._drafter = drafter
        self._turn = threading.Lock()
        self._known: dict[SamplingParams, dict[tuple[int, ...], tuple[int, Proposal]]] = {}

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int) -> DraftSession:
        """Begin a stream; only under the coupled rule is a draft a function of what went before."""
        assert rule == "coupled"
        session = self._drafter.open(params, rule=rule, vocab_size=vocab_size)
        return _RememberingSession(session, self._known.setdefault(params, {}), self._turn)


class _RememberingSession:
    def __init__(
        self, session: DraftSession, known: dict[tuple[int, ...], tuple[int, Proposal]], turn: threading.Lock
    ) -> None:
        self._session = session
        self._known = known
        self._turn = turn

    def draft(self, tokens: Sequence[int], budget: int) -> Proposal:
        """The first `budget` tokens of the longest draft ever asked for here: noise does not depend on the budget."""
        context = tuple(tokens)
        asked, proposal = self._known.get(context, (0, Proposal([])))
        if asked < budget:
            with self._turn:
                proposal = self._session.draft(tokens, budget)
            self._known[context] = budget, proposal
        return dataclasses.replace(proposal, tokens=proposal.tokens[:budget])


class Pace(Struct):
    """How well a box kept its pace."""

    drafts: int = 0
    overruns: int = 0
    """Drafts that took longer to compute than they were to take."""
    overrun_s: float = 0.0
    """By how much, together."""
    emulated_s: float = 0.0
    """How long all drafts were to take."""


class Paced:
    """A drafter that takes its box's time.

    Args:
        drafter: what it drafts with.
        draft_ms: time for one token; 0 leaves every draft as quick as it is.
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
        """Draft with another from the next draft on, streams that are open included."""
        self._drafter = drafter

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int) -> DraftSession:
        """Begin a stream."""
        return _PacedSession(self, params, rule, vocab_size)

    def wait(self, began_s: float, tokens: int) -> None:
        """Let a draft of so many tokens, begun then, end when it would on the box."""
        due_s = tokens * self._draft_s
        left_s = due_s - (self._clock() - began_s)
        self.pace.drafts += 1
        self.pace.emulated_s += due_s
        if left_s >= 0:
            self._sleep(left_s)
        elif due_s:
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
    def __init__(self, paced: Paced, params: SamplingParams, rule: Rule, vocab_size: int) -> None:
        self._paced = paced
        self._params, self._rule, self._vocab_size = params, rule, vocab_size
        self._drafter: Drafter | None = None
        self._session: DraftSession

    def draft(self, tokens: Sequence[int], budget: int) -> Proposal:
        began_s = self._paced.now()
        if self._drafter is not self._paced.drafter:
            self._drafter = self._paced.drafter
            self._session = self._drafter.open(self._params, rule=self._rule, vocab_size=self._vocab_size)
        proposal = self._session.draft(tokens, budget)
        self._paced.wait(began_s, len(proposal.tokens))
        return proposal
