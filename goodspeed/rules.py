"""Verification rules: what an agent draws and sends for every drafted token, and what the server makes of it.

A rule is one class, on both sides of the link. The agent draws its tokens by it, and sends with each whatever bytes the
rule wants (`Draft.q`); the server reads those bytes, and judges. It is lossless if what is committed is distributed as
if the target had drawn it alone, whatever the drafts: `goodspeed check-rule` tries that by brute force.

The two that are built in, `verification` has the mathematics of. One of one's own is named to the server, `--rule
my_module:Mine`; its name, the attribute, is what crosses the wire. An agent looks for that name among what is built in
and among the entry points of what is installed: never for a module that a server names. `GOODSPEED_RULE=my_module:Mine`
gives it one that is not installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import operator
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from goodspeed.errors import InvalidRequest, RuleFault
from goodspeed.plugins import Kind, make, raised
from goodspeed.sampling.noise import gumbel, position_keys
from goodspeed.verification import (
    RATIO_TOP_K,
    DraftDistribution,
    Judgement,
    draw_drafted,
    judge_coupled,
    judge_ratio,
    pack_q,
    quantise,
    unpack_q,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RULE",
    "RULES",
    "Coupled",
    "Drawn",
    "Ratio",
    "VerificationRule",
    "checked_judgement",
    "faults_named",
    "rule_named",
    "use_rule",
]

_PLACE_VARIABLE = "GOODSPEED_RULE"
_LONGEST_NAME = 64
_CANDIDATES = 1024
"""Without top-k or top-p a token further back can be drawn by the target, but hardly ever is."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Drawn(NamedTuple):
    """A drafted token, and what is sent with it."""

    token: int
    evidence: bytes = b""


class VerificationRule(Protocol):
    """One instance serves all streams, and from several threads: it keeps nothing of any."""

    @property
    def name(self) -> str:
        """What crosses the wire."""

    @property
    def shares_noise(self) -> bool:
        """Whether a guess is right if and only if it is the token that is committed there, whoever drafted it.

        Then guesses that were never sent teach as much as those that were, and texts depend on no draft.
        """

    @property
    def candidates(self) -> int:
        """Of how many of the likeliest tokens an agent draws."""

    def draw(self, tokens: Ints, weights: Floats, seed: int, position: int) -> Drawn:
        """The agent: draw a token.

        Args:
            tokens: [n], those that may be drawn, the likeliest first.
            weights: [n], how likely each is, relative to the first.
            seed: of the stream.
            position: where the token will stand.
        """

    def settled(self, token: int) -> bytes:
        """The agent: what to send with a token that was settled rather than drawn, by a drafter without a model."""

    def read(self, evidence: bytes, drafted: Sequence[int], vocab_size: int) -> Sequence[Any]:
        """The server: what was sent with a draft, one thing for each token; or nothing, where nothing is.

        Raises:
            InvalidRequest: it cannot be; the draft then counts as none.
        """

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        """The server: accept the draft's beginning, and draw the token behind it.

        Args:
            log_p: float32 [S + 1, vocab], the target's log-probabilities at each drafted position and one past.
            drafted: the agent's tokens, S of them.
            evidence: as `read` gave it.
            seed: of the stream; an agent knows it, so coins that it must not foresee need a secret besides.
            base: the committed length the draft builds on.
        """


@contextlib.contextmanager
def faults_named(rule: VerificationRule) -> Iterator[None]:
    """Whatever a rule raises, somebody else's class most likely, is a `RuleFault` that names it."""
    try:
        yield
    except Exception as error:
        raise RuleFault(f"the rule {rule.name} raised {raised(error)}") from error


def checked_judgement(
    rule: VerificationRule, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int
) -> Judgement:
    """Have a rule judge, and see that what it answers can be.

    Raises:
        RuleFault: naming the rule, and what is wrong with its judgement, or what it raised.
    """
    size, vocab_size = len(drafted), log_p.shape[-1]
    with faults_named(rule):
        judgement: object = rule.judge(log_p, drafted, evidence, seed, base)
    if not isinstance(judgement, Judgement):
        raise RuleFault(f"the rule {rule.name} answered {type(judgement).__name__}: it must be a Judgement")
    try:
        accepted, token = operator.index(judgement.accepted), operator.index(judgement.token)
        ratios = None if judgement.ratios is None else tuple(map(float, judgement.ratios))
        odds = None if judgement.odds is None else tuple(map(float, judgement.odds))
    except (TypeError, ValueError) as error:
        raise RuleFault(f"the rule {rule.name} answered {judgement}: {error}") from error
    if not 0 <= accepted <= size:
        raise RuleFault(f"the rule {rule.name} accepted {accepted} tokens: it must be 0 to {size}, what was drafted")
    if not 0 <= token < vocab_size:
        raise RuleFault(f"the rule {rule.name} drew the token {token}: it must be 0 to {vocab_size - 1}")
    if ratios is not None and (len(ratios) != size or not all(0 <= ratio <= 1 for ratio in ratios)):
        raise RuleFault(f"the rule {rule.name} has wrong ratios: they must be 0 to 1, one for each of {size} tokens")
    if odds is not None and (len(odds) != size or not all(0 <= one < math.inf for one in odds)):
        raise RuleFault(f"the rule {rule.name} has wrong odds: they must be 0 or above, one for each of {size} tokens")
    return Judgement(accepted, token, ratios, odds)


