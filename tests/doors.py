"""A server that is careful whom it lets in, on a real socket, and what its door says and counts."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import DoorSettings
from tests.serving import serving, tiny_settings

__all__ = ["NOTHING", "answered", "counted", "end_of", "guarded", "port_of", "refused", "throttled", "until"]

NOTHING = b""


@contextlib.asynccontextmanager
async def guarded(door: DoorSettings, **changes: Any) -> AsyncIterator[tuple[VerificationServer, str]]:
    async with asyncio.timeout(60), serving(tiny_settings(door=door, **changes)) as (server, address):
        yield server, address


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def answered(
    address: str, path: str = "/", tls: ssl.SSLContext | None = None, **headers: Any
) -> tuple[int, dict[str, str]]:
    """A plain GET that asks for a link, as far as its answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(address), ssl=tls)
    asked = {
        "Host": "x", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    } | headers  # fmt: skip
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    writer.transport.abort()
    found = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), found


async def refused(address: str) -> tuple[int, str | None]:
    """The status of a link that is refused, and when to come back."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address)
    return caught.value.response.status_code, caught.value.response.headers.get("Retry-After")


async def counted(server: VerificationServer, code: str) -> float:
    value = server._metrics._registry.get_sample_value("goodspeed_refusals_total", {"code": code})
    return value or 0.0


async def until(server: VerificationServer, *, links: int = 0, pending: int = 0) -> None:
    gate = server._door.gate
    while (gate.links, gate.pending) != (links, pending):
        await asyncio.sleep(0)


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes before a connection ends, however it ends."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return NOTHING


def throttled(server: VerificationServer) -> float:
    return server._metrics._registry.get_sample_value("goodspeed_throttled_seconds_total") or 0.0
