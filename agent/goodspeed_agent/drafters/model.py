"""A draft model: any causal language model that shares the target's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goodspeed import catalog
from goodspeed.sampling import SamplingParams
from goodspeed.sampling.bending import bend
from goodspeed.verification import Rule
from goodspeed_agent.drafters.draws import make_draw
from goodspeed_agent.drafters.interface import DraftSession, Guess, common_prefix
from goodspeed_agent.drafters.slots import SlotCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelDrafter"]

_CHUNK = 512
"""The longest piece of a prompt that goes through the model at once."""


class ModelDrafter:
    """Drafts with a transformers model.

    Args:
        model: loaded, in evaluation mode.
        name: what to call it.
        fingerprint: of its tokenizer's vocabulary.
        max_draft: the longest draft worth asking for.
    """

    def __init__(self, model: PreTrainedModel, name: str, fingerprint: str | None, max_draft: int = 16) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.max_draft = max_draft
        self._model = model

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
        return ModelSession(self._model, params, rule, vocab_size, prompt_tokens)


class ModelSession:
    """The model at work on one stream, with a KV cache of its own."""

    def __init__(
        self, model: PreTrainedModel, params: SamplingParams, rule: Rule, vocab_size: int, prompt_tokens: int
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._cache = SlotCache(model.config)
        self._cached: list[int] = []
        self._draw = make_draw(params, rule)
        self._params = params
        self._prompt_tokens = prompt_tokens
        text_config = model.config.get_text_config()
        self._context: int = getattr(text_config, "max_position_embeddings", None) or 2**31

    @torch.inference_mode()
    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """Guess the next tokens, until the model's context is full."""
        if len(tokens) >= self._context:
            return
        self._roll_back(tokens)
        pending: Sequence[int] = tokens[len(self._cached) :]
        for position in range(len(tokens), self._context):
            logits = self._forward(pending)
            if self._params.bent:
                generated = self._cached[self._prompt_tokens :]
                bend(logits[None], self._params, generated, ())
            guess = self._draw(logits, position)
            yield guess
            pending = [guess.token]

    def _roll_back(self, tokens: Sequence[int]) -> None:
        # The last token goes through the model again even if it is cached: its logits are what comes next.
        keep = min(common_prefix(self._cached, tokens), len(tokens) - 1)
        self._cache.roll_back(keep)
        del self._cached[keep:]

    def _forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the cache; return the logits behind the last one, float32 [vocab]."""
        logits: Tensor
        for start in range(0, len(tokens), _CHUNK):
            piece = list(tokens[start : start + _CHUNK])
            ids = torch.tensor([piece], device=self._model.device)
            logits = self._model(input_ids=ids, cache=self._cache, use_cache=True, logits_to_keep=1).logits
            self._cached += piece
        return logits[0, -1, : self._vocab_size].float().numpy(force=True)
