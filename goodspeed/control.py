"""What an operator changes of a server that runs, and what is in force: the words of `messages.Control` and its answer.

A change is made between two rounds, and for as long as the server runs: it starts again with what it was started with.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from goodspeed.errors import InvalidRequest, MalformedMessage

__all__ = [
    "MAX_CAPACITY",
    "MAX_WEIGHT",
    "Change",
    "Changed",
    "ControlState",
    "Policy",
    "Service",
    "SetCapacity",
    "SetRoundTimeout",
    "SetScheduler",
    "SetService",
    "SetWeight",
    "SteeredAgent",
    "Trust",
]

MAX_CAPACITY = 2**31 - 1
MAX_WEIGHT = 1e6
_LONGEST_SCHEDULER = 200

Service: TypeAlias = Literal["served", "drained", "drained undrafted"]
"""How an agent is served. *drained*: its texts are finished, and it begins no new ones; *undrafted*: the server decodes
them alone, and asks for no more drafts."""
Name = Annotated[str, Meta(max_length=4096)]


class _Change(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One change; the tag of the subclass is the first element of the array."""

    def validate(self) -> None:
        """Check every value that can be checked without the server.

        Raises:
            InvalidRequest: naming the value, and the range it has to be in.
        """


class SetScheduler(_Change, tag="scheduler", frozen=True):
    """Plan with another scheduler."""

    name: Name
    """`auto` and a server's names."""
    fairness: float | None = None
    """Of the utility; None for the one that is in force."""

    def validate(self) -> None:
        """As `_Change.validate`."""
        _check_unicode(self.name)
        if len(self.name) > _LONGEST_SCHEDULER:
            raise InvalidRequest(f"a scheduler's name has {_LONGEST_SCHEDULER} characters at most")


class SetCapacity(_Change, tag="capacity", frozen=True):
    """Verify no more than so many draft tokens a pass."""

    tokens: int | None
    """None for what the server chooses by itself."""

    def validate(self) -> None:
        """As `_Change.validate`."""
        if self.tokens is not None and not 0 <= self.tokens <= MAX_CAPACITY:
            raise InvalidRequest(f"capacity is {self.tokens}: it must be 0 to {MAX_CAPACITY:,}, or auto")


class SetWeight(_Change, tag="weight", frozen=True):
    """Count the utility of an agent's streams so many times."""

    agent: Name
    weight: float | None
    """None for its token's own."""

    def validate(self) -> None:
        """As `_Change.validate`."""
        _check_unicode(self.agent)
        if self.weight is not None and not 0 < self.weight <= MAX_WEIGHT:
            raise InvalidRequest(f"weight is {self.weight:g}: it must be above 0 and at most {MAX_WEIGHT:,.0f}")


class SetService(_Change, tag="service", frozen=True):
    """Drain an agent, or serve it again."""

    agent: Name
    service: Service

    def validate(self) -> None:
        """As `_Change.validate`."""
        _check_unicode(self.agent)


class SetRoundTimeout(_Change, tag="round-timeout", frozen=True):
    """Have the barrier wait for so long."""

    timeout_ms: float

    def validate(self) -> None:
        """As `_Change.validate`."""
        if not (math.isfinite(self.timeout_ms) and self.timeout_ms >= 0):
            raise InvalidRequest(f"round-timeout is {self.timeout_ms:g} ms: it must be 0 or above, and finite")


class Trust(_Change, tag="trust", frozen=True):
    """Believe again what a distrusted agent claims of its drafts."""

    agent: Name

    def validate(self) -> None:
        """As `_Change.validate`."""
        _check_unicode(self.agent)


def _check_unicode(name: str) -> None:
    """A command line may hold bytes that are none, and no message can say them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name!r} is no name: it is not Unicode, as all names are") from None


Change: TypeAlias = SetScheduler | SetCapacity | SetWeight | SetService | SetRoundTimeout | Trust


class Policy(Struct, frozen=True, kw_only=True):
    """What rounds are planned by."""

    scheduler: str
    rounds: str
    """How they close, which goes with the scheduler unless the server was started with one kind of them."""
    fairness: float
    capacity: int | None
    """None where the server chooses by itself."""
    round_timeout_ms: float


class SteeredAgent(Struct, frozen=True, kw_only=True):
    """An agent that is linked up, or of which something was changed."""

    name: str
    links: int
    streams: int
    """That have a row, or wait for one."""
    weight: float | None
    """In force now; None if it is not linked up and nothing was changed."""
    own_weight: float | None
    """Its token's; None if it is not linked up."""
    reweighted: bool
    service: Service
    distrusted: bool = False
    """Whether its drafts were found not to come of what it claims."""


class Changed(Struct, frozen=True):
    """One thing that a change made another."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        if self.before == self.after:
            return f"{self.what} is {self.after} already"
        return f"{self.what}: {self.before} -> {self.after}"


class ControlState(Struct, frozen=True, kw_only=True):
    """What is in force."""

    now: Policy
    at_start: Policy
    capacity_now: int | None
    """Draft tokens that the next pass may verify; None where the price of the engine's time alone holds drafts back."""
    agents: tuple[SteeredAgent, ...]
    changed: tuple[Changed, ...] = ()
    """By the change that this answers."""
    draining_s: float | None = None
    """For how much longer the server goes on with what was begun; None while it does not go away."""

    def agent(self, name: str) -> SteeredAgent | None:
        """What is known of an agent."""
        return next((agent for agent in self.agents if agent.name == name), None)

    def to_json(self) -> bytes:
        """Encode for the wire, or for a script."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> ControlState:
        """Read it back.

        Raises:
            MalformedMessage: the peer sent something else.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessage(f"not what is in force: {error}") from None
