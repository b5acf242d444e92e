"""The policies of `make bench`, by name, and the capacities that those are tried at who have to be given one."""

from __future__ import annotations

from collections.abc import Sequence

from goodspeed_bench.policies import Policy

__all__ = ["OURS", "PAPER", "PLAIN", "SECONDS", "candidates", "swept"]

PLAIN = Policy("plain", "plain", "barrier", 0)
OURS = Policy("ours", "seconds", "rolling", draft_ahead="auto", early_stop=True)
SECONDS = Policy("seconds alone", "seconds", "rolling")
"""Ours without drafting ahead and early stops."""
PAPER = Policy("GoodSpeed-Sched", "goodspeed", "barrier")

_SWEPT = (
    Policy("Fixed-S", "fixed", "barrier"),
    Policy("Random-S", "random", "barrier"),
    PAPER,
    Policy("throughput", "throughput", "barrier"),
    Policy("Fixed-S, rolling", "fixed", "rolling"),
    Policy("GoodSpeed-Sched, rolling", "goodspeed", "rolling"),
    Policy("throughput, rolling", "throughput", "rolling"),
    Policy("co-located", "fixed", "barrier", co_located=True),
)
"""These spend whatever capacity they are given, so each is compared at the capacity that suits it best."""


def swept(quick: bool) -> Sequence[Policy]:
    """Policies whose capacity is to be found."""
    if not quick:
        return _SWEPT
    return [policy for policy in _SWEPT if policy.rounds == "barrier" and not policy.co_located]


def candidates(quick: bool) -> Sequence[int]:
    """The capacities that are tried: 0.5 to 3.5 tokens for each of eight streams; the paper has 16 to 28.

    None at all is plain decoding, which is compared by itself.
    """
    return (16,) if quick else (4, 8, 16, 28)
