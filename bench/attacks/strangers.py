"""Attackers who have no token: all they can reach is the port."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable

from bench.attacks.floods import again_and_again, flood
from bench.attacks.sockets import Tally, Target

__all__ = ["half_open"]

HALF_OPEN = 1024
"""More than one address may have."""
KNOCKING = 64
_DRIP_S = 1.0


@flood("nothing")
async def nothing(target: Target, tally: Tally) -> None:
    """Whoever does nothing: what its row says is how far one run of this measurement is from the next."""
    await asyncio.Event().wait()


@flood("slowloris", "too_many_links_of_address", "too_many_handshakes")
async def slowloris(target: Target, tally: Tally) -> None:
    """Requests of which a byte a second comes."""
    await half_open(target, tally, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", drip=b"a")


@flood("silence", "too_many_links_of_address", "too_many_handshakes")
async def silence(target: Target, tally: Tally) -> None:
    """Connections over which nothing ever comes."""
    await half_open(target, tally, b"", drip=b"")


async def half_open(target: Target, tally: Tally, said: bytes, *, drip: bytes) -> None:
    """Connections that never come to the point.

    Args:
        target: what is attacked.
        tally: what came of it.
        said: at once.
        drip: every second from then on.
    """

    async def once(_: int) -> None:
        async with target.connected() as (reader, writer):
            with tally.standing():
                writer.write(said)
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_DRIP_S):
                            if not await reader.read(2**16):
                                raise EOFError
                    if writer.is_closing():
                        raise EOFError
                    writer.write(drip)

    await again_and_again(HALF_OPEN, tally, once, pause_s=_DRIP_S)


@flood("connection flood", "too_many_handshakes", "too_many_links_of_address")
async def connections(target: Target, tally: Tally) -> None:
    """Connect and reset, as fast as a core can."""
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            made = target.socket()
            try:
                made.connect((target.host, target.port))
                tally.counts["tried"] += 1
            except OSError:
                tally.counts["cut off"] += 1
            finally:
                made.close()

    try:
        await asyncio.to_thread(knock)
    finally:
        over.set()


@flood("handshake flood", "too_many_handshakes", "too_many_links_of_address")
async def handshakes(target: Target, tally: Tally) -> None:
    """Ask for a link, hear the answer, and go."""
    await _ask(target, tally, lambda: None)


@flood("token brute force", "too_many_failures", "too_many_handshakes")
async def guesses(target: Target, tally: Tally) -> None:
    """Tokens made up at random."""
    await _ask(target, tally, lambda: "gst_" + secrets.token_urlsafe(32))


async def _ask(target: Target, tally: Tally, token: Callable[[], str | None]) -> None:
    async def once(_: int) -> None:
        async with target.connected() as (reader, writer):
            with tally.standing():
                writer.write(target.request(token()))
                head = await reader.readuntil(b"\r\n\r\n")
                tally.counts["answered " + head.split(maxsplit=2)[1].decode()] += 1

    await again_and_again(KNOCKING, tally, once)
