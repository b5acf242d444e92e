"""Plain GETs on the WebSocket's own port: whether the server lives, whether it takes links, what it has measured."""

from __future__ import annotations

import http
from collections.abc import Awaitable, Collection
from typing import get_args

from websockets.http11 import Request, Response

from goodspeed.credentials import ROLE_HEADER
from goodspeed_server.doorkeeper import Doorkeeper
from goodspeed_server.draining import Drain
from goodspeed_server.listener import Connection, Door, later
from goodspeed_server.metrics import ServerMetrics
from goodspeed_server.showing import Showing
from goodspeed_server.tokens import Role

__all__ = ["Probes"]


class Probes:
    """Answers every HTTP request, or lets a link through.

    Args:
        door: turns away whoever comes too often.
        doorkeeper: knows who is let in.
        metrics: what `/metrics` shows, and where refusals are counted.
        showing: what it shows besides.
        drain: says whether the server takes no more links.
    """

    def __init__(
        self, door: Door, doorkeeper: Doorkeeper, metrics: ServerMetrics, showing: Showing, drain: Drain
    ) -> None:
        self._door = door
        self._doorkeeper = doorkeeper
        self._metrics = metrics
        self._showing = showing
        self._drain = drain

    def answer(self, connection: Connection, request: Request) -> Response | Awaitable[Response] | None:
        """The answer to a request; None to one that may become a link."""
        if connection.visitor.refusal is not None:
            return self._door.answered(connection, connection.visitor.refusal)
        path = request.path.partition("?")[0]
        if path == "/health":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if path == "/ready":
            if self._drain.begun:
                return later(connection, 503, "draining", self._drain.retry_after_s)
            return connection.respond(http.HTTPStatus.OK, "ready\n")
        if path == "/metrics":
            return self._turned_away(connection, request, ("monitor", "admin")) or self._measured(connection)
        if path != "/":
            return connection.respond(
                http.HTTPStatus.NOT_FOUND, "there is /health, /ready, /metrics, and a WebSocket at /\n"
            )
        # Whatever says two things says nothing.
        if self._drain.begun and request.headers.get_all(ROLE_HEADER) not in (["monitor"], ["control"]):
            self._metrics.refused("draining")
            return later(
                connection, 503, "the server is going away, and begins nothing any more", self._drain.retry_after_s
            )
        return self._turned_away(connection, request)

    def _turned_away(
        self, connection: Connection, request: Request, roles: Collection[Role] = get_args(Role)
    ) -> Response | None:
        """The doorkeeper's answer to who is not let in, counted."""
        barred = self._door.barred(connection)
        if barred is not None:
            self._metrics.refused("too_many_failures")
            return barred
        refusal = self._doorkeeper.refusal(connection, request, roles)
        if refusal is not None:
            self._metrics.refused(http.HTTPStatus(refusal.status_code).name.lower())
            if refusal.status_code == http.HTTPStatus.UNAUTHORIZED and "Authorization" in request.headers:
                self._door.failed(connection)
        return refusal

    async def _measured(self, connection: Connection) -> Response:
        measured = self._metrics.text(await self._showing.recent(0.0))
        response = connection.respond(http.HTTPStatus.OK, measured.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response
