from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result
from websockets.asyncio.server import ServerConnection

from goodspeed import catalog
from goodspeed.messages import AgentMessage, Close, Draft, Failure, Hello, Open
from goodspeed_agent import cli
from goodspeed_agent.agent import Agent, Piece
from goodspeed_agent.drafters import Drafter, load_drafter
from goodspeed_agent.working import agent_maker
from tests.agent_commands import aside, invoke
from tests.fake_server import FakeServer, byte_tokenizer, counting, queueing, saying

PROMPT = "once upon a time"
STORY = " there was a naïve 😀 and there was a naïve 😀."
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with aside(FakeServer(target=saying(STORY, len(PROMPT)), files=byte_tokenizer(TEMPLATE))) as fake:
        yield fake


def complete(server: FakeServer, *args: str, stdin: str | bytes | None = None) -> Result:
    return invoke("complete", "--server", server.url, *args, stdin=stdin)


@pytest.mark.parametrize("draft", ["none", "suffix"])
def test_verified_text_goes_to_standard_output(server: FakeServer, draft: str) -> None:
    result = complete(server, "--draft", draft, "--prompt", PROMPT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, STORY + "\n", "")


def test_a_user_in_the_servers_queue_is_told_the_place(server: FakeServer) -> None:
    server.hook = queueing(9, 8, 4, 3, 1)
    result = complete(server, "--draft", "suffix", "--prompt", PROMPT)
    said = [f"goodspeed-agent: waiting for a row on the server: place {place} in its queue\n" for place in (9, 4, 1)]
    assert (result.stdout, result.stderr) == (STORY + "\n", "".join(said))


def test_one_json_object(server: FakeServer) -> None:
    result = complete(server, "--draft", "suffix", "--prompt", PROMPT, "--json", "--max-new-tokens", "20")
    answer = json.loads(result.stdout)
    assert len(result.stdout.splitlines()) == 1
    assert answer.keys() == {"text", "tokens", "finish_reason", "usage", "speculative"}
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": len(PROMPT), "completion_tokens": 20}
    assert len(answer["tokens"]) == 20


def test_the_options_arrive_at_the_server(server: FakeServer) -> None:
    options = "--temperature 0.8 --top-p 0.9 --top-k 5 --min-p 0.1 --seed 7 --max-new-tokens 9 --max-draft 3 --name box"
    complete(server, "--draft", "suffix", "--prompt", PROMPT, "--ignore-eos", *options.split())
    (message,) = server.got(Open)
    params = message.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.8, 0.9, 5, 0.1, 7)
    assert (message.max_new_tokens, message.max_draft, message.ignore_eos) == (9, 3, True)
    assert server.got(Hello)[0].name == "box"


def test_stop_strings(server: FakeServer) -> None:
    result = complete(server, "--draft", "suffix", "--prompt", PROMPT, "--stop", "nothing", "--stop", " and")
    assert result.stdout == STORY.split(" and")[0] + "\n"


def test_the_prompt_from_a_file_or_standard_input(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    for args, stdin in [
        (("--prompt-file", str(file)), None),
        (("--prompt-file", "-"), PROMPT),
        (("--prompt", "-"), PROMPT),
    ]:
        assert complete(server, "--draft", "none", *args, stdin=stdin).stdout == STORY + "\n"


def test_a_conversation(server: FakeServer) -> None:
    complete(server, "--draft", "none", "--chat", "--prompt", "hi", "--max-new-tokens", "1")
    assert len(server.got(Open)[0].tokens) == len("user: hi\nassistant:")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([], "give the prompt as --prompt TEXT"),
        (["--prompt", "a", "--prompt-file", "b"], "give the prompt as --prompt TEXT"),
        (["--prompt-file", "nowhere"], "nowhere cannot be read: No such file or directory"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0: it must be 0 (greedy) or above"),
        (["--prompt", "a", "--top-k", "99999999999999999999"], "top_k is 99999999999999999999: it must be between 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "a", "--max-draft", "65"], "max_draft is 65"),
        (["--prompt", "a", "--stop", ""], "a stop string is empty"),
        (["--prompt", "\udcff\udcfe"], "the prompt is not Unicode text"),
        (["--prompt", "a", "--name", "\udcff"], "the agent's name is not Unicode text"),
        (["--prompt", "\udcff\udcfe", "--chat"], "the prompt is not Unicode text"),
    ],
)
def test_what_is_wrong_here_is_said_before_anybody_is_asked(server: FakeServer, args: list[str], match: str) -> None:
    result = complete(server, "--draft", "none", *args)
    assert result.exit_code == 2
    assert match in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert server.received == []


def test_a_prompt_that_is_not_text(server: FakeServer) -> None:
    result = complete(server, "--draft", "none", "--prompt", "-", stdin=b"\xff\xfe")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr


def test_an_address_that_is_none() -> None:
    result = invoke("complete", "--server", "localhost:8765", "--draft", "none", "--prompt", "a")
    assert result.exit_code == 2
    assert result.stderr == (
        "goodspeed-agent: 'localhost:8765' is no server address: write ws://HOST:PORT or wss://HOST:PORT\n"
    )


def test_nobody_there() -> None:
    async def free_port() -> str:
        async with FakeServer().listening() as fake:
            return fake.url

    url = asyncio.run(free_port())
    result = invoke("complete", "--server", url, "--draft", "none", "--prompt", "a", "--connect-timeout", "0.05")
    assert result.exit_code == 4
    assert "check the address, and that a goodspeed-server runs there" in result.stderr


def test_a_refusal(server: FakeServer) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await server.send(connection, Failure("token_out_of_range", "token id 5 is out of range", message.stream))
        return isinstance(message, Open)

    server.hook = hook
    result = complete(server, "--draft", "none", "--prompt", "a")
    assert result.exit_code == 3
    assert result.stderr == "goodspeed-agent: the server refused: token id 5 is out of range\n"


def test_a_draft_that_cannot_be_loaded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "torch" else object())
    result = complete(server, "--draft", "some/model", "--prompt", "a")
    assert result.exit_code == 5
    assert "pip install '.[models]'" in result.stderr


