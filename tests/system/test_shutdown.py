"""What becomes of those who are linked to a real server when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

from goodspeed.credentials import ROLE_HEADER
from goodspeed.messages import PROTOCOL_VERSION, Draft, Goodbye, Hello, Open, ServerMessage, Verdict
from goodspeed.stream import Transcript
from goodspeed.traces import read_trace
from goodspeed_server.monitor import fetch_snapshot, snapshots
from tests.serving import GREEDY, Peer, linked
from tests.system.forked import Forked
from tests.system.hanging import HANGS_AT
from tests.system.processes import (
    ENVIRONMENT,
    address_of,
    complete,
    ctl,
    get,
    reaped,
    server,
    start_agent,
    start_server,
)

PROMPT = [5, 6, 7]


async def wait_for_streams(address: str, count: int, waiting: int = 0) -> None:
    async with contextlib.aclosing(snapshots(address)) as arriving:
        async for snapshot in arriving:
            if (snapshot.streams, snapshot.waiting) == (count, waiting):
                return


async def refused_at(address: str) -> tuple[int, str | None]:
    """What an agent that comes now is answered: the status, and when to come back."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(address)
    response = refused.value.response
    return response.status_code, response.headers.get("Retry-After")


async def closed_with(peer: Peer) -> int | None:
    with pytest.raises(ConnectionClosed) as closed:
        await peer.receive()
    return None if closed.value.rcvd is None else closed.value.rcvd.code


async def test_who_stays_is_served_to_the_end_and_nothing_else_is_begun() -> None:
    # Nobody is verified before everybody has drafted, so that nothing ends before its time; nor does the drain.
    options = ("--max-streams", "1", "--scheduler", "goodspeed", "--round-timeout-ms", "1e6", "--drain-s", "3600")
    async with reaped(await start_server(*options)) as process:
        address = await address_of(process)
        ready = address.replace("ws://", "http://") + "/ready"
        async with linked(address) as peer, linked(address) as idle:
            text = await peer.generate(0, PROMPT)
            opened = await peer.open(1, PROMPT)
            await idle.send(Open(0, PROMPT, len(PROMPT), GREEDY, 8, 4))
            await wait_for_streams(address, 1, waiting=1)
            assert await asyncio.to_thread(get, ready) == (200, "ready\n")
            process.send_signal(signal.SIGTERM)

            turned_away = await idle.failure()
            assert (turned_away.stream, turned_away.code, turned_away.retry_after_s) == (0, "overloaded", 10.0)
            for one in (peer, idle):
                assert (await one.expect(Goodbye)).retry_after_s == 1.0
                # Another text, and one that was begun elsewhere.
                for stream, tokens in ((7, PROMPT), (8, [*PROMPT, *text[:3]])):
                    await one.send(Open(stream, tokens, len(PROMPT), GREEDY, 8, 4))
                    failure = await one.failure()
                    assert (failure.stream, failure.code, failure.retry_after_s) == (stream, "overloaded", 10.0)
                    assert "the server is going away" in failure.message
            assert await asyncio.to_thread(get, ready) == (503, "draining: try again in 10 s\n")
            assert await refused_at(address) == (503, "10")
            assert (await fetch_snapshot(address)).draining
            code, shown, _ = await ctl(address, "show")
            assert (code, shown.splitlines()[0].split()[:3]) == (0, ["draining", "begins", "nothing"])
            # Who only says that it looks begins nothing either.
            async with connect(address, additional_headers={ROLE_HEADER: "monitor"}) as connection:
                liar = Peer(connection)
                await liar.send(Hello(PROTOCOL_VERSION, "agent", "liar"))
                assert (await liar.failure()).code == "overloaded"

            assert await peer.go_on(opened, PROMPT) == text
            assert await closed_with(peer) == await closed_with(idle) == CloseCode.GOING_AWAY
        _, complaints = await process.communicate()
    assert process.returncode == 0
    (complaint,) = complaints.decode().splitlines()
    assert "is closed: the server is going away" in complaint, "the liar's, and nothing else went wrong"


