"""A server's links under fuzz: strangers who say anything in any order, beside one agent that wants its texts.

The server is a real one upon the tiny target, in this process, and so are the sockets. What strangers say is sensible
enough to get far: they greet, open streams, draft upon the lengths that they were told of, and go astray from there.

What a stranger says follows from the seed, from its number and from what it is told, and not from what the others do
meanwhile. When it is told depends on the clock, so how often an answer is met does as well: a storm that is to meet
every kind goes on until it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from unittest import mock

from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

import goodspeed_server.link
from goodspeed.messages import (
    AgentMessage,
    Close,
    Control,
    Draft,
    DraftEnd,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Open,
    Opened,
    Redraft,
    Verdict,
    decode_agent,
    encode,
)
from goodspeed.sampling import SamplingParams
from goodspeed_server.settings import ServerSettings
from tests.fuzzing.frames import AGENT, Frames, corpus
from tests.fuzzing.watching import Footprint, complaints, settled
from tests.serving import Peer, linked, serving
from tests.test_server import target_text
from tests.tiny_models import VOCAB

__all__ = ["ServerStorm", "answers_of", "fuzz_server"]

_STRANGERS = 8
_LISTEN_S = 0.001
_HONEST = [([3, 14, 15, 92, 65], 12), ([35, 8, 9], 9), ([7] * 20, 6)]
"""Prompts, and how long their texts are."""


@dataclass
class ServerStorm:
    """What a server went through, and how it stands after."""

    frames: int = 0
    """That its links have read."""
    links: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """What strangers were answered, by the name of the message, or the code of the failure."""
    unmet: list[str] = field(default_factory=list)
    """The answers that nobody was given."""
    honest_texts: int = 0
    """Written meanwhile, each of them the target's own."""
    complaints: list[str] = field(default_factory=list)
    warm: Footprint | None = None
    """After the first fifth."""
    after: Footprint | None = None


_ANSWERS = frozenset({
    "Welcome", "Tokenizer", "Queued", "Opened", "Verdict", "Controlled",
    "invalid_request", "malformed_message", "protocol_error", "version_mismatch", "tokenizer_mismatch",
    "duplicate_stream", "unknown_stream", "draft_too_long", "draft_out_of_range", "token_out_of_range", "empty_prompt",
    "overloaded",
})  # fmt: skip
"""What every server answers at times: messages, and the codes of failures. Not what the clock sends, as snapshots."""


def answers_of(settings: ServerSettings) -> frozenset[str]:
    """What a storm can meet at such a server."""
    return _ANSWERS | ({"invalid_q"} if settings.rule == "ratio" else set())


_ROLES: tuple[Literal["agent", "monitor", "control"], ...] = (*("agent",) * 12, "monitor", "control")


@cache
def _expected(number: int) -> list[int]:
    prompt, size = _HONEST[number]
    return target_text(prompt, size)


