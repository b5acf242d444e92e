"""Addresses that do not answer, before one that does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from goodspeed_agent import dialing, journey
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.dialing import dial
from goodspeed_agent.link import Link
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.linking import HELLO, NEVER_AGAIN

NOWHERE = "127.0.0.9"
"""What is sent there is lost."""


class Network:
    """What a name stands for, and what becomes of who connects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        loop = asyncio.get_running_loop()
        self.hosts: Sequence[str] = hosts
        self.tried: list[str] = []
        self.sockets: list[socket.socket] = []
        self._connect = loop.sock_connect
        monkeypatch.setattr(loop, "getaddrinfo", self.resolve)
        monkeypatch.setattr(loop, "sock_connect", self.connect)
        monkeypatch.setattr(dialing, "_NEXT_S", 0.0)

    async def resolve(self, host: str, port: int, **_: Any) -> list[Any]:
        kinds = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in self.hosts]
        return [(kind, socket.SOCK_STREAM, 6, "", (one, port)) for kind, one in zip(kinds, self.hosts, strict=True)]

    async def connect(self, made: socket.socket, address: Any) -> None:
        self.tried.append(address[0])
        self.sockets.append(made)
        if address[0] == NOWHERE:
            await asyncio.Event().wait()
        await self._connect(made, address)


async def test_an_address_where_nothing_answers_does_not_cost_the_others_their_time(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer()
    async with asyncio.timeout(60), server.listening():
        network = Network(monkeypatch, NOWHERE, "127.0.0.1")
        url = server.url.replace("127.0.0.1", "localhost")
        async with Link(url, HELLO, cache, NEVER_AGAIN) as link:
            assert link.welcome == server.welcome()
    assert network.tried == [NOWHERE, "127.0.0.1"]
    assert network.sockets[0].fileno() == -1


async def test_the_families_of_addresses_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, "::1", "::2", "::3", NOWHERE, "127.0.0.8")

    async def refuse(made: socket.socket, address: Any) -> None:
        network.tried.append(address[0])
        raise ConnectionRefusedError(f"{address[0]} refuses")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse)
    with pytest.raises(OSError, match=r"::1 refuses; 127\.0\.0\.9 refuses; ::2 refuses"):
        await dial("name", 80)
    assert network.tried == ["::1", NOWHERE, "::2", "127.0.0.8", "::3"]


async def test_one_error_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await dial("127.0.0.1", closed.getsockname()[1])
    Network(monkeypatch)
    with pytest.raises(OSError, match="the host has no address"):
        await dial("name", 80)


async def test_of_two_that_answer_at_once_one_is_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    network, second = Network(monkeypatch, "127.0.0.1", "127.0.0.2"), asyncio.Event()

    async def connect(made: socket.socket, address: Any) -> None:
        network.sockets.append(made)
        if len(network.sockets) == 1:
            await second.wait()
        second.set()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connect)
    async with asyncio.timeout(60):
        with await dial("name", 80) as kept:
            other = next(one for one in network.sockets if one is not kept)
            while other.fileno() != -1:
                await asyncio.sleep(0)
            assert kept.fileno() != -1


async def test_nobody_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, NOWHERE)
    monkeypatch.setattr(dialing, "_GIVE_UP_S", 0.01)
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            await dial("name", 80)
        while network.sockets[0].fileno() != -1:
            await asyncio.sleep(0)


async def test_a_name_may_take_longer_to_look_up_than_its_addresses_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        network = Network(monkeypatch, "127.0.0.1")

        async def resolve(host: str, port: int, **kind: Any) -> list[Any]:
            for _ in range(3):  # any time limit of none is over by then
                await asyncio.sleep(0)
            monkeypatch.setattr(dialing, "_GIVE_UP_S", 60.0)
            return await network.resolve(host, port, **kind)

        monkeypatch.setattr(dialing, "_GIVE_UP_S", 0.0)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        with await dial("name", address[1]) as made:
            assert made.getpeername() == address


async def test_a_server_that_accepts_and_says_nothing_is_passed_over_soon_where_there_is_another(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "_ATTEMPT_S", 3600.0)
    monkeypatch.setattr(journey, "_ATTEMPT_OF_SEVERAL_S", 0.1)
    monkeypatch.setattr(journey, "_LEAST_ATTEMPT_S", 0.1)
    server, patient = FakeServer(), Backoff(first_s=3600.0, longest_s=3600.0, give_up_after_s=7200.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # which the system accepts for
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        async with asyncio.timeout(60), server.listening(), Link([url, server.url], HELLO, cache, patient) as link:
            assert link.url == server.url


async def test_what_is_sent_in_small_messages_waits_for_no_more() -> None:
    """Not every event loop sees to it for a socket that it has not made."""
    with socket.create_server(("127.0.0.1", 0)) as listening, await dial(*listening.getsockname()) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
