"""From logits to tokens: temperature, top-k, top-p and min-p, each row with its own parameters, all rows at once.

Two views of the same warped distribution: `sample` draws from it with the shared noise (the coupled rule, and every
drafter), `log_probs` writes it out over the whole vocabulary (the ratio rule). A full sort of a large vocabulary is
by far the dearest step there is here, so truncated rows look at their `_PREFILTER` likeliest tokens first and only
rows whose nucleus is larger are sorted whole.

Which rows those are is to be read before they can be drawn. On a GPU whoever reads waits for all that is queued, so
that `draw` reads nothing: it leaves them `UNDECIDED`, for `draw_whole`. `sample` is both, one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodspeed.sampling.noise import gumbel, uniform
from goodspeed.sampling.parameters import SamplingParams

__all__ = ["UNDECIDED", "RowParams", "draw", "draw_whole", "log_probs", "sample"]

UNDECIDED = -1
"""In the place of a token: the row has to be drawn whole."""

_PREFILTER = 128
_BLOCK_ELEMENTS = 2**17
"""On a CPU, rows are taken in blocks of about so many logits, so that every intermediate stays in the cache."""
_ROUNDING = 1.0001
"""More than all the rounding errors of `u / p` together."""
_NO_TOP_K = 2**62


@dataclass(frozen=True, slots=True)
class RowParams:
    """The sampling parameters of a batch's rows, as tensors of shape [rows]."""

    temperature: Tensor  # float32; 1 where greedy, so that dividing by it is harmless
    greedy: Tensor  # bool
    truncated: Tensor  # bool
    top_k: Tensor  # int64; beyond any vocabulary where off
    top_p: Tensor  # float32
    min_p: Tensor  # float32
    any_greedy: bool
    any_full: bool
    any_truncated: bool

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], device: torch.device | None = None) -> RowParams:
        """Gather the parameters of `rows`, one a row of logits."""

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            temperature=column([1.0 if row.greedy else row.temperature for row in rows], torch.float32),
            greedy=column([row.greedy for row in rows], torch.bool),
            truncated=column([row.truncated and not row.greedy for row in rows], torch.bool),
            top_k=column([min(row.top_k or _NO_TOP_K, _NO_TOP_K) for row in rows], torch.int64),
            top_p=column([row.top_p for row in rows], torch.float32),
            min_p=column([row.min_p for row in rows], torch.float32),
            any_greedy=any(row.greedy for row in rows),
            any_full=any(not row.greedy and not row.truncated for row in rows),
            any_truncated=any(not row.greedy and row.truncated for row in rows),
        )

    def select(self, mask: Tensor | slice) -> RowParams:
        """The rows where `mask` (bool or index, [rows], or a slice) says so."""
        return RowParams(
            self.temperature[mask], self.greedy[mask], self.truncated[mask],
            self.top_k[mask], self.top_p[mask], self.min_p[mask],
            self.any_greedy, self.any_full, self.any_truncated,
        )  # fmt: skip


def sample(logits: Tensor, rows: RowParams, keys: Tensor) -> Tensor:
    """Draw one token a row: `argmax(log p + G)`, or `argmax p` where the row is greedy.

    Args:
        logits: float32 [rows, vocab].
        rows: the parameters of each row.
        keys: int32 [rows, 2], the noise keys of the positions drawn (`position_keys`), on the logits' device.

    Returns:
        int64 [rows].
    """
    tokens = draw(logits, rows, keys)
    if rows.any_truncated:
        some = (tokens == UNDECIDED).nonzero().squeeze(-1)
        if len(some):
            tokens[some] = draw_whole(logits, rows, keys, some)
    return tokens


def draw(logits: Tensor, rows: RowParams, keys: Tensor) -> Tensor:
    """As `sample`, and nothing is read from a GPU: int64 [rows], `UNDECIDED` where a prefilter does not suffice."""
    if not (rows.any_full or rows.any_truncated):
        return logits.argmax(-1)
    if not _on_cpu(logits):
        return _draw_on_device(logits, rows, keys)
    blocks = _blocks(*logits.shape)
    return torch.cat([_draw_on_cpu(logits[block], rows.select(block), keys[block]) for block in blocks])


