"""The two verification rules. Both leave the target's distribution exactly as it is.

*Coupled* (the default): agent and server share the noise `G`. The server draws `y_j = argmax(log p_j + G_j)` at every
drafted position and one past the end; the draft stands as far as it agrees, and the first `y` that differs is the
recovered token, or the last is the bonus token. The text is a function of target, prompt, parameters and seed alone.

*Ratio*: the published rule (speculative sampling, arXiv 2211.17192; GoodSpeed, arXiv 2512.09963, section III):
accept `s_j` while `u_j <= p_j(s_j) / q_j(s_j)`, recover from `norm(max(p - q, 0))`. It needs `q`, truncated to its
`RATIO_TOP_K` likeliest tokens and quantised *before* the token is drawn from it, so that what crosses the wire is
the distribution the token came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import InvalidRequest
from goodspeed.sampling.noise import Domain, gumbel, position_keys, uniform

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RATIO_TOP_K",
    "DraftDistribution",
    "Judgement",
    "Rule",
    "draw_drafted",
    "judge_coupled",
    "judge_ratio",
    "pack_q",
    "quantise",
    "unpack_q",
]

Rule: TypeAlias = str
"""The name of a rule, as it crosses the wire: `coupled`, `ratio`, or that of one's own; see `rules`."""

RATIO_TOP_K = 32
"""How many tokens of `q` cross the wire: six bytes each."""

Floats = NDArray[np.float32]

