"""A draft model: any causal language model that shares the target's tokenizer."""

from __future__ import annotations

import logging
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
"""How many tokens of prompts go through the model at once."""
_BESIDE = 32
"""How many of them beside others' guesses, which they slow down."""
_FEW = 16
"""Who lacks no more than that is about to guess."""
_TOGETHER = 64
_KV_BYTES = 2 * 2**30
_ROUNDED = 256
"""Rows grow by so many tokens at least."""
_RETRY_STEPS = 256
"""After so many it is tried again whether there is memory for more."""

_log = logging.getLogger(__name__)


class ModelDrafter:
    """Drafts with a transformers model, for all its sessions in one batch.

    Args:
        model: loaded, in evaluation mode. From here on it is the drafter's.
        name: what to call it.
        fingerprint: of its tokenizer's vocabulary.
        max_draft: the longest draft worth asking for.
        together: for how many sessions it computes at once, and keeps what it has computed.
        kv_bytes: what the keys and values of all sessions may take together.

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
        kv_bytes: int = _KV_BYTES,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.max_draft = max_draft
        self.together = together
        limit = reach(model) or 2**31
        self._engine = Engine(
            model,
            rows=1,
            max_length=min(_ROUNDED, limit),
            layout="packed" if model.device.type == "cpu" else "padded",
            device=model.device,
            dtype=model.dtype,
        )
        self._tokens = max(_ROUNDED, kv_bytes // self._engine.kv_bytes_per_token)
        """That all rows together may hold."""
        self._room = self._tokens
        """The same, as far as there is memory."""
        self._steps_to_retry = 0
        self._told = False
        """Whether the log knows that there is not."""
        self.context = min(limit, self._tokens)
        """How long a text it can guess in."""
        self._rows = Rows[ModelSession](together)
        self._cramped = False
        """Whether somebody found no room."""

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

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows."""
        return self._engine.vocab_size

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return ModelSession(self, params, rule, vocab_size, prompt_tokens)

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """Run one forward pass over what these sessions have not cached; a long prompt takes several."""
        own = [session for session in sessions if isinstance(session, ModelSession)]
        if self._room < self._tokens:
            self._steps_to_retry -= 1
            if self._steps_to_retry <= 0:
                self._room = self._tokens
        if self._cramped and own:
            self._make_room(own)
        guessing = [session for session in own if 0 < session.lacks <= _FEW]
        left = _BESIDE if guessing else _CHUNK
        running: list[tuple[ModelSession, Segment]] = []
        for session in guessing:
            self._take_part(session, session.lacks, own, running)
        # One prompt after another: whoever came first guesses first.
        for session in own:
            if left and session.lacks > _FEW:
                left -= self._take_part(session, min(session.lacks, left), own, running)
        if running:
            running.sort(key=lambda one: one[1].row)
            logits = iter(self._engine.forward([segment for _, segment in running]).numpy(force=True))
            for session, segment in running:
                session.computed(segment.new, next(logits) if segment.logits else None)
        return [session.lacks == 0 for session in own]

    def _take_part(
        self,
        session: ModelSession,
        count: int,
        beside: Sequence[ModelSession],
        running: list[tuple[ModelSession, Segment]],
    ) -> int:
        """Have the next so many tokens that a session lacks run; says how many do."""
        if not self._seat(session, session.cached + count, beside):
            session.unseated = self._cramped = True
            return 0
        assert session.row is not None
        self._rows.used(session.row)
        count = min(count, session.lacks)  # less was cached, if it has another row than before
        tokens = session.text[session.cached : session.cached + count]
        running.append((session, Segment(session.row, session.cached, tokens, int(count == session.lacks))))
        return count

    def _seat(self, session: ModelSession, length: int, beside: Sequence[ModelSession]) -> bool:
        """See that a session has a row of that length; False if there is no room while others are at work."""
        if session.row is None:
            taken = self._rows.take(session, beside, self._room // self._engine.max_length)
            if taken is None:
                return False
            session.row, loser = taken
            if loser is not None:
                loser.row, loser.cached = None, 0
        rows, longest = self._engine.rows, self._engine.max_length
        if session.row < rows and length <= longest:
            return True
        wanted_rows, wanted_length = max(rows, session.row + 1), max(longest, self._rounded(length))
        doubled = min(max(wanted_rows, 2 * rows * (session.row >= rows)), self.together)
        longer = min(max(wanted_length, 2 * longest * (length > longest)), self.context)
        sizes = dict.fromkeys(((doubled, longer), (wanted_rows, wanted_length)))
        allowed = [size for size in sizes if size[0] * size[1] <= self._room]
        if any(self._grow(*size) for size in allowed):
            return True
        if allowed:
            # Nobody asks for more than there is for a while.
            self._room, self._steps_to_retry = rows * longest, _RETRY_STEPS
        if session.row >= rows:
            self._rows.give_back(session.row)
            session.row = None
        return False

    def _grow(self, rows: int, length: int) -> bool:
        """Hold so much; False if there is no memory for it."""
        try:
            self._engine.resize(rows, length)
        except (RuntimeError, MemoryError) as error:
            if not self._told:
                _log.warning("no memory for more: %s drafts for the texts that have room (%s)", self.name, error)
            self._told = True
            return False
        return True

    def _make_room(self, sessions: Sequence[ModelSession]) -> None:
        """Begin with an empty slab if those at work would fit into one: it has the shape of what was there before."""
        self._cramped = False
        at_work = {*sessions, *self._rows.at_work()}
        rows, length = len(at_work), self._rounded(max(len(session.text) for session in at_work) + 1)
        if rows > self.together or rows * length > self._room:
            return
        for holder in self._rows.call_in():
            holder.row, holder.cached = None, 0
        self._engine.begin_anew(rows, length)

    def _rounded(self, length: int) -> int:
        return min(-(-length // _ROUNDED) * _ROUNDED, self.context)


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
        self.unseated = False
        """Whether there is no row for it at the moment: then it has nothing to say."""
        self._logits: NDArray[np.float32] | None = None  # float32 [vocab], behind the text
        self._draw = make_draw(params, rule)
        self._params = params
        self._prompt_tokens = prompt_tokens

    @property
    def lacks(self) -> int:
        """How many tokens are still to go through the model before the next guess."""
        done = self._logits is not None or self._silent
        return 0 if done else len(self.text) - self.cached

    @property
    def _silent(self) -> bool:
        return self.unseated or len(self.text) >= self._drafter.context

    def computed(self, count: int, logits: NDArray[np.float32] | None) -> None:
        """So many more tokens went through the model; `logits`, float32 [vocab], if they were the last it lacked."""
        self.cached += count
        self._logits = logits

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """Guess the next tokens, until the model's context is full.

        There are none while those at work take up all the memory.

        Raises:
            ModelError: a token of them is none that the model knows.
        """
        if max(tokens) >= self._drafter.vocab_size:
            raise ModelError(f"token {max(tokens)} is beyond the {self._drafter.vocab_size} that it knows")
        # The last token goes through the model again even if it is cached: its logits are what comes next.
        self.cached = min(self.cached, common_prefix(self.text, tokens), len(tokens) - 1)
        self.text, self._logits, self.unseated = list(tokens), None, False
        return self._go_on()

    def _go_on(self) -> Iterator[Guess]:
        while not self._silent:
            while self.lacks:
                self._drafter.prepare([self])
            if self._logits is None:
                return
            guess = self._next()
            self.text.append(guess.token)
            yield guess

    def _next(self) -> Guess:
        assert self._logits is not None
        logits, self._logits = self._logits[: self._vocab_size], None
        if self._params.bent:
            bend(logits[None], self._params, self.text[self._prompt_tokens :], ())
        return self._draw(logits, len(self.text))
