"""Flags before the environment before a file before what is built in; and whatever is wrong is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from goodspeed_server.cli import app


def config(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def line_of(shown: str, name: str) -> str:
    (line,) = (line for line in shown.splitlines() if line.split()[0] == name)
    return line


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nmax-streams = 2\nfairness = 2\nmonitor = true\nscheduler = "goodspeed"\n')
    shown = config("--port", "3", "--config", str(file), GOODSPEED_PORT="4", GOODSPEED_MAX_STREAMS="5")
    assert line_of(shown, "port").split("#") == [f"{'port = 3':<40}  ", " flag"]
    assert line_of(shown, "max_streams").split("  # ") == [
        f"{'max_streams = 5':<40}", "environment, GOODSPEED_MAX_STREAMS"
    ]  # fmt: skip
    assert line_of(shown, "fairness").endswith(f"# file, {file}")
    assert line_of(shown, "fairness").startswith("fairness = 2.0 ")
    assert line_of(shown, "monitor").startswith("monitor = true ")
    assert line_of(shown, "scheduler").startswith('scheduler = "goodspeed" ')
    assert line_of(shown, "host").endswith("# built in")


def test_what_has_no_value_is_chosen_or_is_not_there() -> None:
    silent = [line.split("  ")[0].strip() for line in config().splitlines() if line.startswith("# ")]
    chosen = {line.split()[1] for line in silent if line.endswith(" is chosen by itself")}
    absent = {line.split()[1] for line in silent if line.endswith(" is not set")}
    assert chosen == {
        "capacity", "failed_tokens_per_minute", "handshakes_per_minute", "max_length", "max_links_per_address",
        "max_streams", "threads",
    }  # fmt: skip
    assert absent == {
        "max_streams_per_agent", "record", "trace", "tokens", "tls_cert", "tls_key", "tls_client_ca", "log_file",
    }  # fmt: skip
    assert len(silent) == len(chosen) + len(absent)


def test_a_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("port = 7")
    assert line_of(config(GOODSPEED_CONFIG=str(file)), "port").startswith("port = 7 ")


def test_what_is_printed_is_a_file_to_start_with(tmp_path: Path) -> None:
    shown = config("--port", "9", "--record", "shards dir", "--no-early-stop")
    values = tomllib.loads(shown)
    assert (values["port"], values["record"], values["early_stop"]) == (9, "shards dir", False)
    file = tmp_path / "server.toml"
    file.write_text(shown)
    again = config("--config", str(file))
    assert tomllib.loads(again) == values
    assert "# file" in line_of(again, "port")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("prot = 1", "there is no option prot: did you mean port?"),
        ("xyzzy = 1", "there is no option xyzzy: there are capacity,"),
        ('port = "high"', "port = 'high'"),
        ("port = 70000", "port = 70000"),
        ("port =", "is no TOML"),
        ("[server]\nport = 1", "there is no option server"),
        ('config = "other.toml"', "there is no option config"),
        ('rounds = "maybe"', "rounds = 'maybe'"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_key(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(content)
    for command in ("config", "run"):
        result = CliRunner().invoke(app, [command, "--config", str(file)], env={"COLUMNS": "400"})
        assert result.exit_code == 2
        assert sentence in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["config", "--config", str(tmp_path / "none")], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


def test_a_value_in_the_environment_that_cannot_be_is_refused() -> None:
    result = CliRunner().invoke(app, ["config"], env={"GOODSPEED_PORT": "x", "COLUMNS": "400"})
    assert result.exit_code == 2
    assert "'--port'" in result.stderr
    result = CliRunner().invoke(app, ["config", "--fairness", "-1"])
    assert (result.exit_code, "fairness is -1" in result.stderr) == (2, True)
