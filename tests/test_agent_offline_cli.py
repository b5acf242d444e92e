"""Several servers, and none at all, as the commands' users meet them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from pathlib import Path

import pytest

from goodspeed.messages import Hello
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters import DraftSession, Guess
from tests.agent_commands import aside, invoke
from tests.fake_server import FakeServer, saying

PROMPT = "once upon a time"
STORY = " there was"
BANG = 0
"""The first letter of the byte tokenizer's alphabet: an exclamation mark."""
BABBLER = "tests.test_agent_offline_cli:Babbler"
OFFLINE = ("--offline-fallback", "--offline-after-s", "0.05", "--draft", BABBLER)

pytestmark = pytest.mark.usefixtures("own_cache")


class Babbler:
    """Has one thing to say to everything."""

    name = "babbler"
    max_draft = 4
    fingerprint = None
    context = 1000

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        return self

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        return repeat(Guess(BANG, 1.0))


def running() -> AbstractContextManager[FakeServer]:
    return aside(FakeServer(target=saying(STORY, len(PROMPT))))


@pytest.fixture
def gone() -> str:
    """The address of a server that was linked up to, and is there no more."""
    with running() as server:
        result = invoke("complete", "--server", server.url, "--draft", BABBLER, "--prompt", PROMPT)
        assert result.exit_code == 0, result.stderr
        assert len(server.got(Hello)) == 1
    return server.url


@pytest.mark.parametrize("how", ["twice", "comma", "environment"])
def test_of_several_servers_the_one_that_is_there_answers(how: str, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        options: tuple[str, ...] = ()
        if how == "twice":
            options = ("--server", gone, "--server", server.url)
        elif how == "comma":
            options = ("--server", f"{gone},{server.url}")
        else:
            monkeypatch.setenv("GOODSPEED_SERVER", f"{gone},{server.url}")
        result = invoke("complete", *options, "--draft", "suffix", "--prompt", PROMPT)
    assert (result.exit_code, result.stdout) == (0, STORY + "\n")
    assert f"no link to {gone}" in result.stderr
    assert f"trying {server.url}" in result.stderr


def test_without_a_server_named_the_option_is_asked_for() -> None:
    result = invoke("complete", "--draft", "none", "--prompt", "a")
    assert result.exit_code == 2
    assert "--server" in result.stderr


def test_the_doctor_examines_each_of_several(gone: str) -> None:
    with running() as server:
        result = invoke(
            "doctor", "--server", f"{gone},{server.url}", "--draft", "suffix", "--connect-timeout", "0", "--json"
        )
    links = [found for line in result.stdout.splitlines() if (found := json.loads(line))["what"] == "link"]
    assert [(found["state"], url in found["value"]) for found, url in zip(links, (gone, server.url), strict=True)] == [
        ("bad", True), ("good", True)
    ]  # fmt: skip
    assert result.exit_code == 1


def test_a_text_that_the_draft_wrote_alone_says_so(gone: str) -> None:
    asked = ("complete", "--server", gone, "--prompt", PROMPT, "--max-new-tokens", "3", *OFFLINE)
    result = invoke(*asked)
    assert (result.exit_code, result.stdout) == (0, "!!!\n")
    assert "no server can be reached: the draft answers new texts alone, and nobody verifies them" in result.stderr
    assert "nobody has verified this text: babbler wrote it alone" in result.stderr
    answer = json.loads(invoke(*asked, "--json").stdout)
    assert (answer["text"], answer["verified"], answer["model"]) == ("!!!", False, "babbler")


def test_a_file_of_prompts_goes_on_without_a_server(gone: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a", "b")))
    result = invoke("run", "--server", gone, "--prompts", str(file), "--max-new-tokens", "2", *OFFLINE)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["text"], line["verified"], line["model"]) for line in lines] == [("!!", False, "babbler")] * 2
    assert '2 of 2 texts are unverified: the draft wrote them alone ("verified": false)' in result.stderr


def test_without_the_option_nothing_is_written_alone(gone: str) -> None:
    result = invoke("complete", "--server", gone, "--prompt", PROMPT, "--draft", BABBLER, "--connect-timeout", "0.05")
    assert (result.exit_code, result.stdout) == (4, "")


def test_with_a_server_nothing_is_marked() -> None:
    with running() as server:
        result = invoke("complete", "--server", server.url, "--prompt", PROMPT, "--json", *OFFLINE)
    answer = json.loads(result.stdout)
    assert answer["text"] == STORY
    assert not answer.keys() & {"verified", "model"}


@pytest.mark.parametrize("draft", ["none", "suffix"])
@pytest.mark.parametrize("command", ["complete", "serve", "chat"])
def test_a_draft_that_cannot_answer_alone_is_refused_at_the_start(command: str, draft: str, gone: str) -> None:
    prompt = ("--prompt", PROMPT) if command == "complete" else ()
    result = invoke(command, "--server", gone, *prompt, "--draft", draft, "--offline-fallback")
    assert result.exit_code == 2
    assert f"the draft '{draft}' cannot answer without a server" in result.stderr
