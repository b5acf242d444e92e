"""What becomes of those who are linked to a real server when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

from goodspeed.messages import Draft, Goodbye, Verdict
from goodspeed.stream import Transcript
from goodspeed_server.monitor import snapshots
from tests.serving import linked
from tests.system.processes import address_of, complete, get, reaped, server, start_agent, start_server

PROMPT = [5, 6, 7]


async def wait_for_streams(address: str, count: int) -> None:
    async with contextlib.aclosing(snapshots(address)) as arriving:
        async for snapshot in arriving:
            if snapshot.streams == count:
                return


async def test_sigterm_finishes_the_round_and_says_goodbye() -> None:
    async with reaped(await start_server("--max-streams", "2")) as process:
        address = await address_of(process)
        ready = address.replace("ws://", "http://") + "/ready"
        async with linked(address) as peer, linked(address) as silent:
            # It never answers the close, so that the server is still there to be looked at.
            silent.connection.transport.pause_reading()
            assert await asyncio.to_thread(get, ready) == (200, "ready\n")

            # The server decodes this one by itself: when a verdict comes, the next round runs already.
            await peer.open(0, PROMPT, max_draft=0, max_new_tokens=400)
            await peer.expect(Verdict)
            process.send_signal(signal.SIGTERM)
            await peer.expect(Verdict)
            while isinstance(message := await peer.receive(), Verdict):
                pass
            assert isinstance(message, Goodbye)
            assert message.retry_after_s is not None
            with pytest.raises(ConnectionClosed) as closed:
                await peer.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == CloseCode.GOING_AWAY

            assert await asyncio.to_thread(get, ready) == (503, "draining\n")
            with pytest.raises(InvalidStatus) as refused:
                await connect(address)
            assert refused.value.response.status_code == 503
            silent.connection.transport.abort()
        _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")


async def test_an_agent_at_work_is_told_and_goes_on_with_the_next_server() -> None:
    options = ("--prompt", "def read_json(path):\n", "--draft", "suffix", "--max-new-tokens", "200", "--ignore-eos")
    served = ("--dtype", "float32", "--max-streams", "2")
    # Nobody is verified before everybody has drafted: the peer's drafts are the pace of all.
    paced = await start_server(*served, "--scheduler", "goodspeed", "--round-timeout-ms", "1e6")
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
