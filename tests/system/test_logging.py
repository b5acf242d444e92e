"""A server's and an agent's standard error where logs are JSON lines: every one of them is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from openai import AsyncOpenAI

from tests.system.forked import Forked
from tests.system.processes import ENVIRONMENT, agent, reaped, start_agent, start_server

PROMPT = "import os\n"


def lines(output: bytes | str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in found)
    return found


async def lines_until(stream: asyncio.StreamReader, beginning: str) -> tuple[list[dict[str, Any]], str]:
    """Lines, up to the one that begins so; and what that one says."""
    found: list[dict[str, Any]] = []
    while not found or not found[-1]["message"].startswith(beginning):
        line = await stream.readline()
        assert line, found
        found += lines(line)
    return found, found[-1]["message"]


async def test_every_line_is_json_and_says_what_it_is_about() -> None:
    async with reaped(await start_server("--log-json", "--verbose")) as process:
        of_server, listening = await lines_until(process.stderr, "listening on ")
        address = listening.split()[-1]
        options = ("--server", address, "--draft", "none", "--name", "edge-7", "--port", "0", "--log-json", "--verbose")
        async with reaped(await start_agent("serve", *options)) as api:
            of_agent, serving = await lines_until(api.stderr, "serving pico-target at ")
            url = serving.split()[-1]
            async with AsyncOpenAI(base_url=url, api_key="none") as client:
                await client.completions.create(model="pico-target", prompt=PROMPT, max_tokens=4)
            api.terminate()
            output, complaints = await api.communicate()
            assert output == b""
            of_agent += lines(complaints)
        process.terminate()
        output, complaints = await process.communicate()
        assert output == b""
        of_server += lines(complaints)
    assert (api.returncode, process.returncode) == (143, 0)

    (ended,) = [line for line in of_server if line["message"].startswith("a text ends (")]
    assert (ended["agent"], ended["stream"]) == ("edge-7", 1)
    assert ended["round"] >= 1
    (linked,) = [line for line in of_server if "has linked up" in line["message"]]
    assert (linked["agent"], "stream" in linked) == ("edge-7", False)

    assert {line["agent"] for line in of_agent} == {"edge-7"}
    (ended,) = [line for line in of_agent if line["message"].startswith("a text ends (")]
    assert ended["stream"] == 1
    (access,) = [line for line in of_agent if line["logger"] == "uvicorn.access"]
    assert '"POST /v1/completions HTTP/1.1" 200' in access["message"]
    assert of_agent[-1]["message"] == "no more requests; the texts that were being written have ended"


async def test_what_cannot_start_says_so_in_a_line_too() -> None:
    # As a unit or an image asks for it.
    environment = ENVIRONMENT | {"GOODSPEED_LOG_JSON": "1"}
    start = await Forked.start("goodspeed_server", "run", "--scheduler", "lottery", environment=environment)
    async with reaped(start) as process:
        output, complaints = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    (line,) = lines(complaints)
    assert line["level"] == "ERROR"
    assert line["message"].startswith("scheduler 'lottery' does not exist: choose auto")

    code, _, told = await agent("serve", "--server", "nowhere", "--log-json")
    (line,) = lines(told)
    assert code == 2
    assert "'nowhere' is no server address" in line["message"]
