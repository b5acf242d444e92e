"""The monitor and the demo where their output is piped: plain lines, nothing that only a terminal understands."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable
from typing import Any

import pytest
import typer
from rich.console import Console

from bench import demo, processes
from bench.processes import Process
from goodspeed.errors import GoodSpeedError
from tests.system.forked import Forked
from tests.system.processes import ENVIRONMENT, complete, forking, reaped, start_server

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
    output = io.StringIO()
    async with forking() as (fork, started):

        def start(module: str, *arguments: str, **how: Any) -> Awaitable[Process]:
            """One of the agents that load a model finds all that it needs by itself, as in a shell."""
            as_in_a_shell = "pico-draft-s" in arguments
            return (processes.start if as_in_a_shell else fork)(module, *arguments, **how)

        await demo.show(Console(file=output, width=200), max_new_tokens=8, timeout_s=300.0, start=start)
        assert await started[0].stderr.read() == b"", "the server has nothing to complain of"
    shown = output.getvalue()
    assert "\x1b" not in shown
    agents = re.findall(r"^│ (\S+) +│ +3 │ +\d+ │ +[\d.]+ │ +(?:\d+%|-) │ +[\d.]+ │$", shown, re.MULTILINE)
    assert len(agents) >= 5
    assert re.findall(r"^╭─ \S+, drafted by (\S+) ─", shown, re.MULTILINE) == agents
    assert re.search(r"^server: \d+ tokens in \d+ rounds", shown, re.MULTILINE)
    assert re.search(rf"^lossless: {len(agents)} drafters, .* token for token one text$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(TimeoutError(), "it took longer than 9 s"), (GoodSpeedError("the server did not start"), "the server did not")],
)
def test_a_demo_that_fails_says_why(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def show(*_: object) -> None:
        raise error

    monkeypatch.setattr(demo, "show", show)
    with pytest.raises(typer.Exit) as ended:
        demo.main(timeout_s=9.0)
    assert ended.value.exit_code == 1
    assert f"the demo failed: {sentence}" in capsys.readouterr().out
