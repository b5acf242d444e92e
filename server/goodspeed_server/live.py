"""A stream that has a row in the engine, and everything the server knows of it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from goodspeed.control import Service
from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.estimation import AcceptanceEstimator, Goodput, HitOrMiss
from goodspeed.guesses import Guesses
from goodspeed.leads import Probing
from goodspeed.logs import about
from goodspeed.messages import Draft, DraftEnd, Failure, ServerMessage, Verdict
from goodspeed.stream import Commit, ServedStream, check_draft
from goodspeed.timing import Pace
from goodspeed.verification import Rule
from goodspeed_server.allowance import Allowance, Back
from goodspeed_server.audits import Standing
from goodspeed_server.pacing import LinkPace

__all__ = ["AgentAccount", "DraftWay", "LiveStream", "Outbox", "RowUse", "Session"]

logger = logging.getLogger(__name__)


_REMEMBERED = 32
"""How many of the last lengths: an agent's answer is not so many passes late."""
_DRAINED_RETRY_S = 10.0
"""An agent that keeps to it asks again while its user waits, and says so to the user if the drain lasts."""


Session: TypeAlias = tuple[str, bytes]
"""The name of the token that was shown, and `messages.Hello.session`: nobody comes back under another's token."""


class Outbox(Protocol):
    """Where messages for an agent go; never blocks."""

    def post(self, message: ServerMessage) -> None:
        """Queue one message."""


class DraftWay(NamedTuple):
    """How a draft came here, seconds."""

    draft_s: float = 0.0
    """As long as its agent says that it computed, and no longer than the server saw pass."""
    network_s: float = 0.0
    """The rest, from the verdict to the arrival."""
    arrived_at: float = -math.inf

    @classmethod
    def of(cls, elapsed_s: float, computed_s: float, now: float) -> DraftWay:
        """Of a draft that arrives now, so long after its agent could begin it."""
        draft_s = min(max(0.0, computed_s), elapsed_s)
        return cls(draft_s, elapsed_s - draft_s, now)


@dataclass(slots=True, eq=False)
class AgentAccount:
    """What is counted for one link, over all its streams."""

    name: str
    drafter: str
    prior_alpha: float
    """Where the estimate of a new stream starts: what the streams before it have shown."""
    pace: Pace = field(default_factory=Pace)
    """The same, of its speed."""
    committed: int = 0
    drafted: int = 0
    accepted: int = 0
    bad_drafts: int = 0
    weight: float = 1.0
    """`omega` of its streams in the utility."""
    allowance: Allowance | None = None
    """Of the token it showed."""
    streams: int = 0
    """How many it has: those that wait for a row, too."""
    hearing: LinkPace | None = None
    """How much it is listened to; None for as much as it sends."""
    service: Service = "served"
    """What the operator has said of it."""
    session: Session | None = None
    """By which its streams are known when it comes back on another link; None if they are not."""
    holder: str = ""
    """Whose it is, where that is known better than by name; see `Audits`."""
    standing: Standing = field(default_factory=Standing)
    """What the audit of its drafts has made of it."""
    redrafted_at: float = -math.inf
    """When its estimates were last started anew."""
    draft_s: float = 0.0
    """Of its last drafts, smoothed, as the two that follow: how long they were computed,"""
    network_s: float = 0.0
    """were on their way besides,"""
    wait_s: float = 0.0
    """and waited here for a pass."""

    @property
    def queues_as(self) -> Hashable:
        """Whose turn it is in the queue: all links of a token wait as one, and where none is shown each for itself."""
        return self if self.allowance is None else self.allowance

    def admit(self, now: float, *, begun: bool = False, back: Back | None = None) -> None:
        """One more stream.

        Args:
            now: seconds.
            begun: whether some of its text is written, which an agent that is drained may finish.
            back: what it goes on with that was on an earlier link, which is no beginning.

        Raises:
            Overloaded: the token allows no more, or the agent is drained.
        """
        if self.service != "served" and not (begun or back):
            raise Overloaded(
                f"the server's operator drains the agent {self.name!r}, and it begins no new text here: "
                f"try again in {_DRAINED_RETRY_S:g} s, or on another server",
                retry_after_s=_DRAINED_RETRY_S,
            )
        if self.allowance is not None:
            self.allowance.admit(now, back)
        self.streams += 1

    def spend(self, tokens: int, now: float) -> None:
        """Tokens were committed to it."""
        if self.allowance is not None:
            self.allowance.spend(tokens, now)

    def asked(self, tokens: int) -> None:
        """One of its streams is asked to draft so many, which it may send."""
        if self.hearing is not None:
            self.hearing.asked(tokens)

    def draft_came(self, tokens: int) -> None:
        """One of so many tokens, whatever becomes of it: those that cross the end of a text were asked for, too."""
        if self.hearing is not None:
            self.hearing.draft_came(tokens)

    def answered(self, now: float) -> None:
        """It was told again what it had been told."""
        if self.hearing is not None:
            self.hearing.answered(now)

    def give_back(self) -> None:
        """A stream less."""
        self.streams -= 1
        if self.allowance is not None:
            self.allowance.ended()


