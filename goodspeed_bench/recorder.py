"""What happened in a run, verdict by verdict and round by round, as the server's observer saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from goodspeed.estimation import expected_tokens
from goodspeed.stream import Commit
from goodspeed_server.live import LiveStream
from goodspeed_server.observer import RoundRecord

__all__ = ["Recorder", "Seen", "Times"]


class Seen(Struct, frozen=True, array_like=True):
    """One verdict."""

    at: float
    """Seconds since the recorder began."""
    edge: str
    budget: int
    alpha: float
    """The acceptance rate that was estimated when the draft was asked for."""
    expected: float
    """Tokens that were to be expected of the round, by that estimate."""
    tokens: int
    """Tokens that were committed."""


class Times(Struct, frozen=True):
    """Where the wall time went, by the names of the paper's figure 3; seconds."""

    receiving_s: float
    verification_s: float
    sending_s: float
    rounds: int


@dataclass(slots=True)
class Recorder:
    """The server's observer.

    Args:
        began_at: on the server's clock, seconds.
    """

    began_at: float
    verdicts: list[Seen] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)
    _alpha: dict[LiveStream, float] = field(default_factory=dict)

    def committed(self, live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
        """A verdict was reached for one stream."""
        # What was believed before this verdict was learnt from: else the estimate would know what it is to foretell.
        alpha = self._alpha.get(live, live.account.prior_alpha)
        self._alpha[live] = live.estimator.alpha
        budget, name = live.budget, live.account.name
        expected = expected_tokens(alpha, budget)
        self.verdicts.append(Seen(now - self.began_at, name, budget, alpha, expected, commit.size))
        if commit.finish:
            del self._alpha[live]

    def round_over(self, record: RoundRecord) -> None:
        """A pass has been committed."""
        self.rounds.append(record)

    def tokens(self, edge: str, since_s: float, until_s: float) -> int:
        """How many an edge's users got in a span of time."""
        return sum(seen.tokens for seen in self.verdicts if seen.edge == edge and since_s <= seen.at < until_s)

    def times(self, since_s: float, until_s: float) -> Times:
        """Of the rounds in a span of time."""
        rounds = self.within(since_s, until_s)
        return Times(
            receiving_s=sum(record.gather_s for record in rounds),
            verification_s=sum(record.verify_s for record in rounds),
            sending_s=sum(record.plan_s + record.commit_s for record in rounds),
            rounds=len(rounds),
        )

    def within(self, since_s: float, until_s: float) -> Sequence[RoundRecord]:
        """The rounds of a span of time."""
        return [record for record in self.rounds if since_s <= record.at - self.began_at < until_s]
