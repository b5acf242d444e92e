"""The agents' side: `Generation` and `Lookahead`, driven as `driver.tokens_of` and `Drafting` drive them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pytest

from goodspeed.errors import ProtocolError
from goodspeed.messages import AgentMessage, DraftEnd, Failure, Open, Opened, ServerMessage, Verdict, Welcome
from goodspeed.stream import Finish
from goodspeed_agent.ahead import Ahead
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.generation import Generation, Request
from goodspeed_agent.lookahead import Calibration, Lookahead, Wanted
from goodspeed_agent.steps import alone
from goodspeed_server.live import Session
from tests.streams.server import Served, Wire
from tests.streams.target import VOCAB, next_token

__all__ = ["EdgeAgent", "Text"]

_BAD_DRAFT = frozenset({"draft_out_of_range", "draft_too_long", "invalid_q"})


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
