"""A real server, on the event loop that it runs on, while somebody means it ill."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from pathlib import Path

import trustme
from websockets.asyncio.client import connect

from goodspeed.messages import Goodbye
from tests.serving import Peer, linked
from tests.system.processes import address_of, reaped, start_server

FLOOD = 80


async def test_a_flood_of_nonsense_leaves_a_few_lines() -> None:
    async with reaped(await start_server("--max-streams", "1")) as process:
        address = await address_of(process)

        async def talk_nonsense() -> None:
            async with linked(address, greet=False) as peer:
                await peer.send(b"nonsense")
                assert (await peer.failure()).code == "malformed_message"

        for _ in range(FLOOD):
            await talk_nonsense()
        process.send_signal(signal.SIGTERM)
        _, complaints = await process.communicate()
    lines = complaints.decode().splitlines()
    assert process.returncode == 0
    assert 50 <= len(lines) < FLOOD
    assert all("is closed: not a message of this protocol" in line for line in lines)


async def test_who_never_speaks_tls_counts_and_ends_with_the_server(tmp_path: Path) -> None:
    authority, certificate = trustme.CA(), tmp_path / "cert.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    options = ("--max-streams", "1", "--tls-cert", str(certificate), "--max-links-per-address", "3")
    async with reaped(await start_server(*options)) as process:
        address = await address_of(process)
        host, port = "127.0.0.1", int(address.rpartition(":")[2])

        async def end_of(reader: asyncio.StreamReader) -> None:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""

        async with connect(address, ssl=client, compression=None) as connection:
            peer = Peer(connection)
            await peer.greet()
            silent = [await asyncio.open_connection(host, port) for _ in range(2)]
            # Four more are to be told that they are too many, and the rest not even that.
            more = [await asyncio.open_connection(host, port) for _ in range(4)]
            with contextlib.suppress(ConnectionError):  # it may be over before it is known to be there
                reader, writer = await asyncio.open_connection(host, port)
                await end_of(reader)
                writer.close()
            assert len(await peer.generate(0, [5, 6, 7])) == 8
            process.send_signal(signal.SIGTERM)
            await peer.expect(Goodbye)
            for reader, writer in [*silent, *more]:
                await end_of(reader)
                writer.close()
        assert await process.communicate() == (b"", b"")
    assert process.returncode == 0