async def fuzz_server(settings: ServerSettings, frames: int, seed: int, *, most: int = 0) -> ServerStorm:
    """Have strangers send a server so many frames, and more until they have met every kind of answer that it has.

    Args:
        settings: of the server.
        frames: how many at least.
        seed: of the frames.
        most: with so many the storm is over, whatever was not met.

    Raises:
        AssertionError: an honest text came out otherwise.
        TimeoutError: a stream, a link or a task is left over.
    """
    storm, kept = ServerStorm(), corpus("agent")
    wanted = answers_of(settings)

    def read(frame: bytes | str) -> AgentMessage:
        storm.frames += 1
        return decode_agent(frame)

    async with serving(settings) as (server, address):
        tasks = len(asyncio.all_tasks())

        def idle() -> bool:
            now = server.snapshot()
            return not (now.streams or now.waiting or now.agents) and len(asyncio.all_tasks()) <= tasks

        def raging(until: int, most: int) -> bool:
            return storm.frames < until or (storm.frames < most and not wanted <= storm.answers.keys())

        async def strangers(until: int, most: int) -> None:
            while raging(until, most):
                storm.links += 1
                noise = random.Random(f"server/{seed}/{storm.links}")
                async with linked(address, greet=False) as peer:
                    await _Stranger(peer, Frames(AGENT, kept, noise), noise, storm.answers).talk()

        async def storm_until(until: int, most: int = 0) -> Footprint:
            honest = asyncio.create_task(
                _honest(address, storm, behind_barrier=server.snapshot().scheduler != "seconds")
            )
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(_STRANGERS):
                        group.create_task(strangers(until, most))
                    group.create_task(_meanwhile(honest, storm))
            finally:
                honest.cancel()
                await asyncio.wait([honest])
            await settled(idle)
            return Footprint.now()

        with complaints() as storm.complaints, mock.patch.object(goodspeed_server.link, "decode_agent", read):
            storm.warm = await storm_until(frames // 5)
            storm.after = await storm_until(frames, most)
    storm.unmet = sorted(wanted - storm.answers.keys())
    return storm


async def _honest(address: str, storm: ServerStorm, *, behind_barrier: bool) -> None:
    """Write one text after the other, for ever."""
    async with linked(address) as peer:
        while True:
            for number, (prompt, size) in enumerate(_HONEST):
                expected = _expected(number)
                guess = expected if behind_barrier else []
                text = await peer.generate(
                    number, prompt, guess, max_new_tokens=size, max_draft=4 if behind_barrier else 0
                )
                assert text == expected
                storm.honest_texts += 1


async def _meanwhile(honest: asyncio.Task[None], storm: ServerStorm) -> None:
    """See that the honest agent gets a text at least, however short the storm is, and hear of what goes wrong there."""
    before = storm.honest_texts
    while storm.honest_texts == before:
        if honest.done():
            honest.result()
        await asyncio.sleep(0.01)


class _Stranger:
    """One link, and what it was told of its streams."""

    def __init__(self, peer: Peer, frames: Frames, noise: random.Random, answers: Counter[str]) -> None:
        self._peer = peer
        self._frames = frames
        self._noise = noise
        self._answers = answers
        self._lengths: dict[int, int] = {}
        self._last: bytes = encode(GetTokenizer())

    async def talk(self) -> None:
        """Say a few dozen things, listen now and then, and be gone, in one way or another."""
        with contextlib.suppress(ConnectionClosed):
            await self._talk()
        with contextlib.suppress(ConnectionClosed):
            # Why it was closed is the last that comes on a link.
            while self._peer.connection.state is not State.OPEN:
                self._hear(await self._peer.receive())

    async def _talk(self) -> None:
        noise = self._noise
        if noise.random() < 0.97:
            role = noise.choice(_ROLES)
            await self._peer.send(Hello(noise.choice((1,) * 40 + (2,)), role, "stranger"))
            if role == "control":
                await self._peer.send(Control())
        for _ in range(noise.randrange(1, 150)):
            await self._say()
            if noise.random() < 0.2:
                await self._listen()
        if noise.random() < 0.5:
            self._peer.connection.transport.abort()

    async def _say(self) -> None:
        chance = self._noise.random()
        if chance < 0.003:
            await self._peer.send("a text frame")
            return
        if chance < 0.02:
            frame = self._frames.mutated() if chance < 0.015 else self._frames.raw()
        elif chance < 0.1:
            frame = self._frames.structured(wild=0.0)
        elif chance < 0.15:
            frame = self._last
        else:
            frame = self._last = encode(self._sensible())
        await self._peer.send(frame)

    def _sensible(self) -> AgentMessage:
        noise = self._noise
        stream = noise.choice([*self._lengths, noise.randrange(6)])
        chance = noise.random()
        if chance < 0.2 or not self._lengths:
            prompt = self._tokens(noise.choice((1, 3, 8, 30)))
            params = SamplingParams(noise.choice((0.0, 0.8)), seed=noise.randrange(9))
            told = len(prompt) - noise.choice((0, 0, 0, 1))
            return Open(
                stream,
                prompt,
                told,
                params,
                noise.randrange(1, 16),
                noise.choice((0, 4, 64)),
                True,
                "",
                noise.choice((-1, -1, 2)),
            )
        if chance < 0.25:
            return Close(stream)
        if chance < 0.255:
            return GetTokenizer()
        if chance < 0.27:
            return Redraft(noise.choice(("suffix", "another")), noise.choice((None, None, None, "of another family")))
        base = max(0, self._lengths.get(stream, 3) + noise.choice((0, 0, 0, 0, 0, 0, -1, -3)))
        tokens = self._tokens(noise.choice((0, 1, 1, 2, 4, 4, 65)))
        offset = noise.choice((0, 0, 0, len(tokens), 1, 2**31 - 1))
        q = noise.choice((b"", b"", noise.randbytes(6 * len(tokens)), b"\xff" * 192))
        computed_us = noise.choice((0, 900, 2**31 - 1))
        return Draft(stream, base, tokens, computed_us, offset, noise.choice(list(DraftEnd)), q)

    def _tokens(self, size: int) -> list[int]:
        """So many, and now and then one that there is not."""
        noise = self._noise
        tokens = [noise.randrange(VOCAB) for _ in range(size)]
        if tokens and noise.random() < 0.15:
            tokens[noise.randrange(size)] = VOCAB
        return tokens

    async def _listen(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(_LISTEN_S):
                    message = await self._peer.receive()
                self._hear(message)

    def _hear(self, message: Any) -> None:
        match message:
            case Opened(stream=stream, base=base):
                self._lengths[stream] = base
            case Verdict(stream=stream, base=base, accepted=accepted, tokens=tokens):
                self._lengths[stream] = base + accepted + len(tokens)
                if message.finish is not None:
                    del self._lengths[stream]
            case Goodbye():
                raise AssertionError("the server goes away in the middle of the storm")
        self._answers[message.code if isinstance(message, Failure) else type(message).__name__] += 1
