"""Texts between agents and servers, any of which may fail, under a virtual clock and without sockets or threads.

The server's side is the server's own `RoundLoop`, whose passes are taken apart so that anything may happen while one
runs; the agents' side is `Generation` and `Lookahead`, driven as `driver.tokens_of` and `Drafting` drive them. The
target is a function of every token that stands in a stream's row of the slab, so that a slot too many or too few,
or a row of somebody else's, shows in the text as surely as a wrong token does.

Within a connection messages keep their order, but for those that name the length they build on: a draft, or a verdict
that ends nothing, may be lost, come again, or be overtaken by its like. A connection that is cut takes with it whatever
was under way, and the server may hear of it late.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goodspeed.engine import Segment
from goodspeed.errors import InvalidRequest, Overloaded, ProtocolError
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import (
    AgentMessage,
    Close,
    Draft,
    DraftEnd,
    Failure,
    Open,
    Opened,
    Redraft,
    ServerMessage,
    Verdict,
    Welcome,
)
from goodspeed.scheduling import Demand, Plan
from goodspeed.stream import Finish
from goodspeed.timing import EngineMeter, PassCost, PassSample
from goodspeed.utility import AlphaFair
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation, Request
from goodspeed_agent.lookahead import Calibration, Lookahead, Wanted
from goodspeed_agent.steps import alone
from goodspeed_server.fitting import Settled
from goodspeed_server.live import AgentAccount, Session
from goodspeed_server.passes import PlannedPass, plan_pass
from goodspeed_server.planner import Planner
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.settings import RoundSettings, RoundsName
from goodspeed_server.telemetry import ServerFacts, Telemetry
from tests.planted import PlantedEngine

__all__ = ["EOS", "VOCAB", "StreamsMachine", "plain_text"]

VOCAB = 6
EOS = 5
ROWS = 2
MAX_LENGTH = 32
MAX_WAITING = 2
_EMPTY = 255
_SLOW_PASS = PassSample(1, 1, 60.0)
"""So that whatever an agent guesses is in time for the next pass but one."""
_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})

T = TypeVar("T")


def next_token(tokens: Sequence[int]) -> int:
    """What the target writes: a function of every token before it. One in 25 ends; half of the others are alike, so
    that a draft upon the wrong length has a good chance to be taken for right."""
    digest = hashlib.sha256(bytes(tokens)).digest()
    if digest[0] < 10:
        return EOS
    return 1 if digest[1] < 128 else digest[2] % EOS


@cache
def plain_text(prompt: tuple[int, ...], max_new_tokens: int) -> tuple[list[int], Finish]:
    """What plain decoding writes, prompt included, and why it ends."""
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS:
            return tokens, "stop"
        if len(tokens) == MAX_LENGTH or len(tokens) - len(prompt) == max_new_tokens:
            return tokens, "length"


class RememberingEngine(PlantedEngine):
    """Attends to what was written into a row's slots, leftovers and all."""

    def __init__(self) -> None:
        super().__init__(ROWS, MAX_LENGTH)
        self.vocab_size = VOCAB
        self._slots = [[_EMPTY] * MAX_LENGTH for _ in range(ROWS)]

    def _run(self, segments: Sequence[Segment]) -> torch.Tensor:
        drawn = []
        for segment in segments:
            slots = self._slots[segment.row]
            slots[segment.start : segment.end] = segment.tokens
            drawn += [next_token(slots[: end + 1]) for end in range(segment.end - segment.logits, segment.end)]
        return torch.nn.functional.one_hot(torch.tensor(drawn, dtype=torch.long), VOCAB).float()


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
    """A server, whose passes begin, compute and end when the machine says so."""

    def __init__(self, now: Callable[[], float], rounds: RoundsName, whim: Whim) -> None:
        settings = RoundSettings(
            rounds=rounds, capacity=1000, round_timeout_s=1.0, prefill_chunk=2, max_waiting=MAX_WAITING
        )
        self.engine = RememberingEngine()
        self.telemetry = Telemetry(
            ServerFacts("m", "s", "coupled", "packed", ROWS, MAX_LENGTH, AlphaFair(), [_SLOW_PASS]), now=now()
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
        # There is no event loop here to be woken by: `give_up_parked` is what it would do.
        self.loop._streams._wait_for_expiry = lambda: None  # type: ignore[method-assign]
        self.wires: list[Wire] = []
        """Whose end is not known here; an agent may have left some of them."""
        self.planned: PlannedPass | None = None
        self.outcome: Settled | None = None

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
                    self.loop.close(wire, message.stream)
                case Redraft():
                    self.loop.redraft(wire, wire.account, message.drafter)
        except (Overloaded, InvalidRequest) as error:
            stream = message.stream if isinstance(message, Open | Draft | Close) else None
            wire.post(Failure(error.code, str(error), stream, getattr(error, "retry_after_s", None)))

    def begin_pass(self) -> None:
        loop = self.loop
        batch = loop._rounds.close(loop.now(), prompts=bool(loop._streams.prefilling))
        planned = plan_pass(batch, loop._streams.prefilling, loop.settings.prefill_chunk)
        if planned.work.turns or planned.work.chunks:
            self.planned = planned

    def compute(self) -> None:
        assert self.planned is not None
        self.outcome = self.loop._fitting.run(self.planned.work)

    def end_pass(self) -> None:
        assert self.planned is not None
        if self.outcome is None:
            self.compute()
        assert self.outcome is not None
        planned, unfit = self.planned.as_run(self.outcome)
        assert not unfit
        self.loop._commit(planned, self.outcome)
        self.planned = self.outcome = None

    def give_up_parked(self) -> None:
        """As the alarm does: what nobody came back for in time is forgotten."""
        self.loop._streams.give_up_parked(self.loop.now())

    def change_rounds(self, rounds: RoundsName) -> None:
        """As an operator does; only between passes."""
        settings = RoundSettings(
            rounds=rounds, capacity=1000, round_timeout_s=1.0, prefill_chunk=2, max_waiting=MAX_WAITING
        )
        self.loop.adopt(self.whim, settings, self._announce)

    def _announce(self) -> None:
        for wire in self.wires:
            wire.post(Welcome(1, "s", "m", "f", "t", "w", "coupled", VOCAB, MAX_LENGTH, 64, [EOS], self.loop.waits))


class Guesser:
    """Is right as often as its skill says, in hundredths, and sometimes has nothing to say."""

    def __init__(self, skill: int) -> None:
        self._skill = skill

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        ahead = list(tokens)
        while True:
            mood = hashlib.sha256(bytes([len(ahead), *ahead])).digest()
            if mood[0] < 8:
                return
            right = next_token(ahead)
            ahead.append(right if mood[1] % 100 < self._skill else (right + 1) % VOCAB)
            yield Guess(ahead[-1], 0.9)


class Text:
    """An agent's side of one text, one event at a time."""

    def __init__(self, number: int, request: Request, skill: int) -> None:
        self.generation = Generation(number, request)
        self._ahead = Ahead("on")
        self.lookahead = Lookahead(Guesser(skill), "coupled", Calibration(), self._ahead)
        self.refused = False
        """Whether the server has no room, and is to be asked again."""
        self._guessing = False
        self._news: tuple[list[int], int, Wanted] | None = None
        self._wanted, self._followed = Wanted(0), (0, 0)
        self._chain: int | None = None
        self._step: tuple[Guess | DraftEnd, int, int] | None = None

    @property
    def finish(self) -> Finish | None:
        return self.generation.transcript.finish

    @property
    def tokens(self) -> list[int]:
        return self.generation.transcript.tokens

    def lost(self) -> None:
        """As `Drafting.lost`: nothing is on its way any more."""
        self._news = self._chain = self._step = None
        self._guessing = False

    def opening(self) -> Open:
        self.lost()
        self.refused = False
        return self.generation.opening()

    def hear(self, message: ServerMessage, *, waits: bool, too_many: int, gaps: bool) -> list[AgentMessage]:
        """What is said to the stream, and what the agent answers.

        Args:
            message: what is said.
            waits: whether the server waits for drafts.
            too_many: drafts are so much longer than asked for.
            gaps: whether a verdict may be missing; then what comes behind it is refused, and changes nothing.
        """
        match message:
            case Welcome():
                self.lost()
                self.generation.begin_guessing(-1)
                return []
            case Failure(code=code):
                self.lost()
                if code in _BAD_DRAFT:
                    self.generation.draft_refused()
                self.refused = code == "overloaded"
                return []
            case Verdict(base=base) if gaps and base > len(self.tokens):
                before = list(self.tokens)
                with pytest.raises(ProtocolError):
                    self.generation.commit(message)
                assert self.tokens == before
                return []
            case Verdict():
                if waits:
                    self.lost()
                self.generation.commit(message)
                asking: Opened | Verdict = message
            case Opened():
                asking = message
            case _:
                return []
        if self.finish is not None:
            self.lost()
            return []
        if not waits:
            self._go_along(asking)
            return []
        if not self.generation.draft_due(asking.budget):
            return []
        guesses, end = alone(self.lookahead.draft(list(self.tokens), asking.budget + too_many))
        return [self.generation.draft(guesses, end=end)]

    def _go_along(self, asking: Opened | Verdict) -> None:
        """As `Drafting.along`."""
        useful = self.generation.room - 1
        ahead = self._ahead.tokens(asking.budget, useful - asking.budget) if asking.budget else 0
        lead = min(asking.budget + ahead, useful, self.generation.request.max_draft)
        self._news = list(self.tokens), asking.budget, Wanted(lead, 0.0, asking.overtaken)
        self._guessing = self._guessing or asking.budget > 0

    def guess_on(self) -> list[AgentMessage]:
        """Half a step of `Drafting._send_along`: compute a guess, or send it; verdicts may come between the two."""
        if not self._guessing:
            return []
        if self._step is None:
            news, self._news, anew = self._news, None, self._chain is None
            if news is not None:
                tokens, asked, self._wanted = news
                self._followed = self.lookahead.follow(tokens, asked, anew=anew), len(tokens)
            self._step = alone(self.lookahead.further(self._wanted)), *self._followed
            return []
        (guess, chain, upon), self._step = self._step, None
        if chain != self._chain:
            self.generation.begin_guessing(upon)
            self._chain = chain
        if isinstance(guess, Guess):
            return [self.generation.piece([guess], 0.0)]
        self._guessing = self._news is not None
        nothing_there = guess is DraftEnd.PRICED_OUT and not self.lookahead.handed
        return [self.generation.piece([], 0.0, guess)] if nothing_there or guess is DraftEnd.NOTHING_TO_SAY else []


class EdgeAgent:
    """One agent, and the texts that it still has to finish."""

    def __init__(self, name: str, *, known: bool) -> None:
        self.name = name
        self.session: Session | None = ("", name.encode()) if known else None
        """By which servers know it again."""
        self.wire: Wire | None = None
        self.waits = True
        self.texts: dict[int, Text] = {}

    def relink(self, served: Served) -> None:
        """A new connection: every text opens itself again from its transcript."""
        self.wire = served.accept(self.name, self.session)
        self.waits = served.loop.waits
        self.wire.up += [text.opening() for text in self.texts.values() if text.finish is None]

    def hear(self, message: ServerMessage, too_many: int = 0) -> None:
        assert self.wire is not None
        if isinstance(message, Welcome):
            self.waits = message.waits
            for text in self.texts.values():
                text.hear(message, waits=self.waits, too_many=0, gaps=False)
            return
        addressed = self.texts.get(getattr(message, "stream", -1))
        if addressed is not None and addressed.finish is None:
            self.wire.up += addressed.hear(message, waits=self.waits, too_many=too_many, gaps=self.wire.disturbed)


def _movable(queue: Sequence[AgentMessage | ServerMessage]) -> int:
    """How many messages at the head of a queue may be lost, or change places; 0 if the first keeps its own."""
    for number, message in enumerate(queue):
        if not (isinstance(message, Draft) or (isinstance(message, Verdict) and message.finish is None)):
            return number
    return len(queue)


class StreamsMachine(RuleBasedStateMachine):
    """Two agents and the server of the moment."""

    served: Served

    @initialize(
        rounds=st.sampled_from(["barrier", "rolling"]),
        budgets=st.lists(st.integers(0, 6), min_size=1, max_size=3),
        known=st.booleans(),
    )
    def start(self, rounds: RoundsName, budgets: list[int], known: bool) -> None:
        self.begin(rounds, budgets, known=known)

    def begin(self, rounds: RoundsName, budgets: list[int], *, known: bool) -> None:
        self.now = 0.0
        self.served = Served(self._clock, rounds, Whim(budgets))
        self.agents = [EdgeAgent("one", known=True), EdgeAgent("two", known=known)]
        self.names = 0
        for agent in self.agents:
            agent.relink(self.served)
            self._ask(agent, [1, 2], 12, 8, 50)

    def _ask(self, agent: EdgeAgent, prompt: list[int], max_new_tokens: int, max_draft: int, skill: int) -> None:
        self.names += 1
        request = Request(tuple(prompt), max_new_tokens=max_new_tokens, max_draft=max_draft)
        text = agent.texts[self.names] = Text(self.names, request, skill)
        if agent.wire is not None:
            agent.wire.up.append(text.opening())

    def _clock(self) -> float:
        return self.now

    @property
    def _linked(self) -> list[EdgeAgent]:
        return [agent for agent in self.agents if agent.wire is not None]

    @property
    def _texts(self) -> list[Text]:
        return [text for agent in self.agents for text in agent.texts.values()]

    @rule(
        data=st.data(),
        prompt=st.lists(st.integers(0, EOS - 1), min_size=1, max_size=5),
        max_new_tokens=st.integers(1, 20),
        max_draft=st.sampled_from([0, 2, 8]),
        skill=st.sampled_from([0, 50, 90, 100]),
    )
    def ask_for_a_text(
        self, data: st.DataObject, prompt: list[int], max_new_tokens: int, max_draft: int, skill: int
    ) -> None:
        agent = data.draw(st.sampled_from(self.agents))
        if sum(text.finish is None for text in agent.texts.values()) < 3:
            self._ask(agent, prompt, max_new_tokens, max_draft, skill)

    @precondition(lambda self: any(wire.up for wire in self.served.wires))
    @rule(data=st.data(), count=st.integers(1, 3), again=st.booleans())
    def the_server_hears(self, data: st.DataObject, count: int, again: bool) -> None:
        wire = data.draw(st.sampled_from([wire for wire in self.served.wires if wire.up]))
        for _ in range(min(count, len(wire.up))):
            self.served.take(wire, self._pick(data, wire, wire.up, again=again))

    @precondition(lambda self: any(agent.wire.down for agent in self._linked))
    @rule(data=st.data(), count=st.integers(1, 3), again=st.booleans(), too_many=st.sampled_from([0, 0, 0, 1]))
    def an_agent_hears(self, data: st.DataObject, count: int, again: bool, too_many: int) -> None:
        agent = data.draw(st.sampled_from([agent for agent in self._linked if agent.wire and agent.wire.down]))
        wire = agent.wire
        assert wire is not None
        for _ in range(min(count, len(wire.down))):
            agent.hear(self._pick(data, wire, wire.down, again=again), too_many)

    def _pick(self, data: st.DataObject, wire: Wire, queue: list[T], *, again: bool) -> T:
        movable = _movable(queue)  # type: ignore[arg-type]
        index = data.draw(st.integers(0, max(0, movable - 1)))
        again = again and movable > 0
        wire.disturbed |= again or index > 0
        return queue[index] if again else queue.pop(index)

    @precondition(lambda self: self._linked)
    @rule(data=st.data(), upwards=st.booleans())
    def a_message_is_lost(self, data: st.DataObject, upwards: bool) -> None:
        wires = [agent.wire for agent in self._linked if agent.wire]
        movable = [wire for wire in wires if _movable(wire.up if upwards else wire.down)]
        if movable:
            wire = data.draw(st.sampled_from(movable))
            queue: list[AgentMessage] | list[ServerMessage] = wire.up if upwards else wire.down
            queue.pop(data.draw(st.integers(0, _movable(queue) - 1)))
            wire.disturbed = True

    @rule(data=st.data())
    def guess_on(self, data: st.DataObject) -> None:
        agent = data.draw(st.sampled_from(self.agents))
        if agent.wire is not None:
            for text in agent.texts.values():
                agent.wire.up += text.guess_on()

    @rule(to=st.sampled_from(["begin", "compute", "end", "end"]))
    def a_pass_goes_on(self, to: str) -> None:
        if self.served.planned is None:
            self.served.begin_pass()
        if self.served.planned is not None and to != "begin":
            if self.served.outcome is None:
                self.served.compute()
            if to == "end":
                self.served.end_pass()

    @rule(count=st.integers(1, 3))
    def all_takes_its_course(self, count: int) -> None:
        """For a while, but for what is broken."""
        if self.served.planned is not None:
            self.served.end_pass()
        for _ in range(count):
            self._carry_on()

    @rule()
    def drafts_are_overdue(self) -> None:
        """Who owes one is decoded without it."""
        self.now += 60.0
        self.served.give_up_parked()
        if self.served.planned is None:
            self.served.begin_pass()

    @rule(
        data=st.data(),
        what=st.sampled_from(["budgets", "budgets", "rounds", "drafter", "time"]),
        budgets=st.lists(st.integers(0, 6), min_size=1, max_size=3),
        rounds=st.sampled_from(["barrier", "rolling"]),
    )
    def something_changes(self, data: st.DataObject, what: str, budgets: list[int], rounds: RoundsName) -> None:
        if what == "budgets":
            self.served.whim.budgets = budgets
        elif what == "rounds" and self.served.planned is None:
            self.served.change_rounds(rounds)
        elif what == "drafter" and self._linked:
            wire = data.draw(st.sampled_from(self._linked)).wire
            assert wire is not None
            wire.up.append(Redraft("another"))
        else:
            self.now += 1.0
            self.served.give_up_parked()

    @precondition(lambda self: self._linked)
    @rule(data=st.data(), heard=st.booleans(), back=st.booleans())
    def a_connection_is_cut(self, data: st.DataObject, heard: bool, back: bool) -> None:
        agent = data.draw(st.sampled_from(self._linked))
        wire, agent.wire = agent.wire, None
        assert wire is not None
        if heard:
            self.served.lose(wire)
        if back:
            agent.relink(self.served)

    @rule(
        data=st.data(),
        what=st.sampled_from(["heard", "back", "back", "given up", "died"]),
        rounds=st.sampled_from(["barrier", "rolling"]),
    )
    def who_was_there_is_not(self, data: st.DataObject, what: str, rounds: RoundsName) -> None:
        """The server hears of a cut; whoever is cut off links up again; nobody wants a text any more; the server dies,
        and another takes its place that knows nothing."""
        if what == "heard":
            held = [agent.wire for agent in self._linked]
            if left := [wire for wire in self.served.wires if wire not in held]:
                self.served.lose(data.draw(st.sampled_from(left)))
        elif what == "back":
            for agent in self.agents:
                if agent.wire is None:
                    agent.relink(self.served)
        elif what == "given up" and self._texts:
            self._give_up(data.draw(st.sampled_from(self._texts)))
        elif what == "died":
            self.served = Served(self._clock, rounds, self.served.whim)
            for agent in self.agents:
                agent.wire = None

    def _give_up(self, text: Text) -> None:
        number = text.generation.stream
        agent = next(agent for agent in self.agents if number in agent.texts)
        del agent.texts[number]
        if text.finish is None and agent.wire is not None:
            agent.wire.up.append(Close(number))

    @rule()
    def everything_comes_to_its_end(self) -> None:
        """From here on nothing fails: then every text is complete after a while, and every row free again."""
        self._cut_all()
        for agent in self.agents:
            agent.relink(self.served)
        for _ in range(4 * MAX_LENGTH * len(self._texts)):
            if all(text.finish for text in self._texts):
                break
            self._carry_on()
        for text in self._texts:
            prompt = text.generation.request.prompt
            plain = plain_text(prompt, text.generation.request.max_new_tokens)
            assert (text.tokens, text.finish) == plain, "a text is not complete"
        for agent in self.agents:
            agent.texts.clear()
        assert not self.served.loop.live
        assert not self.served.loop.waiting
        self._take_every_row()

    def _cut_all(self) -> None:
        if self.served.planned is not None:
            self.served.end_pass()
        for agent in self.agents:
            agent.wire = None
        for wire in list(self.served.wires):
            self.served.lose(wire)

    def _carry_on(self) -> None:
        """Whatever is under way arrives, whoever may guess guesses, and a pass is made of it."""
        self.now += 0.1
        for agent in self._linked:
            assert agent.wire is not None
            agent.wire.up += [text.opening() for text in agent.texts.values() if text.refused]
            for _ in range(4):
                for text in agent.texts.values():
                    agent.wire.up += text.guess_on()
            while agent.wire.up:
                self.served.take(agent.wire, agent.wire.up.pop(0))
        self.served.begin_pass()
        if self.served.planned is not None:
            self.served.end_pass()
        for agent in self._linked:
            assert agent.wire is not None
            while agent.wire.down:
                agent.hear(agent.wire.down.pop(0))

    def _take_every_row(self) -> None:
        """Nobody who has gone holds a row that a newcomer could have."""
        wire = self.served.accept("newcomer")
        for number in range(ROWS):
            self.served.take(wire, Text(number, Request((1,)), 0).opening())
        assert [type(message) for message in wire.down] == [Opened] * ROWS
        self.served.lose(wire)

    @invariant()
    def whoever_holds_a_text_holds_a_beginning_of_the_targets(self) -> None:
        if not hasattr(self, "served"):
            return
        for text in self._texts:
            request = text.generation.request
            plain, finish = plain_text(request.prompt, request.max_new_tokens)
            assert text.tokens == plain[: len(text.tokens)]
            if text.finish is not None:
                assert (text.tokens, text.finish) == (plain, finish)
            assert len(text.generation.origins) == len(text.generation.transcript.generated)
        for live in self.served.loop.live:
            stream = live.stream
            plain, _ = plain_text(tuple(stream.tokens[: stream.prompt_tokens]), stream.max_new_tokens)
            assert stream.tokens == plain[: stream.length]

    @invariant()
    def rows_are_nobodys_or_somebodys(self) -> None:
        if hasattr(self, "served"):
            streams = self.served.loop._streams
            rows = [live.row for live in streams] + [parked.row for parked in streams._parking._parked.values()]
            assert len(set(rows)) == len(rows)

    def teardown(self) -> None:
        if hasattr(self, "served"):
            self.everything_comes_to_its_end()
