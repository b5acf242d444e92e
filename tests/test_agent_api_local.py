"""The API is for this machine alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.api_world import api


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: localhost:1", 200),
        ("Host: [::1]:1", 200),
        ("Host: evil.example", 403),
        ("Host: localhost\r\nOrigin: http://evil.example", 403),
        ("Host: localhost\r\nOrigin: null", 403),
        ("Host: localhost\r\nOrigin: http://localhost:3000", 200),
    ],
)
async def test_pages_of_other_sites_are_kept_away(headers: str, status: int, tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(f"GET /v1/models HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
    assert int(answer.split()[1]) == status
    assert ("access-control-allow-origin: http://localhost:3000" in answer) == ("localhost:3000" in headers)
