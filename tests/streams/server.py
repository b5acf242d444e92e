"""The server's own `RoundLoop`, whose passes begin, compute and end when the machine says so; and the wires to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import AgentMessage, Close, Draft, Failure, Open, Redraft, ServerMessage, Welcome
from goodspeed.scheduling import Demand, Plan
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed.utility import AlphaFair
from goodspeed_server import slices
from goodspeed_server.fitting import Settled
from goodspeed_server.live import AgentAccount, Session
from goodspeed_server.passes import PlannedPass, plan_pass
from goodspeed_server.planner import Planner
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.settings import RoundSettings, RoundsName
from goodspeed_server.settling import Settlement
from goodspeed_server.telemetry import ServerFacts, Telemetry
from tests.streams.target import EOS, MAX_LENGTH, VOCAB, RememberingEngine

__all__ = ["Served", "Whim", "Wire"]

MAX_WAITING = 2
_SLOW_PASS = PassSample(1, 1, 60.0)
"""So that whatever an agent guesses is in time for the next pass but one."""


@dataclass
class Whim:
    """A scheduler that grants what the machine says, stream after stream."""

    budgets: list[int]

    def plan(self, demand: Demand, capacity: int) -> Plan:
        wanted = np.resize(np.array(self.budgets, dtype=np.int64), len(demand))
        left = np.maximum(0, capacity - np.cumsum(wanted) + wanted)
        return Plan(np.minimum(np.minimum(wanted, demand.limit), left))


@dataclass(eq=False)
class Wire:
    """One connection: what is under way on it, and the server's outbox for it."""

    account: AgentAccount
    up: list[AgentMessage] = field(default_factory=list)
    down: list[ServerMessage] = field(default_factory=list)
    disturbed: bool = False
    """Whether anything was lost, came again or was overtaken: only then may there be a gap."""

    def post(self, message: ServerMessage) -> None:
        self.down.append(message)


class Served:
    """A server, whose passes begin, compute and end when the machine says so.

    Args:
        now: seconds.
        rounds: how they close.
        whim: what is granted.
        rows: of the slab.
        at_once: how many streams of a pass are committed, or told, before others are heard again.
    """

    def __init__(self, now: Callable[[], float], rounds: RoundsName, whim: Whim, *, rows: int, at_once: int) -> None:
        settings = RoundSettings(
            rounds=rounds, capacity=1000, round_timeout_s=1.0, prefill_chunk=2, max_waiting=MAX_WAITING
        )
        self.engine = RememberingEngine(rows)
        self.telemetry = Telemetry(
            ServerFacts("m", "s", "coupled", "packed", rows, MAX_LENGTH, AlphaFair(), [_SLOW_PASS]), now=now()
        )
        self.whim = whim
        self.loop = RoundLoop(
            self.engine,
            rule="coupled",
            planner=Planner(whim, "coupled", settings, EngineMeter(PassCost([_SLOW_PASS]))),
            eos_tokens=frozenset({EOS}),
            settings=settings,
            telemetry=self.telemetry,
            clock=now,
        )
        # So that texts as short as these share what they begin with.
        self.loop._sharing._shortest = 1
        # There is no event loop here to be woken by: `give_up_parked` is what it would do.
        self.loop._streams._wait_for_expiry = lambda: None  # type: ignore[method-assign]
        self.wires: list[Wire] = []
        """Whose end is not known here; an agent may have left some of them."""
        self.planned: PlannedPass | None = None
        self.outcome: Settled | None = None
        self._at_once = at_once
        self._committing: Iterator[None] | None = None
        """What is still to be committed of the pass."""
        self._telling: Iterator[None] = iter(())
        """What is still to be told of the one before."""

    def accept(self, name: str, session: Session | None = None) -> Wire:
        """Take a new connection; one of the same session that only seems to stand is over by that."""
        for old in [wire for wire in self.wires if session is not None and wire.account.session == session]:
            self.lose(old)
        wire = Wire(AgentAccount(name, "guesser", PRIOR_ALPHA, session=session))
        self.telemetry.joined(wire.account, self.loop.now())
        self.wires.append(wire)
        return wire

    def lose(self, wire: Wire) -> None:
        """Hear that a connection is gone."""
        self.wires.remove(wire)
        self.loop.park(wire)
        self.telemetry.left(wire.account)

    def take(self, wire: Wire, message: AgentMessage) -> None:
        """As `Link` does; a `ProtocolError` is a defect here, since nobody breaks the protocol."""
        try:
            match message:
                case Open():
                    self.loop.open(wire, wire.account, message)
                case Draft():
                    self.loop.draft(wire, message)
                case Close():
                    self.loop.close(wire, message.stream, wire.account.session)
                case Redraft():
                    self.loop.redraft(wire, wire.account, message.drafter)
        except (Overloaded, InvalidRequest) as error:
            stream = message.stream if isinstance(message, Open | Draft | Close) else None
            wire.post(Failure(error.code, str(error), stream, getattr(error, "retry_after_s", None)))

    def begin_pass(self) -> None:
        loop = self.loop
        batch = loop._rounds.close(loop.now(), prompts=bool(loop._streams.prefilling))
        prompts = loop._sharing.begin(batch, list(loop._streams.prefilling))
        planned = plan_pass(batch, prompts, loop.settings.prefill_chunk)
        if planned.verified or planned.prefilled:
            self.planned = planned
        else:
            self.tell()

    def compute(self) -> None:
        assert self.planned is not None
        self.outcome = self.loop._fitting.run(self.planned.work)

    def commit_on(self) -> None:
        """Tell the next slice of the pass before, or commit that of this one; behind the last this one is over."""
        assert self.planned is not None
        if self.outcome is None:
            self.compute()
        assert self.outcome is not None
        if self._committing is None:
            if self._tell_on():
                return
            planned, unfit = self.planned.as_run(self.outcome)
            assert unfit == ([], [])
            self.loop._untold = done = Settlement()
            self._committing = self.loop._commit(planned, self.outcome, done)
        if self._goes_on(self._committing):
            return
        self.planned = self.outcome = self._committing = None
        self._telling = self.loop._telling()

    def tell(self) -> None:
        """Tell whatever is left to be told, and hear nobody meanwhile."""
        while self._tell_on():
            pass

    def end_pass(self) -> None:
        """Commit whatever is left of the pass, tell of it, and hear nobody meanwhile."""
        while self.planned is not None:
            self.commit_on()
        self.tell()

    def _tell_on(self) -> bool:
        return self._goes_on(self._telling)

    def _goes_on(self, work: Iterator[None]) -> bool:
        """Do the next slice; whether there is another behind it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slices, "_AT_ONCE", self._at_once)
            return next(work, "over") is None

    def give_up_parked(self) -> None:
        """As the alarm does: what nobody came back for in time is forgotten."""
        self.loop._streams.give_up_parked(self.loop.now())

    def change_rounds(self, rounds: RoundsName) -> None:
        """As an operator does; only between passes."""
        self.tell()
        settings = RoundSettings(
            rounds=rounds, capacity=1000, round_timeout_s=1.0, prefill_chunk=2, max_waiting=MAX_WAITING
        )
        self.loop.adopt(self.whim, settings, self._announce)

    def _announce(self) -> None:
        for wire in self.wires:
            wire.post(Welcome(1, "s", "m", "f", "t", "w", "coupled", VOCAB, MAX_LENGTH, 64, [EOS], self.loop.waits))
