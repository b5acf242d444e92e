"""A TCP connection to whichever address of a host answers first (RFC 8305, happy eyeballs).

A name may stand for several addresses, and one of them may be where nothing answers at all: an IPv6 route that leads
nowhere, a machine that is down. The event loop that agents run on, uvloop's, tries one after the other to its end.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, TypeAlias

__all__ = ["dial"]

_NEXT_S = 0.25
"""For how long an address is tried alone; the RFC's."""
_GIVE_UP_S = 4.0
"""By then a system has asked three times."""

_Address: TypeAlias = tuple[socket.AddressFamily, Any]
"""The second is what sockets of that family take."""


async def dial(host: str, port: int) -> socket.socket:
    """Connect.

    Connecting is given up after some seconds; how long the name may take to be looked up is the caller's to limit, for
    resolvers ask several servers in turn.

    Args:
        host: a name or an address.
        port: there.

    Returns:
        A connected socket that does not block.

    Raises:
        OSError: the name is none, or no address of it can be connected to.
        TimeoutError: none answers.
    """
    addresses = await _addresses(host, port)
    async with asyncio.timeout(_GIVE_UP_S):
        return await _race(_by_turns(addresses))


async def _race(addresses: Sequence[_Address]) -> socket.socket:
    waiting = deque(addresses)
    trying: set[asyncio.Task[socket.socket]] = set()
    errors: list[str] = []
    error: BaseException | None = None
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect(*waiting.popleft())))
            done, _ = await asyncio.wait(
                trying, timeout=_NEXT_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                trying.discard(task)
                if (error := task.exception()) is None:
                    return task.result()
                errors.append(str(error))
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_hang_up)
    if error is not None and len(set(errors)) == 1:
        raise error
    raise OSError("; ".join(dict.fromkeys(errors)) or "the host has no address")


async def _addresses(host: str, port: int) -> list[_Address]:
    kind = socket.SOCK_STREAM
    try:
        # A name would be asked for over the network, and block.
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    return [(family, address) for family, _, _, _, address in found]


def _by_turns(addresses: list[_Address]) -> list[_Address]:
    """The families take turns, each in its own order: what is wrong with one is mostly wrong with all of it."""
    families: dict[socket.AddressFamily, list[_Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


async def _connect(family: socket.AddressFamily, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        # Not every event loop sets it for a socket that it has not made; small messages are not to wait for others.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _hang_up(task: asyncio.Task[socket.socket]) -> None:
    """One that was too late to be of use."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