_ENTRY = np.dtype([("token", "<u4"), ("weight", "<u2")])
_COIN = np.zeros(1, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one draft."""

    accepted: int
    """How many of its tokens stand."""
    token: int
    """The recovered token, or the bonus token when all of them stand."""
    ratios: tuple[float, ...] | None = None
    """Ratio rule: with which chance a token that is drawn from `q` stands, at every drafted position: `sum min(p, q)`.
    That is the mean of the `min(1, p/q)` of equation (3) over the tokens that could have been drawn, so it depends on
    what was claimed and not on which token was chosen; what lies behind the first rejection is there too."""
    odds: tuple[float, ...] | None = None
    """Ratio rule: `p/q` of every drafted token, for `audit`."""


def judge_coupled(drafted: Sequence[int], drawn: Sequence[int]) -> Judgement:
    """Accept while draft and draw agree.

    Args:
        drafted: the agent's tokens, S of them.
        drawn: the server's `y`, S + 1 of them, drawn with the shared noise at the same positions.
    """
    assert len(drawn) == len(drafted) + 1
    accepted = 0
    while accepted < len(drafted) and drafted[accepted] == drawn[accepted]:
        accepted += 1
    return Judgement(accepted, drawn[accepted])


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """One truncated, quantised `q`: at most `RATIO_TOP_K` tokens with integer weights."""

    tokens: NDArray[np.int64]  # [k]
    weights: NDArray[np.int64]  # [k], each 1..65535

    @property
    def p(self) -> Floats:
        """The probabilities, summing to one."""
        return np.asarray(self.weights / self.weights.sum(), dtype=np.float32)

    def probability(self, token: int) -> float:
        """Of one token; 0 outside the support."""
        return float(self.weights[self.tokens == token].sum() / self.weights.sum())


def quantise(tokens: NDArray[np.int64], p: Floats) -> DraftDistribution:
    """Truncate `q` to its likeliest `RATIO_TOP_K` tokens and round it to 16 bits.

    Args:
        tokens: [n], candidate token ids.
        p: [n], their probabilities; they need not sum to one.
    """
    order = np.argsort(-p, kind="stable")[:RATIO_TOP_K]
    weights = np.rint(p[order] / p[order].max() * 65535).astype(np.int64)
    positive = weights > 0
    return DraftDistribution(tokens[order][positive], weights[positive])


def draw_drafted(q: DraftDistribution, seed: int, position: int) -> int:
    """Draw the drafted token from the very distribution that will be sent."""
    keys = position_keys([seed], [position], Domain.DRAFT)
    noisy = np.log(q.p) + gumbel(keys, q.tokens.astype(np.int32))
    return int(q.tokens[int(noisy.argmax())])


def pack_q(distributions: Sequence[DraftDistribution]) -> bytes:
    """Lay draft distributions end to end: a count byte, then (token, weight) entries of six bytes, for each."""
    parts = []
    for q in distributions:
        entries = np.empty(len(q.tokens), dtype=_ENTRY)
        entries["token"], entries["weight"] = q.tokens, q.weights
        parts.append(bytes([len(entries)]) + entries.tobytes())
    return b"".join(parts)


def unpack_q(packed: bytes, drafted: Sequence[int], vocab_size: int) -> list[DraftDistribution]:
    """Read and validate what a peer claims its draft distributions were.

    Raises:
        InvalidRequest: a wrong count, an empty or oversized support, a token outside the vocabulary or listed twice,
            a zero weight, or a drafted token outside its own distribution.
    """

    def bad(why: str) -> InvalidRequest:
        return InvalidRequest(f"the draft distribution cannot be used: {why}", code="invalid_q")

    distributions: list[DraftDistribution] = []
    offset = 0
    for token in drafted:
        if offset >= len(packed):
            raise bad(f"{len(distributions)} distributions for {len(drafted)} drafted tokens")
        count = packed[offset]
        end = offset + 1 + count * _ENTRY.itemsize
        if not 0 < count <= RATIO_TOP_K or end > len(packed):
            raise bad(f"a support of {count} tokens (1 to {RATIO_TOP_K}), or it is cut short")
        entries = np.frombuffer(packed, _ENTRY, count, offset + 1)
        q = DraftDistribution(entries["token"].astype(np.int64), entries["weight"].astype(np.int64))
        support = set(q.tokens.tolist())
        if max(support) >= vocab_size or len(support) != count or not q.weights.all():
            raise bad("a token outside the vocabulary or listed twice, or a weight of zero")
        if token not in support:
            raise bad(f"the drafted token {token} is outside its own distribution")
        distributions.append(q)
        offset = end
    if offset != len(packed):
        raise bad(f"{len(packed) - offset} bytes too many")
    return distributions


def judge_ratio(
    log_p: Tensor, drafted: Sequence[int], q: Sequence[DraftDistribution], seed: int, base: int
) -> Judgement:
    """Accept or recover by the ratio of target to draft probability.

    Args:
        log_p: float32 [S + 1, vocab], the target's warped log-probabilities at each drafted position and one past.
        drafted: the agent's tokens, S of them.
        q: the distribution each was drawn from.
        seed: the server's coins are functions of it, in domains of their own; see `rules.Ratio`.
        base: the committed length the draft builds on.
    """
    assert len(drafted) == len(q) == log_p.shape[0] - 1
    size = len(drafted)
    overlaps, odds = _compared(log_p, drafted, q) if size else ((), ())
    coins = uniform(position_keys([seed] * size, range(base, base + size), Domain.ACCEPT), _COIN)
    accepted = 0
    while accepted < size and coins[accepted] <= odds[accepted]:
        accepted += 1
    p = log_p[accepted].exp().cpu().numpy()
    left = _residual(p, q[accepted]) if accepted < size else p
    return Judgement(accepted, _draw(left, seed, base + accepted), overlaps, odds)


def _compared(
    log_p: Tensor, drafted: Sequence[int], q: Sequence[DraftDistribution]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`sum min(p, q)`, and `p/q` of the drafted token, at every drafted position: the target is read once for both."""
    shape = len(q), max(len(one.tokens) for one in q)
    tokens, claimed = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for row, one in enumerate(q):
        tokens[row, : len(one.tokens)] = one.tokens
        claimed[row, : len(one.tokens)] = one.weights / one.weights.sum()
    rows = np.arange(len(q))[:, None]
    # [S, k]; behind a shorter support, of any token. A target that came to nothing (NaN) accepts nothing.
    p = np.nan_to_num(log_p[rows, tokens].double().exp().cpu().numpy(), nan=0.0)
    overlaps = np.minimum(np.minimum(p, claimed).sum(-1), 1.0)
    drawn = ((tokens == np.array(drafted)[:, None]) & (claimed > 0)).argmax(-1)[:, None]
    odds = p[rows, drawn] / claimed[rows, drawn]
    return tuple(overlaps.tolist()), tuple(odds[:, 0].tolist())


def _residual(p: Floats, rejected: DraftDistribution) -> Floats:
    """`max(p - q, 0)`, not normalised: float32 [vocab]."""
    residual = p.copy()
    residual[rejected.tokens] -= rejected.p
    np.maximum(residual, 0.0, out=residual)
    # Where p == q up to rounding, a rejection had probability zero, and the target itself is the right draw.
    return residual if residual.any() else p


def _draw(p: Floats, seed: int, position: int) -> int:
    """Draw one token from unnormalised float32 [vocab] probabilities."""
    support = p.nonzero()[0]
    keys = position_keys([seed], [position], Domain.RESIDUAL)
    noisy = np.log(p[support]) + gumbel(keys, support.astype(np.int32))
    return int(support[int(noisy.argmax())])
