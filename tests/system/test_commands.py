"""The commands, as a person types them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.system.forked import start_with
from tests.system.processes import (
    ENVIRONMENT,
    address_of,
    agent,
    complete,
    get,
    reaped,
    server,
    start_agent,
    start_server,
)

PROMPT = "def read_json(path):\n"


async def test_an_address_is_all_an_agent_needs(tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"id": n, "prompt": PROMPT, "seed": n}) + "\n" for n in range(3)))
    # A schedule that drafts whether it pays or not.
    async with server("--scheduler=goodspeed") as address:
        result = await complete(address, "--prompt", PROMPT, "--max-new-tokens", "24")
        code, streamed, _ = await agent(
            "complete", "--server", address, "--draft", "suffix", "--prompt", PROMPT, "--max-new-tokens", "24"
        )
        assert code == 0
        code, _, complaints = await agent(
            "run", "--server", address, "--draft", "none", "--prompts", str(prompts), "--output", str(output),
            "--max-new-tokens", "24", "--temperature", "1",
        )  # fmt: skip
        assert code == 0, complaints
        http = address.replace("ws://", "http://")
        answers = await asyncio.gather(
            *(asyncio.to_thread(get, http + path) for path in ("/health", "/ready", "/else"))
        )
    assert [code for code, _ in answers] == [200, 200, 404]
    assert set(result) == {"text", "tokens", "finish_reason", "usage", "speculative"}
    assert result["usage"]["completion_tokens"] == len(result["tokens"]) == 24
    assert result["speculative"]["num_draft_tokens"] >= result["speculative"]["num_accepted_tokens"] > 0
    assert streamed.rstrip("\n") == result["text"].rstrip("\n")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2]
    assert len({line["text"] for line in lines}) == 3


async def test_any_openai_client_is_served_on_this_machine() -> None:
    async with server() as address:
        async with reaped(await start_agent("serve", "--server", address, "--draft", "suffix", "--port", "0")) as api:
            line = (await api.stdout.readline()).decode()
            assert line.startswith("serving pico-target at http://127.0.0.1:"), line
            async with AsyncOpenAI(base_url=line.split()[-1], api_key="none") as client:
                answer = await client.completions.create(
                    model="pico-target", prompt=PROMPT, max_tokens=24, temperature=0, extra_body={"ignore_eos": True}
                )
            api.terminate()
            _, complaints = await api.communicate()
            assert (api.returncode, complaints.decode()) == (
                143, "goodspeed-agent: no more requests; the texts that were being written have ended\n"
            )  # fmt: skip
        expected = await complete(
            address, "--prompt", PROMPT, "--draft", "none", "--max-new-tokens", "24", "--ignore-eos"
        )
    assert answer.choices[0].text == expected["text"]


async def test_top_shows_a_real_server() -> None:
    async with server() as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goodspeed_server", "top", address, "--once", "--json",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
    snapshot = json.loads(output)
    assert (process.returncode, snapshot["model"], snapshot["streams"]) == (0, "pico-target", 0)


@contextlib.asynccontextmanager
async def in_a_terminal(*arguments: str) -> AsyncIterator[tuple[ForkServerProcess, bytearray]]:
    """A `goodspeed-server` on a terminal, once its monitor is drawn, and what the terminal is told; all, at the end."""
    controller, terminal = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm-256color", "LINES": "30", "COLUMNS": "110"}
    process = start_with(dict.fromkeys(range(3), terminal), "goodspeed_server", *arguments, environment=environment)
    os.close(terminal)
    loop, drawn, shown = asyncio.get_running_loop(), asyncio.Event(), bytearray()

    def read_to_the_end() -> None:
        # A terminal that nobody reads from would block whoever draws on it.
        with contextlib.suppress(OSError):  # how a terminal says that its last writer has gone
            while piece := os.read(controller, 4096):
                shown.extend(piece)
                if b"verify" in shown:
                    loop.call_soon_threadsafe(drawn.set)

    reading = asyncio.create_task(asyncio.to_thread(read_to_the_end))
    try:
        await asyncio.wait([reading, asyncio.create_task(drawn.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert drawn.is_set(), shown.decode(errors="replace")
        yield process, shown
    finally:
        process.kill()
        await exit_code(process)
        await reading
        os.close(controller)


async def exit_code(process: ForkServerProcess) -> int | None:
    await asyncio.to_thread(process.join)
    return process.exitcode


async def hung_up(process: ForkServerProcess) -> int | None:
    """Its exit status, when its terminal has gone."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGHUP)
    return await exit_code(process)


async def test_monitors_draw_in_a_terminal_and_give_it_back_when_it_hangs_up() -> None:
    run = ("run", "--port", "0", "--threads", "1", "--max-streams", "2", "--monitor")
    async with in_a_terminal(*run) as (process, shown):
        listening = re.search(rb"listening on (ws://\S+)", shown)
        assert listening is not None
        async with in_a_terminal("top", listening[1].decode()) as (top, picture):
            assert await hung_up(top) == -signal.SIGHUP
        assert await hung_up(process) == 0
    for screen in (picture, shown):
        assert screen.endswith(b"\x1b[?25h\x1b[?1049l"), bytes(screen[-200:])


async def test_a_server_that_cannot_start_says_why() -> None:
    process = await start_server("--scheduler", "lottery")
    output, complaints = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    assert complaints.startswith(
        b"goodspeed-server: scheduler 'lottery' does not exist: choose auto, seconds, goodspeed"
    )
    assert b"Traceback" not in complaints


async def test_a_second_signal_ends_a_server_at_once() -> None:
    process = await start_server()
    await address_of(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--server", "ws://127.0.0.1:9", "--prompt", "x", "--draft", "suffix", "--connect-timeout", "0.1"),
            "check the address",
        ),
        (("--server", "http://[", "--prompt", "x"), "is no server address"),
        (("--server", "ws://127.0.0.1:9", "--prompt", "x", "--temperature", "-1"), "temperature is -1"),
        (("--server", "ws://127.0.0.1:9", "--prompt", "x", "--draft", "no-such-draft"), "neither bundled"),
    ],
)
async def test_an_agent_that_cannot_work_says_why(options: tuple[str, ...], sentence: str) -> None:
    code, output, complaints = await agent("complete", *options)
    assert code != 0
    assert output == ""
    assert sentence in complaints
    assert "Traceback" not in complaints
