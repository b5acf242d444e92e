"""Links that break over real sockets: streams go on where they were, and no prompt goes through the target twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from goodspeed.messages import MAX_SESSION_BYTES, Open, Opened, Queued, Verdict, encode
from goodspeed.sampling import SamplingParams
from goodspeed_server.observer import RoundRecord
from goodspeed_server.server import VerificationServer
from goodspeed_server.tokens import TokenStore
from goodspeed_server.verifier import Outcome, Pass, Verifier
from tests.serving import GREEDY, Peer, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text
from tests.test_server_metrics import get, samples

SESSION = b"0123456789abcdef"
WARM = SamplingParams(0.8, 0.95, seed=7)
NEW_TOKENS = 40


def begin(stream: int = 0, written: Iterable[int] = (), params: SamplingParams = GREEDY, max_draft: int = 0) -> Open:
    return Open(stream, [*PROMPT, *written], len(PROMPT), params, NEW_TOKENS, max_draft, True)


@contextlib.asynccontextmanager
async def in_session(address: str, session: bytes = SESSION, token: str | None = None) -> AsyncIterator[Peer]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with connect(address, compression=None, max_size=None, additional_headers=headers) as connection:
        peer = Peer(connection)
        await peer.greet(session=session)
        yield peer


async def written_by(peer: Peer, most: int = NEW_TOKENS) -> list[int]:
    """What comes until the text is at its end, or has so many tokens."""
    tokens: list[int] = []
    while len(tokens) < most:
        verdict = await peer.expect(Verdict)
        tokens += verdict.tokens
        if verdict.finish:
            break
    return tokens


async def until_parked(server: VerificationServer, streams: int) -> None:
    async with asyncio.timeout(60):
        while server.snapshot().parked != streams or server.snapshot().agents:
            await asyncio.sleep(0)


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
@pytest.mark.parametrize("params", [GREEDY, WARM])
async def test_a_stream_goes_on_in_its_row_with_the_text_it_would_have_had(
    params: SamplingParams, rounds: str, records: list[RoundRecord]
) -> None:
    async with serving(tiny_settings(rounds={"rounds": rounds})) as (server, address):
        async with linked(address) as other:
            whole = await other.generate(0, PROMPT, max_new_tokens=NEW_TOKENS, max_draft=0, params=params)
        async with in_session(address) as peer:
            await peer.send(begin(params=params))
            await peer.expect(Opened)
            written = await written_by(peer, 7)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        found = server.snapshot()
        assert (found.streams, found.free_rows, found.parked) == (0, found.rows, 1)
        before = len(records)
        async with in_session(address) as peer:
            # The server was ahead of what its agent had heard, and goes back to that.
            await peer.send(begin(written=written, params=params))
            assert (await peer.expect(Opened)).base == len(PROMPT) + len(written)
            assert written + await written_by(peer) == whole
        assert sum(record.prefilled for record in records[before:]) == 0
        status, text = await asyncio.to_thread(get, address)
    assert status == 200
    assert samples(text)["goodspeed_streams_resumed_total how=parked"] == 1
    assert samples(text)["goodspeed_streams_resumed_total how=transcript"] == 0
    assert samples(text)["goodspeed_streams_parked"] == 0


async def test_a_prompt_is_not_begun_again_where_a_part_of_it_is_cached(
    monkeypatch: pytest.MonkeyPatch, records: list[RoundRecord]
) -> None:
    loop, running, may_go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    verify, passes = Verifier.run, 0

    def verify_when_allowed(self: Verifier, work: Pass) -> Outcome:
        nonlocal passes
        passes += 1
        if passes == 3:
            loop.call_soon_threadsafe(running.set)
            assert may_go_on.wait(timeout=60)
        return verify(self, work)

    monkeypatch.setattr(Verifier, "run", verify_when_allowed)
    settings = tiny_settings(rounds={"rounds": "rolling", "prefill_chunk": 2})
    async with serving(settings) as (server, address):
        try:
            async with in_session(address) as peer:
                await peer.send(begin())
                await running.wait()
                peer.connection.transport.abort()
                await until_parked(server, 1)
            async with in_session(address) as peer:
                # In the middle of the pass that brings tokens 4 and 5 for a stream that is not there any more.
                await peer.send(begin())
                await peer.expect(Opened)
                assert [live.stream.cached for live in server._rounds.live] == [4]
                may_go_on.set()
                assert await written_by(peer) == target_text(PROMPT, NEW_TOKENS)
        finally:
            may_go_on.set()
    assert [record.prefilled for record in records[:5]] == [2, 2, 2, 2, 1]


async def test_a_link_that_only_seems_to_stand_is_superseded(records: list[RoundRecord]) -> None:
    # The stream waits behind the barrier for a draft that does not come.
    async with serving() as (server, address), in_session(address) as gone:
        await gone.send(begin(max_draft=4))
        await gone.expect(Opened)
        while any(map(server._rounds.is_prefilling, server._rounds.live)):
            await asyncio.sleep(0)
        prefilled = sum(record.prefilled for record in records)
        async with in_session(address) as back:
            await back.send(begin())
            await back.expect(Opened)
            assert await written_by(back) == target_text(PROMPT, NEW_TOKENS)
            with pytest.raises(ConnectionClosed):
                while True:
                    await gone.receive()
            assert len(server._links) == 1
        assert sum(record.prefilled for record in records) == prefilled
    assert len(server._sessions) == 0


async def test_a_link_that_was_given_up_and_comes_late_takes_no_newer_ones_place() -> None:
    async with (
        serving() as (server, address),
        linked(address, greet=False) as newer,
        linked(address, greet=False) as late,
    ):
        await newer.greet(session=SESSION, attempt=2)
        opened = await newer.open(0, PROMPT)
        await late.greet(session=SESSION, attempt=1)
        assert (await late.failure()).code == "superseded"
        with pytest.raises(ConnectionClosed):
            await late.receive()
        assert await newer.go_on(opened, PROMPT) == target_text(PROMPT, 8)
        assert server.snapshot().resumed_parked == 0


async def test_what_comes_on_a_superseded_link_is_not_heard() -> None:
    async with serving() as (server, address), in_session(address) as gone, in_session(address, b"other") as back:
        await gone.send(begin(max_draft=4))
        await gone.expect(Opened)
        (old,) = (link for link in server._links if server._sessions._links[("", SESSION)][1] is link)
        gone.connection.protocol.send_binary(encode(begin(1)))
        # It is here, and its link has not been told yet, when that is cut.
        old.connection.data_received(b"".join(gone.connection.protocol.data_to_send()))
        old.supersede()
        await back.send(begin(2))
        await back.expect(Opened)
        assert sorted(live.number for live in server._rounds.live) == [2]
        assert server.snapshot().parked == 1


@pytest.mark.parametrize("session", [SESSION, b""])
async def test_who_waits_behind_a_link_that_breaks_is_told_that_it_has_moved_up(session: bytes) -> None:
    # Nothing else happens: the one stream that runs waits for a draft that does not come.
    settings = tiny_settings(max_streams=1, rounds={"round_timeout_s": 1e6})
    async with asyncio.timeout(60), serving(settings) as (_, address), linked(address) as first:
        await first.open(0, PROMPT)
        async with in_session(address, session) as before, linked(address) as behind:
            for place, peer in enumerate((before, behind), start=1):
                await peer.send(begin())
                assert await peer.receive() == Queued(0, place)
            before.connection.transport.abort()
            assert await behind.receive() == Queued(0, 1)


@pytest.mark.parametrize("session", [b"somebody else's", b""])
async def test_another_session_has_no_part_in_it(session: bytes, records: list[RoundRecord]) -> None:
    async with serving() as (server, address):
        async with in_session(address) as peer:
            await peer.send(begin())
            written = await written_by_opened(peer, 3)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        before = len(records)
        async with in_session(address, session) as peer:
            await peer.send(begin(written=written))
            await peer.expect(Opened)
            assert written + await written_by(peer) == target_text(PROMPT, NEW_TOKENS)
        assert sum(record.prefilled for record in records[before:]) == len(PROMPT) + len(written) - 1
        assert (server.snapshot().resumed_parked, server.snapshot().resumed_transcript) == (0, 1)
        assert server.snapshot().parked == 1


async def written_by_opened(peer: Peer, most: int) -> list[int]:
    await peer.expect(Opened)
    return await written_by(peer, most)


async def test_another_prompt_gets_what_it_has_in_common(records: list[RoundRecord]) -> None:
    other = [*PROMPT[:5], 1, 2, 3]
    async with serving() as (server, address):
        async with in_session(address) as peer:
            await peer.send(begin())
            await written_by_opened(peer, 3)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        before = len(records)
        async with in_session(address) as peer:
            assert await peer.generate(0, other, max_draft=0) == target_text(other, 8)
        assert sum(record.prefilled for record in records[before:]) == len(other) - 1 - 5
        assert (server.snapshot().resumed_parked, server.snapshot().resumed_transcript) == (0, 0)


async def test_who_leaves_in_order_leaves_nothing_behind() -> None:
    async with serving() as (server, address):
        async with in_session(address) as peer:
            await peer.open(0, PROMPT, max_new_tokens=NEW_TOKENS)
        while server.snapshot().agents:
            await asyncio.sleep(0)
        assert server.snapshot().parked == 0


async def test_who_breaks_the_protocol_leaves_nothing_behind() -> None:
    async with serving() as (server, address):
        async with in_session(address) as peer:
            await peer.open(0, PROMPT, max_new_tokens=NEW_TOKENS)
            await peer.send(b"\x00")
            assert (await peer.failure()).code == "malformed_message"
        while server.snapshot().agents:
            await asyncio.sleep(0)
        assert server.snapshot().parked == 0


async def test_a_session_is_no_longer_than_it_may_be() -> None:
    async with serving() as (_, address), linked(address, greet=False) as peer:
        with pytest.raises(AssertionError, match="malformed_message"):
            await peer.greet(session=bytes(MAX_SESSION_BYTES + 1))


@pytest.mark.parametrize("park_s", [0.0, 0.05])
async def test_a_text_stays_in_memory_for_no_longer_than_was_said(park_s: float) -> None:
    async with serving(tiny_settings(rounds={"park_s": park_s})) as (server, address):
        async with in_session(address) as peer:
            await peer.open(0, PROMPT, max_new_tokens=NEW_TOKENS)
            peer.connection.transport.abort()
            await until_parked(server, 0)
        while server._rounds._streams._engine.free_rows < 4:
            await asyncio.sleep(0)  # a pass may still be at its row


async def test_a_parked_row_is_given_to_whoever_needs_one() -> None:
    async with serving(tiny_settings(max_streams=1, rounds={"max_waiting": 1})) as (server, address):
        async with in_session(address) as peer:
            await peer.open(0, PROMPT, max_new_tokens=NEW_TOKENS)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        async with linked(address) as other:
            assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        assert server.snapshot().parked == 0
        async with in_session(address) as peer:
            assert await peer.generate(0, PROMPT) == target_text(PROMPT, 8)


async def test_a_session_is_one_tokens_and_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("goodspeed_server.server._TOKEN_CHECK_S", 0.01)
    store = TokenStore(tmp_path / "tokens.json")
    edge, thief = store.create("edge", "agent"), store.create("thief", "agent")
    async with (
        serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (server, address),
        in_session(address, token=edge) as peer,
    ):
        await peer.open(0, PROMPT, max_new_tokens=NEW_TOKENS)
        async with in_session(address, token=thief) as other:
            await other.open(0, PROMPT)
            assert len(server._rounds.live) == len(server._sessions) == 2
        store.revoke("edge")
        with pytest.raises(ConnectionClosed):
            while True:
                await peer.receive()
        await until_parked(server, 0)


async def test_what_is_parked_counts_for_no_limit_of_its_token(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    secret = store.create("edge", "agent", max_streams=1, tokens_per_minute=5)
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (server, address):
        async with in_session(address, token=secret) as peer:
            await peer.send(begin())
            written = await written_by_opened(peer, 12)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        assert server._doorkeeper.allowance(store.tokens()[0]).streams == 0
        async with in_session(address, token=secret) as peer:
            await peer.send(begin(1))
            assert "5 tokens a minute" in (await peer.failure()).message
            await peer.send(begin(0, written))
            await peer.expect(Opened)
            assert written + await written_by(peer) == target_text(PROMPT, NEW_TOKENS)


async def test_a_text_that_nobody_wants_any_more_is_given_up_where_it_is_parked() -> None:
    async with serving(tiny_settings(max_streams=2)) as (server, address):
        async with in_session(address) as peer:
            await peer.send(begin())
            await written_by_opened(peer, 3)
            peer.connection.transport.abort()
            await until_parked(server, 1)
        async with in_session(address, session=b"another's") as other:
            await other.close(0)
            assert await other.generate(1, PROMPT) == target_text(PROMPT, 8)
            assert server._rounds.parked == 1
        async with in_session(address) as peer:
            await peer.close(0)
            assert await peer.generate(1, PROMPT) == target_text(PROMPT, 8)
            assert server._rounds.parked == 0


async def test_a_link_that_is_broken_again_and_again_makes_no_two_texts_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodspeed_server.allowance.REPEATED", 2)
    store = TokenStore(tmp_path / "tokens.json")
    secret = store.create("edge", "agent", tokens_per_minute=5)
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (server, address):
        for _ in range(2):
            async with in_session(address, token=secret) as peer:
                await peer.send(begin())
                await written_by_opened(peer, 12)
                peer.connection.transport.abort()
            await until_parked(server, 1)
        async with in_session(address, token=secret) as peer:
            await peer.send(begin())
            failure = await peer.failure()
            assert "5 tokens a minute" in failure.message
            assert failure.retry_after_s is not None
        await until_parked(server, 1)
