"""What the server has measured of itself, and the snapshot of it that a monitor draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from goodspeed.control import Service
from goodspeed.guesses import Overtaken
from goodspeed.messages import Draft
from goodspeed.snapshot import AgentRow, PhaseTimes, RoundRow, ServerSnapshot
from goodspeed.stream import Commit
from goodspeed.timing import PassCost, PassSample
from goodspeed.utility import AlphaFair, jain_index
from goodspeed_server.live import AgentAccount, DraftWay, LiveStream
from goodspeed_server.observer import Chronicle, Observer, RoundRecord
from goodspeed_server.settings import RoundSettings
from goodspeed_server.slices import slices_of

__all__ = ["Rate", "ServerFacts", "Telemetry"]

HISTORY_S = 60
_RATE_WINDOW_S = 5
_RECENT_ROUNDS = 64
_SHOWN_ROUNDS = 16
"""A monitor shows the very last ones; a snapshot goes out four times a second."""
_LEAST_GOODPUT = 0.1
_LONGEST_NAME = 200
"""Characters that a monitor is shown of what an agent calls itself, and its drafter: there may be thousands of them."""


class Rate:
    """Counts events by the second and remembers the last minute.

    Args:
        now: when counting starts.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._seconds: deque[float] = deque([0.0], maxlen=HISTORY_S + 1)
        self._second = 0

    def add(self, count: float, now: float) -> None:
        """Count some events."""
        self._advance(now)
        self._seconds[-1] += count

    def history(self, now: float) -> tuple[float, ...]:
        """Events in each completed second, oldest first."""
        self._advance(now)
        return tuple(self._seconds)[:-1]

    def per_second(self, now: float) -> float:
        """The mean rate over the last few completed seconds."""
        recent = self.history(now)[-_RATE_WINDOW_S:]
        if not recent:
            return self._seconds[-1] / max(now - self._started, 0.1)
        return sum(recent) / len(recent)

    def _advance(self, now: float) -> None:
        second = int(now - self._started)
        for _ in range(min(second - self._second, HISTORY_S + 1)):
            self._seconds.append(0.0)
        self._second = max(second, self._second)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What does not change while the server runs, unless its operator has it plan otherwise."""

    model: str
    scheduler: str
    rule: str
    layout: str
    rows: int
    max_length: int
    utility: AlphaFair
    measured: Sequence[PassSample]
    """How long passes took at start-up."""


class Telemetry:
    """Collects; reading it never changes it.

    Args:
        facts: of the server.
        now: when the server started.
        observer: is told the same.
        chronicle: is told more.
    """

    def __init__(
        self,
        facts: ServerFacts,
        now: float,
        observer: Observer | None = None,
        chronicle: Chronicle | None = None,
    ) -> None:
        self._chronicle = chronicle
        self._facts = facts
        self._observer = observer
        self._started = now
        self._now = now
        self._rounds = 0
        self._recent: deque[RoundRecord] = deque(maxlen=_RECENT_ROUNDS)
        self._goodput = Rate(now)
        self._round_rate = Rate(now)
        self._meters: dict[AgentAccount, Rate] = {}
        self._committed = self._drafted = self._accepted = self._found_out = 0
        self._resumed_parked = self._resumed_transcript = 0
        self._busy_s = self._judge_s = 0.0
        self._cost = PassCost(facts.measured)
        self._expected_s = self._plain_s = 0.0
        """By the cost model: what the passes take, and what plain decoding of the same tokens would take."""

    def planned_by(self, scheduler: str, utility: AlphaFair, settings: RoundSettings) -> None:
        """Rounds are planned by these from now on."""
        self._facts = replace(self._facts, scheduler=scheduler, utility=utility)
        if self._chronicle is not None:
            self._chronicle.planned_by(scheduler, utility.fairness, settings)

    def weighed(self, agent: str, weight: float | None) -> None:
        """An operator gave an agent another weight, or its token's own, None."""
        if self._chronicle is not None:
            self._chronicle.weighed(agent, weight)

    def served(self, agent: str, service: Service) -> None:
        """An operator drained an agent, or serves it again."""
        if self._chronicle is not None:
            self._chronicle.served(agent, service)

    def joined(self, account: AgentAccount, now: float) -> None:
        """An agent has linked up."""
        self._meters[account] = Rate(now)
        if self._chronicle is not None:
            self._chronicle.joined(account, now)

    def left(self, account: AgentAccount) -> None:
        """Its link has gone."""
        self._meters.pop(account, None)
        if self._chronicle is not None:
            self._chronicle.left(account)

    def found_out(self, account: AgentAccount) -> None:
        """An account's drafts do not come of what is claimed for them."""
        self._found_out += 1

    def opened(self, live: LiveStream, now: float) -> None:
        """A stream has a row."""
        if self._chronicle is not None:
            self._chronicle.opened(live, now)

    def resumed(self, *, by_row: bool) -> None:
        """A text goes on that was begun on an earlier link: in its own row, or else from its transcript alone."""
        if by_row:
            self._resumed_parked += 1
        else:
            self._resumed_transcript += 1

    def came(self, live: LiveStream, draft: Draft, way: DraftWay | None) -> None:
        """A draft has come, or a piece of one; and how, if that is known."""
        if self._chronicle is not None:
            self._chronicle.came(live, draft, way)

    def overtaken(self, live: LiveStream, first: int, what: Overtaken) -> None:
        """Guesses from a position of the transcript on were held against it without a pass."""
        if self._chronicle is not None:
            self._chronicle.overtaken(live, first, what)

    def ended(self, live: LiveStream, now: float) -> None:
        """A stream is over."""
        if self._chronicle is not None:
            self._chronicle.ended(live, now)

    def committed(self, live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
        """A verdict was reached for one stream."""
        account = live.account
        account.committed += commit.size
        account.drafted += drafted
        account.accepted += commit.accepted
        self._meters[account].add(commit.size, now)
        for watcher in (self._observer, self._chronicle):
            if watcher is not None:
                watcher.committed(live, drafted, commit, now)

    def round_over(self, record: RoundRecord) -> None:
        """A pass has been committed."""
        for watcher in (self._observer, self._chronicle):
            if watcher is not None:
                watcher.round_over(record)
        self._busy_s += record.forward_s
        self._judge_s += record.judge_s
        self._compare_with_plain(record)
        if record.streams == 0:
            return
        self._rounds += 1
        self._recent.append(record)
        self._committed += record.committed
        self._drafted += record.drafted
        self._accepted += record.accepted
        self._goodput.add(record.committed, record.at)
        self._round_rate.add(1, record.at)

    def agents(
        self, now: float, live: Sequence[LiveStream], prefilling: Callable[[LiveStream], bool]
    ) -> Iterator[list[AgentRow]]:
        """What is known of agents, of some at a time; one that leaves meanwhile may be missing."""
        streams_of: dict[AgentAccount, list[LiveStream]] = {account: [] for account in self._meters}
        for stream in live:
            streams_of[stream.account].append(stream)
        for some in slices_of(list(streams_of.items())):
            yield [
                self._agent_row(account, streams, prefilling, now)
                for account, streams in some
                if account in self._meters
            ]

    def snapshot(
        self,
        now: float,
        live: Sequence[LiveStream],
        agents: Sequence[AgentRow],
        *,
        capacity: int | None,
        waiting: int,
        parked: int,
        draining: bool,
    ) -> ServerSnapshot:
        """Freeze what is known now; `agents` as of a moment ago."""
        goodputs = [row.goodput / row.streams for row in agents for _ in range(row.streams)]
        facts = self._facts
        return ServerSnapshot(
            model=facts.model,
            scheduler=facts.scheduler,
            rule=facts.rule,
            layout=facts.layout,
            capacity=capacity,
            uptime_s=now - self._started,
            rounds=self._rounds,
            rounds_per_s=self._round_rate.per_second(now),
            phases=self._phases(),
            agents=tuple(agents),
            streams=len(live),
            waiting=waiting,
            parked=parked,
            resumed_parked=self._resumed_parked,
            resumed_transcript=self._resumed_transcript,
            rows=facts.rows,
            free_rows=facts.rows - len(live),
            kv_used_tokens=sum(stream.stream.cached for stream in live),
            kv_tokens=facts.rows * facts.max_length,
            fairness=facts.utility.fairness,
            utility=self._utility(goodputs, [row.weight for row in agents for _ in range(row.streams)]),
            plain_utility=self._utility(
                [1.0 / self._plain_pass_s(len(live))] * len(live), [stream.account.weight for stream in live]
            ),
            goodput=self._goodput.per_second(now),
            goodput_history=self._goodput.history(now),
            committed=self._committed,
            drafted=self._drafted,
            accepted=self._accepted,
            busy_s=self._busy_s,
            judge_s=self._judge_s,
            plain_busy_s=(self._busy_s + self._judge_s) * self._plain_s / max(self._expected_s, 1e-9),
            draining=draining,
            jain=jain_index(np.array(goodputs)),
            recent=self._shown_rounds(),
            found_out=self._found_out,
        )

    def _compare_with_plain(self, record: RoundRecord) -> None:
        # One model says both how long the pass takes and how long a plain one would have: what the machine does to
        # both, and what the model gets wrong of both, is no gain and no loss.
        streams, rows = record.streams, record.streams + record.prompts
        tokens = streams + record.drafted + record.prefilled
        expected_s = self._cost.seconds(rows, tokens)
        self._expected_s += expected_s
        self._plain_s += expected_s
        if streams:
            # Plain decoding commits one token a stream and pass; prompts cost it what they cost here.
            plain_s = record.committed / streams * self._plain_pass_s(streams)
            self._plain_s += plain_s - self._cost.seconds(streams, streams + record.drafted)
        if not record.recorded:
            self._cost.observe(PassSample(rows, tokens, record.forward_s + record.judge_s))

    def _plain_pass_s(self, streams: int) -> float:
        rows = max(streams, 1)
        return self._cost.seconds(rows, rows)

    def _utility(self, goodputs: Sequence[float], weights: Sequence[float]) -> float:
        # A stream that has only just begun has no goodput yet, and would drown all others.
        kept = np.maximum(goodputs, _LEAST_GOODPUT)
        return float(self._facts.utility.value(kept, np.array(weights)).sum())

    def _phases(self) -> PhaseTimes:
        count = max(1, len(self._recent))
        return PhaseTimes(
            gather_ms=1e3 * sum(record.gather_s for record in self._recent) / count,
            plan_ms=1e3 * sum(record.plan_s for record in self._recent) / count,
            verify_ms=1e3 * sum(record.verify_s for record in self._recent) / count,
            commit_ms=1e3 * sum(record.commit_s for record in self._recent) / count,
        )

    def _shown_rounds(self) -> tuple[RoundRow, ...]:
        shown = list(self._recent)[-_SHOWN_ROUNDS:]
        return tuple(_round_row(self._rounds - age, record) for age, record in enumerate(reversed(shown)))[::-1]

    def _agent_row(
        self,
        account: AgentAccount,
        streams: Sequence[LiveStream],
        prefilling: Callable[[LiveStream], bool],
        now: float,
    ) -> AgentRow:
        meter = self._meters[account]
        count = max(1, len(streams))
        alpha = sum(live.estimator.alpha for live in streams) / count if streams else account.prior_alpha
        return AgentRow(
            name=account.name[:_LONGEST_NAME],
            drafter=account.drafter[:_LONGEST_NAME],
            streams=len(streams),
            prefilling=sum(prefilling(live) for live in streams),
            budget=sum(live.budget for live in streams) / count,
            alpha=alpha,
            goodput=meter.per_second(now),
            tokens_per_round=sum(live.goodput for live in streams) / count if streams else 1.0,
            weight=account.weight,
            history=meter.history(now),
            drafted=account.drafted,
            accepted=account.accepted,
            committed=account.committed,
            state=_state(account),
            surprise=round(account.standing.audit.z, 2),
            draft_ms=_ms(account.draft_s),
            network_ms=_ms(account.network_s),
            wait_ms=_ms(account.wait_s),
        )


def _round_row(number: int, record: RoundRecord) -> RoundRow:
    arrivals = record.arrivals
    return RoundRow(
        number=number,
        draft_ms=_ms(arrivals.draft_s),
        network_ms=_ms(arrivals.network_s),
        wait_ms=_ms(arrivals.wait_s),
        verify_ms=_ms(record.verify_s),
        other_ms=_ms(record.plan_s + record.commit_s),
        streams=record.streams,
        drafted=record.drafted,
        accepted=record.accepted,
        committed=record.committed,
        slowest=arrivals.slowest,
        held_ms=_ms(arrivals.held_s),
    )


def _ms(seconds: float) -> float:
    """Milliseconds, with as many digits as anybody sees: they are sent four times a second."""
    return round(1e3 * seconds, 2)


def _state(account: AgentAccount) -> str:
    if account.service != "served":
        return account.service
    if account.standing.distrusted:
        return "distrusted"
    return f"{account.bad_drafts} bad drafts" if account.bad_drafts else "ok"
