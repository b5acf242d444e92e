"""Sequence-level unlikelihood: the target unlearns the loops of its own greedy text (arXiv 1908.04319, section 5.2).

A small model that only ever learnt from real text falls into a loop as soon as it reads itself. So towards the end of
its training it continues prompts of the corpus greedily, and every token of a continuation that stands in a repeated
n-gram is made less likely.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from bench.recipe.batches import WINDOW, WindowSampler
from bench.recipe.corpus import Domain
from bench.recipe.tokenizer import Tokens
from bench.recipe.workers import Workers
from goodspeed.tuning.sources import PROMPT_TOKENS
from goodspeed.tuning.teaching import write_texts

NGRAM = 6
"""Long enough to spare what code rightly repeats: indentation, `self.`, an assertion's name."""
WRITTEN_TOKENS = 96
BATCHES_A_POOL = 8


def in_repeated_ngram(tokens: Sequence[int], size: int = NGRAM) -> list[bool]:
    """For each token, whether an n-gram that holds it has occurred before in `tokens`."""
    seen: set[tuple[int, ...]] = set()
    repeated = [False] * len(tokens)
    for end in range(size, len(tokens) + 1):
        ngram = tuple(tokens[end - size : end])
        if ngram in seen:
            repeated[end - size : end] = [True] * size
        seen.add(ngram)
    return repeated


def unlikelihood_loss(model: PreTrainedModel, texts: torch.Tensor) -> torch.Tensor:
    """Mean over written tokens of -log(1 - p) where a token stands in a repeated n-gram, of 0 elsewhere.

    Args:
        model: who wrote, and is to learn.
        texts: int64 [rows, PROMPT_TOKENS + written].
    """
    written = texts[:, PROMPT_TOKENS:]
    repeated = torch.tensor([in_repeated_ngram(row) for row in written.tolist()])  # [rows, written]
    logits = model(input_ids=texts, use_cache=False).logits[:, PROMPT_TOKENS - 1 : -1]
    log_p = logits.log_softmax(-1).gather(-1, written.unsqueeze(-1)).squeeze(-1)
    # 1 - p is kept away from 0: a loop that is certain would give no finite gradient.
    unlikelihood = -torch.log1p(-log_p.exp().clamp(max=1 - 1e-4))
    return torch.where(repeated, unlikelihood, 0.0).mean()


def continue_greedily(model: PreTrainedModel, prompts: torch.Tensor, workers: Workers) -> torch.Tensor:
    """Texts int64 [rows, PROMPT_TOKENS + WRITTEN_TOKENS], prompts included."""
    greedy = partial(write_texts, model, new_tokens=WRITTEN_TOKENS, temperature=0.0, generator=torch.Generator())
    return torch.cat(workers.map(greedy, torch.chunk(prompts, workers.threads)))


def repeated_share(texts: torch.Tensor) -> float:
    """The share of written tokens that stand in a repeated n-gram; texts int64 [rows, PROMPT_TOKENS + written]."""
    marks = [in_repeated_ngram(row) for row in texts[:, PROMPT_TOKENS:].tolist()]
    return sum(map(sum, marks)) / sum(map(len, marks))


class Continuations:
    """Greedy continuations of prompts from the corpus, written in pools and handed out a batch at a time.

    A pool lasts a few steps only, so that its texts stay close to what the model would write now.
    """

    def __init__(
        self, model: PreTrainedModel, domains: Mapping[Domain, Tokens], seed: int, workers: Workers, rows_a_batch: int
    ) -> None:
        self._model = model
        self._prompts = WindowSampler(domains, seed, rows_a_batch * BATCHES_A_POOL)
        self._workers = workers
        self._rows_a_batch = rows_a_batch
        self._pool_number = -1
        self._pool = torch.empty(0, dtype=torch.long)

    def batch(self, index: int) -> torch.Tensor:
        """Texts int64 [rows_a_batch, PROMPT_TOKENS + WRITTEN_TOKENS] for step `index`, prompts included."""
        number, place = divmod(index, BATCHES_A_POOL)
        if number != self._pool_number:
            prompts = self._prompts.batch(number, WINDOW)[:, :PROMPT_TOKENS]
            self._pool, self._pool_number = continue_greedily(self._model, prompts, self._workers), number
        return self._pool[place * self._rows_a_batch : (place + 1) * self._rows_a_batch]
