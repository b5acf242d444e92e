"""A link without an agent: messages, and nothing that would take the cores from the server that is measured."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection, connect

from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import ProtocolError
from goodspeed.messages import (
    MAX_SERVER_FRAME_BYTES,
    PROTOCOL_VERSION,
    AgentMessage,
    Hello,
    ServerMessage,
    Welcome,
    decode_server,
    encode,
)

__all__ = ["BareLink", "linked"]


class BareLink:
    """An agent's link, greeted."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, message: AgentMessage) -> None:
        """Send one message."""
        await self.connection.send(encode(message))

    async def receive(self) -> ServerMessage:
        """Wait for the next."""
        return decode_server(await self.connection.recv())


@contextlib.asynccontextmanager
async def linked(address: str, name: str, credentials: Credentials = NOBODY) -> AsyncIterator[BareLink]:
    """Link up as an agent of that name.

    Raises:
        ProtocolError: the server answers something else than a welcome.
    """
    async with connect(
        address, compression=None, max_size=MAX_SERVER_FRAME_BYTES, additional_headers=credentials.headers(address)
    ) as connection:
        link = BareLink(connection)
        await link.send(Hello(PROTOCOL_VERSION, "agent", name))
        answer = await link.receive()
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"the server answered {answer}")
        yield link
