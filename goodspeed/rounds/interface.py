"""What the server, and the simulation, ask of rounds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, TypeVar

__all__ = ["Rounds"]

StreamT = TypeVar("StreamT", bound=Hashable)


class Rounds(Protocol[StreamT]):
    """Who is verified when."""

    def __len__(self) -> int: ...

    def __contains__(self, stream: StreamT) -> bool: ...

    @property
    def outstanding(self) -> int:
        """The draft tokens that are still to be verified: what is here, and what has been granted and may yet come."""

    @property
    def drafting(self) -> tuple[StreamT, ...]:
        """Who owes a draft."""

    @property
    def ready(self) -> tuple[StreamT, ...]:
        """Who can be verified, the longest ready first."""

    def expect(self, stream: StreamT, budget: int, now: float, due_s: float = 0.0) -> None:
        """The agent of `stream` has been told to draft; with a budget of 0 there is nothing to wait for.

        Args:
            stream: whose draft it will be; nothing else of it is expected any more.
            budget: how many tokens it may have.
            now: seconds.
            due_s: in how many seconds the draft is likely to be here.
        """

    def owes(self, stream: StreamT) -> bool:
        """Whether a draft of the stream is awaited."""

    def arrive(self, stream: StreamT, now: float, drafted: int | None = None) -> float:
        """The draft of `stream` is here.

        Args:
            stream: whose.
            now: seconds.
            drafted: how many tokens it holds; None: as many as were granted.

        Returns:
            How many seconds it took since it was asked for.

        Raises:
            KeyError: no draft of this stream is awaited.
        """

    def leave(self, stream: StreamT) -> None:
        """The stream has ended, or its agent has gone; nobody waits for it any more."""

    def closes_at(self) -> float | None:
        """When the open round closes at the latest; None while that is nobody's to say, or no round is open."""

    def close(self, now: float) -> list[StreamT]:
        """Close the round if it is time; the owner calls this as soon as it could verify, and again at every event.

        Returns:
            The streams to verify, the longest ready first; empty when the round stays open. They are out of the
            rounds until `expect` is called for them again.
        """
