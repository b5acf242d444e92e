"""What the server, and the simulation, ask of rounds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol, TypeVar

__all__ = ["Prospect", "Rounds"]

StreamT = TypeVar("StreamT", bound=Hashable)


class Prospect(NamedTuple):
    """What may be expected of an agent that was told to draft, and has sent nothing yet."""

    due_s: float
    """In how many seconds its first token is likely to be here."""
    every_s: float
    """And then each further one."""
    chance: float
    """That one is accepted, if all before it are."""
    worth_s: float
    """For how many seconds it would pay to hold up a pass for one more token of the stream."""


class Rounds(Protocol[StreamT]):
    """Who is verified when."""

    def __len__(self) -> int: ...

    def __contains__(self, stream: StreamT) -> bool: ...

    @property
    def outstanding(self) -> int:
        """The draft tokens that are still to be verified: what is here, and what has been granted and may yet come."""

    @property
    def drafting(self) -> tuple[StreamT, ...]:
        """Who owes a draft, and is not verified without it."""

    @property
    def ready(self) -> tuple[StreamT, ...]:
        """Who can be verified, the longest ready first."""

    def expect(self, stream: StreamT, budget: int, now: float, prospect: Prospect | None = None) -> None:
        """The agent of `stream` has been told to draft; with a budget of 0 there is nothing to wait for.

        Args:
            stream: whose draft it will be; nothing else of it is expected any more.
            budget: how many tokens it may have.
            now: seconds.
            prospect: when what is likely to be here; None if that is not known, or something is here already.
        """

    def arrive(self, stream: StreamT, now: float, drafted: int, *, more: bool = False) -> bool:
        """A draft of the stream is here, or the beginning of one.

        Args:
            stream: whose.
            now: seconds.
            drafted: how many tokens of it are here, those that came before included.
            more: whether more of it may come.

        Returns:
            Whether it was waited for.
        """

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""

    def closes_at(self) -> float | None:
        """When the open round closes at the latest; None while that is nobody's to say, or no round is open."""

    def close(self, now: float, *, prompts: bool = False) -> list[StreamT]:
        """Close the round if it is time; the owner calls this as soon as it could verify, and again at every event.

        Args:
            now: seconds.
            prompts: whether the engine has prompts to work on, so that it does not wait whatever is decided.

        Returns:
            The streams to verify, the longest ready first; empty when the round stays open. They are out of the
            rounds until `expect` is called for them again.
        """
