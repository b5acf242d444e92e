"""The agents of `bench.links`: as many as can be played by one process, which has no core to itself.

A WebSocket client that is made for use costs more time for a message than the server that is to be measured. So frames
are written and read here by hand: small ones in one piece, masked with zeros, which leaves them as they are.
"""

from __future__ import annotations

import asyncio
import functools
import random
import resource
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import typer
import uvloop

from bench.links.children import Answer, obey
from bench.links.text import VOCAB, token_after
from goodspeed.errors import ProtocolError
from goodspeed.messages import (
    PROTOCOL_VERSION,
    AgentMessage,
    Close,
    Draft,
    Failure,
    Hello,
    Open,
    Opened,
    Verdict,
    Welcome,
    decode_server,
    encode,
)
from goodspeed.sampling import SamplingParams

__all__ = ["frames_in", "main", "masked"]

_PROMPT_TOKENS = 16
_NEW_TOKENS = (128, 384)
"""The shortest and the longest text, so that they do not end together."""
_MAX_DRAFT = 8
_AT_ONCE = 64
"""So many connect at a time."""
_CONTINUATION, _BINARY, _PING, _PONG = 0, 2, 9, 10
_ENDS = 0x80
"""Of a frame that is the last of its message."""
_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: Z29vZHNwZWVkLWxpbmtzIQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame."""
    if len(payload) < 126:
        return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload
    return bytes((0x80 | opcode, 0x80 | 126)) + len(payload).to_bytes(2, "big") + bytes(4) + payload


def frames_in(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the server's frames that are whole, each with its first byte, from the beginning of what was read."""
    while len(buffer) >= 2:
        size, start = buffer[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return
        head, payload = buffer[0], bytes(buffer[start : start + size])
        del buffer[: start + size]
        yield head, payload


class _Agent(asyncio.Protocol):
    """One link, and at most one text on it.

    Args:
        name: it goes by.
        acceptance: how often a token that it drafts is right, if those before it are.
        draft_s: how long it takes for each.
        refused: counts what the server refuses, by code.
        role: as in `Hello`; a monitor only listens.
    """

    def __init__(
        self,
        name: str,
        acceptance: float,
        draft_s: float,
        refused: Counter[str],
        role: Literal["agent", "monitor"] = "agent",
    ) -> None:
        self._name = name
        self._role = role
        self._acceptance = acceptance
        self._draft_s = draft_s
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._noise = random.Random(name)
        self._transport: asyncio.Transport
        self._read = bytearray()
        self._message = b""
        """As much of a message as has come, where it comes in several frames."""
        self._upgraded = False
        self.welcomed: asyncio.Future[None] = self._loop.create_future()
        """Whether it is linked up; it fails if the link does."""
        self.writes = False
        """Whether it is to have a text."""
        self._stream = 0
        self._first = 0
        """The token that the text follows."""
        self._drafting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have that type's methods alone
        self._transport.write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._read += data
        if not self._upgraded:
            head, end, rest = self._read.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._lost(f"the server answered {head.decode(errors='replace')}")
                return
            self._upgraded, self._read = True, rest
            self._send(Hello(PROTOCOL_VERSION, self._role, self._name))
        for first, payload in frames_in(self._read):
            opcode, ends = first & 0xF, first & _ENDS
            if opcode in (_BINARY, _CONTINUATION):
                self._message += payload
                if ends:
                    message, self._message = self._message, b""
                    self._hear(message)
            elif opcode == _PING:
                self._transport.write(masked(_PONG, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self.writes = False
        self._stop_drafting()
        self._lost(f"the link of {self._name} has gone: {exc}")

    def write(self) -> None:
        """Write one text after another."""
        self.writes = True
        self._stream += 1
        self._first = self._noise.randrange(VOCAB)
        prompt, new = [self._first] * _PROMPT_TOKENS, self._noise.randint(*_NEW_TOKENS)
        self._send(Open(self._stream, prompt, _PROMPT_TOKENS, SamplingParams(), new, _MAX_DRAFT, True))

    def rest(self) -> None:
        """Write no more."""
        if self.writes:
            self.writes = False
            self._stop_drafting()
            self._send(Close(self._stream))

    def leave(self) -> None:
        """Close the link."""
        self._transport.close()

    def _hear(self, payload: bytes) -> None:
        match decode_server(payload):
            case Verdict() as verdict if verdict.stream == self._stream and self.writes:
                if verdict.finish is None:
                    self._draft(verdict.base + verdict.accepted + len(verdict.tokens), verdict.budget)
                else:
                    self._stop_drafting()
                    self.write()
            case Opened() as opened if opened.stream == self._stream and self.writes:
                self._draft(opened.base, opened.budget)
            case Welcome() if not self.welcomed.done():
                self.welcomed.set_result(None)
            case Failure() as failure:
                self._refused[failure.code] += 1

    def _draft(self, length: int, budget: int) -> None:
        """Draft upon a text of this length; what was begun upon a shorter one is left."""
        self._stop_drafting()
        if budget:
            self._drafting = self._loop.call_later(budget * self._draft_s, self._drafted, self._stream, length, budget)

    def _drafted(self, stream: int, length: int, budget: int) -> None:
        self._drafting = None
        token, tokens = token_after(self._first, length - _PROMPT_TOKENS), list[int]()
        for _ in range(budget):
            token = token_after(token, 1 if self._noise.random() < self._acceptance else 2)
            tokens.append(token)
        self._send(Draft(stream, length, tokens, int(1e6 * budget * self._draft_s)))

    def _stop_drafting(self) -> None:
        if self._drafting is not None:
            self._drafting.cancel()
            self._drafting = None

    def _send(self, message: AgentMessage) -> None:
        self._transport.write(masked(_BINARY, encode(message)))

    def _lost(self, why: str) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(ProtocolError(why))


class _Agents:
    """Those of one process."""

    def __init__(self, address: str, acceptance: float, draft_s: float) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._refused: Counter[str] = Counter()
        self._make = functools.partial(_Agent, acceptance=acceptance, draft_s=draft_s, refused=self._refused)
        self._agents: list[_Agent] = []
        self._monitor: _Agent | None = None

    async def link(self, first: int, count: int) -> Answer:
        """Link so many more up, with names from a number on.

        Raises:
            ProtocolError: a link fails.
        """
        numbers = range(first, first + count)
        for start in range(0, count, _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            self._agents += await asyncio.gather(*(self._linked(f"edge-{number}") for number in some))
        return {}

    async def work(self, count: int) -> Answer:
        """Have so many of them write, and the others rest."""
        for number, agent in enumerate(self._agents):
            if number >= count:
                agent.rest()
            elif not agent.writes:
                agent.write()
        return {}

    async def watch(self, whether: bool) -> Answer:
        """Have a monitor watch the server, or no more."""
        if whether:
            self._monitor = await self._linked("monitor", role="monitor")
        elif self._monitor is not None:
            self._monitor.leave()
        return {}

    async def refused(self) -> Answer:
        """What the server refused, by code."""
        return dict(self._refused)

    async def _linked(self, name: str, **role: Any) -> _Agent:
        _, agent = await asyncio.get_running_loop().create_connection(
            lambda: self._make(name, **role), self._host, self._port
        )
        await agent.welcomed
        return agent


def main(address: str, acceptance: float, draft_ms: float) -> None:
    """Play agents until standard input ends."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    uvloop.run(_play(address, acceptance, draft_ms / 1e3))


async def _play(address: str, acceptance: float, draft_s: float) -> None:
    agents = _Agents(address, acceptance, draft_s)
    await obey({"link": agents.link, "work": agents.work, "watch": agents.watch, "refused": agents.refused})


if __name__ == "__main__":
    typer.run(main)
