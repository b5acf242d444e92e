"""TLS: what is encrypted, whose certificates are believed, and what is said where that fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect

from goodspeed.credentials import Credentials
from goodspeed.errors import InvalidRequest, LinkLost, Refused
from goodspeed.messages import Close
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.link import Link
from goodspeed_server.monitor import fetch_snapshot
from goodspeed_server.settings import DoorSettings, TlsSettings
from tests.serving import Peer, serving, tiny_settings
from tests.test_server_tokens import QUICK, WORDS, agent_with


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files_of(authority: trustme.CA, folder: Path, identity: str) -> tuple[Path, Path]:
    """A certificate and its key."""
    made = authority.issue_cert(identity)
    certificate, key = folder / f"{identity}.pem", folder / f"{identity}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(key))
    return certificate, key


async def test_links_are_encrypted_and_certificates_checked(authority: trustme.CA, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate, key = files_of(authority, tmp_path, "127.0.0.1")
    async with serving(tiny_settings(tls=TlsSettings(certificate, key))) as (_, address):
        assert address.startswith("wss://127.0.0.1:")
        trusting = Agent(
            address, SuffixDrafter(), cache=TokenizerCache(tmp_path), backoff=QUICK, credentials=Credentials(ca=ca)
        )
        async with trusting as agent:
            assert (await agent.complete(TextRequest(WORDS, max_new_tokens=4))).tokens
        assert (await fetch_snapshot(address, Credentials(ca=ca))).streams == 0
        with pytest.raises(Refused, match=r"is not to be trusted .*give its certificate as --ca"):
            await agent_with(address, None, tmp_path).__aenter__()
        with pytest.raises(Refused, match="is not to be trusted"):
            await fetch_snapshot(address)
        clear = address.replace("wss:", "ws:")
        with pytest.raises(LinkLost, match="it may want wss://"):
            await agent_with(clear, None, tmp_path).__aenter__()
        with pytest.raises(LinkLost, match="it may want wss://"):
            await fetch_snapshot(clear)


async def test_what_a_link_that_is_held_sent_is_heard_before_its_end(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last 8 KiB, which may come with that end."""
    heard: list[object] = []
    monkeypatch.setattr(Link, "_handle", lambda link, account, message: heard.append(message))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    settings = tiny_settings(
        tls=TlsSettings(*files_of(authority, tmp_path, "127.0.0.1")), door=DoorSettings(messages_per_s=1e4)
    )
    async with asyncio.timeout(60), serving(settings) as (server, address):
        connection = await connect(address, ssl=trusting, compression=None)
        peer = Peer(connection)
        await peer.greet()
        for _ in range(5000):
            await peer.send(Close(99))
        connection.transport.close()
        while server._links:
            await asyncio.sleep(0)
    assert len(heard) > 5000 - 2**13 / 20


async def test_a_server_without_tls_hangs_up_on_who_begins_with_it() -> None:
    async with serving() as (_, address):
        host, port = address.removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # No line, for whose end an HTTP server would wait.
        async with asyncio.timeout(5.0):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_who_wants_tls_of_a_server_without_is_told(tmp_path: Path) -> None:
    async with serving() as (_, address):
        secure = address.replace("ws:", "wss:")
        with pytest.raises(LinkLost, match=r"it may speak ws:// \(no TLS\)"):
            await fetch_snapshot(secure)
        with pytest.raises(LinkLost, match=r"it may speak ws:// \(no TLS\)"):
            await agent_with(secure, None, tmp_path).__aenter__()


async def test_who_wants_tls_of_what_never_answers_or_speaks_http_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["goodspeed_server.monitor.top"], "_OPEN_TIMEOUT_S", 0.3)

    answering: set[asyncio.Task[Any]] = set()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await silent(reader, writer)

    for answer in (silent, clear):
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            with pytest.raises(LinkLost, match=r"it may speak ws:// \(no TLS\)"):
                await fetch_snapshot(f"wss://127.0.0.1:{port}")
            with pytest.raises((LinkLost, Refused)) as lost:
                await fetch_snapshot(f"ws://127.0.0.1:{port}")
            assert not re.search("TLS|wss", str(lost.value))
            await asyncio.gather(*answering)


async def test_a_server_can_ask_for_the_clients_certificate(authority: trustme.CA, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate, key = files_of(authority, tmp_path, "127.0.0.1")
    mine, mine_key = files_of(authority, tmp_path, "edge.example")
    other, other_key = files_of(trustme.CA(), tmp_path, "stranger.example")
    async with serving(tiny_settings(tls=TlsSettings(certificate, key, client_ca=ca))) as (_, address):
        assert (await fetch_snapshot(address, Credentials(None, ca, mine, mine_key))).streams == 0
        for credentials in (Credentials(ca=ca), Credentials(None, ca, other, other_key)):
            with pytest.raises(LinkLost, match="client's certificate"):
                await fetch_snapshot(address, credentials)
        with pytest.raises(LinkLost, match="it may want a client's certificate: --client-cert"):
            await Agent(
                address, SuffixDrafter(), cache=TokenizerCache(tmp_path), backoff=QUICK, credentials=Credentials(ca=ca)
            ).__aenter__()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: TlsSettings(folder / "none").context(), "cannot be used: "),
        (lambda folder: TlsSettings(folder / "garbage").context(), "it takes PEM, and the certificate's own key"),
        (lambda folder: TlsSettings(folder / "good", client_ca=folder / "none").context(), "certificates to trust"),
        (lambda folder: Credentials(ca=folder / "garbage").tls("wss://x"), "certificates to trust"),
        (lambda folder: Credentials(certificate=folder), "go together"),
        (lambda folder: Credentials("two\nlines"), "the token is none"),
        (lambda folder: Credentials(" "), "the token is none"),
    ],
)
def test_files_that_cannot_be_used_are_named(make: object, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("garbage")
    assert callable(make)
    with pytest.raises(InvalidRequest, match=sentence):
        make(tmp_path)


def test_a_token_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Credentials("gst_x").headers("ws://127.0.0.1:1")
    assert caplog.messages == []
    Credentials("gst_x").headers("WS://example.org:1")
    assert "in the clear: use wss://" in caplog.messages[0]


def test_a_home_stands_in_for_its_mark_in_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = Credentials(None, Path("~/ca.pem"), Path("~/cert.pem"), Path("~/key.pem"))
    assert (shown.ca, shown.certificate, shown.key) == tuple(tmp_path / f"{name}.pem" for name in ("ca", "cert", "key"))
