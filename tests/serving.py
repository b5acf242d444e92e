"""A server in this process on a free port, and a peer that speaks bare messages to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

from tokenizers import Tokenizer as HubTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from websockets.asyncio.client import ClientConnection, connect

from goodspeed.catalog import Files
from goodspeed.messages import (
    PROTOCOL_VERSION,
    AgentMessage,
    Close,
    Draft,
    Failure,
    Hello,
    Open,
    Opened,
    Queued,
    ServerMessage,
    Verdict,
    Welcome,
    decode_server,
    encode,
)
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Transcript
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings
from tests.measured import measured_once
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

__all__ = ["GREEDY", "Peer", "linked", "serving", "tiny_server", "tiny_settings", "tiny_tokenizer"]

GREEDY = SamplingParams()
MessageT = TypeVar("MessageT", bound=ServerMessage)


def tiny_tokenizer(vocab: int = VOCAB) -> Files:
    """A word-level tokenizer whose words are w0, w1, ..."""
    tokenizer = HubTokenizer(WordLevel({f"w{token}": token for token in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps({}).encode()}


def tiny_settings(*, rounds: Mapping[str, Any] | None = None, **changes: Any) -> ServerSettings:
    """Settings for a server in a test: any free port, few rows, and the paper's rounds, in which no clock has a say."""
    how: dict[str, Any] = {"rounds": "barrier", "round_timeout_s": 30.0} | dict(rounds or {})
    defaults: dict[str, Any] = {"port": 0, "max_streams": 4, "max_length": CONTEXT, "scheduler": "goodspeed"}
    return ServerSettings(**defaults | changes, rounds=RoundSettings(**how))


def tiny_server(settings: ServerSettings | None = None, tokenizer: Files | None = None) -> VerificationServer:
    """A server of the tiny Llama."""
    with measured_once():
        return VerificationServer(settings or tiny_settings(), tiny_llama(), tokenizer or tiny_tokenizer())


@contextlib.asynccontextmanager
async def serving(settings: ServerSettings | None = None) -> AsyncIterator[tuple[VerificationServer, str]]:
    """Serve the tiny Llama; yields the server and its address."""
    server = tiny_server(settings)
    async with server.listen() as address:
        yield server, address


class Peer:
    """An agent reduced to its messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, message: AgentMessage | bytes | str) -> None:
        await self.connection.send(message if isinstance(message, bytes | str) else encode(message))

    async def receive(self) -> ServerMessage:
        frame = await self.connection.recv()
        assert isinstance(frame, bytes)
        return decode_server(frame)

    async def expect(self, kind: type[MessageT]) -> MessageT:
        message = await self.receive()
        while isinstance(message, Queued) and kind is not Queued:
            message = await self.receive()
        assert isinstance(message, kind), message
        return message

    async def greet(self, **changes: object) -> Welcome:
        hello = {"protocol": PROTOCOL_VERSION, "role": "agent", "name": "test"} | changes
        await self.send(Hello(**hello))  # type: ignore[arg-type]
        return await self.expect(Welcome)

    async def open(
        self,
        stream: int,
        prompt: Sequence[int],
        *,
        max_new_tokens: int = 8,
        max_draft: int = 4,
        params: SamplingParams = GREEDY,
    ) -> Opened:
        await self.send(Open(stream, list(prompt), len(prompt), params, max_new_tokens, max_draft, True))
        while True:
            match await self.receive():
                case Opened() as opened:
                    return opened
                case Queued():
                    continue
                case Failure(code="unknown_stream"):
                    continue  # a draft of the text before, which its last verdict met on the way
                case message:
                    raise AssertionError(message)

    async def generate(
        self,
        stream: int,
        prompt: Sequence[int],
        guess: Sequence[int] = (),
        *,
        max_new_tokens: int = 8,
        max_draft: int = 4,
        params: SamplingParams = GREEDY,
    ) -> list[int]:
        """Generate on a link with one stream, drafting from `guess`, a continuation that may be right or wrong."""
        opened = await self.open(stream, prompt, max_new_tokens=max_new_tokens, max_draft=max_draft, params=params)
        return await self.go_on(opened, prompt, guess)

    async def go_on(self, opened: Opened, prompt: Sequence[int], guess: Sequence[int] = ()) -> list[int]:
        """Generate a stream that has been opened to its end."""
        stream, transcript, budget = opened.stream, Transcript(prompt), opened.budget
        while transcript.finish is None:
            done = transcript.length - len(prompt)
            drafted = list(guess[done : done + budget]) if budget else []
            if budget:
                await self.send(Draft(stream, transcript.length, drafted))
            verdict = await self.expect(Verdict)
            transcript.apply(verdict, drafted)
            budget = verdict.budget
        return transcript.generated

    async def close(self, stream: int) -> None:
        await self.send(Close(stream))

    async def failure(self) -> Failure:
        return await self.expect(Failure)


@contextlib.asynccontextmanager
async def linked(address: str, *, greet: bool = True) -> AsyncIterator[Peer]:
    """A peer linked to a server, its handshake done unless told otherwise."""
    async with connect(address, compression=None, max_size=None) as connection:
        peer = Peer(connection)
        if greet:
            await peer.greet()
        yield peer
