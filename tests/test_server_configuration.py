"""Flags before the environment before a file before what is built in; and whatever is wrong is named."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from goodspeed.environment import OF_AGENTS, OF_BOTH, OF_SERVERS
from goodspeed_agent.cli import app as agent_app
from goodspeed_server.cli import app
from goodspeed_server.settings import ServerSettings


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
        "max_streams_per_agent", "quantize", "record", "trace", "tokens", "tls_cert", "tls_key", "tls_client_ca",
        "log_file",
    }  # fmt: skip
    assert len(silent) == len(chosen) + len(absent)


def test_a_quantisation_stands_in_a_file_as_it_does_on_the_command_line(tmp_path: Path) -> None:
    whole = '{"quant_method": "quanto", "weights": "int4"}'
    file, shown = tmp_path / "server.toml", config("--quantize", whole)
    file.write_text(f"quantize = '{whole}'")
    for values in (shown, config("--config", str(file)), config(GOODSPEED_QUANTIZE=whole)):
        assert tomllib.loads(values)["quantize"] == whole


def test_a_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("port = 7")
    assert line_of(config(GOODSPEED_CONFIG=str(file)), "port").startswith("port = 7 ")


def test_what_is_printed_is_a_file_to_start_with(tmp_path: Path) -> None:
    shown = config("--port", "9", "--record", "shards dir", "--no-early-stop")
    values = tomllib.loads(shown)
    assert (values["port"], values["record"], values["early_stop"]) == (9, str(Path.cwd() / "shards dir"), False)
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
        ('port = "high"', 'port = "high": it must be a whole number'),
        ("port = true", "port = true: it must be a whole number"),
        ("port = 8.0", "port = 8.0: it must be a whole number"),
        ("model = 3", "model = 3: it must be a text, in quotes"),
        ("tokens = 3", "tokens = 3: it must be a text, in quotes"),
        ("fairness = true", "fairness = true: it must be a number"),
        ('monitor = "yes"', 'monitor = "yes": it must be true or false'),
        ("monitor = 1", "monitor = 1: it must be true or false"),
        ("rounds = 1", "rounds = 1: it must be a text, in quotes"),
        ("model = [1]", "model = [1]: it must be a text, in quotes"),
        ("port = 2026-01-01", 'port = "2026-01-01": it must be a whole number'),
        ("max_streams = 3\nmax-streams = 4", "max_streams and max-streams are one option: keep one of them"),
        ('tokens = "~nobody-at-all/tokens.json"', "there is no user ~nobody-at-all, or it has no home"),
        ("port = 70000", "port = 70000"),
        ("port =", "is no TOML"),
        ("[server]\nport = 1", "there is no option server"),
        ('config = "other.toml"', "there is no option config"),
        ('rounds = "maybe"', 'rounds = "maybe"'),
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


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("GOODSPEED_PORT", "x", "Invalid value for GOODSPEED_PORT=x: "),
        ("GOODSPEED_MAX_STREAMS", "0", "Invalid value for GOODSPEED_MAX_STREAMS=0: "),
        ("GOODSPEED_MONITOR", "perhaps", "Invalid value for GOODSPEED_MONITOR=perhaps: "),
        ("GOODSPEED_CONFIG", "gone.toml", "Invalid value for GOODSPEED_CONFIG=gone.toml: gone.toml cannot be read"),
        ("GOODSPEED_FAIRNESS", "-1", "GOODSPEED_FAIRNESS=-1: fairness is -1"),
        ("GOODSPEED_SCHEDULER", "goodsped", "GOODSPEED_SCHEDULER=goodsped: scheduler 'goodsped' does not exist"),
        ("GOODSPEED_QUANTIZE", "{", "GOODSPEED_QUANTIZE={: quantize is '{', which is no JSON"),
        ("GOODSPEED_HOST", "0.0.0.0", "GOODSPEED_HOST=0.0.0.0: on 0.0.0.0 others can reach this server"),
    ],
)
def test_a_wrong_value_in_the_environment_is_told_by_its_variable(name: str, value: str, sentence: str) -> None:
    for command in ("config", "run"):
        result = CliRunner().invoke(app, [command], env={name: value, "COLUMNS": "400"})
        assert result.exit_code == 2
        assert sentence in " ".join(result.stderr.split())


def test_values_of_a_file_that_cannot_be_together_are_told_by_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('fairness = -1\nscheduler = "plain"\n')
    result = CliRunner().invoke(app, ["config", "--config", str(file)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert f"{file}: fairness = -1.0: fairness is -1" in " ".join(result.stderr.split())


def test_a_wrong_value_of_a_flag_is_told_by_the_flag() -> None:
    result = CliRunner().invoke(app, ["config", "--port", "x"], env={"GOODSPEED_PORT": "1", "COLUMNS": "400"})
    assert (result.exit_code, "Invalid value for '--port': " in result.stderr) == (2, True)
    result = CliRunner().invoke(app, ["config", "--fairness", "-1"], env={"GOODSPEED_PORT": "1"})
    assert (result.exit_code, result.stderr.startswith("goodspeed-server: fairness is -1")) == (2, True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("GOODSPEED_MAX_STREAM", "did you mean GOODSPEED_MAX_STREAMS?"),
        ("GOODSPEED_max_streams", "did you mean GOODSPEED_MAX_STREAMS?"),
        ("GOODSPEED_XYZZY", "there are GOODSPEED_CA, GOODSPEED_CACHE,"),
        ("GOODSPEED_TOKNS", "did you mean GOODSPEED_TOKENS?"),
        ("GOODSPEED_DRAFTS", "did you mean GOODSPEED_DRAFT, which is goodspeed-agent's?"),
    ],
)
def test_a_variable_that_nothing_reads_is_refused_by_its_name(name: str, hint: str) -> None:
    for command in ("config", "run"):
        result = CliRunner().invoke(app, [command, "--model", "no such model"], env={name: "1"})
        assert result.exit_code == 2
        assert f"{name} is in the environment, and nothing reads it: {hint}" in result.stderr


def test_variables_of_others_are_no_mistake() -> None:
    shown = config(
        GOODSPEED_TOKEN="gst_x", GOODSPEED_DRAFT="suffix", GOODSPEED_CACHE="/x",
        GOODSPEED_SERVER_SERVICE_HOST="10.0.0.1", GOODSPEED_SERVER_PORT="tcp://10.0.0.1:80",
        GOODSPEED_SERVER_PORT_80_TCP_ADDR="10.0.0.1",
    )  # fmt: skip
    said = [line for line in shown.splitlines() if "in the environment" in line]
    assert said == ["# GOODSPEED_DRAFT is in the environment: goodspeed-agent's, and nothing to a server"]


def test_all_that_other_commands_read_in_the_environment_is_known() -> None:
    def read_by(command: Any) -> set[str]:
        own = {option.envvar for option in command.params if isinstance(option.envvar, str)}
        return own.union(*map(read_by, getattr(command, "commands", {}).values()))

    commands: Any = get_command(app)
    run = {f"GOODSPEED_{option.name.upper()}" for option in commands.commands["run"].params if option.name != "help"}
    assert (run | read_by(commands)) - OF_BOTH == OF_SERVERS
    assert read_by(get_command(agent_app)) - OF_BOTH == OF_AGENTS
    assert not OF_SERVERS & OF_AGENTS


def test_a_home_stands_in_for_its_mark_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "server.toml"
    file.write_text('record = "~/shards"\n')
    shown = config("--config=~/server.toml", "--trace=~/run.jsonl", "--log-file=~/log", GOODSPEED_TOKENS="~/tokens")
    for name, path in (("record", "shards"), ("trace", "run.jsonl"), ("log_file", "log"), ("tokens", "tokens")):
        assert f'"{tmp_path / path}"' in line_of(shown, name)
    told: list[ServerSettings] = []
    handlers: list[logging.Handler] = []
    monkeypatch.setattr("goodspeed_server.cli.log_to", lambda handler, *_, **__: handlers.append(handler))

    async def serve(settings: ServerSettings, **_: object) -> None:
        told.append(settings)

    monkeypatch.setattr("goodspeed_server.cli._serve", serve)
    words = ["run", "--tls-cert=~/cert.pem", "--log-file=~/log", "--config=~/server.toml"]
    result = CliRunner().invoke(app, words, env={"GOODSPEED_TOKENS": "~/tokens"})
    assert result.exit_code == 0, result.output
    (settings,) = told
    assert (settings.tls.certificate, settings.tokens, settings.record) == (
        tmp_path / "cert.pem", tmp_path / "tokens", tmp_path / "shards"
    )  # fmt: skip
    handlers[0].close()
    assert (tmp_path / "log").exists()


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "tokens.json").write_text("[]")
    (folder / "server.toml").write_text(
        f'tokens = "tokens.json"\nrecord = "../shards"\ntls_cert = "{tmp_path}/c.pem"\n'
    )
    shown = config("--config", str(folder / "server.toml"), "--trace", "run.jsonl")
    assert tomllib.loads(shown)["tokens"] == str(folder / "tokens.json")
    assert tomllib.loads(shown)["record"] == str(folder / "../shards")
    assert tomllib.loads(shown)["tls_cert"] == str(tmp_path / "c.pem")
    assert tomllib.loads(shown)["trace"] == str(Path.cwd() / "run.jsonl")
    assert line_of(shown, "tokens").endswith("server.toml")
    assert line_of(shown, "record").endswith("server.toml (not there yet)")
    assert line_of(shown, "tls_cert").endswith("server.toml (not there)")


@pytest.mark.parametrize("name", ["record_max_mb", "trace_max_mb"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e308"])
def test_how_large_a_file_may_become_is_finite(name: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"{name} = {value}")
    ways: list[tuple[list[str], dict[str, str]]] = [
        ([f"--{name.replace('_', '-')}", value], {}),
        ([], {f"GOODSPEED_{name.upper()}": value}),
        (["--config", str(file)], {}),
    ]
    for words, environment in ways:
        result = CliRunner().invoke(app, ["config", *words], env=environment)
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code == 2