def without_bundled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "bundled", list)


def test_without_a_draft_and_without_models_the_text_itself_is_drafted_from(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_bundled_models(monkeypatch)
    result = complete(server, "--prompt", PROMPT)
    assert (result.exit_code, result.stdout) == (0, STORY + "\n")
    assert server.got(Hello)[0].drafter == "suffix"
    assert len(result.stderr.splitlines()) == 1
    assert "pip install '.[models]'" in result.stderr


class Foreign:
    """A default draft whose tokenizer is not this server's."""

    name = "default"
    max_draft = 4
    fingerprint = "another"


def test_a_default_draft_that_does_not_fit_gives_way(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodspeed_agent.working.default_draft", lambda: "default")
    monkeypatch.setattr(
        "goodspeed_agent.working.load_drafter",
        lambda name, threads: Foreign() if name == "default" else load_drafter(name),
    )
    result = complete(server, "--prompt", PROMPT)
    assert (result.exit_code, result.stdout) == (0, STORY + "\n")
    assert [hello.drafter for hello in server.got(Hello)] == ["default", "suffix"]
    assert "default does not fit this server's model" in result.stderr
    asked_for = complete(server, "--prompt", PROMPT, "--draft", "default")
    assert asked_for.exit_code == 5
    assert "choose a draft of the same family" in asked_for.stderr


def write_prompts(folder: Path, *lines: object) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def test_a_file_of_prompts_to_standard_output(server: FakeServer, tmp_path: Path) -> None:
    server.target = counting(50)
    lines = [{"prompt": "a" * size, "id": size, "max_new_tokens": size} for size in (9, 1, 5)]
    file = write_prompts(tmp_path, *lines)
    result = invoke("run", "--prompts", str(file), "--server", server.url, "--draft", "suffix", "--concurrency", "2")
    assert result.exit_code == 0
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(answer["id"], len(answer["tokens"])) for answer in answers] == [(9, 9), (1, 1), (5, 5)]
    assert "3/3 prompts, 15 tokens, " in result.stderr.splitlines()[-1]


def test_a_file_of_prompts_that_is_not_there_is_named_once() -> None:
    result = invoke("run", "--prompts", "nowhere.jsonl", "--server", "ws://127.0.0.1:1", "--draft", "none")
    assert result.exit_code == 2
    assert result.stderr == "goodspeed-agent: nowhere.jsonl cannot be read: No such file or directory\n"


def test_a_file_of_prompts_to_a_file_with_some_that_fail(server: FakeServer, tmp_path: Path) -> None:
    server.max_length = 40
    file = write_prompts(tmp_path, {"prompt": "x" * 50}, {"prompt": PROMPT, "max_new_tokens": 4})
    output = tmp_path / "out.jsonl"
    result = invoke("run", "--prompts", str(file), "--server", server.url, "--draft", "none", "--output", str(output))
    assert result.exit_code == 6
    assert "1 of 2 prompts failed; their results say why" in result.stderr
    assert result.stdout == ""
    bad, good = map(json.loads, output.read_text().splitlines())
    assert bad["error"]["code"] == "prompt_too_long"
    assert good["text"] == STORY[:4]


def test_a_refusal_of_the_link_ends_the_file_and_says_how_many_are_left(server: FakeServer, tmp_path: Path) -> None:
    async def hook(fake: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open) and len(fake.got(Open)) == 3:
            await fake.send(connection, Failure("unauthorized", "this token was revoked"))
            return True
        return False

    server.hook = hook
    file = write_prompts(tmp_path, *({"prompt": PROMPT, "max_new_tokens": 4} for _ in range(9)))
    result = invoke("run", "--prompts", str(file), "--server", server.url, "--draft", "none", "--concurrency", "1")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer.get("text") for answer in answers] == [STORY[:4]] * 2
    assert result.exit_code == 3
    assert "this token was revoked" in result.stderr
    assert "goodspeed-agent: 7 of 9 prompts are left" in result.stderr
    assert len(server.got(Open)) == 3


