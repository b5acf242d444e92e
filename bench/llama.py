"""llama.cpp with several sequences in one batch: what `bench.cpu` measures the engine beside."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LACKING", "LlamaRounds", "is_installed"]

LACKING = "llama.cpp is not measured: pip install '.[gguf]' gguf"

_CHUNK = 512


def is_installed() -> bool:
    """Whether it is, and what writes its files is too."""
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ImportError:
        return False
    return True


class LlamaRounds:
    """Rounds over rows that each have a text of their own, as `bench.cpu` runs them in the engine.

    Args:
        path: of a GGUF file.
        rows: how many texts.
        max_length: tokens of each.
        threads: how many compute.
    """

    def __init__(self, path: Path, rows: int, max_length: int, threads: int) -> None:
        self._rows = rows
        self._api = api = _library()[0]
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        self._vocab_size: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        params = api.llama_context_default_params()
        params.n_ctx = rows * max_length
        params.n_seq_max = rows
        params.n_batch = params.n_ubatch = _CHUNK
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {rows} rows of {max_length} tokens for {path}")
        self._batch = api.llama_batch_init(_CHUNK, 0, 1)

    def fill(self, tokens: Sequence[int]) -> None:
        """Cache some tokens in every row, from its beginning."""
        for row in range(self._rows):
            self._cut_off(row, 0)
        for start in range(0, len(tokens), _CHUNK):
            self._decode([(0, start, tokens[start : start + _CHUNK])], wanted=False)
        for row in range(1, self._rows):
            self._api.llama_memory_seq_cp(self._api.llama_get_memory(self._context), 0, row, -1, -1)

    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Run new tokens in every row, and forget them: [sum of new tokens, vocab]."""
        self._decode(
            [(row, start, new) for row, (start, new) in enumerate(zip(starts, tokens, strict=True))], wanted=True
        )
        count = sum(map(len, tokens))
        pointer = self._api.llama_get_logits(self._context)
        logits = np.ctypeslib.as_array(pointer, shape=(count, self._vocab_size)).copy()
        for row, start in enumerate(starts):
            self._cut_off(row, start)
        return logits

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def _cut_off(self, row: int, start: int) -> None:
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), row, start, -1)

    def _decode(self, pieces: Sequence[tuple[int, int, Sequence[int]]], *, wanted: bool) -> None:
        batch = self._batch
        count = 0
        for row, start, tokens in pieces:
            for position, token in enumerate(tokens, start):
                batch.token[count], batch.pos[count] = token, position
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                batch.logits[count] = wanted
                count += 1
        batch.n_tokens = count
        if status := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp's decoding failed with {status}")


@functools.cache
def _library() -> tuple[Any, Any]:
    """The C interface, which says nothing, and what it must not outlive."""
    from llama_cpp import llama_cpp as api

    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    return api, silent