@pytest.mark.parametrize("drain_s", ["0", "0.01"])
async def test_a_drain_ends_when_it_is_over_after_the_round_that_runs(drain_s: str) -> None:
    async with reaped(await start_server("--max-streams", "2", "--drain-s", drain_s)) as process:
        address = await address_of(process)
        async with linked(address) as peer:
            # The server decodes this one by itself: when a verdict comes, the next round runs already.
            await peer.open(0, PROMPT, max_draft=0, max_new_tokens=900)
            await peer.expect(Verdict)
            process.send_signal(signal.SIGTERM)
            verdicts: list[Verdict] = []
            others: list[ServerMessage] = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    message = await peer.receive()
                    if isinstance(message, Verdict):
                        verdicts.append(message)
                    else:
                        others.append(message)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == CloseCode.GOING_AWAY
            assert [type(message) for message in others] == [Goodbye]
            assert verdicts
            assert not any(verdict.finish for verdict in verdicts)
        assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


async def test_a_pass_that_never_returns_holds_nobody_up(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    options = ("run", "--port", "0", "--threads", "1", "--max-streams", "2", "--drain-s", "0.1", "--trace", str(trace))
    async with reaped(await Forked.start("tests.system.hanging", *options, environment=ENVIRONMENT)) as process:
        address = await address_of(process)
        async with linked(address) as peer, linked(address) as idle:
            await peer.generate(0, PROMPT)
            await peer.open(1, [*PROMPT, HANGS_AT])
            process.send_signal(signal.SIGTERM)
            for one in (peer, idle):
                assert (await one.expect(Goodbye)).retry_after_s == 1.0
                assert await closed_with(one) == CloseCode.GOING_AWAY
        _, complaints = await process.communicate()
    assert process.returncode == 0
    (complaint,) = complaints.decode().splitlines()
    assert "a pass has not returned in 0.1 s: the server ends without it" in complaint
    assert read_trace(trace).events, "what was to be kept is"


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)],
)
async def test_a_second_signal_ends_it_at_once(first: signal.Signals, second: signal.Signals) -> None:
    options = ("--max-streams", "2", "--scheduler", "goodspeed", "--round-timeout-ms", "1e6", "--drain-s", "3600")
    async with reaped(await start_server(*options)) as process:
        async with linked(await address_of(process)) as peer:
            await peer.open(0, PROMPT)
            process.send_signal(first)
            await peer.expect(Goodbye)
            process.send_signal(second)
            assert await closed_with(peer) is None
        assert await process.wait() == -second


async def test_an_agent_at_work_is_told_and_goes_on_with_the_next_server() -> None:
    options = ("--prompt", "def read_json(path):\n", "--draft", "suffix", "--max-new-tokens", "200", "--ignore-eos")
    served = ("--dtype", "float32", "--max-streams", "2")
    # Nobody is verified before everybody has drafted: the peer's drafts are the pace of all.
    paced = await start_server(*served, "--scheduler", "goodspeed", "--round-timeout-ms", "1e6", "--drain-s", "0")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(reaped(paced))
        address = await address_of(paced)
        agent = await start_agent("complete", "--server", address, "--connect-timeout", "300", *options)
        await stack.enter_async_context(reaped(agent))
        assert agent.stdout is not None
        async with linked(address) as peer:
            opened = await peer.open(0, PROMPT, max_new_tokens=200)
            await wait_for_streams(address, 2)
            begun, transcript = asyncio.create_task(agent.stdout.read(1)), Transcript(PROMPT)
            while not begun.done():
                await peer.send(Draft(opened.stream, transcript.length, []))
                transcript.apply(await peer.expect(Verdict), [])
            paced.send_signal(signal.SIGTERM)
            await peer.expect(Goodbye)
        assert await paced.wait() == 0

        async with server(*served, port=int(address.rsplit(":", 1)[1])):
            output, complaints = await agent.communicate()
            text = (await complete(address, *options))["text"]
    assert agent.returncode == 0
    assert "the server is going away: the server is shutting down" in complaints.decode()
    assert "is there again" in complaints.decode()
    assert (begun.result() + output).decode().removesuffix("\n") == text.removesuffix("\n")
