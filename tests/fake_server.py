"""A server for the agent's tests: the protocol in full, a target that is a function, and a hook to misbehave with."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tokenizers import Tokenizer as HubTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from goodspeed import catalog
from goodspeed.catalog import Files
from goodspeed.guesses import Guesses
from goodspeed.messages import (
    PROTOCOL_VERSION,
    AgentMessage,
    Close,
    Draft,
    DraftEnd,
    Failure,
    GetTokenizer,
    Hello,
    Open,
    Opened,
    Queued,
    ServerMessage,
    Tokenizer,
    Verdict,
    Welcome,
    decode_agent,
    encode,
)
from goodspeed.stream import ServedStream
from goodspeed.verification import Rule, judge_coupled

__all__ = ["FakeServer", "Hook", "byte_tokenizer", "counting", "queueing", "refusing", "saying"]

MessageT = TypeVar("MessageT", bound=AgentMessage)
Target = Callable[[Sequence[int]], int]
"""The next token, given everything before it."""
Hook = Callable[["FakeServer", ServerConnection, AgentMessage], Awaitable[bool]]
"""Sees every message first; True if it has dealt with it."""


def byte_tokenizer(chat_template: str | None = None) -> Files:
    """One token a byte, 256 is the end of text."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = HubTokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|end|>"])
    config = {"eos_token": "<|end|>"} | ({} if chat_template is None else {"chat_template": chat_template})
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def counting(period: int) -> Target:
    """A target that counts up from the last token, modulo `period`."""
    return lambda tokens: (tokens[-1] + 1) % period


def saying(text: str, prompt_tokens: int) -> Target:
    """A target that writes `text` behind the prompt, then the end of text."""
    ids = HubTokenizer.from_buffer(byte_tokenizer()["tokenizer.json"]).encode(text).ids
    script = [*ids, 256]
    return lambda tokens: script[min(len(tokens) - prompt_tokens, len(script) - 1)]


