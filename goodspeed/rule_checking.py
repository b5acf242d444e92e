"""Whether a verification rule is lossless, tried by brute force: short texts, over and over, against their known odds.

Target and draft are tables: the odds of each of a few tokens behind each token. A text of two tokens then has odds that
can be written down, however its drafts were made. Many texts are written under the rule, each with a seed of its own,
and their counts are held against those odds by a chi-squared test.

It finds a rule that is wrong; that one is right, no number of texts can prove.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import InvalidRequest, RuleFault
from goodspeed.rules import Drawn, VerificationRule, checked_judgement

__all__ = ["LARGEST_SCORE", "Finding", "check_rule"]

LARGEST_SCORE = 5.0
"""Standard deviations that chance hardly ever reaches: once in three million."""

_VOCAB = 4
_TEXT = 2
"""Tokens that are counted."""
_DRAFT = 2
_ODDITIES = (b"\x00", b"\xff" * 7, bytes(range(64)))

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """One way to draft, and what came of it."""

    drafts: str
    accepted: float
    """The share of drafted tokens that stood."""
    score: float
    """By how many standard deviations the counts are further from the odds than chance would have them."""

    @property
    def lossless(self) -> bool:
        """As far as could be seen."""
        return self.score < LARGEST_SCORE


def check_rule(rule: VerificationRule, *, trials: int = 20_000, seed: int = 0) -> list[Finding]:
    """Try a rule.

    Args:
        rule: which.
        trials: texts for each way to draft.
        seed: of the tables.

    Returns:
        What came of drafts that are drawn from a draft's distribution, that are settled, and of none.

    Raises:
        InvalidRequest: the rule fails, or cannot refuse bytes that mean nothing.
        RuleFault: it judges what cannot be.
    """
    random = np.random.default_rng(seed)
    target, draft = (random.dirichlet(np.full(_VOCAB, 0.8), _VOCAB) for _ in range(2))  # [before, token]

    def drawn(before: int, text_seed: int, position: int) -> Drawn:
        order = np.argsort(-draft[before], kind="stable")
        weights = (draft[before] / draft[before].max())[order].astype(np.float32)
        return rule.draw(order, np.maximum(weights, np.finfo(np.float32).tiny), text_seed, position)

    def settled(before: int, text_seed: int, position: int) -> Drawn:
        token = (before + 1) % _VOCAB
        return Drawn(token, rule.settled(token))

    try:
        _read_oddities(rule)
        return [
            _tried(rule, target, how, trials, name, length)
            for name, how, length in (("drawn", drawn, _DRAFT), ("settled", settled, _DRAFT), ("none", drawn, 0))
        ]
    except (InvalidRequest, RuleFault):
        raise
    # Whatever a class of the user's raises, the user is who can do something about it.
    except Exception as error:
        raise InvalidRequest(f"the rule {rule.name} fails: {type(error).__name__}: {error}") from error


def _tried(
    rule: VerificationRule,
    target: Floats,
    propose: Callable[[int, int, int], Drawn],
    trials: int,
    name: str,
    length: int,
) -> Finding:
    counts = np.zeros((_VOCAB,) * _TEXT)
    accepted = drafted = 0
    for text_seed in range(trials):
        text = [0]
        while len(text) <= _TEXT:
            stood, proposed = _round(rule, target, propose, text, text_seed, length)
            accepted, drafted = accepted + stood, drafted + proposed
        counts[tuple(text[1 : 1 + _TEXT])] += 1
    expected = trials * target[0][:, None] * target  # of a first token, and of a second behind it
    return Finding(name, accepted / max(drafted, 1), _score(counts, expected))


def _round(
    rule: VerificationRule,
    target: Floats,
    propose: Callable[[int, int, int], Drawn],
    text: list[int],
    text_seed: int,
    length: int,
) -> tuple[int, int]:
    """Draft, verify, and append what is committed; how many tokens stood, of how many."""
    import torch

    base, tokens, sent = len(text), list[int](), b""
    for position in range(base, base + length):
        drawn = propose(tokens[-1] if tokens else text[-1], text_seed, position)
        tokens.append(drawn.token)
        sent += drawn.evidence
    behind: Sequence[int] = [text[-1], *tokens]
    log_p = torch.from_numpy(np.log(target[behind])).float()  # [S + 1, vocab]
    judgement = checked_judgement(rule, log_p, tokens, rule.read(sent, tokens, _VOCAB), text_seed, base)
    text += [*tokens[: judgement.accepted], judgement.token]
    return judgement.accepted, length


def _read_oddities(rule: VerificationRule) -> None:
    """A peer may send anything; a rule may refuse it, or make no use of it."""
    for sent in _ODDITIES:
        try:
            rule.read(sent, [0, 1], _VOCAB)
        except InvalidRequest:
            continue


def _score(counts: Floats, expected: Floats) -> float:
    """The chi-squared statistic as a standard normal one (Wilson and Hilferty, 1931)."""
    free = counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free)))
