"""Keeping web pages of other sites away from an API that is for this machine alone.

A page that a user happens to look at may send requests to localhost, and by a name of its own that resolves to it even
read the answers. So a request has to name this machine, and a page that sends one has to come from it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from goodspeed.addresses import is_loopback_host
from goodspeed_agent.api.errors import error_body

__all__ = ["LOCAL_ONLY"]

_THIS_MACHINE = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


class _Guard:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if _local(f"//{headers.get('host', '')}") and _local(headers.get("origin", "//localhost")):
            await self._app(scope, receive, send)
            return
        told = error_body(
            "this API serves this machine alone: call it as localhost or 127.0.0.1, and not from another site's page",
            "invalid_request_error",
            None,
            "forbidden",
        )
        await JSONResponse(told, 403)(scope, receive, send)


def _local(url: str) -> bool:
    try:
        return is_loopback_host(urlsplit(url).hostname or "")
    except ValueError:
        return False


LOCAL_ONLY = [
    Middleware(_Guard),
    Middleware(
        CORSMiddleware,
        allow_origin_regex=_THIS_MACHINE,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-GoodSpeed-Verified"],
    ),
]
