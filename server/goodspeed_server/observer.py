"""What happens in the rounds, told as it happens to whoever watches: metrics, traces, benchmarks, research."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from goodspeed.control import Service
from goodspeed.guesses import Overtaken
from goodspeed.messages import Draft
from goodspeed.stream import Commit
from goodspeed_server.arrivals import Arrivals
from goodspeed_server.fitting import Settled
from goodspeed_server.live import AgentAccount, DraftWay, LiveStream
from goodspeed_server.settings import RoundSettings

__all__ = ["Chronicle", "Observer", "Phases", "RoundRecord"]


class Phases(NamedTuple):
    """When a round's phases began, seconds, and when the last was over."""

    gathering: float
    planning: float
    verifying: float
    committing: float
    """When the pass was over on its thread, whatever of the pass before was yet to be told then."""
    over: float


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One pass, as it was measured."""

    at: float
    gather_s: float
    plan_s: float
    verify_s: float
    """From handing the pass to the engine's thread until it is over there."""
    forward_s: float
    judge_s: float
    commit_s: float
    """With as much of the telling of the pass before as outlasts this one."""
    streams: int
    prompts: int
    """Prompts of which a chunk was in the pass."""
    prefilled: int
    """Prompt tokens in the pass."""
    drafted: int
    accepted: int
    committed: int
    arrivals: Arrivals = field(default_factory=Arrivals)
    out_of_memory: int = 0
    """How often memory did not suffice, and a piece of the pass was run again in smaller ones."""
    recorded: bool = False
    """As in `Settled`."""
    reused: int = 0
    """Prompt tokens that did not have to be run, since a row held them."""
    price: float = 0.0
    """`Plan.price` of what was planned behind the pass, or last before it where all its streams have ended."""

    @classmethod
    def of(
        cls, settled: Settled, commits: Sequence[Commit], phases: Phases, arrivals: Arrivals, price: float
    ) -> RoundRecord:
        """What is to be counted of a pass, of what came of it, and of when."""
        work = settled.work
        return cls(
            at=phases.committing,
            gather_s=phases.planning - phases.gathering,
            plan_s=phases.verifying - phases.planning,
            verify_s=phases.committing - phases.verifying,
            forward_s=settled.forward_s,
            judge_s=settled.judge_s,
            commit_s=phases.over - phases.committing,
            streams=len(commits),
            prompts=len(work.chunks),
            prefilled=sum(len(chunk.tokens) for chunk in work.chunks),
            drafted=sum(len(turn.drafted) for turn in work.turns),
            accepted=sum(commit.accepted for commit in commits),
            committed=sum(commit.size for commit in commits),
            arrivals=arrivals,
            out_of_memory=settled.out_of_memory,
            recorded=settled.recorded,
            reused=work.reused,
            price=price,
        )


class Observer(Protocol):
    """Is told whatever happens, as it happens, on the event loop: for benchmarks and research."""

    def committed(self, live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
        """A verdict was reached for one stream: its estimates know of it, its budget is still that of its draft."""

    def round_over(self, record: RoundRecord) -> None:
        """A pass has been committed."""


class Chronicle(Observer, Protocol):
    """Is told all that an observer is, who comes and goes, what is asked for, and what comes of drafts on the way."""

    def joined(self, account: AgentAccount, now: float) -> None:
        """An agent has linked up."""

    def left(self, account: AgentAccount) -> None:
        """Its link has gone."""

    def opened(self, live: LiveStream, now: float) -> None:
        """A stream has a row."""

    def came(self, live: LiveStream, draft: Draft, way: DraftWay | None) -> None:
        """A draft has come, or a piece of one; and how, if that is known."""

    def overtaken(self, live: LiveStream, first: int, what: Overtaken) -> None:
        """Guesses from a position of the transcript on were held against it without a pass."""

    def ended(self, live: LiveStream, now: float) -> None:
        """A stream is over."""

    def planned_by(self, scheduler: str, fairness: float, settings: RoundSettings) -> None:
        """Rounds are planned by these from now on."""

    def weighed(self, agent: str, weight: float | None) -> None:
        """An operator gave an agent another weight, or its token's own, None."""

    def served(self, agent: str, service: Service) -> None:
        """An operator drained an agent, or serves it again."""
