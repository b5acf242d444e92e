"""Plain GETs on the WebSocket's own port: whether the server lives, whether it takes links, what it has measured."""

from __future__ import annotations

import http
from collections.abc import Callable, Collection
from typing import get_args

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from goodspeed_server.doorkeeper import Doorkeeper
from goodspeed_server.metrics import ServerMetrics
from goodspeed_server.tokens import Role

__all__ = ["Probes"]


class Probes:
    """Answers every HTTP request, or lets a link through.

    Args:
        doorkeeper: knows who is let in.
        metrics: what `/metrics` shows, and where refusals are counted.
        draining: whether the server takes no more links.
    """

    def __init__(self, doorkeeper: Doorkeeper, metrics: ServerMetrics, draining: Callable[[], bool]) -> None:
        self._doorkeeper = doorkeeper
        self._metrics = metrics
        self._draining = draining

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a request; None to one that may become a link."""
        path = request.path.partition("?")[0]
        if path == "/health":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if path == "/ready":
            if self._draining():
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
            return connection.respond(http.HTTPStatus.OK, "ready\n")
        if path == "/metrics":
            return self._turned_away(connection, request, ("monitor", "admin")) or self._measured(connection)
        if path != "/":
            return connection.respond(
                http.HTTPStatus.NOT_FOUND, "there is /health, /ready, /metrics, and a WebSocket at /\n"
            )
        if self._draining():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down\n")
        return self._turned_away(connection, request)

    def _turned_away(
        self, connection: ServerConnection, request: Request, roles: Collection[Role] = get_args(Role)
    ) -> Response | None:
        """The doorkeeper's answer to who is not let in, counted."""
        refusal = self._doorkeeper.refusal(connection, request, roles)
        if refusal is not None:
            self._metrics.refused(http.HTTPStatus(refusal.status_code).name.lower())
        return refusal

    def _measured(self, connection: ServerConnection) -> Response:
        response = connection.respond(http.HTTPStatus.OK, self._metrics.text().decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response
