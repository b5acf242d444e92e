"""The API on a port, for as long as the agent is linked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from goodspeed.addresses import is_loopback_host
from goodspeed.errors import InvalidRequest
from goodspeed_agent.agent import Agent
from goodspeed_agent.api.app import Api

__all__ = ["serve"]

_DRAIN_S = 5
"""How long texts that are being written may take when it is told to end."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's: they cancel it."""
        yield


async def serve(agent: Agent, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer requests until the caller is cancelled: then texts may end, and no more are begun.

    Args:
        agent: linked.
        host: to listen on.
        port: likewise; 0 takes any.
        ready: called with the address once it listens.

    Raises:
        InvalidRequest: the port cannot be listened on.
        GoodSpeedError: the link to the server has ended for good.
    """
    with _listening(host, port) as listener:
        api = Api(agent, local=is_loopback_host(host))
        config = uvicorn.Config(
            api.app, log_config=None, lifespan="off", ws="none",
            timeout_graceful_shutdown=2 * _DRAIN_S,
        )  # fmt: skip
        server = _Server(config)
        serving = asyncio.create_task(server.serve([listener]), name="api")
        lost = asyncio.create_task(agent.link.over(), name="link over")
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}/v1")
        try:
            await asyncio.wait({serving, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            lost.cancel()
            loop = asyncio.get_running_loop()
            ending = loop.call_later(_DRAIN_S, api.stop, "the agent was told to end, and did before the text")
            await serving
            ending.cancel()
        if lost.done() and not lost.cancelled():
            raise lost.result()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot listen on {host}, port {port}: {error}; choose another --port or --host"
        ) from None
    with listener:
        yield listener
