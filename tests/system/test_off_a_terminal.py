"""The monitor and the demo where their output is piped: plain lines, nothing that only a terminal understands."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE

from tests.system.forked import Forked
from tests.system.processes import ENVIRONMENT, REPOSITORY, complete, reaped, start_server

PLAIN_LINE = re.compile(r"up .+ \| .+ rounds/s \| agents \d+, streams \d+, waiting \d+ \| .+ \| \d+ tokens\n")


async def start_top(address: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_server", "top", address, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT
    )


async def ended(process: asyncio.subprocess.Process | Forked, number: signal.Signals) -> list[str]:
    """Have it end, see that it does so without a complaint, and give the lines nobody has read yet."""
    process.send_signal(number)
    output, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    return output.decode().splitlines(keepends=True)


async def lines_until(output: asyncio.StreamReader, sign: str) -> list[str]:
    """Whole lines, up to the first in which there is this sign."""
    lines: list[str] = []
    async with asyncio.timeout(120):  # A monitor that never says so fails the test rather than hold it up for ever.
        while not lines or sign not in lines[-1]:
            lines.append((await output.readline()).decode())
            assert lines[-1], lines
    return lines


async def test_monitors_write_plain_lines_into_a_pipe() -> None:
    async with reaped(await start_server("--monitor", "--max-streams", "2")) as process:
        assert process.stdout is not None
        lines = await lines_until(process.stdout, "listening on ")
        address = lines.pop().removeprefix("listening on ").strip()
        async with reaped(await start_top(address)) as top:
            assert top.stdout is not None
            lines += await lines_until(top.stdout, "agents 0")
            options = ("--draft", "none", "--prompt", "import os\n", "--max-new-tokens", "24")
            tokens = (await complete(address, *options))["usage"]["completion_tokens"]
            for output in (process.stdout, top.stdout):
                lines += await lines_until(output, f"| {tokens} tokens")
            lines += await ended(top, signal.SIGINT)
        lines += await ended(process, signal.SIGTERM)
    assert [line for line in lines if not PLAIN_LINE.fullmatch(line)] == []


async def test_the_demo_shows_agents_texts_and_a_summary() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.demo", "--max-new-tokens", "8", "--timeout-s", "300",
        stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, cwd=REPOSITORY,
    )  # fmt: skip
    async with reaped(process):
        output, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    shown = output.decode()
    assert "\x1b" not in shown
    agents = re.findall(r"^│ (\S+) +│ +3 │ +\d+ │ +[\d.]+ │ +(?:\d+%|-) │ +[\d.]+ │$", shown, re.MULTILINE)
    assert len(agents) >= 5
    assert re.findall(r"^╭─ \S+, drafted by (\S+) ─", shown, re.MULTILINE) == agents
    assert re.search(r"^server: \d+ tokens in \d+ rounds", shown, re.MULTILINE)
    assert re.search(rf"^lossless: {len(agents)} drafters, .* token for token one text$", shown, re.MULTILINE)
