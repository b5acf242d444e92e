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
        self._links: dict[Session, Supersedable] = {}

    def __len__(self) -> int:
        return len(self._links)

    def begin(self, session: Session, link: Supersedable) -> bool:
        """The session is on this link from now on; whether another was superseded.

        A network that drops what it carries, as a NAT does that forgets a connection, leaves the server with a link on
        which nothing will ever come: the agent knows better.
        """
        before = self._links.get(session)
        self._links[session] = link
        if before is not None:
            before.supersede()
        return before is not None

    def end(self, session: Session, link: Supersedable) -> None:
        """The link has gone; one that took its place stays."""
        if self._links.get(session) is link:
            del self._links[session]
