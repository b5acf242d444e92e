"""A conversation: what is asked, what the commands do, and where tokens come from."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO, cast

import pytest
from rich.console import Console

from goodspeed.errors import GoodSpeedError, InvalidRequest, LinkLost, Overloaded, Refused, TargetChanged
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.chat import Conversation, repl
from goodspeed_agent.report import Completion, Speculation


def completion(text: str, drafted: int = 0, *accepted: int) -> Completion:
    speculation = Speculation(drafted)
    for count in accepted:
        speculation.verified(count)
    return Completion(text, [1, 2, 3, 4], "stop", 5, speculation)


def test_what_was_said_is_asked_again_with_every_question() -> None:
    conversation = Conversation(SamplingParams(0.7, seed=3), 50, system="be brief")
    assert conversation.ask("a?").prompt == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "a?"}
    ]  # fmt: skip
    conversation.answered("a?", completion("A."), 1.0)
    request = conversation.ask("b?")
    assert list(request.prompt)[1:] == [
        {"role": "user", "content": "a?"}, {"role": "assistant", "content": "A."}, {"role": "user", "content": "b?"}
    ]  # fmt: skip
    assert (request.params, request.max_new_tokens) == (SamplingParams(0.7, seed=3), 50)


def test_commands_change_how_the_next_answer_is_drawn() -> None:
    conversation = Conversation()
    assert conversation.command("/temperature 0.25") == "temperature 0.25"
    assert conversation.command("/seed 9") == "seed 9"
    assert conversation.command("/top_p 0.5") == "top_p 0.5"
    assert conversation.params == SamplingParams(0.25, 0.5, seed=9)
    assert conversation.command("/max 12") == "answers of at most 12 tokens"
    assert conversation.ask("x").max_new_tokens == 12
    assert conversation.command("/max 0") == "answers as long as there is room"
    assert conversation.command("/system  talk like a test ") == "the target is told this first"
    assert conversation.ask("x").prompt[0] == {"role": "system", "content": "talk like a test"}
    assert "cyan" in conversation.command("/origins on")
    assert conversation.origins
    conversation.command("/origins off")
    assert (conversation.origins, conversation.over) == (False, False)
    assert conversation.command("/quit") == ""
    assert (conversation.origins, conversation.over) == (False, True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/sed 3", "there is no /sed: did you mean /seed"),
        ("/xyzzy", "/help lists all"),
        ("/seed soon", "'soon' is no number"),
        ("/seed -1", "seed is -1"),
        ("/temperature -1", "temperature is -1"),
        ("/temperature nan", "temperature is nan"),
        ("/max -3", "at least one token"),
        ("/origins maybe", "/origins on, or"),
        ("/undo", "nothing to take back"),
    ],
)
def test_a_command_that_cannot_be_says_what_to_write(line: str, sentence: str) -> None:
    conversation = Conversation(SamplingParams(0.5))
    with pytest.raises(InvalidRequest, match=sentence):
        conversation.command(line)
    assert conversation == Conversation(SamplingParams(0.5))


def test_answers_are_taken_back_and_forgotten() -> None:
    conversation = Conversation()
    for text in "abc":
        conversation.answered(text, completion(text.upper()), 1.0)
    assert conversation.command("/undo") == "2 questions and their answers are left"
    assert [message["content"] for message in conversation.messages] == ["a", "A", "b", "B"]
    assert conversation.command("/undo") == "one question and its answer are left"
    assert conversation.command("/undo") == "nothing is left of the conversation"
    conversation.answered("a", completion("A"), 1.0)
    conversation.command("/reset")
    assert conversation.messages == []


def test_figures_are_of_the_last_answer_and_of_all() -> None:
    conversation = Conversation()
    assert conversation.command("/stats") == "nothing has been said yet"
    conversation.answered("a", completion("A"), 2.0)
    conversation.answered("b", completion("B", 6, 2, 1), 2.0)
    verdicts = "50% of 6 drafted accepted, 2.50 tokens a verdict, verdicts by tokens accepted 0:0 1:1 2:1"
    assert conversation.command("/stats").splitlines() == [
        f"last: 4 tokens in 2.0 s (2.0/s), {verdicts}",
        f"in all: 8 tokens in 4.0 s (2.0/s), {verdicts}",
    ]


async def lines_of(file: TextIO, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.stdin", file)
    return [line.strip() async for line in repl._lines()]


async def test_lines_are_read_from_a_file_and_from_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said").write_text("one\ntwo")
    with (tmp_path / "said").open() as file:
        assert await lines_of(file, monkeypatch) == ["one", "two"]
    read, write = os.pipe()
    os.write(write, b"three\nfour\n")
    os.close(write)
    assert await lines_of(os.fdopen(read), monkeypatch) == ["three", "four"]


@pytest.mark.parametrize("origins", [True, False])
async def test_what_is_said_is_shown_to_the_letter_and_a_terminal_is_not_steered(
    origins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "x[:key:]\n\tif [bold]x[/]:\x1b]0;title\x07 done"

    class Speaker:
        link = SimpleNamespace(ended=False)

        async def complete(
            self, request: TextRequest, show: Callable[[Piece], None], on_queued: Callable[[int], None]
        ) -> Completion:
            on_queued(3)
            show(Piece(said[:9], [1], [said[:9]], ["accepted"]))
            show(Piece(said[9:], [2], [said[9:]], ["recovered"]))
            return completion(said)

    (tmp_path / "said").write_text("/stats\nhello\n/nonsense\n/quit\nnever\n")
    conversation, written = Conversation(origins=origins), io.StringIO()
    with (tmp_path / "said").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        console = Console(file=written, force_terminal=True, width=200, color_system="standard" if origins else None)
        await repl.chat(cast("Agent", Speaker()), conversation, console)
    shown = written.getvalue()
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "place 3 in its queue\r\x1b[2Kx[:key:]\n\tif [bold]x[/]:]0;title done\n" in plain
    assert ("\x1b[36mx[:key:]\n\x1b[39m" in shown) == origins
    assert "there is no /nonsense" in plain
    assert [message["content"] for message in conversation.messages] == ["hello", said]


async def test_an_answer_that_nobody_verified_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Speaker:
        async def complete(
            self, request: TextRequest, show: Callable[[Piece], None], on_queued: Callable[[int], None]
        ) -> Completion:
            show(Piece("yes", [1], ["yes"], ["unverified"], draft="small"))
            return Completion("yes", [1], "stop", 5, draft="small")

    (tmp_path / "said").write_text("hello\n")
    written = io.StringIO()
    with (tmp_path / "said").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        console = Console(file=written, force_terminal=True, width=200, color_system="standard")
        await repl.chat(cast("Agent", Speaker()), Conversation(origins=True), console)
    assert "\x1b[31myes\x1b[39m" in written.getvalue()
    assert capsys.readouterr().err == "goodspeed-agent: nobody has verified this: small answered alone\n"


class Refuser:
    """Has something else to say before the first answer."""

    def __init__(self, *errors: GoodSpeedError, ended: bool = False) -> None:
        self.errors = list(errors)
        self.link = SimpleNamespace(ended=ended)
        self.asked: list[object] = []

    async def complete(
        self, request: TextRequest, show: Callable[[Piece], None], on_queued: Callable[[int], None]
    ) -> Completion:
        self.asked.append(request.prompt[-1])
        on_queued(2)
        if self.errors:
            raise self.errors.pop(0)
        show(Piece("yes", [1], ["yes"], ["target"]))
        return completion("yes")


async def conversed(
    agent: Refuser, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[str]]:
    """What is shown, and what was said by both."""
    (tmp_path / "said").write_text(lines)
    conversation, written = Conversation(), io.StringIO()
    with (tmp_path / "said").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        await repl.chat(cast("Agent", agent), conversation, Console(file=written, width=200))
    return written.getvalue(), [message["content"] for message in conversation.messages]


async def test_a_server_without_room_ends_no_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Refuser(Overloaded("no room here", retry_after_s=1.0), Refused("not you", code="forbidden"))
    shown, said = await conversed(agent, "hello\n/again\n/again\n/again\nmore\n", tmp_path, monkeypatch)
    assert said == ["hello", "yes", "more", "yes"]
    assert agent.asked == [{"role": "user", "content": text} for text in ("hello", "hello", "hello", "more")]
    for sentence in ("no room here", "not you", "/again asks it once more", "no question that"):
        assert sentence in shown
    assert "waiting for a row" in capsys.readouterr().err


@pytest.mark.parametrize("error", [LinkLost("no link"), TargetChanged("another target")])
async def test_a_server_that_is_gone_ends_the_conversation(
    error: GoodSpeedError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)):
        await conversed(Refuser(error, ended=True), "hello\nmore\n", tmp_path, monkeypatch)


async def test_a_text_that_is_given_up_while_the_agent_goes_on_ends_no_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, said = await conversed(Refuser(LinkLost("no link")), "hello\n/again\n", tmp_path, monkeypatch)
    assert said == ["hello", "yes"]
    assert "/again asks it once more" in shown


def test_help_names_every_command() -> None:
    lines = Conversation().command("/help").splitlines()
    assert [line.split()[0] for line in lines] == [
        "/stats", "/temperature", "/top_p", "/seed", "/max", "/system", "/origins", "/undo", "/reset", "/again",
        "/help", "/quit",
    ]  # fmt: skip
    assert all(len(line.split()) > 1 and len(line) < 80 for line in lines)
