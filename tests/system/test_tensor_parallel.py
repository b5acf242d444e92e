"""A target that two processes share writes one's texts, and its server ends when either of them is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
from typer.testing import CliRunner

from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.cli import app
from tests.system.forked import Forked
from tests.system.processes import ENVIRONMENT, address_of, reaped, server, start_server
from tests.system.test_lossless import PROMPTS, TEXTS, WARM, agent, drafted, loaded, target_alone, write_at_once

OPTIONS = ("--dtype", "float32", "--scheduler", "goodspeed", "--round-timeout-ms", "50")
SHARED = (*OPTIONS, "--tensor-parallel", "2")
DRAFTERS = ("none", "suffix", "pico-draft-l-tuned")
LONG = TextRequest(PROMPTS[0], WARM, max_new_tokens=200, ignore_eos=True)


def others(process: Forked) -> list[psutil.Process]:
    """The ranks that a server has started."""
    return [child for child in psutil.Process(process.pid).children() if "goodspeed_server.follower" in child.cmdline()]


async def gone(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, 60)


def once_begun(begun: asyncio.Event) -> Callable[[Piece], None]:
    def heard(piece: Piece) -> None:
        if piece.tokens:
            begun.set()

    return heard


async def test_every_drafter_writes_transformers_own_text_and_the_ranks_end_with_the_server(tmp_path: Path) -> None:
    expected = [target_alone(text.prompt, text.params) for text in TEXTS]
    async with reaped(await start_server(*SHARED, "--max-streams", str(len(DRAFTERS) * len(TEXTS)))) as process:
        address = await address_of(process)
        company = await asyncio.gather(*(write_at_once(agent(address, drafter, tmp_path)) for drafter in DRAFTERS))
        (rank,) = others(process)
        rank.terminate()  # as a terminal or a service manager tells all of them; when to end, only the server decides
        process.terminate()
        complaints = (await process.communicate())[1]
        await gone(rank)
    for drafter, texts in zip(DRAFTERS, company, strict=True):
        assert [text.tokens for text in texts] == expected, drafter
    assert sum(map(drafted, company)) > 0
    assert (process.returncode, complaints) == (0, b"")


async def test_a_rank_that_dies_ends_the_server_and_its_agents_move_on(tmp_path: Path) -> None:
    """To a server that has the target as a whole, which is the same one."""
    begun = asyncio.Event()
    async with reaped(await start_server(*SHARED)) as first, server(*OPTIONS) as second:
        servers = [await address_of(first), second]
        (rank,) = others(first)
        async with Agent(servers, loaded("suffix"), cache=TokenizerCache(tmp_path)) as it:
            writing = asyncio.create_task(it.complete(LONG, once_begun(begun)))
            await begun.wait()
            rank.kill()
            assert await first.wait() == 1
            complaints = (await first.stderr.read()).decode()
            interrupted = await writing
            assert it.link.reconnections == 1
            assert (await it.complete(LONG)).tokens == interrupted.tokens
    assert (
        "goodspeed-server: rank 1 of the target's 2 was killed by SIGKILL, and no other can go on without it: start "
        "the server again" in complaints
    )
    assert "Traceback" not in complaints


async def test_a_rank_that_dies_is_missed_though_nobody_writes() -> None:
    async with reaped(await start_server(*SHARED)) as process:
        await address_of(process)
        (rank,) = others(process)
        rank.kill()
        complaints = (await process.communicate())[1]
    assert process.returncode == 1
    assert b"rank 1 of the target's 2 was killed by SIGKILL" in complaints
    assert b"Traceback" not in complaints


async def test_no_rank_outlives_a_server_that_is_killed() -> None:
    async with reaped(await start_server(*SHARED)) as process:
        await address_of(process)
        (rank,) = others(process)
        process.kill()
        await gone(rank)


async def test_torchrun_may_start_the_ranks(tmp_path: Path) -> None:
    run = ("-m", "goodspeed_server", "run", "--port", "0", "--max-streams", "4", *OPTIONS)
    command = ("--standalone", "--nproc-per-node", "2", *run)
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"}
    async with reaped(await Forked.start("torch.distributed.run", *command, environment=environment)) as process:
        address = await address_of(process)
        workers = psutil.Process(process.pid).children()
        async with agent(address, "suffix", tmp_path) as it:
            texts = [await it.complete(text) for text in TEXTS]
        process.terminate()
        await process.communicate()
        for worker in workers:
            await gone(worker)
    assert [text.tokens for text in texts] == [target_alone(text.prompt, text.params) for text in TEXTS]
    assert len(workers) == 2


def test_what_cannot_be_shared_is_refused_before_anything_starts() -> None:
    result = CliRunner().invoke(app, ["run", "--port", "0", "--tensor-parallel", "3"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "goodspeed-server: 'pico-target' has 4 heads and 2 of keys and values, and 3 ranks cannot have as many each: "
        "choose --tensor-parallel 1 or 2"
    )
