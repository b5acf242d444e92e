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
        (("--quantize", "int3"), 2, "quantize: there is no method 'int3': choose int8, "),
        (("--quantize", '{{"bits": 4}}'), 2, """quantize is '{{"bits": 4}}', and names no quant_method: give int8, """),
        (("--quantize", "int8", "--tensor-parallel", "2"), 2, "leave out --quantize, or --tensor-parallel"),
        (("--max-length", "100000"), 2, "max-length is 100000 and pico-target was made for 1024"),
        (("--fairness", "-1"), 2, "fairness is -1.0: it must be 0 (throughput) to 1e+06"),
        (("--record-max-mb", "inf"), 2, "record-max-mb is inf: it must be 64 or above, and finite"),
        (("--record-max-mb", "1e308"), 2, "record-max-mb is 1e+308: it must be 64 or above, and finite"),
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


@pytest.mark.parametrize(
    "command", [("drain", "\udcff"), ("undrain", "\udcff"), ("weight", "\udcff", "2"), ("scheduler", "\udcff")]
)
def test_a_name_of_bytes_that_are_no_text_is_refused(command: tuple[str, ...]) -> None:
    """As a command line hands them over."""
    result = CliRunner().invoke(app, ["ctl", "--url", "ws://127.0.0.1:9", *command])
    assert (result.exit_code, result.stderr) == (
        2, "goodspeed-server: '\\udcff' is no name: it is not Unicode, as all names are\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "command", [("top", "wss://127.0.0.1:9", "--once"), ("ctl", "--url", "wss://127.0.0.1:9", "show")]
)
def test_whom_to_trust_can_stand_in_the_environment(command: tuple[str, ...], tmp_path: Path) -> None:
    """As agents read it there: a file that is not there is named before anybody is called."""
    result = CliRunner().invoke(app, command, env={"GOODSPEED_CA": str(tmp_path / "cert.pem")})
    assert result.exit_code == 2
    assert f"{tmp_path / 'cert.pem'} cannot be used as a file of certificates to trust" in result.stderr