def draw_whole(logits: Tensor, rows: RowParams, keys: Tensor, some: Tensor) -> Tensor:
    """The tokens of some truncated rows, int64 [some], each by all of its vocabulary: as `sample`.

    Args:
        logits: as for `sample`; so are the two that follow.
        rows: likewise.
        keys: likewise.
        some: int64 [some], which of the rows.
    """
    vocab = logits.shape[-1]
    blocks = _blocks(len(some), vocab) if _on_cpu(logits) else [slice(None)]
    tokens = []
    for chosen in (some[block] for block in blocks):
        scores = logits[chosen] / rows.temperature[chosen, None]
        tokens.append(_draw_truncated(scores, rows.select(chosen), keys[chosen], vocab))
    return torch.cat(tokens)


def _on_cpu(logits: Tensor) -> bool:
    return logits.device.type == "cpu"


def _blocks(count: int, vocab: int) -> list[slice]:
    size = max(1, _BLOCK_ELEMENTS // vocab)
    return [slice(first, first + size) for first in range(0, count, size)]


def _draw_on_cpu(logits: Tensor, rows: RowParams, keys: Tensor) -> Tensor:
    """Each row in its own way."""
    if not (rows.any_greedy or rows.any_truncated):
        return _race(logits / rows.temperature[:, None], keys)
    if not (rows.any_greedy or rows.any_full):
        return _draw_truncated(logits / rows.temperature[:, None], rows, keys, _PREFILTER)
    tokens = logits.argmax(-1)
    if len(full := (~rows.greedy & ~rows.truncated).nonzero().squeeze(-1)):
        tokens[full] = _race(logits[full] / rows.temperature[full, None], keys[full])
    if len(cut := rows.truncated.nonzero().squeeze(-1)):
        scores = logits[cut] / rows.temperature[cut, None]
        tokens[cut] = _draw_truncated(scores, rows.select(cut), keys[cut], _PREFILTER)
    return tokens


def _draw_on_device(logits: Tensor, rows: RowParams, keys: Tensor) -> Tensor:
    """All rows in every way there is among them, since to tell them apart would be to read."""
    scores = logits / rows.temperature[:, None]
    if rows.any_full:
        vocabulary = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device)
        lags = scores - scores.amax(-1, keepdim=True)  # near 0, where float32 is fine
        tokens = lags.add_(gumbel(keys[:, None, :], vocabulary)).argmax(-1)
        if rows.any_truncated:
            tokens = torch.where(rows.truncated, _draw_truncated(scores, rows, keys, _PREFILTER), tokens)
    else:
        tokens = _draw_truncated(scores, rows, keys, _PREFILTER)
    return torch.where(rows.greedy, logits.argmax(-1), tokens) if rows.any_greedy else tokens


def log_probs(logits: Tensor, rows: RowParams) -> Tensor:
    """Write the warped distributions out.

    Args:
        logits: float32 [rows, vocab].
        rows: the parameters of each row.

    Returns:
        float32 [rows, vocab]: normalised log-probabilities, -inf for tokens that cannot be drawn. A greedy row is a
        point mass.
    """
    scores = logits / rows.temperature[:, None]
    if rows.any_truncated:
        some = rows.truncated.nonzero().squeeze(-1)
        ranked, ids = scores[some].sort(dim=-1, descending=True, stable=True)
        kept = _keep(ranked, scores[some].logsumexp(-1, keepdim=True), rows.select(some))
        scores[some] = torch.full_like(ranked, -torch.inf).scatter_(-1, ids, ranked.where(kept, -torch.inf))
    if rows.any_greedy:
        best = torch.full_like(scores, -torch.inf).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
        scores = torch.where(rows.greedy[:, None], best, scores)
    return scores.log_softmax(-1)


