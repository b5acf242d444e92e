"""Two agents and the server of the moment, and all that may happen to them and between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goodspeed.messages import AgentMessage, Close, Draft, Opened, Redraft, ServerMessage, Verdict
from goodspeed_agent.generation import Request
from goodspeed_server.settings import RoundsName
from tests.streams.agents import EdgeAgent, Text
from tests.streams.server import Served, Whim, Wire
from tests.streams.target import EOS, MAX_LENGTH, plain_text

__all__ = ["SlicesMachine", "StreamsMachine"]

T = TypeVar("T")


def _movable(queue: Sequence[object]) -> int:
    """How many messages at the head of a queue may be lost, or change places; 0 if the first keeps its own."""
    for number, message in enumerate(queue):
        if not (isinstance(message, Draft) or (isinstance(message, Verdict) and message.finish is None)):
            return number
    return len(queue)


class StreamsMachine(RuleBasedStateMachine):
    """Two agents and the server of the moment, which commits each pass as a whole."""

    rows: ClassVar[int] = 2
    at_once: ClassVar[int] = 2
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
        self._serve(rounds, Whim(budgets))
        self.agents = [EdgeAgent("one", known=True), EdgeAgent("two", known=known)]
        self.names = 0
        for agent in self.agents:
            agent.relink(self.served)
            self._ask(agent, [1, 2], 12, 8, 50)

    def _serve(self, rounds: RoundsName, whim: Whim) -> None:
        self.served = Served(self._clock, rounds, whim, rows=self.rows, at_once=self.at_once)

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
        movable = _movable(queue)
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
        if self.served.planned is not None:
            if to == "compute" and self.served.outcome is None:
                self.served.compute()
            elif to == "end":
                self.served.commit_on()

    @rule(count=st.integers(1, 3))
    def all_takes_its_course(self, count: int) -> None:
        """For a while, but for what is broken."""
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
            self._serve(rounds, self.served.whim)
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
        self._server_hears_all()
        self.served.begin_pass()
        while self.served.planned is not None:
            self.served.commit_on()
            self._agents_hear_all()
            if self.served.planned is not None:
                self._server_hears_all()
        self.served.tell()
        self._agents_hear_all()

    def _server_hears_all(self) -> None:
        for agent in self._linked:
            assert agent.wire is not None
            while agent.wire.up:
                self.served.take(agent.wire, agent.wire.up.pop(0))

    def _agents_hear_all(self) -> None:
        for agent in self._linked:
            assert agent.wire is not None
            while agent.wire.down:
                agent.hear(agent.wire.down.pop(0))

    def _take_every_row(self) -> None:
        """Nobody who has gone holds a row that a newcomer could have."""
        wire = self.served.accept("newcomer")
        for number in range(self.rows):
            self.served.take(wire, Text(number, Request((1,)), 0).opening())
        assert [type(message) for message in wire.down] == [Opened] * self.rows
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
            rows += self.served.engine.free
            assert len(set(rows)) == len(rows)

    def teardown(self) -> None:
        if hasattr(self, "served"):
            self.everything_comes_to_its_end()


class SlicesMachine(StreamsMachine):
    """Passes are committed stream by stream, and anything may happen between two of them."""

    rows = 3  # so that a pass with two streams to verify may carry a prompt as well
    at_once = 1

    def begin(self, rounds: RoundsName, budgets: list[int], *, known: bool) -> None:
        super().begin(rounds, budgets, known=known)
        self._ask(self.agents[0], [1, 2, 3], 12, 8, 50)
        self._carry_on()  # so that a pass has something to verify of each

    def everything_comes_to_its_end(self) -> None:
        """Once: else most of what is tried is tried on nobody."""
        super().everything_comes_to_its_end()

    @rule(overdue=st.booleans())
    def the_commit_goes_on(self, overdue: bool) -> None:
        """By a slice; of the next pass, where this one is over."""
        if self.served.planned is None:
            self.now += 60.0 * overdue
            self.served.begin_pass()
        if self.served.planned is not None:
            self.served.commit_on()

    @precondition(lambda self: self._texts)
    @rule(data=st.data())
    def a_text_is_given_up(self, data: st.DataObject) -> None:
        """And the server hears of that with all that is under way to it."""
        self._give_up(data.draw(st.sampled_from(self._texts)))
        self._server_hears_all()