def test_a_bad_line_stops_everything_before_it_begins(server: FakeServer, tmp_path: Path) -> None:
    file = write_prompts(tmp_path, {"prompt": "a"}, "{", {"prompt": "b", "temperature": -3})
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    result = invoke("run", "--prompts", str(file), "--server", server.url, "--draft", "none", "--output", str(output))
    assert result.exit_code == 2
    assert f"{file}: line 2: " in result.stderr
    assert "line 3: temperature is -3" in result.stderr
    assert server.received == []
    assert output.read_text() == "precious\n"


def test_a_start_that_fails_leaves_earlier_results_alone(tmp_path: Path) -> None:
    file, output = write_prompts(tmp_path, {"prompt": "a"}), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    nobody = ("--server", "ws://127.0.0.1:9", "--connect-timeout", "0")
    result = invoke("run", "--prompts", str(file), *nobody, "--draft", "none", "--output", str(output))
    assert result.exit_code == 4
    assert output.read_text() == "precious\n"


def test_prompts_from_standard_input_and_an_output_that_cannot_be_written(server: FakeServer, tmp_path: Path) -> None:
    good = invoke(
        "run", "--prompts", "-", "--server", server.url, "--draft", "none", "--max-new-tokens", "2",
        stdin=json.dumps({"prompt": PROMPT}),
    )  # fmt: skip
    assert json.loads(good.stdout)["text"] == STORY[:2]
    bad = invoke(
        "run", "--prompts", "-", "--server", server.url, "--draft", "none", "--output", str(tmp_path / "no" / "where"),
        stdin=json.dumps({"prompt": PROMPT}),
    )  # fmt: skip
    assert bad.exit_code == 2
    assert "cannot be written" in bad.stderr


def spawn(server: FakeServer, *args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "goodspeed_agent", "complete", "--server", server.url, "--draft", "suffix", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_stream_in_order(server: FakeServer, number: signal.Signals, code: int) -> None:
    agent: subprocess.Popen[str]
    closed = threading.Event()

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            agent.send_signal(number)
        if isinstance(message, Close):
            closed.set()
        return isinstance(message, Draft)

    server.hook = hook
    agent = spawn(server, "--prompt", PROMPT)
    _, errors = agent.communicate(timeout=60)
    assert agent.returncode == code
    assert errors == ""
    assert closed.wait(60)


def test_a_reader_that_goes_away_is_no_traceback(server: FakeServer) -> None:
    server.target = counting(50)
    agent = spawn(server, "--prompt", PROMPT, "--max-new-tokens", "3000")
    assert agent.stdout is not None
    assert agent.stderr is not None
    agent.stdout.read(1)
    agent.stdout.close()
    assert agent.wait(timeout=60) == 141
    assert agent.stderr.read() == ""
    agent.stderr.close()


def test_text_is_utf8_whatever_the_terminal_is_set_to(server: FakeServer) -> None:
    text, errors = spawn(server, "--prompt", PROMPT, PYTHONIOENCODING="ascii").communicate(timeout=60)
    assert (text, errors) == (STORY + "\n", "")


def test_a_link_that_is_lost_is_mentioned_and_every_attempt_only_on_request(server: FakeServer) -> None:
    lost = 0

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal lost
        if isinstance(message, Open) and lost < 2:
            lost += 1
            await connection.close()
            return True
        return False

    server.hook = hook
    quiet = complete(server, "--draft", "none", "--prompt", PROMPT)
    lost = 0
    talkative = complete(server, "--draft", "none", "--prompt", PROMPT, "--verbose")
    assert quiet.stdout == talkative.stdout == STORY + "\n"
    assert quiet.stderr.count("the connection was lost") == 1
    assert talkative.stderr.count("the connection was lost") == 2


def test_on_a_terminal_what_is_written_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, shown in ((Terminal(), "a[2Jb\n\tc"), (io.StringIO(), "a\x1b[2Jb\x07\n\tc")):
        monkeypatch.setattr("sys.stdout", out)
        cli._write(Piece("a\x1b[2Jb\x07\n\tc", [1]))
        assert out.getvalue() == shown


@pytest.mark.parametrize(("given", "patience_s"), [("1.5", 1.5), ("0", 1.0)])
def test_the_doctor_waits_for_a_silent_server_no_longer_than_for_a_link(
    given: str, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def maker(options: Mapping[str, Any]) -> Callable[[Drafter], Agent]:
        asked.append(options["patience_s"])
        return agent_maker(options)

    monkeypatch.setattr("goodspeed_agent.cli.agent_maker", maker)
    invoke("doctor", "--server", "ws://127.0.0.1:9", "--draft", "none", "--connect-timeout", given)
    assert asked == [patience_s]


def test_no_patience_at_all_is_refused() -> None:
    result = invoke("complete", "--server", "ws://127.0.0.1:9", "--prompt", "a", "--patience-s", "0")
    assert result.exit_code == 2
    assert "--patience-s" in result.stderr
