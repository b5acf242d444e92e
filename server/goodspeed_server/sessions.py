"""Which link is an agent's at present: one that comes back while its old link still seems to stand takes its place."""

from __future__ import annotations

from typing import Protocol

from goodspeed_server.live import Session

__all__ = ["Sessions", "Supersedable"]


class Supersedable(Protocol):
    """A link of a session."""

    def supersede(self) -> None:
        """The agent is back on another link: end, and leave the streams to it."""


class Sessions:
    """The links that have a session; each session has one."""

    def __init__(self) -> None:
        self._links: dict[Session, tuple[int, Supersedable]] = {}

    def __len__(self) -> int:
        return len(self._links)

    def begin(self, session: Session, attempt: int, link: Supersedable) -> bool:
        """The session is on this link from now on, and one that it was on ends; unless that is newer.

        A network that drops what it carries, as a NAT does that forgets a connection, leaves the server with a link on
        which nothing will ever come: the agent knows better. What an agent has given up may arrive late all the same.

        Args:
            session: of both.
            attempt: `messages.Hello.attempt`.
            link: new to the server.

        Returns:
            Whether the session is on this link.
        """
        before = self._links.get(session)
        if before is not None and before[0] > attempt:
            return False
        self._links[session] = attempt, link
        if before is not None:
            before[1].supersede()
        return True

    def end(self, session: Session, link: Supersedable) -> None:
        """The link has gone; one that took its place stays."""
        before = self._links.get(session)
        if before is not None and before[1] is link:
            del self._links[session]
