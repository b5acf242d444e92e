"""Live control: whom a server obeys, what it refuses, and what its log says of either."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from goodspeed.control import (
    Change,
    Changed,
    SetCapacity,
    SetRoundTimeout,
    SetScheduler,
    SetService,
    SetWeight,
)
from goodspeed.credentials import Credentials
from goodspeed.errors import InvalidRequest, Refused
from goodspeed.messages import Control, Hello, Open, Welcome
from goodspeed_server.controlling import controlling
from goodspeed_server.tokens import TokenStore
from tests.controls import START, TEXT, controlled, said
from tests.serving import GREEDY, linked, serving, tiny_settings
from tests.test_server import PROMPT


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            SetScheduler("goodspede"),
            "scheduler 'goodspede' does not exist: did you mean goodspeed? choose auto, sec",
        ),
        (SetScheduler("lottery"), "scheduler 'lottery' does not exist: choose auto, seconds, goodspeed"),
        (SetScheduler("seconds", -1.0), "fairness is -1.0: it must be 0"),
        (SetScheduler("seconds", float("nan")), "fairness is nan: it must be 0"),
        (SetCapacity(-3), "capacity is -3: it must be 0 to 2,147,483,647, or auto"),
        (SetCapacity(2**31), "capacity is 2147483648: it must be 0 to 2,147,483,647, or auto"),
        (SetScheduler("x" * 300), "a scheduler's name has 200 characters at most"),
        (SetScheduler("goodspeed", fairness=1e7), "fairness is 10000000.0: it must be 0 (throughput) to 1e+06"),
        (SetWeight("edge", 0.0), "weight is 0: it must be above 0 and at most 1,000,000"),
        (SetWeight("edge", float("nan")), "weight is nan: it must be above 0"),
        (SetWeight("edgy", 1.0), "no agent 'edgy' is linked up: there are 'edge', 'wedge'"),
        (SetService("edgy", "drained"), "no agent 'edgy' is linked up: there are 'edge', 'wedge'"),
        (SetRoundTimeout(-1.0), "round-timeout is -1 ms: it must be 0 or above"),
        (SetRoundTimeout(float("inf")), "round-timeout is inf ms: it must be 0 or above, and finite"),
    ],
)
async def test_what_cannot_be_changes_nothing(change: Change, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        controlled() as (server, address, controls),
        linked(address, greet=False) as peer,
        linked(address, greet=False) as other,
    ):
        await peer.greet(name="edge")
        await other.greet(name="wedge")
        before = await controls.ask()
        # The server looks for itself, whatever the other side has looked at.
        with pytest.raises(InvalidRequest) as caught:
            await server._control.obey(change, "a test")
        assert str(caught.value).startswith(sentence)
        with pytest.raises(InvalidRequest) as told:
            await controls.ask(change)
        assert str(told.value) == str(caught.value)
        async with controlling(address) as again:
            assert await again.ask() == before


async def test_the_log_says_once_who_changed_what(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    admin = Credentials(store.create("the boss", "admin"))
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        settings = tiny_settings(tokens=tmp_path / "tokens.json")
        async with serving(settings) as (_, address), controlling(address, admin) as controls:
            for _ in range(2):
                state = await controls.ask(SetCapacity(5))
            await controls.ask()
    assert state.changed == (Changed("capacity", "5", "5"),)
    assert said(state) == ["capacity is 5 already"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("capacity: auto -> 5, by '")
    assert line.endswith("with the token 'the boss'")


async def test_the_log_says_who_asked_for_what_cannot_be(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    admin = Credentials(store.create("the boss", "admin"))
    settings = tiny_settings(tokens=tmp_path / "tokens.json")
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        async with serving(settings) as (_, address), controlling(address, admin) as controls:
            with pytest.raises(InvalidRequest, match="does not exist"):
                await controls.ask(SetScheduler("sceonds"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "with the token 'the boss' is closed: scheduler 'sceonds' does not exist" in line


async def test_an_admins_token_controls_and_no_other(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (_, address):
        for role in ("agent", "monitor"):
            token = Credentials(store.create(f"a {role}", role))
            with pytest.raises(Refused, match="who controls the server needs one of role admin") as caught:
                async with controlling(address, token):
                    raise AssertionError
            assert caught.value.code == "forbidden"
        with pytest.raises(Refused, match="this server wants a token"):
            async with controlling(address):
                raise AssertionError
        async with controlling(address, Credentials(store.create("admin", "admin"))) as controls:
            assert (await controls.ask(SetCapacity(1))).now.capacity == 1


async def test_a_server_that_others_reach_without_tokens_takes_no_orders() -> None:
    """Not even from its own machine: whatever forwards to it would look like that."""
    async with serving(tiny_settings(host="0.0.0.0", insecure=True)) as (_, address):
        local = address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(Refused, match="start it with --tokens, and show an admin's"):
            async with controlling(local):
                raise AssertionError
        async with linked(local) as peer:
            assert await peer.generate(1, PROMPT) == TEXT[:8]


async def test_an_agents_link_does_not_control_and_a_controlling_one_does_not_generate() -> None:
    async with serving() as (_, address):
        async with linked(address) as peer:
            await peer.send(Control(SetCapacity(1)))
            assert (await peer.failure()).code == "protocol_error"
        async with linked(address, greet=False) as peer:
            await peer.send(Hello(1, "control", "x"))
            await peer.expect(Welcome)
            await peer.send(Open(1, PROMPT, START, GREEDY, 8, 4, True))
            assert (await peer.failure()).code == "protocol_error"


async def test_a_server_that_shuts_down_says_so_to_who_waits_for_a_change() -> None:
    async with serving() as (server, address), controlling(address) as controls:
        server._rounds.stop()
        assert server._running is not None
        await asyncio.wait([server._running])
        with pytest.raises(Refused, match="shutting down, and changes nothing any more"):
            await controls.ask(SetCapacity(1))