@dataclass(slots=True, eq=False)
class RowUse:
    """What a row is in use for: shared by its stream, by what is parked of it, and by the stream that takes it over."""

    in_pass: bool = False
    """Whether the pass that runs now reads or writes it."""
    given_up: bool = False
    """Whether nobody holds it any more, so that it is free when the pass is over."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class LiveStream:
    """One stream, identified by its link and its number there."""

    number: int
    outbox: Outbox
    account: AgentAccount
    stream: ServedStream
    row: int
    estimator: AcceptanceEstimator
    rate: Goodput
    """Tokens per second, smoothed in time."""
    pace: Pace
    """How fast its agent is."""
    budget: int = 0
    """How many drafted tokens a pass may verify."""
    lead: int = 0
    """How many its agent is told to draft: the budget, and where the server does not wait, what it overtakes."""
    overtaken: int = 0
    """How many of those the server will probably overtake."""
    worth_s: float = 0.0
    """`Plan.worth_s`."""
    price: float | None = None
    """From which chance on a drafted token is worth its price; None where the scheduler has no opinion."""
    price_percent: int = 0
    """The same in hundredths, as its agent is told; 0 where it is not told."""
    matching: HitOrMiss = field(default_factory=HitOrMiss)
    """Ratio rule only: how often its guesses are the tokens that are committed over them, which is less than its
    acceptance. Where both sides share the noise the two are the same."""
    in_time: HitOrMiss = field(default_factory=HitOrMiss)
    """Coupled rule only, where the server does not wait: what those guesses showed that were here before the tokens
    they stand for were committed. One that comes later may have been copied from the verdict."""
    guesses: Guesses = field(default_factory=Guesses)
    """Where the server does not wait."""
    probing: Probing = field(default_factory=Probing)
    began_at: float = 0.0
    """When the agent was told what its guesses begin upon, or are to begin upon."""
    told: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """When the agent was told of which lengths."""
    heard_at: float = 0.0
    """When its last guesses came."""
    way: DraftWay = field(default_factory=DraftWay)
    """How its last draft came."""
    asked_at: float = 0.0
    """When a draft was asked for, where the server waits for it."""
    draft: Draft | None = None
    q: list[Any] = field(default_factory=list)
    logprobs: bytes = b""
    """Of what was committed last, where they are asked for."""
    use: RowUse = field(default_factory=RowUse)
    """Of its row."""
    goodput: float = 1.0
    """Smoothed tokens per round, `X` of equation (4); every round commits at least one."""
    fresh: AcceptanceEstimator | None = None
    """The estimator from the next verdict on, where another drafter drafts by now: what is here was the old one's."""
    spelled_out: bool = False
    """Whether its verdicts say every token: the rounds changed under it, and what its agent drafts in answer to which
    word is not known."""
    admitted_at: float = 0.0
    """When it was given its row, seconds."""
    closed: bool = False
    """Whether it takes part in nothing any more: it has ended, or is parked. What a pass brings for it is void."""

    def logged(self) -> AbstractContextManager[None]:
        """Within the block, log lines are about this stream."""
        return about(agent=self.account.name, stream=self.number)

    @property
    def told_to(self) -> int:
        """The length that its agent was told of last: what is committed beyond is on its way."""
        return self.told[-1][0] if self.told else self.stream.length

    @property
    def draft_limit(self) -> int:
        """The longest draft that is of use, and wanted."""
        account = self.account
        wanted = account.service != "drained undrafted" and not account.standing.distrusted
        return self.stream.draft_limit if wanted else 0

    def start_afresh(self) -> None:
        """Forget what was learned of the drafter before."""
        assert self.fresh is not None
        self.estimator, self.fresh = self.fresh, None
        self.matching, self.in_time, self.pace, self.probing = HitOrMiss(), HitOrMiss(), Pace(), Probing()

    def usable(self, message: Draft, most: int, vocab_size: int, rule: Rule) -> tuple[Draft, list[Any]]:
        """A draft of at most so many tokens and what they were drawn from; of one that cannot be, an empty one.

        The agent is told what is wrong, and its stream goes on.
        """
        try:
            return message, check_draft(message, most, vocab_size, rule)
        except InvalidRequest as error:
            self.account.bad_drafts += 1
            with self.logged():
                logger.info("a draft cannot be used: %s", error)
            self.outbox.post(Failure(error.code, str(error), message.stream))
            return Draft(message.stream, message.base, [], offset=message.offset, end=DraftEnd.NOTHING_TO_SAY), []

    def tell(self, commit: Commit, now: float, *, spell_out: bool) -> None:
        """Post the verdict.

        Args:
            commit: what it committed.
            now: seconds.
            spell_out: whether to say every token: an agent that nobody waits for may have begun anew by now.
        """
        accepted = 0 if spell_out or self.spelled_out else commit.accepted
        appended = self.stream.tokens[commit.base + accepted :]
        self.told.append((self.stream.length, now))
        over = commit.finish is not None
        self.account.asked(0 if over else self.lead)
        self.outbox.post(
            Verdict(
                self.number,
                commit.base,
                accepted,
                appended,
                budget=0 if over else self.lead,
                verified=commit.verified,
                price_percent=0 if over else self.price_percent,
                overtaken=0 if over else self.overtaken,
                finish=commit.finish,
                logprobs=self.logprobs,
                ended_within=commit.ended_within,
            )
        )

    def ask(self, now: float) -> None:
        """Say what to draft where no verdict says so."""
        length = self.stream.length
        self.told.append((length, now))
        self.account.asked(self.lead)
        self.outbox.post(Verdict(self.number, length, 0, [], self.lead, 0, self.price_percent, self.overtaken))

    def change_rounds(self, now: float, *, waits: bool) -> None:
        """From here on its drafts are waited for, or no longer are: keep what is here as what it is then."""
        self.spelled_out = True
        self.began_at = now
        if waits:
            # Its agent drafts anew.
            self.guesses.drop()
        elif self.draft is not None:
            draft, ended = self.draft, self.draft.end is DraftEnd.NOTHING_TO_SAY
            self.guesses.take(draft.base, draft.offset, draft.tokens, self.q, ended=ended)
            self.heard_at = now
            self.draft, self.q = None, []

    def to_verify(self) -> tuple[Sequence[int], Sequence[Any]]:
        """What the next pass verifies, and what it was drawn from."""
        if self.draft is not None:
            # It may have been granted more.
            return self.draft.tokens[: self.budget], self.q[: self.budget]
        return self.guesses.beyond(self.stream.length, self.budget)

    def told_at(self, length: int) -> float | None:
        """When the agent was told of a length; None if that is too long ago."""
        return next((at for known, at in self.told if known == length), None)
