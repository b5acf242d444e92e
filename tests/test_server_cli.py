"""`goodspeed-server run` with what it cannot use: a sentence and an exit code, before anything listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from goodspeed_server.cli import app


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--model", "no-such-model"), 1, "it is neither bundled"),
        (("--device", "abacus"), 1, "device 'abacus' cannot be used here"),
        (("--dtype", "float3"), 1, "dtype 'float3' does not exist: choose auto"),
        (("--max-length", "100000"), 2, "max-length is 100000 and pico-target was made for 1024"),
        (("--fairness", "-1"), 2, "fairness is -1.0: it must be 0 (throughput) or above"),
        (("--trace", "{file}/sub"), 2, "cannot trace to {file}/sub: Not a directory; give another --trace"),
        (("--record", "{file}/sub"), 2, "cannot record to {file}/sub: Not a directory; give another --record"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    options: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    result = CliRunner().invoke(app, ["run", "--port", "0", *(option.format(file=file) for option in options)])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("goodspeed-server: ")
    assert sentence.format(file=file) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["run", "--port", str(number), "--threads", "1"])
    assert result.exit_code == 1
    assert f"127.0.0.1:{number} is in use by another program: choose another --port" in result.stderr
