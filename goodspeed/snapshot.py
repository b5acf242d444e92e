"""What a monitor sees of a server: immutable, and the same in the server's own terminal and from afar."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from goodspeed.errors import MalformedMessage

__all__ = ["AgentRow", "PhaseTimes", "RoundRow", "ServerSnapshot"]


class PhaseTimes(Struct, frozen=True, kw_only=True):
    """Where a round's time goes: means over the last rounds, milliseconds."""

    gather_ms: float = 0.0
    plan_ms: float = 0.0
    verify_ms: float = 0.0
    commit_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """The whole round."""
        return self.gather_ms + self.plan_ms + self.verify_ms + self.commit_ms


class AgentRow(Struct, frozen=True, kw_only=True):
    """One agent: the sum or the mean over its streams."""

    name: str
    drafter: str
    streams: int
    prefilling: int
    budget: float
    """Mean budget of its streams, tokens."""
    alpha: float
    """Mean estimated acceptance rate."""
    goodput: float
    """Committed tokens per second, all its streams together, over the last seconds."""
    tokens_per_round: float = 1.0
    """Smoothed tokens that a round commits to one of its streams: `X` of equation (4)."""
    weight: float = 1.0
    """`omega`, of each of its streams in the utility."""
    history: tuple[float, ...]
    """Goodput in the past, oldest first, one value a second."""
    drafted: int
    accepted: int
    committed: int
    state: str = "ok"
    draft_ms: float = 0.0
    """How long its last drafts were computed, by its own account; smoothed."""
    network_ms: float = 0.0
    """How long they were on their way besides, from the verdict to their arrival: the round trip; smoothed."""
    wait_ms: float = 0.0
    """How long they lay here until a pass took them; smoothed."""
    surprise: float = 0.0
    """Ratio rule: by how many standard deviations its drafted tokens are unlikelier than it claims, over all that its
    account has had verified. What decides whether an account is distrusted is another measure; see `audit`."""


class RoundRow(Struct, frozen=True, kw_only=True):
    """One of the last rounds, times in milliseconds.

    The first three are one draft's own, so that they add up: that of the agent in the middle, by time of arrival. They
    are 0 where nobody's draft was verified.
    """

    number: int
    """Rounds are counted from 1."""
    draft_ms: float
    network_ms: float
    wait_ms: float
    verify_ms: float
    """From handing the pass to the engine until its outcome was back."""
    other_ms: float
    """Planning and committing."""
    streams: int
    drafted: int
    accepted: int
    committed: int
    slowest: str
    """The agent without which the round would have closed sooner; empty if there is none."""
    held_ms: float
    """By how much."""


class ServerSnapshot(Struct, frozen=True, kw_only=True):
    """The whole server at one moment."""

    model: str
    scheduler: str
    rule: str
    layout: str
    capacity: int | None
    """Draft tokens one pass may verify; None where the price of the engine's time alone holds drafts back."""
    uptime_s: float
    rounds: int
    rounds_per_s: float
    phases: PhaseTimes
    agents: tuple[AgentRow, ...]
    streams: int
    waiting: int
    """Streams in the admission queue."""
    rows: int
    free_rows: int
    kv_used_tokens: int
    kv_tokens: int
    fairness: float
    """The exponent of the utility that the scheduler maximises; 1 is the sum of logarithms."""
    utility: float
    """Of all streams' goodputs, tokens per second; the streams of one agent are taken for alike."""
    plain_utility: float
    """The same, if the engine did nothing but decode these streams plainly."""
    goodput: float
    """Committed tokens per second, everybody."""
    goodput_history: tuple[float, ...]
    committed: int
    drafted: int
    accepted: int
    busy_s: float
    """Time the engine has spent in forward passes: processor time on a CPU, wall time elsewhere."""
    judge_s: float
    """Time the engine's thread has spent on sampling and judging drafts."""
    plain_busy_s: float
    """Estimate of the time the same tokens would have taken by plain decoding in the same batches."""
    draining: bool = False
    parked: int = 0
    """Streams whose link has gone and whose rows are kept for them until somebody needs these: they count as free."""
    resumed_parked: int = 0
    """Texts that went on on a later link in the row they had."""
    resumed_transcript: int = 0
    """Texts that came with some of their tokens written, and went through the target from their beginning."""
    jain: float = 1.0
    """Jain's index of the streams' goodputs: 1 where all are alike."""
    found_out: int = 0
    """How many accounts were distrusted since the server started, one for each time."""
    recent: tuple[RoundRow, ...] = ()
    """The last rounds, the newest last; so few that a snapshot stays small."""

    @property
    def mean_acceptance_length(self) -> float:
        """Committed tokens for each stream and round, the recovered or bonus token included."""
        return self.committed / max(1, self.committed - self.accepted)

    @property
    def speedup(self) -> float:
        """Goodput per second of engine time, drawing and judging included, against plain decoding on it."""
        spent_s = self.busy_s + self.judge_s
        return self.plain_busy_s / spent_s if spent_s > 0 else 1.0

    def to_json(self) -> bytes:
        """Encode for the wire, or for a script."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> ServerSnapshot:
        """Read it back.

        Raises:
            MalformedMessage: the peer sent something else.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessage(f"not a snapshot: {error}") from None
