"""A draft model in a GGUF file, run by llama.cpp: for boxes without torch, and for quantised weights."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goodspeed.sampling import SamplingParams
from goodspeed.sampling.bending import bend
from goodspeed.threads import candidates, quickest, timed, usable_cores
from goodspeed.verification import Rule
from goodspeed_agent.drafters.draws import make_draw
from goodspeed_agent.drafters.interface import DraftSession, Guess
from goodspeed_agent.drafters.llama import ContextPool, LlamaContext, LlamaModel

__all__ = ["GgufDrafter"]

_log = logging.getLogger(__name__)

_KV_BYTES = 2 * 2**30
"""What the keys and values of all streams may take together."""
_TRIAL_CELLS = 256


class GgufDrafter:
    """Drafts with a GGUF model.

    It is compared with the target by what its tokens stand for (`vocabulary.TokenLister`), since its file holds no
    tokenizer that a fingerprint could be taken of.

    Args:
        model: loaded.
        name: what to call it.
        threads: how many compute; None measures how many are quickest.
        kv_bytes: what the keys and values of all streams may take together.
        max_draft: the longest draft worth asking for.
    """

    fingerprint: str | None = None

    def __init__(
        self, model: LlamaModel, name: str, threads: int | None = None, kv_bytes: int = _KV_BYTES, max_draft: int = 16
    ) -> None:
        self.name = name
        self.max_draft = max_draft
        self._model = model
        trial = _Trial(model)
        self.threads = trial.quickest_threads(name) if threads is None else threads
        cells = max(_TRIAL_CELLS, kv_bytes // max(1, trial.kv_bytes))
        self._pool = ContextPool(model, min(cells, 2**31 - 1), self.threads)
        self.context = min(model.max_length, self._pool.cells)
        """How long a text it can guess in."""
        if self.context < model.max_length:
            _log.info("%s drafts for texts of up to %d tokens: so many have room", name, self.context)

    @classmethod
    def load(cls, name: str, *, threads: int | None = None) -> GgufDrafter:
        """Load a file.

        Args:
            name: its path.
            threads: how many may compute; None measures how many are quickest.

        Raises:
            ModelError: it cannot be loaded, is no model that can draft, or llama-cpp-python is not installed.
        """
        path = Path(name).expanduser()
        return cls(LlamaModel(path), path.name, threads)

    @property
    def tokens(self) -> Sequence[str]:
        """What each of its ids stands for."""
        return self._model.tokens

    @property
    def vocab_size(self) -> int:
        """How many ids it knows."""
        return self._model.vocab_size

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return GgufSession(self, self._pool, params, rule, vocab_size, prompt_tokens)


class GgufSession:
    """The model at work on one stream, with a context of its own while there is room for it."""

    def __init__(
        self,
        drafter: GgufDrafter,
        pool: ContextPool,
        params: SamplingParams,
        rule: Rule,
        vocab_size: int,
        prompt_tokens: int,
    ) -> None:
        self._known = drafter.vocab_size
        self._max_length = drafter.context
        self._pool = pool
        self._context: LlamaContext | None = None
        self._draw = make_draw(params, rule)
        self._params = params
        self._vocab_size = vocab_size
        self._prompt_tokens = prompt_tokens

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """Guess the next tokens, until the context is full.

        There are none while other texts take up all the room, and behind tokens that only the target has.
        """
        text = list(tokens)
        if max(text) >= self._known:
            return
        while len(text) < self._max_length:
            logits = self._logits_after(text)
            if logits is None:
                return
            if self._params.bent:
                bend(logits[None], self._params, text[self._prompt_tokens :], ())
            guess = self._draw(logits, len(text))
            yield guess
            text.append(guess.token)

    def _logits_after(self, text: Sequence[int]) -> NDArray[np.float32] | None:
        """Float32 [vocab_size], minus infinity of a token that only the target has; None if there is no room."""
        logits = np.full(self._vocab_size, -np.inf, dtype=np.float32)
        context = self._pool.logits_after(text, self._context, logits)
        if context is None:
            return None
        self._context = context
        return logits


class _Trial:
    """A text of no meaning, of which the model shows how quick it is and how much memory it takes."""

    def __init__(self, model: LlamaModel) -> None:
        self._context = LlamaContext(model, _TRIAL_CELLS)
        self._text: list[int] = []
        self._go_on(1)
        first_bytes = self._context.state_bytes
        self._go_on(1)
        self.kv_bytes = self._context.state_bytes - first_bytes
        """Of a token; 0 of a model that keeps one state, however long the text."""

    def quickest_threads(self, name: str) -> int:
        timings = timed(self._go_on, candidates(usable_cores()))
        chosen = quickest(timings)
        medians = (f"{statistics.median(steps_s) * 1e3:.2f} ms with {count}" for count, steps_s in timings.items())
        _log.info("%s takes %s threads: a token takes %s", name, chosen, ", ".join(medians))
        return chosen

    def _go_on(self, threads: int) -> None:
        self._context.use(threads)
        self._text.append(0)
        self._context.logits_after(self._text)