class Coupled:
    """Agent and server draw with the same noise, and a draft stands as far as they agree: nothing has to be sent.

    The server has a faster way than `judge` for a whole batch (`Verifier`), which draws the same.
    """

    name = "coupled"
    shares_noise = True
    candidates = _CANDIDATES

    def draw(self, tokens: Ints, weights: Floats, seed: int, position: int) -> Drawn:
        """With the noise of the position."""
        noisy = np.log(weights) + gumbel(position_keys([seed], [position]), tokens.astype(np.int32))
        return Drawn(int(tokens[int(noisy.argmax())]))

    def settled(self, token: int) -> bytes:
        """Nothing."""
        return b""

    def read(self, evidence: bytes, drafted: Sequence[int], vocab_size: int) -> Sequence[Any]:
        """Nothing."""
        return []

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        """Draw at every position."""
        positions = range(base, base + len(log_p))
        keys = position_keys([seed] * len(log_p), positions)
        noise = gumbel(keys[:, None, :], np.arange(log_p.shape[-1], dtype=np.int32))
        return judge_coupled(drafted, (log_p.cpu().numpy() + noise).argmax(-1).tolist())


class Ratio:
    """The published rule: a token stands with the ratio of what target and draft thought of it; `q` is sent.

    Neither side may know the other's randomness beforehand. An agent that foresees the server's coins drafts only where
    they are kind, and the text is not the target's any more; and what an agent draws has to be independent of all that
    the server has seen (`audit`). A stream's seed is known to both, and is used again for other texts and for positions
    that are drafted twice. So each side has noise of its own, and uses it once: under this rule a seed names no text.

    Args:
        secret: of this side's noise, 0 to 2**63 - 1; None for a random one, which is what servers and agents want.
    """

    name = "ratio"
    shares_noise = False
    candidates = RATIO_TOP_K

    def __init__(self, secret: int | None = None) -> None:
        self._secret = secrets.randbits(63) if secret is None else secret
        self._uses = itertools.count()

    def draw(self, tokens: Ints, weights: Floats, seed: int, position: int) -> Drawn:
        """From the very distribution that is sent."""
        q = quantise(tokens, weights)
        return Drawn(draw_drafted(q, self._unused(), position), pack_q([q]))

    def settled(self, token: int) -> bytes:
        """It was settled without the server's coins, so it is its own distribution."""
        return pack_q([DraftDistribution(np.array([token], dtype=np.int64), np.array([1], dtype=np.int64))])

    def read(self, evidence: bytes, drafted: Sequence[int], vocab_size: int) -> Sequence[Any]:
        """Its distributions."""
        return unpack_q(evidence, drafted, vocab_size)

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        """By coins that no agent foresees."""
        return judge_ratio(log_p, drafted, evidence, self._unused(), base)

    def _unused(self) -> int:
        """A seed that nobody has had, and that no number of others gives away."""
        message = next(self._uses).to_bytes(8, "big")
        return (
            int.from_bytes(hashlib.blake2b(message, key=self._secret.to_bytes(8, "big"), digest_size=8).digest()) >> 1
        )


RULES: Mapping[str, Callable[..., VerificationRule]] = {"coupled": Coupled, "ratio": Ratio}
"""What `--rule` chooses among, beside one's own; see `plugins`."""

# mypy has no type for "a protocol's own class".
RULE: Kind[VerificationRule] = Kind("rule", "goodspeed.rules", VerificationRule, RULES)  # type: ignore[type-abstract]

_known: dict[str, VerificationRule] = {name: rule() for name, rule in RULES.items()}


def use_rule(given: str) -> str:
    """Make a rule, one's own included, and have it found by its name in this process.

    Returns:
        The name.

    Raises:
        InvalidRequest: there is none, it is none, or its name cannot be.
    """
    if given in _known:
        return given
    rule = make(RULE, given)
    name = rule.name
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise InvalidRequest(f"the rule {given} has the name {name!r}: it must be 1 to {_LONGEST_NAME} characters")
    if name in RULES:
        raise InvalidRequest(f"the rule {given} has the name {name!r}, which is a built-in one's: give it another")
    _known[name] = rule
    return name


def rule_named(name: str) -> VerificationRule:
    """The rule that a peer means.

    Raises:
        InvalidRequest: it is not here.
    """
    if name not in _known:
        # A peer may name what is installed, and nothing else: whatever else is imported here, its user has named.
        if entry_points(group=RULE.group, name=name):
            use_rule(name)
        elif _PLACE_VARIABLE in os.environ:
            use_rule(os.environ[_PLACE_VARIABLE])
    if name not in _known:
        raise InvalidRequest(
            f"drafts are verified by the rule {name!r} there, which is not here: install the package that has it, "
            f"or name its class: {_PLACE_VARIABLE}=module:Class"
        )
    return _known[name]
