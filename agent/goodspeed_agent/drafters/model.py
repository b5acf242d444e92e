"""A draft model: any causal language model that shares the target's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from goodspeed import catalog
from goodspeed.engine import Engine, Segment, reach
from goodspeed.errors import ModelError
from goodspeed.sampling import SamplingParams
from goodspeed.sampling.bending import bend
from goodspeed.verification import Rule
from goodspeed_agent.drafters.draws import make_draw
from goodspeed_agent.drafters.interface import DraftSession, Guess, common_prefix
from goodspeed_agent.drafters.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelDrafter", "ModelSession"]

_CHUNK = 512
"""How many tokens go through the model at once, so that a long prompt stalls no other stream for long."""
_TOGETHER = 64
_FIRST_LENGTH = 256
"""Of a row; rows are doubled when they are full."""


class ModelDrafter:
    """Drafts with a transformers model, for all its sessions in one batch.

    Args:
        model: loaded, in evaluation mode. From here on it is the drafter's.
        name: what to call it.
        fingerprint: of its tokenizer's vocabulary.
        max_draft: the longest draft worth asking for.
        together: for how many sessions it computes at once, and keeps what it has computed.

    Raises:
        UnsupportedModel: it is no model whose guesses can be rolled back.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        fingerprint: str | None,
        max_draft: int = 16,
        *,
        together: int = _TOGETHER,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.max_draft = max_draft
        self.together = together
        self.context = reach(model) or 2**31
        """How long a text it can guess in."""
        self._engine = Engine(
            model,
            rows=1,
            max_length=min(_FIRST_LENGTH, self.context),
            layout="packed" if model.device.type == "cpu" else "padded",
            device=model.device,
            dtype=model.dtype,
        )
        self._rows = Rows[ModelSession](together)

    @classmethod
    def load(cls, name: str, *, threads: int = 1) -> ModelDrafter:
        """Load a bundled model, a local folder or a Hugging Face name.

        Args:
            name: which.
            threads: how many torch may use; more than one rarely pays for a draft model.

        Raises:
            ModelError: it cannot be loaded, or is no model that can draft.
        """
        torch.set_num_threads(threads)
        model = catalog.load_model(name)
        return cls(model, name, catalog.fingerprint(catalog.tokenizer_files(name)))

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return ModelSession(self, params, rule, vocab_size, prompt_tokens)

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """Run one forward pass over what these sessions have not cached; a long prompt takes several."""
        own = [session for session in sessions if isinstance(session, ModelSession)]
        left = _CHUNK
        running: list[tuple[ModelSession, Segment]] = []
        # The shortest first: whoever wants one more guess never waits for somebody's prompt.
        for session in sorted(own, key=lambda one: one.lacks):
            share = min(session.lacks, left)
            if share:
                left -= share
                running.append((session, self._segment(session, share, own)))
        if running:
            running.sort(key=lambda one: one[1].row)
            logits = iter(self._engine.forward([segment for _, segment in running]).numpy(force=True))
            for session, segment in running:
                session.computed(segment.new, next(logits) if segment.logits else None)
        return [session.lacks == 0 for session in own]

    def _segment(self, session: ModelSession, share: int, beside: Sequence[ModelSession]) -> Segment:
        """The next so many tokens that a session lacks, in a row that is long enough."""
        if session.row is None:
            session.row, loser = self._rows.take(session, beside)
            if loser is not None:
                loser.row, loser.cached = None, 0
        self._rows.used(session.row)
        start = session.cached
        tokens = session.text[start : start + share]
        if max(tokens) >= self._engine.vocab_size:
            raise ModelError(f"token {max(tokens)} is beyond the {self._engine.vocab_size} that {self.name!r} knows")
        self._reserve(session.row, start + share)
        return Segment(session.row, start, tokens, int(share == session.lacks))

    def _reserve(self, row: int, length: int) -> None:
        rows, longest = self._engine.rows, self._engine.max_length
        if row >= rows or length > longest:
            self._engine.resize(
                min(max(row + 1, 2 * rows), self.together) if row >= rows else rows,
                min(max(length, 2 * longest), self.context) if length > longest else longest,
            )


class ModelSession:
    """The model at work on one stream.

    Args:
        drafter: computes for it.
        params: how the target draws.
        rule: the server's.
        vocab_size: of the target.
        prompt_tokens: how many of a transcript's first tokens are its prompt.
    """

    def __init__(
        self, drafter: ModelDrafter, params: SamplingParams, rule: Rule, vocab_size: int, prompt_tokens: int
    ) -> None:
        self.row: int | None = None
        self.text: list[int] = []
        """The transcript, and what was guessed behind it."""
        self._drafter = drafter
        self._vocab_size = vocab_size
        self.cached = 0
        """How many of these tokens its row holds."""
        self._logits: NDArray[np.float32] | None = None  # float32 [vocab], behind the text
        self._draw = make_draw(params, rule)
        self._params = params
        self._prompt_tokens = prompt_tokens

    @property
    def lacks(self) -> int:
        """How many tokens are still to go through the model before the next guess."""
        full = len(self.text) >= self._drafter.context
        return 0 if full or self._logits is not None else len(self.text) - self.cached

    def computed(self, count: int, logits: NDArray[np.float32] | None) -> None:
        """So many more tokens went through the model; `logits`, float32 [vocab], if they were the last it lacked."""
        self.cached += count
        self._logits = logits

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """Guess the next tokens, until the model's context is full."""
        # The last token goes through the model again even if it is cached: its logits are what comes next.
        self.cached = min(self.cached, common_prefix(self.text, tokens), len(tokens) - 1)
        self.text, self._logits = list(tokens), None
        return self._go_on()

    def _go_on(self) -> Iterator[Guess]:
        while len(self.text) < self._drafter.context:
            while self.lacks:
                self._drafter.prepare([self])
            guess = self._next()
            self.text.append(guess.token)
            yield guess

    def _next(self) -> Guess:
        assert self._logits is not None
        logits, self._logits = self._logits[: self._vocab_size], None
        if self._params.bent:
            bend(logits[None], self._params, self.text[self._prompt_tokens :], ())
        return self._draw(logits, len(self.text))
