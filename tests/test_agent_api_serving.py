"""Whoever leaves in the middle of an answer: the client, the agent, or the server."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import openai
import pytest

from goodspeed_agent.api import serving as serving_module
from tests.api_world import MODEL, PROMPT, api, held, send


@pytest.mark.parametrize("when", ["before anything is answered", "at the first chunk"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_its_texts_at_the_server(when: str, stream: bool, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 90, "stream": stream, "ignore_eos": True, "n": 3}
    async with api(tmp_path) as here:
        for _ in range(3):
            # Nothing is drafted meanwhile, so that the texts are under way for as long as needed.
            go_on = asyncio.Event()
            if when == "at the first chunk":
                go_on.set()
            async with held(here, go_on):
                reader, writer = await send(here.port, body)
                await here.streams(3)
                if stream and go_on.is_set():
                    await reader.readuntil(b"data: ")
                go_on.clear()
                writer.transport.abort()
                await here.streams(0)
        # What was being guessed for a text that nobody wants any more ends a step later.
        while "goodspeed_num_requests_running 0.0" not in (await here.raw("/metrics"))[2].decode():
            await asyncio.sleep(0)
        assert not here.agent.link._channels


async def test_texts_that_are_still_written_when_the_agent_ends_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "_DRAIN_S", 0.05)
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 90, "stream": True, "ignore_eos": True}
    async with api(tmp_path) as here:
        go_on = asyncio.Event()
        go_on.set()
        async with held(here, go_on):
            reader, writer = await send(here.port, body)
            await reader.readuntil(b"data: ")
            go_on.clear()
            here.serving.cancel()
            rest = await reader.read()
            writer.close()
            with contextlib.suppress(asyncio.CancelledError):
                await here.serving
    assert b"the agent was told to end" in rest
    assert b"[DONE]" not in rest


async def test_a_body_that_never_ends_is_nobodys_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with api(tmp_path) as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
        assert (await here.raw("/health"))[0] == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_link_that_is_lost_for_good_ends_the_api_and_says_so_before(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        begun = asyncio.create_task(
            here.client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=100, extra_body={"ignore_eos": True})
        )
        async with held(here):
            await here.streams(1)
            here.server._drain.begin()  # nobody is let in any more
            for link in list(here.server._links):
                link.abort()
            assert type(await here.agent.link.over()).__name__ == "LinkLost"
        with pytest.raises(openai.InternalServerError, match="no link to"):
            await begun
