"""An agent under fuzz: whole texts, asked of a server that says anything in any order.

What a server says decides the text, so nothing can be said of what comes out; but it is a text, or one of our errors,
and it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import goodspeed_agent.connecting
from goodspeed.errors import GoodSpeedError
from goodspeed.messages import (
    AgentMessage,
    Draft,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Open,
    Opened,
    ServerMessage,
    Tokenizer,
    Verdict,
    decode_agent,
    decode_server,
    encode,
)
from goodspeed.stream import Finish
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.fuzzing.frames import SERVER, Frames, corpus
from tests.fuzzing.watching import Footprint, complaints, settled
from tests.linking import NEVER_AGAIN

__all__ = ["OUTCOMES", "AgentStorm", "fuzz_agent"]

OUTCOMES = frozenset({"complete", "LinkLost", "MalformedMessage", "ProtocolError", "Refused"})
"""Ways in which a text ends that meets an impostor."""
_TEXTS = 3
_PATIENCE_S = 60.0
_LINK_S = (0.02, 0.1)
"""How long a link lasts at most."""


@dataclass
class AgentStorm:
    """What agents went through, and how their process stands after."""

    frames: int = 0
    """That their links have read."""
    links: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of texts: complete, or the name of an error."""
    unmet: list[str] = field(default_factory=list)
    """Those of `OUTCOMES` that no text had."""
    complaints: list[str] = field(default_factory=list)
    warm: Footprint | None = None
    """After the first fifth."""
    after: Footprint | None = None


async def fuzz_agent(frames: int, seed: int, folder: Path, *, most: int = 0) -> AgentStorm:
    """Have an impostor send agents so many frames, and more until their texts have ended in every way there is.

    Args:
        frames: how many at least.
        seed: of the frames.
        folder: for the agents' cache.
        most: with so many the storm is over, whatever was not met.

    Raises:
        Exception: whatever an agent raised that is no error of ours.
        TimeoutError: a text never ended, or a task is left over.
    """
    storm, noise = AgentStorm(), random.Random(f"agent/{seed}")
    impostor = _Impostor(Frames(SERVER, corpus("server"), noise), noise)

    def read(frame: bytes | str) -> ServerMessage:
        storm.frames += 1
        return decode_server(frame)

    async def texts_until(until: int, most: int = 0) -> Footprint:
        while storm.frames < until or (storm.frames < most and not storm.outcomes.keys() >= OUTCOMES):
            storm.links += 1
            await _texts(url, folder, storm)
        await settled(lambda: len(asyncio.all_tasks()) <= tasks)
        return Footprint.now()

    async with serve(impostor.serve, "127.0.0.1", 0, compression=None) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with complaints() as storm.complaints, mock.patch.object(goodspeed_agent.connecting, "decode_server", read):
            tasks = len(asyncio.all_tasks())
            storm.warm = await texts_until(frames // 5)
            storm.after = await texts_until(frames, most)
    storm.unmet = sorted(OUTCOMES - storm.outcomes.keys())
    return storm


async def _texts(url: str, folder: Path, storm: AgentStorm) -> None:
    """Ask for a few texts over one link."""

    async def text(agent: Agent, number: int) -> None:
        try:
            await agent.complete(TextRequest([65 + number, 66, 65, 66], max_new_tokens=40))
        except GoodSpeedError as error:
            storm.outcomes[type(error).__name__] += 1
        else:
            storm.outcomes["complete"] += 1

    async with asyncio.timeout(_PATIENCE_S):
        try:
            async with Agent(url, SuffixDrafter(), cache=TokenizerCache(folder), backoff=NEVER_AGAIN) as agent:
                await asyncio.gather(*(text(agent, number) for number in range(_TEXTS)))
        except GoodSpeedError as error:
            storm.outcomes[f"no link: {type(error).__name__}"] += 1


class _Impostor:
    """Answers well enough for a text to go on, and every now and then with something else; not for long."""

    def __init__(self, frames: Frames, noise: random.Random) -> None:
        self._frames = frames
        self._noise = noise
        self._face = FakeServer()
        """Whom it resembles."""
        self._lengths: dict[int, int] = {}
        """Of the streams of the link of the moment."""

    async def serve(self, connection: ServerConnection) -> None:
        """One link."""
        self._lengths = {}
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(self._noise.uniform(*_LINK_S)):
                async for frame in connection:
                    await self._answer(connection, decode_agent(frame))
        with contextlib.suppress(ConnectionClosed):
            await connection.close(self._noise.choice((1000, 1001, 1002, 1009, 1011)), "enough")

    async def _answer(self, connection: ServerConnection, message: AgentMessage) -> None:
        match message:
            case Hello():
                self._face.waits = self._noise.random() < 0.5
                await connection.send(encode(self._face.welcome()))
            case GetTokenizer():
                await connection.send(encode(Tokenizer(self._face.welcome().tokenizer, self._face.files)))
            case Open(stream=stream, tokens=tokens):
                self._lengths[stream] = len(tokens)
                await connection.send(encode(Opened(stream, len(tokens), self._noise.randrange(9))))
                await self._go_on(connection, stream, message)
            case Draft(stream=stream):
                await self._go_on(connection, stream, message)

    async def _go_on(self, connection: ServerConnection, stream: int, message: Open | Draft) -> None:
        for _ in range(self._noise.choice((1, 1, 1, 2, 12))):
            chance = self._noise.random()
            if chance < 0.02:
                await connection.send(self._frames.mutated())
            elif chance < 0.03:
                await connection.send(self._frames.raw())
            elif chance < 0.06:
                await connection.send(self._frames.structured(wild=0.0))
            else:
                await connection.send(encode(self._sensible(stream, message)))

    def _sensible(self, stream: int, message: Open | Draft) -> ServerMessage:
        noise, length = self._noise, self._lengths.get(stream, 4)
        chance = noise.random()
        if chance < 0.02:
            code = noise.choice(("overloaded", "draft_too_long", "invalid_q", "prompt_too_long", "unheard_of"))
            return Failure(
                code, "because", noise.choice((stream, stream, stream + 1)), noise.choice((None, 0.0, 86_400.0))
            )
        if chance < 0.025:
            return Goodbye("going", noise.choice((None, 0.5)))
        if chance < 0.03:
            return Opened(stream, noise.randrange(2 * length), noise.randrange(70))
        drafted = len(message.tokens) if isinstance(message, Draft) and message.base == length else 0
        accepted = noise.randint(0, drafted) + (noise.random() < 0.005)
        tokens = [noise.choice((65, 66, 67, 255, 256)) for _ in range(noise.choice((0, 1, 1, 1, 3)))]
        if noise.random() < 0.005:
            tokens.append(noise.choice((257, 2**31 - 1)))
        base = length + noise.choice((0,) * 60 + (-1, -3, 1))
        ends: tuple[Finish | None, ...] = ("stop", "length", *(None,) * 30)
        finish = noise.choice(ends)
        self._lengths[stream] = base + accepted + len(tokens)
        verified = accepted + noise.choice((0, 0, 1, -1 if accepted else 0))
        return Verdict(stream, max(0, base), accepted, tokens, noise.randrange(9), verified, finish=finish)
