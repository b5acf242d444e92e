"""What a run over a file of prompts leaves behind, and how the next goes on with it."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.prompts import PromptLine
from goodspeed_agent.results import results_in
from tests.fake_server import FakeServer

WELCOME = FakeServer().welcome()
PROMPTS = [PromptLine(number, f"p{number}", TextRequest("ab" * number)) for number in (1, 2, 4, 5)]


def result_of(prompt: PromptLine, **more: Any) -> dict[str, Any]:
    return {"line": prompt.number, "id": prompt.id, "text": "naïve\u2028😀"} | more


def write(output: Path, *prompts: PromptLine, **more: Any) -> None:
    with results_in(output, PROMPTS, WELCOME) as results:
        for prompt in prompts:
            results.write(result_of(prompt, **more))


def lines_in(output: Path) -> list[int]:
    return [json.loads(line)["line"] for line in output.read_bytes().split(b"\n")[:-1]]


def test_whole_lines_stay_and_the_rest_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, *PROMPTS[:2])
    before = output.read_bytes()
    with results_in(output, PROMPTS, WELCOME) as results:
        assert (results.missing, results.kept, results.cut_off) == (PROMPTS[2:], 2, False)
        assert output.read_bytes() == before
        for prompt in results.missing:
            results.write(result_of(prompt))
    assert output.read_bytes().startswith(before)
    assert lines_in(output) == [1, 2, 4, 5]
    with results_in(output, PROMPTS, WELCOME) as results:
        assert (results.missing, results.kept) == ([], 4)


@pytest.mark.parametrize("left", range(1, 40))
def test_a_line_that_was_cut_off_is_dropped_wherever_it_was(left: int, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, PROMPTS[0])
    whole = output.read_bytes()
    output.write_bytes(whole + whole[: min(left * 4, len(whole) - 1)])
    with results_in(output, PROMPTS, WELCOME) as results:
        assert (results.missing, results.cut_off) == (PROMPTS[1:], True)
        assert output.read_bytes() == whole


def test_what_failed_is_done_again_and_put_in_its_place(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with results_in(output, PROMPTS, WELCOME) as results:
        results.write({"line": 1, "error": {"code": "link_lost", "message": "gone"}})
        results.write(result_of(PROMPTS[1]))
    output.chmod(0o640)
    with results_in(output, PROMPTS, WELCOME) as results:
        assert [prompt.number for prompt in results.missing] == [1, 4, 5]
        for prompt in results.missing:
            results.write(result_of(prompt))
    assert lines_in(output) == [1, 2, 4, 5]
    assert b"error" not in output.read_bytes()
    assert output.stat().st_mode & 0o777 == 0o640


def test_what_the_draft_wrote_alone_is_done_again_and_put_in_its_place(tmp_path: Path) -> None:
    output = tmp_path / "out"
    # By its bytes the earlier line of the two would come last.
    write(output, PROMPTS[0], text="zzz", verified=False, model="babbler")
    write(output, *PROMPTS[1:])
    with results_in(output, PROMPTS, WELCOME) as results:
        assert (results.missing, results.kept) == (PROMPTS[:1], 3)
        results.write(result_of(PROMPTS[0], text="aaa"))
    assert lines_in(output) == [1, 2, 4, 5]
    assert json.loads(output.read_bytes().split(b"\n")[0])["text"] == "aaa"
    with results_in(output, PROMPTS, WELCOME) as results:
        assert results.missing == []


def cannot(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (tempfile, "TemporaryDirectory")])
def test_a_file_that_cannot_be_replaced_keeps_its_order(
    module: Any, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, function, cannot(errno.EBUSY))
        write(output, *reversed(PROMPTS))
    assert "not in the order of the prompts" in capsys.readouterr().err
    assert lines_in(output) == [5, 4, 2, 1]
    with results_in(output, PROMPTS, WELCOME) as results:
        assert results.missing == []
    assert lines_in(output) == [1, 2, 4, 5]


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    output, file = tmp_path / "out", tmp_path / "file"
    output.symlink_to(file)
    write(output, *reversed(PROMPTS))
    assert output.is_symlink()
    assert lines_in(file) == [1, 2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_an_end_before_its_time_leaves_what_was_written(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def ended() -> None:
        with results_in(output, PROMPTS, WELCOME) as results:
            results.write(result_of(PROMPTS[3]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ended()
    with results_in(output, PROMPTS, WELCOME) as results:
        assert results.missing == PROMPTS[:3]


OTHERS = {
    "prompt": PromptLine(1, "p1", TextRequest("other")),
    "parameters": PromptLine(1, "p1", TextRequest("ab", SamplingParams(0.5))),
    "id": PromptLine(1, "another", TextRequest("ab")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_results_of_something_else_are_not_touched(what: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, *PROMPTS[:2])
    before = output.read_bytes()
    with (
        pytest.raises(InvalidRequest, match="its line 1 is no result of these prompts with these options and this"),
        results_in(output, [OTHERS[what], *PROMPTS[1:]], WELCOME),
    ):
        pass
    assert output.read_bytes() == before


CHANGES: list[dict[str, Any]] = [
    {"weights": "others"},
    {"rule": "ratio"},
    {"fingerprint": "others"},
    {"tokenizer": "others"},
    {"vocab_size": 7},
    {"eos_tokens": [7]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_nor_are_those_of_another_target(change: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, PROMPTS[0])
    with (
        pytest.raises(InvalidRequest, match="remove the file, or name another"),
        results_in(output, PROMPTS, replace(WELCOME, **change)),
    ):
        pass


@pytest.mark.parametrize("content", [b"precious\n", b"{}\n", b"\xff\n", b"\n", b'{"line": 1}\n'])
def test_nor_is_what_is_no_result(content: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_bytes(content)
    with pytest.raises(InvalidRequest, match="line 1 is no result"), results_in(output, PROMPTS, WELCOME):
        pass
    assert output.read_bytes() == content


FOREIGN = [
    b"precious",
    b"\xff",
    b'{"line": 3, "id": "there is no such prompt',
    b'{"line": "a',
    b'{"line": 1, "request": "another"}',
    b"{}",
    b'[{"line": 1, ',
    b"1",
]


@pytest.mark.parametrize("ours", [0, 1])
@pytest.mark.parametrize("content", FOREIGN)
def test_nor_is_an_unfinished_line_that_cannot_be_a_result(content: bytes, ours: int, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, *PROMPTS[:ours])
    content = output.read_bytes() + content
    output.write_bytes(content)
    with pytest.raises(InvalidRequest, match=f"line {ours + 1} is no result"), results_in(output, PROMPTS, WELCOME):
        pass
    assert output.read_bytes() == content


def test_nothing_is_dropped_from_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, open_path = tmp_path / "out", Path.open
    output.write_bytes(b'{"line": 1, ')

    def read_only(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        return cannot(errno.EACCES)() if "a" in mode else open_path(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(InvalidRequest, match="cannot be written: Permission"), results_in(output, PROMPTS, WELCOME):
        pass
    assert output.read_bytes() == b'{"line": 1, '


def test_an_option_that_is_new_leaves_earlier_results_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, slots=True)
    class LaterRequest(TextRequest):
        novelty: int = 0

    output = tmp_path / "out"
    write(output, *PROMPTS)
    monkeypatch.setattr("goodspeed_agent.results.TextRequest", LaterRequest)
    later = [PromptLine(prompt.number, prompt.id, LaterRequest(prompt.request.prompt)) for prompt in PROMPTS]
    with results_in(output, later, WELCOME) as results:
        assert results.missing == []
    used = PromptLine(1, "p1", LaterRequest("ab", novelty=1))
    with pytest.raises(InvalidRequest, match="line 1 is no result"), results_in(output, [used, *later[1:]], WELCOME):
        pass


def test_one_run_at_a_time_has_a_file(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with results_in(output, PROMPTS, WELCOME) as results:
        results.write(result_of(PROMPTS[1]))
        with (
            pytest.raises(InvalidRequest, match="is being written by another run: wait until that has ended"),
            results_in(output, PROMPTS, WELCOME),
        ):
            pass
        results.write(result_of(PROMPTS[0]))
    with results_in(output, PROMPTS, WELCOME) as results:
        assert results.missing == PROMPTS[2:]


def test_on_standard_output_nothing_is_to_be_known_again(capsys: pytest.CaptureFixture[str]) -> None:
    with results_in(None, PROMPTS, WELCOME) as results:
        assert results.missing == PROMPTS
        results.write({"line": 1, "text": "é"})
    assert capsys.readouterr().out == '{"line": 1, "text": "é"}\n'


def test_a_device_keeps_nothing() -> None:
    write(Path("/dev/null"), *PROMPTS)
