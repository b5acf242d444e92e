"""What agents do without meaning harm, and what those who do mean it try: nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from goodspeed.messages import Draft, GetTokenizer, Goodbye, Open, Opened, Snapshot, Tokenizer, Verdict
from goodspeed_server.observer import RoundRecord
from goodspeed_server.settings import DoorSettings
from goodspeed_server.verifier import Outcome, Pass, Verifier
from tests.serving import GREEDY, linked, serving, tiny_server, tiny_settings, tiny_tokenizer
from tests.test_server import PROMPT, target_text


async def test_a_defect_of_ours_costs_one_link_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (server, address), linked(address) as other:
        opened = await other.open(0, PROMPT)
        async with linked(address) as peer:
            with monkeypatch.context() as patch:
                patch.setattr(server._rounds, "open", lambda *_: 1 / 0)
                await peer.send(Open(0, [1, 2, 3], 3, GREEDY, 8, 4))
                failure = await peer.failure()
            assert (failure.code, failure.message) == ("error", "the server failed; its log says where")
            with pytest.raises(ConnectionClosed) as closed:
                await peer.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
        assert await other.go_on(opened, PROMPT) == target_text(PROMPT, 8)
    assert "ZeroDivisionError" in caplog.text


async def test_all_monitors_are_shown_one_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_server.showing.SNAPSHOT_INTERVAL_S", 3600.0)
    async with serving() as (server, address), contextlib.AsyncExitStack() as stack:
        monitors = [await stack.enter_async_context(linked(address, greet=False)) for _ in range(5)]
        for monitor in monitors:
            await monitor.greet(role="monitor")
        shown = [await monitor.expect(Snapshot) for monitor in monitors]
        assert shown == [shown[0]] * 5
        assert server.snapshot().to_json() != shown[0].snapshot


@pytest.mark.parametrize("max_draft", [0, 4])
async def test_a_link_that_goes_takes_its_queued_streams_along(max_draft: int) -> None:
    async with serving(tiny_settings(max_streams=1)) as (server, address):
        async with linked(address) as leaving:
            await leaving.open(0, PROMPT, max_new_tokens=80)
            queued = asyncio.create_task(leaving.open(1, PROMPT, max_new_tokens=80, max_draft=max_draft))
            while server.snapshot().waiting == 0:
                await asyncio.sleep(0)
            queued.cancel()
        async with linked(address) as other:
            assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        assert server.snapshot().waiting == 0


async def test_an_agent_that_never_drafts_is_decoded_and_gives_its_row_back() -> None:
    settings = tiny_settings(max_streams=1, rounds={"round_timeout_s": 0.02})
    async with serving(settings) as (_, address), linked(address) as silent, linked(address) as other:
        opened = await silent.open(0, PROMPT, max_new_tokens=3)
        assert opened.budget > 0
        # Not one draft: the row is given back after three overdue ones, and the other stream gets it.
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        verdicts = [await silent.expect(Verdict) for _ in range(3)]
        assert [token for verdict in verdicts for token in verdict.tokens] == target_text(PROMPT, 3)
        assert verdicts[-1].finish == "length"


async def test_a_draft_that_comes_when_it_is_overdue_is_stale() -> None:
    settings = tiny_settings(rounds={"round_timeout_s": 0.02})
    async with serving(settings) as (_, address), linked(address) as peer:
        opened = await peer.open(0, PROMPT, max_new_tokens=40)
        first = await peer.expect(Verdict)
        await peer.send(Draft(0, opened.base, target_text(PROMPT, opened.budget)))
        answer = await peer.expect(Verdict)
        while answer.base != opened.base:  # more of them may have become overdue meanwhile
            answer = await peer.expect(Verdict)
        assert answer.accepted == 0
        assert answer.tokens[:1] == first.tokens == target_text(PROMPT, 1)


async def test_a_draft_that_comes_while_the_pass_runs_without_it_teaches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, running, may_go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    verify = Verifier.run

    def verify_when_allowed(self: Verifier, work: Pass) -> Outcome:
        if work.turns:
            loop.call_soon_threadsafe(running.set)
            may_go_on.wait()
        return verify(self, work)

    monkeypatch.setattr(Verifier, "run", verify_when_allowed)
    settings = tiny_settings(rounds={"round_timeout_s": 0.02})
    async with serving(settings) as (server, address), linked(address) as peer:
        try:
            opened = await peer.open(0, PROMPT)
            (live,) = server._rounds.live
            before = live.estimator.alpha, live.pace.draft_s, live.pace.turnaround_s
            await running.wait()
            await peer.send(Draft(0, opened.base, target_text(PROMPT, opened.budget)))
            await peer.send(Draft(1, 0, []))
            assert (await peer.failure()).code == "unknown_stream", "and the draft before it has been dealt with"
        finally:
            may_go_on.set()
        verdict = await peer.expect(Verdict)
        assert (verdict.base, verdict.accepted, verdict.tokens) == (opened.base, 0, target_text(PROMPT, 1))
        assert (live.estimator.alpha, live.pace.draft_s, live.pace.turnaround_s) == before


async def test_no_pass_carries_more_drafts_than_the_capacity(records: list[RoundRecord]) -> None:
    text = target_text(PROMPT, 40)
    settings = tiny_settings(max_streams=8, rounds={"capacity": 8})
    async with serving(settings) as (_, address), linked(address) as peer:
        opened = [await peer.open(stream, PROMPT, max_new_tokens=40, max_draft=8) for stream in range(8)]
        assert sum(message.budget for message in opened) <= 8
        lengths = {message.stream: message.base for message in opened}
        finished = 0
        for message in opened:
            if message.budget:
                await peer.send(Draft(message.stream, message.base, text[: message.budget]))
        while finished < 8:
            verdict = await peer.expect(Verdict)
            stream = verdict.stream
            lengths[stream] = verdict.base + verdict.accepted + len(verdict.tokens)
            finished += verdict.finish is not None
            if verdict.budget and not verdict.finish:
                done = lengths[stream] - len(PROMPT)
                await peer.send(Draft(stream, lengths[stream], text[done : done + verdict.budget]))
    assert max(record.drafted for record in records) <= 8
    assert any(record.drafted for record in records)


async def test_a_short_prompt_does_not_wait_for_a_long_one(records: list[RoundRecord]) -> None:
    settings = tiny_settings(rounds={"prefill_chunk": 4})
    async with serving(settings) as (_, address), linked(address) as peer:
        await peer.open(0, [index % 97 for index in range(90)], max_draft=0, max_new_tokens=2)
        await peer.open(1, PROMPT[:3], max_draft=0, max_new_tokens=2)
        verdict = await peer.expect(Verdict)
        assert verdict.stream == 1
    assert all(record.prefilled <= 4 for record in records)


async def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_server.outgoing._MAX_QUEUED", 4)
    async with serving() as (server, address), linked(address) as peer:
        await peer.open(0, PROMPT)
        (link,) = server._links
        while not link._dropped:
            link.post(Goodbye("x" * 4000))
        with pytest.raises(ConnectionClosed):
            while True:
                await peer.receive()
        async with linked(address) as other:
            assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)


async def test_closing_in_order_finishes_the_round_and_says_goodbye() -> None:
    text = target_text(PROMPT, 8)
    server = serving()
    _, address = await server.__aenter__()
    async with linked(address) as peer:
        opened = await peer.open(0, PROMPT, max_new_tokens=40)
        await peer.send(Draft(0, opened.base, text[: opened.budget]))
        assert (await peer.expect(Verdict)).accepted == opened.budget
        closing = asyncio.create_task(server.__aexit__(None, None, None))
        assert (await peer.expect(Goodbye)).retry_after_s is not None
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        await closing
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_the_tokenizer_is_sent_once_a_link() -> None:
    async with serving() as (_, address), linked(address) as peer:
        await peer.send(GetTokenizer())
        await peer.expect(Tokenizer)
        await peer.send(GetTokenizer())
        assert (await peer.failure()).code == "protocol_error"


async def test_a_message_in_pieces_has_an_end() -> None:
    """Empty ones are none of its bytes, and were kept for as long as they came."""
    door = DoorSettings(messages_per_s=1e9)
    async with asyncio.timeout(60), serving(tiny_settings(door=door)) as (_, address), linked(address) as peer:
        peer.connection.transport.write(b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 5000)
        with pytest.raises(ConnectionClosed) as caught:
            await peer.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == CloseCode.MESSAGE_TOO_BIG


async def test_of_a_tokenizer_no_more_is_copied_than_its_peer_reads() -> None:
    files = tiny_tokenizer() | {"tokenizer_config.json": b" " * 2**24 + b"{}"}
    server = tiny_server(tokenizer=files)
    async with asyncio.timeout(60), server.listen() as address, linked(address) as peer:
        peer.connection.transport.pause_reading()
        await peer.send(GetTokenizer())
        (link,) = server._links
        while not link.connection.paused:
            await asyncio.sleep(0)
        assert link.connection.transport.get_write_buffer_size() < 2**18
        peer.connection.transport.resume_reading()
        assert (await peer.expect(Tokenizer)).files == files
        assert await peer.generate(0, PROMPT) == target_text(PROMPT, 8)


async def test_an_engine_that_fails_ends_the_server_and_cuts_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        async with serving() as (_, address), linked(address) as peer:
            monkeypatch.setattr("goodspeed.engine.Engine.forward", fail)
            await peer.open(0, PROMPT, max_draft=0)
            with pytest.raises(ConnectionClosed):
                await peer.expect(Opened)