def _race(scores: Tensor, keys: Tensor) -> Tensor:
    """`argmax(scores + G)` over the whole vocabulary, on a CPU: int64 [rows].

    `G = -log(-log(1 - u))`, so the argmax is where `-log(1 - u) / p` is smallest. As `u <= -log(1 - u)`, the token with
    the smallest `u / p`, which takes no logarithm, sets a bound, and almost always it is the only one within it.
    In numpy, whose integer operations and argmin are several times faster on a CPU than torch's.
    """
    row = np.arange(len(scores))
    u = uniform(keys.numpy()[:, None, :], np.arange(scores.shape[-1], dtype=np.int32))
    odds = (scores.amax(-1, keepdim=True) - scores).exp_().numpy()
    odds *= u  # u / p, up to a constant of the row: [rows, vocab]
    best = odds.argmin(-1)
    u_best = u[row, best]
    bound = odds[row, best] * (-np.log1p(-u_best) / u_best) * _ROUNDING
    odds[row, best] = np.inf
    contested = torch.from_numpy((odds.min(-1) <= bound).nonzero()[0])
    tokens = torch.from_numpy(best)
    if len(contested):
        noise = gumbel(keys[contested][:, None, :], torch.arange(scores.shape[-1], dtype=torch.int32))
        tokens[contested] = (scores[contested] + noise).argmax(-1)
    return tokens


def _draw_truncated(scores: Tensor, rows: RowParams, keys: Tensor, width: int) -> Tensor:
    """Draw each row from its `width` likeliest tokens: int64 [rows], `UNDECIDED` where others may be drawn too."""
    vocab = scores.shape[-1]
    ranked, ids = _top(scores, min(width, vocab))
    kept = _keep(ranked, scores.logsumexp(-1, keepdim=True), rows)
    noisy = (ranked + gumbel(keys[:, None, :], ids.int())).where(kept, -torch.inf)
    tokens = ids.gather(-1, noisy.argmax(-1, keepdim=True)).squeeze(-1)
    if width >= vocab:
        return tokens
    # Where a token as likely as the last one looked at is kept, the nucleus may go on beyond, and where top-k does, so
    # does the mass that top-p is a share of.
    open_ended = (kept & (ranked == ranked[:, -1:])).any(-1)
    mass_unknown = (rows.top_k > width) & (rows.top_k < vocab) & (rows.top_p < 1.0)
    return tokens.masked_fill(open_ended | mass_unknown, UNDECIDED)


def _top(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest scores of each row, in order and among equals by token, and their tokens: [rows, width] each.

    `topk` chooses freely among equals, and bf16 logits have many; in a fixed order, both views of a distribution keep
    the same tokens.
    """
    if width == scores.shape[-1]:
        ranked, ids = scores.sort(dim=-1, descending=True, stable=True)
        return ranked, ids
    ids, _ = scores.topk(width, dim=-1, sorted=False).indices.sort(dim=-1)
    ranked, order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ranked, ids.gather(-1, order)


def _keep(ranked: Tensor, normaliser: Tensor, rows: RowParams) -> Tensor:
    """Which of a row's likeliest tokens may be drawn.

    Args:
        ranked: [rows, width], scores in descending order.
        normaliser: [rows, 1], the logsumexp of the row's whole vocabulary.
        rows: the parameters of each row.

    Returns:
        bool [rows, width]; the likeliest token is always kept.
    """
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    in_k = rank < rows.top_k[:, None]
    p = (ranked - normaliser).exp().where(in_k, 0.0)
    mass_in_k = torch.where(rows.top_k[:, None] <= ranked.shape[-1], p.sum(-1, keepdim=True), 1.0)
    mass_before = p.cumsum(-1) - p
    in_p = mass_before < rows.top_p[:, None] * mass_in_k
    in_p |= rows.top_p[:, None] >= 1.0
    in_min = p >= rows.min_p[:, None] * p[:, :1]
    kept = in_k & in_p & in_min
    kept[:, 0].fill_(True)
    return kept
