"""Training batches and evaluation windows out of the corpus's token arrays."""

from collections.abc import Mapping

import numpy as np
import torch

from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.corpus import Domain
from bench.recipe.tokenizer import Tokens

WINDOW = CONTEXT_LENGTH
DOMAIN_REPEATS: dict[Domain, int] = {"code": 4, "prose": 2, "tests": 1}


class WindowSampler:
    """Windows of the corpus without replacement: each epoch visits every window, those of some domains several times.

    A batch is a pure function of its index, so that a resumed run continues where it stopped. Every pass over a
    domain shifts the windows' borders.
    """

    def __init__(self, domains: Mapping[Domain, Tokens], seed: int, windows_a_batch: int) -> None:
        self._domains = domains
        self._seed = seed
        self._windows_a_batch = windows_a_batch
        self._per_epoch = sum(
            (len(tokens) // WINDOW - 1) * DOMAIN_REPEATS[domain] for domain, tokens in domains.items()
        )
        self._epoch = -1
        self._order: list[tuple[Domain, int]] = []

    def batch(self, index: int, sequence_length: int) -> torch.Tensor:
        """Tokens int64 [windows_a_batch * WINDOW // sequence_length, sequence_length] of batch `index`."""
        first = index * self._windows_a_batch
        rows = [self._window(number) for number in range(first, first + self._windows_a_batch)]
        return torch.from_numpy(np.stack(rows).astype(np.int64)).view(-1, sequence_length)

    def _window(self, number: int) -> Tokens:
        epoch, place = divmod(number, self._per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffled(epoch), epoch
        domain, start = self._order[place]
        return self._domains[domain][start : start + WINDOW]

    def _shuffled(self, epoch: int) -> list[tuple[Domain, int]]:
        rng = np.random.default_rng((self._seed, epoch))
        order: list[tuple[Domain, int]] = []
        for domain, tokens in self._domains.items():
            for _ in range(DOMAIN_REPEATS[domain]):
                shift = int(rng.integers(WINDOW))
                order += [(domain, shift + i * WINDOW) for i in range(len(tokens) // WINDOW - 1)]
        rng.shuffle(order)
        return order


def evaluation_windows(tokens: Tokens, length: int, at_most: int) -> torch.Tensor:
    """Up to `at_most` windows spread evenly over a domain, int64 [windows, length]."""
    count = len(tokens) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(int))
    return torch.from_numpy(np.stack([tokens[i * length : (i + 1) * length] for i in chosen]).astype(np.int64))
