"""The agent's API before a real server, on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from goodspeed.catalog import Files
from goodspeed_agent.agent import Agent
from goodspeed_agent.api.serving import serve
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.server import VerificationServer
from tests.serving import tiny_server, tiny_settings, tiny_tokenizer
from tests.tiny_models import tiny_llama

MODEL = "tiny"
PROMPT = "w5 w17 w3"
_TLS = ssl.create_default_context()
"""Nothing here is encrypted, but a client reads a machine's certificates all the same: once for all of them."""
TEMPLATE = "{% for message in messages %}w1 {{ message['content'] }} {% endfor %}w2"
MESSAGES: list[Any] = [
    {"role": "system", "content": "w9"},
    {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
]
RENDERED = f"w1 w9 w1 {PROMPT} w2"


@dataclass
class Api:
    client: AsyncOpenAI
    agent: Agent
    server: VerificationServer
    port: int
    serving: asyncio.Task[None]

    async def raw(self, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        how = "GET" if body is None else "POST"
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        writer.write(
            f"{how} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n".encode() + (body or b"")
        )
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return int(status.split()[1]), headers, content

    async def streams(self, count: int) -> None:
        """Wait until the server has so many streams."""
        while len(self.server._rounds.live) != count:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def api(tmp_path: Path, **settings: Any) -> AsyncIterator[Api]:
    files: Files = tiny_tokenizer() | {"tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}).encode()}
    server = tiny_server(tiny_settings(model=MODEL, **settings), files)
    drafter = ModelDrafter(tiny_llama(), "same", None)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    backoff = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=0.05)
    async with (
        server.listen() as address,
        Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=backoff) as agent,
    ):
        serving = asyncio.create_task(serve(agent, "127.0.0.1", 0, ready.set_result))
        url = await ready
        http = DefaultAsyncHttpxClient(verify=_TLS)
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
            yield Api(client, agent, server, int(url.split(":")[2].split("/")[0]), serving)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def send(port: int, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    return reader, writer


@contextlib.asynccontextmanager
async def held(here: Api, go_on: asyncio.Event | None = None) -> AsyncIterator[None]:
    """The agent drafts nothing meanwhile, unless it is told to go on."""
    go_on = go_on or asyncio.Event()
    upon = here.agent._desk.at_once

    async def at_once(work: Any) -> Any:
        await go_on.wait()
        return await upon(work)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(here.agent._desk, "at_once", at_once)
        yield
        go_on.set()
