"""Units, images and the pages about them: everything they name exists."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import trustme
import typer
from typer.core import TyperGroup

from goodspeed.environment import ENVIRONMENT, OF_BOTH
from goodspeed_agent.cli import app as agent_app
from goodspeed_server.cli import app as server_app
from goodspeed_server.settings import TlsSettings
from tests.serving import serving, tiny_settings

REPOSITORY = Path(__file__).parents[1]
COMMANDS = {
    "goodspeed-server": typer.main.get_command(server_app),
    "goodspeed-agent": typer.main.get_command(agent_app),
}
CHAIRS = ("server", "agent")
OF_OTHERS = {"HF_HOME", "XDG_CACHE_HOME", "PATH"}
"""What libraries and systems read in the environment."""


def check(arguments: Sequence[str]) -> None:
    """See that a command line has a command, and options, that exist."""
    command: Any = COMMANDS[Path(arguments[0]).name]
    left = list(arguments[1:])
    while isinstance(command, TyperGroup):
        # What a group asks for stands before the command's name, each with its value.
        while left and left[0].startswith("-"):
            flag = left.pop(0)
            assert flag in options_of(command), f"{arguments}: there is no {flag}"
            left.pop(0)
        assert left, f"{arguments} names no command"
        command = command.commands[left.pop(0)]
    flags = {argument.partition("=")[0] for argument in left if argument.startswith("-")}
    assert flags <= options_of(command), f"{arguments}: there is no {flags - options_of(command)}"


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def environment_of(chair: str) -> set[str]:
    """What the command that serves reads in its environment."""
    command = COMMANDS[f"goodspeed-{chair}"]
    assert isinstance(command, TyperGroup)
    if chair == "server":
        return {f"{ENVIRONMENT}_{str(option.name).upper()}" for option in command.commands["run"].params}
    return {str(option.envvar) for option in command.commands["serve"].params if option.envvar}


def entries(chair: str) -> list[tuple[str, str]]:
    text = (REPOSITORY / chair / f"goodspeed-{chair}.service").read_text(encoding="utf-8")
    found = [line.partition("=") for line in text.splitlines() if line and line[0] not in "#["]
    return [(name, value) for name, _, value in found]


@pytest.mark.parametrize("chair", CHAIRS)
def test_a_unit_starts_a_command_that_exists(chair: str) -> None:
    unit = entries(chair)
    (command,) = (value for name, value in unit if name == "ExecStart")
    check(shlex.split(command))
    names = {pair.partition("=")[0] for name, value in unit if name == "Environment" for pair in shlex.split(value)}
    assert names <= environment_of(chair) | OF_OTHERS


@pytest.mark.parametrize("chair", CHAIRS)
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd is not installed, so it was not asked about the units: apt-get install systemd",
)
def test_systemd_takes_the_unit_and_finds_it_well_locked_in(chair: str, tmp_path: Path) -> None:
    unit = tmp_path / f"goodspeed-{chair}.service"
    text = (REPOSITORY / chair / unit.name).read_text(encoding="utf-8")
    # A program that is there.
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.MULTILINE))
    for arguments in (["verify"], ["security", "--offline=true", "--threshold=25"]):
        done = subprocess.run(["systemd-analyze", *arguments, str(unit)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert unit.name not in done.stderr, done.stderr  # an unknown setting is ignored with a word


def instructions(chair: str) -> Iterator[tuple[str, str]]:
    text = (REPOSITORY / chair / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest


@pytest.mark.parametrize("chair", CHAIRS)
def test_an_image_is_made_of_what_is_there_and_let_into_it(chair: str) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions(chair)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == let_in
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert all((REPOSITORY / source).exists() for source in copied)


@pytest.mark.parametrize("chair", CHAIRS)
def test_an_image_runs_a_command_that_exists_as_nobody_in_particular(chair: str) -> None:
    words = dict(instructions(chair))
    check([*json.loads(words["ENTRYPOINT"]), *json.loads(words["CMD"])])
    assert words["USER"] == "goodspeed"
    names = {pair.partition("=")[0] for pair in shlex.split(words["ENV"])}
    assert names <= environment_of(chair) | OF_OTHERS
    probe = json.loads(words["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[:2] == ["python", "-c"]
    compile(probe[2], "HEALTHCHECK", "exec")


@pytest.mark.parametrize("secure", [False, True])
async def test_an_images_health_check_finds_a_server_well(secure: bool, tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    trustme.CA().issue_cert("gpu.example").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    probe = json.loads(dict(instructions("server"))["HEALTHCHECK"].partition("CMD ")[2])
    settings = tiny_settings(tls=TlsSettings(certificate if secure else None))
    async with serving(settings) as (_, address):
        port = address.rpartition(":")[2]
        environment = {"GOODSPEED_PORT": port, "GOODSPEED_TLS_CERT": str(certificate) if secure else ""}
        process = await asyncio.create_subprocess_exec(sys.executable, *probe[1:], env=os.environ | environment)
        assert await process.wait() == 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, *probe[1:], env=os.environ | environment, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 1


def command_lines(page: Path) -> Iterator[list[str]]:
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("goodspeed-"):
                words = shlex.split(line, comments=True)
                yield list(takewhile(lambda word: word not in (">", "|"), words))


@pytest.mark.parametrize("page", ["server/README.md", "agent/README.md", "docs/operating.md", "README.md"])
def test_commands_on_a_page_exist(page: str) -> None:
    found = list(command_lines(REPOSITORY / page))
    assert len(found) >= 4
    for words in found:
        check(words)


@pytest.mark.parametrize("chair", CHAIRS)
def test_environment_names_on_a_page_exist(chair: str) -> None:
    page = (REPOSITORY / chair / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"GOODSPEED_[A-Z]\w*", page)) <= environment_of(chair) | OF_BOTH


@pytest.mark.parametrize("chair", CHAIRS)
def test_messages_on_a_page_are_said(chair: str) -> None:
    page = (REPOSITORY / chair / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) >= 8
    said = "\n".join(sentences())
    assert [sentence for sentence in quoted if sentence not in said] == []


def sentences() -> Iterator[str]:
    """Every string in the sources, with dots in place of what is filled in."""
    for folder in ("goodspeed", "agent/goodspeed_agent", "server/goodspeed_server"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.JoinedStr(values):
                        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in values)
                    case ast.Constant(str(text)):
                        yield re.sub(r"%[sd]", "...", text)
