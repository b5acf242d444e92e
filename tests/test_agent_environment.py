"""What the agent's commands make of the environment, which may be a server's too."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from goodspeed_agent.cli import app

HERE = ("--draft", "none", "--prompt", "a", "--connect-timeout", "0.05")


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "400"} | environment)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("GOODSPEED_SERVR", "did you mean GOODSPEED_SERVER?"),
        ("GOODSPEED_draft", "did you mean GOODSPEED_DRAFT?"),
        ("GOODSPEED_MAX_STREAM", "did you mean GOODSPEED_MAX_STREAMS, which is goodspeed-server's?"),
        ("GOODSPEED_XYZZY", "there are GOODSPEED_CA, GOODSPEED_CACHE, GOODSPEED_DRAFT,"),
    ],
)
def test_a_variable_that_nothing_reads_is_refused_by_its_name(name: str, hint: str) -> None:
    for command in ("complete", "run", "chat", "serve", "doctor"):
        result = invoke(command, **{name: "ws://127.0.0.1:9"})
        assert result.exit_code == 2
        assert f"{name} is in the environment, and nothing reads it: {hint}" in result.stderr


def test_a_servers_variables_are_no_mistake() -> None:
    result = invoke(
        "complete", "--server", "ws://127.0.0.1:9", *HERE, GOODSPEED_MAX_STREAMS="many", GOODSPEED_TOKENS="tokens.json",
        GOODSPEED_AGENT_PORT_80_TCP_ADDR="10.0.0.1",
    )  # fmt: skip
    assert result.exit_code == 4  # nobody is there
    assert "no link to ws://127.0.0.1:9" in result.stderr


def test_a_wrong_value_is_told_by_its_variable() -> None:
    result = invoke("complete", "--server", "ws://127.0.0.1:9", *HERE, GOODSPEED_VERBOSE="perhaps")
    assert result.exit_code == 2
    assert "Invalid value for GOODSPEED_VERBOSE=perhaps: " in " ".join(result.stderr.split())