@dataclass
class FakeServer:
    """Serves on a free port while `listening()`; keeps what it was sent."""

    target: Target = field(default_factory=lambda: counting(50))
    budget: int = 4
    rule: Rule = "coupled"
    vocab_size: int = 257
    max_length: int = 4096
    max_draft: int = 64
    eos_tokens: tuple[int, ...] = (256,)
    files: Files = field(default_factory=byte_tokenizer)
    weights: str = "counts"
    hook: Hook | None = None
    waits: bool = True
    beat: Callable[[FakeServer], Awaitable[None]] = lambda server: asyncio.sleep(0)
    """Awaited before each pass of a server that does not wait."""
    stale: int = 0
    """Pieces that continued what was not held any more."""
    received: list[AgentMessage] = field(default_factory=list)
    links: int = 0
    url: str = ""

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[FakeServer]:
        """Accept links."""
        async with serve(self._link, "127.0.0.1", port, compression=None, max_size=2**22) as server:
            bound = next(iter(server.sockets)).getsockname()[1]
            self.url = f"ws://127.0.0.1:{bound}"
            yield self

    def got(self, kind: type[MessageT]) -> list[MessageT]:
        """The messages of one kind, in the order they came."""
        return [message for message in self.received if isinstance(message, kind)]

    def welcome(self) -> Welcome:
        """What it answers to a `Hello`."""
        return Welcome(
            PROTOCOL_VERSION,
            "fake",
            "counter",
            catalog.fingerprint(self.files),
            catalog.digest(self.files),
            self.weights,
            self.rule,
            self.vocab_size,
            self.max_length,
            self.max_draft,
            list(self.eos_tokens),
            self.waits,
        )

    async def send(self, connection: ServerConnection, *messages: ServerMessage) -> None:
        """Send messages."""
        for message in messages:
            await connection.send(encode(message))

    async def _link(self, connection: ServerConnection) -> None:
        self.links += 1
        streams: dict[int, ServedStream] = {}
        guesses: dict[int, Guesses] = {}
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.TaskGroup() as passes:
                async for frame in connection:
                    assert isinstance(frame, bytes)
                    message = decode_agent(frame)
                    self.received.append(message)
                    if self.hook is not None and await self.hook(self, connection, message):
                        continue
                    if self.waits or not isinstance(message, Open | Draft):
                        await self._answer(connection, streams, message)
                    elif isinstance(message, Open):
                        stream = streams[message.stream] = self._opened(message)
                        held = guesses[message.stream] = Guesses()
                        budget = min(self.budget, stream.draft_limit)
                        await self.send(connection, Opened(message.stream, stream.length, budget))
                        passes.create_task(self._decode_on(connection, streams, message.stream, held))
                    else:
                        self._take(guesses[message.stream], message)

    def _opened(self, message: Open) -> ServedStream:
        return ServedStream.opened(
            message, vocab_size=self.vocab_size, max_length=self.max_length, eos_tokens=self.eos_tokens
        )

    def _take(self, held: Guesses, piece: Draft) -> None:
        if held.continues(piece.base, piece.offset):
            held.take(piece.base, piece.offset, piece.tokens, ended=piece.end is DraftEnd.NOTHING_TO_SAY)
        else:
            self.stale += 1

    async def _decode_on(
        self, connection: ServerConnection, streams: dict[int, ServedStream], number: int, held: Guesses
    ) -> None:
        with contextlib.suppress(ConnectionClosed):
            while number in streams and streams[number].finish is None:
                await self.beat(self)
                stream = streams[number]
                held.follow(stream.tokens)
                drafted, _ = held.beyond(stream.length, min(self.budget, stream.draft_limit))
                await self._round(connection, number, stream, drafted)

    async def _answer(
        self, connection: ServerConnection, streams: dict[int, ServedStream], message: AgentMessage
    ) -> None:
        match message:
            case Hello():
                await self.send(connection, self.welcome())
            case GetTokenizer():
                await self.send(connection, Tokenizer(catalog.digest(self.files), self.files))
            case Open():
                stream = streams[message.stream] = self._opened(message)
                budget = min(self.budget, stream.draft_limit)
                await self.send(connection, Opened(message.stream, stream.length, budget))
                await self._decode_alone(connection, message.stream, stream, budget)
            case Draft():
                await self._verify(connection, streams[message.stream], message)
            case Close():
                streams.pop(message.stream, None)

    async def _verify(self, connection: ServerConnection, stream: ServedStream, draft: Draft) -> None:
        if draft.base < stream.length:
            budget = min(self.budget, stream.draft_limit)
            await self.send(
                connection,
                Verdict(draft.stream, draft.base, 0, stream.missing(draft.base), budget, finish=stream.finish),
            )
            return
        assert len(draft.tokens) <= min(self.budget, stream.draft_limit)
        budget = await self._round(connection, draft.stream, stream, draft.tokens)
        await self._decode_alone(connection, draft.stream, stream, budget)

    async def _decode_alone(self, connection: ServerConnection, number: int, stream: ServedStream, budget: int) -> None:
        while budget == 0 and stream.finish is None:
            budget = await self._round(connection, number, stream, [])

    async def _round(
        self, connection: ServerConnection, number: int, stream: ServedStream, drafted: Sequence[int]
    ) -> int:
        tokens = list(stream.tokens)
        drawn = []
        for token in [*drafted, None]:
            drawn.append(self.target(tokens))
            if token is not None:
                tokens.append(token)
        commit = stream.commit(drafted, judge_coupled(drafted, drawn))
        budget = 0 if stream.finish else min(self.budget, stream.draft_limit)
        accepted = commit.accepted if self.waits else 0
        appended = stream.tokens[commit.base + accepted :]
        verdict = Verdict(
            number, commit.base, accepted, appended, budget, commit.verified,
            finish=commit.finish, ended_within=commit.ended_within,
        )  # fmt: skip
        await self.send(connection, verdict)
        await asyncio.sleep(0)
        return budget


def refusing(code: str, *, times: int = 1, retry_after_s: float | None = None) -> Hook:
    """A hook that answers the first `times` Opens with a failure."""
    left = times

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal left
        if not isinstance(message, Open) or left == 0:
            return False
        left -= 1
        await server.send(connection, Failure(code, f"because of {code}", message.stream, retry_after_s))
        return True

    return hook


def queueing(*places: int) -> Hook:
    """A hook that has every stream wait, in one place after another, before it is opened."""

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await server.send(connection, *(Queued(message.stream, place) for place in places))
        return False

    return hook
