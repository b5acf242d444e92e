"""What a draft is tuned for: distances from the target's distribution, and the goodput of whole blocks.

`p` is the target, `q` the draft; both come as log-probabilities over the same outcomes, which may be the whole
vocabulary or the target's likeliest tokens and one outcome for all the rest. `a = sum_v min(p(v), q(v))` is the
acceptance rate of the ratio rule. Logarithms have to be finite: floor them at `LOG_FLOOR`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "LOG_FLOOR",
    "Divergence",
    "acceptance",
    "block_goodput",
    "forward_kl",
    "jensen_shannon",
    "lk_mixture",
    "neg_log_acceptance",
    "passing",
    "reverse_kl",
    "total_variation",
]

LOG_FLOOR = -30.0
"""The logarithm of a probability that is as good as none."""

_LK_DECAY = 3.0

Divergence = Callable[[Tensor, Tensor], Tensor]
"""`(log_p, log_q)`, each [..., outcomes], to a loss [...] in nats or, for total variation, in probability."""


def acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The chance that the ratio rule accepts a drafted token: [..., outcomes] to [...]."""
    return torch.minimum(log_p, log_q).exp().sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q)`: covers all that the target might say (DistillSpec, arXiv 2310.08461)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(q || p)`: avoids what the target would not say (GKD, arXiv 2306.13649)."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence: both KLs from the even mixture, half of each."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return (forward_kl(log_p, middle) + forward_kl(log_q, middle)) / 2


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`1 - a`: the chance of a rejection itself."""
    return 1.0 - acceptance(log_p, log_q)


def neg_log_acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`-log a`: as total variation, but hard positions weigh more (LK, arXiv 2602.23881)."""
    return -acceptance(log_p, log_q).clamp_min(math.exp(LOG_FLOOR)).log()


def lk_mixture(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`lam * KL(p || q) + (1 - lam) * TV` with `lam = exp(-3 a)`, `a` held fixed (LK, arXiv 2602.23881).

    Where the draft is far off, the KL leads it near; where it is near, the rejections themselves count.
    """
    share = torch.exp(-_LK_DECAY * acceptance(log_p, log_q).detach())
    return share * forward_kl(log_p, log_q) + (1.0 - share) * total_variation(log_p, log_q)


def passing(log_p_token: Tensor, log_q_token: Tensor) -> Tensor:
    """`min(1, q(x) / p(x))` of a token `x` that the target drew: how likely a draft had led there, [...]."""
    return (log_q_token - log_p_token).clamp_max(0.0).exp()


def block_goodput(accepted: Tensor, known: Tensor, budget: int, passed: Tensor | None = None) -> Tensor | None:
    """Tokens that a round commits on average: `1 + sum_{k=1..S} P(at least k accepted)`, over blocks from everywhere.

    With `passed`, on text that the target drew at the same temperature, `P(k) = E[prod_{j<k} passed_j * a_k]` is
    unbiased: `passed` turns the target's text into the part of it that a draft would have reached. Without, the
    product is of `a` alone, which has less variance and is right on any text but for how the two depend on each other.

    Args:
        accepted: the acceptance rate `a` at each position, [rows, positions].
        known: bool [rows, positions]: where there is one; blocks lie wholly therein.
        budget: `S`, the drafted tokens of a block.
        passed: what `passing` gives for the token that stands there, [rows, positions].

    Returns:
        A scalar, tokens per round; None if no block fits.
    """
    if budget == 0:
        return accepted.new_ones(())
    if accepted.shape[1] < budget:
        return None
    blocks = accepted.unfold(1, budget, 1)  # [rows, blocks, budget]
    if passed is None:
        reached = blocks.cumprod(-1)
    else:
        steps = passed.unfold(1, budget, 1)
        before = torch.cat([torch.ones_like(steps[..., :1]), steps[..., :-1]], dim=-1)
        reached = before.cumprod(-1) * blocks
    whole = known.unfold(1, budget, 1).all(-1)  # [rows, blocks]
    if not bool(whole.any()):
        return None
    return 1.0 + reached[whole].sum(-1).mean()
