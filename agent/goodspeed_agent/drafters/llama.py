"""llama.cpp as far as drafting needs it: a GGUF file's weights, and contexts that hold the keys and values of a text.

Everything here goes through the C interface that llama-cpp-python exposes, of which type checkers know nothing; so none
of it leaves this module.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import ModelError, UnknownModel, UnsupportedModel
from goodspeed.extras import how_to_install
from goodspeed_agent.drafters.interface import common_prefix

__all__ = ["ContextPool", "LlamaContext", "LlamaModel"]

_log = logging.getLogger(__name__)

_MAGIC = b"GGUF"
_CHUNK = 256
"""The longest piece of a prompt that goes through the model at once."""
_FIRST_CELLS = 1024
_IDLE_USES = 256
"""Who has not been drafted for while others were so many times is not at work."""
_NEWEST = "LLAMA_LOAD_MODE_NONE"
"""What came last to the interface of all that is used of it."""
_ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""


class LlamaModel:
    """The weights and the vocabulary of a GGUF file, loaded once, however many texts are drafted for.

    Args:
        path: the file, or the first of a model that is split over several.

    Raises:
        UnknownModel: it is not there, no GGUF, or damaged.
        UnsupportedModel: it has no vocabulary, or does not go on with a text.
        ModelError: llama-cpp-python is not installed, or does not work here.
    """

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.api = _api(path)
        params = self.api.llama_model_default_params()
        # A file that is mapped, and that a better draft is written into, would change or end under a working agent.
        params.load_mode = self.api.LLAMA_LOAD_MODE_NONE
        _chatter.forget()
        self.handle = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise UnknownModel(
                f"llama.cpp cannot load {str(path)!r} ({_chatter.complaint}): "
                "copy it again, or see whether llama-cpp-python has to be upgraded for it"
            )
        weakref.finalize(self, self.api.llama_model_free, self.handle)
        self._vocabulary = self.api.llama_model_get_vocab(self.handle)
        if self.api.llama_vocab_type(self._vocabulary) == self.api.LLAMA_VOCAB_TYPE_NONE:
            raise UnsupportedModel(f"{str(path)!r} has no vocabulary, so nobody can tell what its tokens mean")
        self.vocab_size: int = self.api.llama_vocab_n_tokens(self._vocabulary)
        self.max_length: int = self.api.llama_model_n_ctx_train(self.handle)
        if not self._generates():
            raise UnsupportedModel(
                f"{str(path)!r} is a model for embeddings, or one that does not go on with a text token by token: "
                "take a causal language model of the target's family"
            )

    @property
    def tokens(self) -> list[str]:
        """What each id stands for, as the vocabulary spells it."""
        spelled = (self.api.llama_vocab_get_text(self._vocabulary, token) for token in range(self.vocab_size))
        return [text.decode("utf-8", errors="replace") for text in spelled]

    def _generates(self) -> bool:
        api = self.api
        if api.llama_model_has_encoder(self.handle) or api.llama_model_is_diffusion(self.handle):
            return False
        trial = LlamaContext(self, _CHUNK)
        return trial.causal and not trial.pools


class LlamaContext:
    """The keys and values of one text.

    Args:
        model: whose.
        cells: how many tokens have room.
        threads: how many compute.

    Raises:
        ModelError: there is no memory for it.
    """

    def __init__(self, model: LlamaModel, cells: int, threads: int = 1) -> None:
        self.cells = cells
        self._model = model  # It has to outlive its contexts.
        self._api = api = model.api
        params = api.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = min(_CHUNK, cells)
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = threads
        # Cells that a sliding window has left behind would be used again, and could not be gone back to.
        params.swa_full = True
        _chatter.forget()
        self._handle = api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelError(
                f"llama.cpp has no room for {cells} tokens ({_chatter.complaint}): "
                "take a smaller draft, or --draft suffix"
            )
        self._free = weakref.finalize(self, api.llama_free, self._handle)
        self._held: list[int] = []

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it, and only those."""
        return bool(self._api.llama_get_causal_attn(self._handle) and self._api.llama_get_memory(self._handle))

    @property
    def pools(self) -> bool:
        """Whether it makes one embedding of a whole text."""
        return bool(self._api.llama_pooling_type(self._handle) != self._api.LLAMA_POOLING_TYPE_NONE)

    @property
    def state_bytes(self) -> int:
        """How much memory the tokens take that it holds."""
        return int(self._api.llama_state_seq_get_size(self._handle, 0))

    def use(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        self._api.llama_set_n_threads(self._handle, threads, threads)

    def logits_after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind the last token; what it holds of the tokens before is not computed again.

        Args:
            tokens: at least one, and no more than there are cells for.

        Returns:
            float32 [vocab], the library's own until the next call.

        Raises:
            RuntimeError: llama.cpp failed; nothing is held any more.
        """
        # The last token goes through the model again even if it is held: its logits are what comes next.
        self._roll_back(min(common_prefix(self._held, tokens), len(tokens) - 1))
        for start in range(len(self._held), len(tokens), _CHUNK):
            self._decode(tokens[start : start + _CHUNK])
        logits = self._api.llama_get_logits_ith(self._handle, -1)
        return np.ctypeslib.as_array(logits, shape=(self._model.vocab_size,))

    def take_over(self, other: LlamaContext) -> None:
        """Hold what another context holds; where that cannot be, it is computed again when it is asked for."""
        size = other.state_bytes
        state = (ctypes.c_uint8 * size)()
        copied = self._api.llama_state_seq_get_data(other._handle, state, size, 0)
        if copied and self._api.llama_state_seq_set_data(self._handle, state, copied, 0):
            self._held = other._held.copy()
        else:
            self._forget()

    def close(self) -> None:
        """Give its memory back; it has room for nothing any more."""
        self.cells = 0
        self._held = []
        self._free()

    def _roll_back(self, length: int) -> None:
        if length == len(self._held):
            return
        memory = self._api.llama_get_memory(self._handle)
        # What a sliding window has left behind may be gone, which shows in the first position that is there; and a
        # recurrent state cannot be taken back part of the way, which is refused. Then the text begins anew.
        whole = self._api.llama_memory_seq_pos_min(memory, 0) == 0
        if not (whole and self._api.llama_memory_seq_rm(memory, 0, length, -1)):
            self._forget()
        del self._held[length:]

    def _decode(self, tokens: Sequence[int]) -> None:
        piece = (self._api.llama_token * len(tokens))(*tokens)
        _chatter.forget()
        status = self._api.llama_decode(self._handle, self._api.llama_batch_get_one(piece, len(tokens)))
        if status:
            self._forget()
            raise RuntimeError(f"llama.cpp's decoding failed with {status} ({_chatter.complaint})")
        self._held += tokens

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)
        self._held = []


class ContextPool:
    """Gives every text a context, as large as it needs, and sees to it that all of them together have a bound.

    Where that is reached, texts that have not been drafted for in a while lose their contexts, and are computed again
    once they are drafted for. Those at work keep theirs, and a further text has none: were they to take turns in the
    room there is, each would be computed again for every token.

    Args:
        model: whose contexts.
        cells: how many tokens all of them hold.
        threads: how many compute.
    """

    def __init__(self, model: LlamaModel, cells: int, threads: int) -> None:
        self.cells = cells
        self._model = model
        self._threads = threads
        self._turn = threading.Lock()
        self._contexts: weakref.WeakKeyDictionary[LlamaContext, int] = weakref.WeakKeyDictionary()
        """By when they were last used."""
        self._uses = 0

    @property
    def held(self) -> int:
        """For how many tokens there is room in the contexts that there are."""
        return sum(context.cells for context in self._contexts)

    def logits_after(
        self, tokens: Sequence[int], context: LlamaContext | None, out: NDArray[np.float32]
    ) -> LlamaContext | None:
        """Compute the logits behind the last token.

        Args:
            tokens: at least one, and no more than `cells`.
            context: the one that this returned for the text before, if there is one.
            out: where to; as much of them as has room.

        Returns:
            the context of this text from now on; None where it has no room for the time being.
        """
        with self._turn:
            fitting = self._fitting(context, len(tokens))
            if fitting is None:
                return None
            self._uses += 1
            self._contexts[fitting] = self._uses
            logits = fitting.logits_after(tokens)
            size = min(len(logits), len(out))
            out[:size] = logits[:size]
            return fitting

    def _fitting(self, context: LlamaContext | None, length: int) -> LlamaContext | None:
        if context is not None and length <= context.cells:
            return context
        cells = min(max(_FIRST_CELLS, 2 ** length.bit_length()), self._model.max_length, self.cells)
        others = [(used, other) for other, used in self._contexts.items() if other is not context]
        lacking = cells + sum(other.cells for _, other in others) - self.cells
        idle = [entry for entry in others if self._uses - entry[0] >= _IDLE_USES]
        if lacking > sum(other.cells for _, other in idle):
            return None
        for _, other in sorted(idle, key=lambda entry: entry[0]):
            if lacking > 0:
                lacking -= other.cells
                other.close()
        larger = LlamaContext(self._model, cells, self._threads)
        if context is not None and context.cells:
            larger.take_over(context)
            context.close()
        return larger


class _Chatter:
    """What llama.cpp says: for the log, where somebody wants to read it, and not for a user's terminal."""

    def __init__(self) -> None:
        self._line = ""
        self.forget()

    def forget(self) -> None:
        """What was wrong before does not matter any more."""
        self.complaint = "it does not say why"
        """The first that was wrong since: what comes after it follows from it."""
        self._complained = False

    def said(self, level: int, text: bytes, _: object) -> None:
        """The library's own callback: a line, or a part of one."""
        *lines, self._line = (self._line + text.decode("utf-8", errors="replace")).split("\n")
        for line in lines:
            _log.debug("llama.cpp: %s", line)
            if level == _ERROR_LEVEL and not self._complained:
                self._complained = True
                self.complaint = line[:300]


_chatter = _Chatter()


@functools.cache
def _library() -> tuple[Any, Any]:
    """The C interface, which says nothing on standard error, and what it must not outlive."""
    from llama_cpp import llama_cpp as api

    if not hasattr(api, _NEWEST):
        raise ModelError(f"this llama-cpp-python is too old for GoodSpeed: {how_to_install('gguf')}")
    callback = api.llama_log_callback(_chatter.said)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    api.llama_backend_init()
    return api, callback


def _api(path: Path) -> Any:
    try:
        return _library()[0]
    except ImportError:
        raise ModelError(
            f"drafting with {str(path)!r} needs llama-cpp-python: {how_to_install('gguf')}, "
            "or draft without: --draft suffix"
        ) from None
    # What a shared library that does not suit the machine is answered with.
    except (OSError, RuntimeError) as error:
        raise ModelError(f"llama-cpp-python is installed but does not work here ({error}): install it again") from None


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise UnknownModel(f"the draft {str(path)!r} cannot be read ({error.strerror}): check its path") from None
    if magic != _MAGIC:
        raise UnknownModel(f"the draft {str(path)!r} is no GGUF file: it does not begin with {_MAGIC.decode()!r}")
