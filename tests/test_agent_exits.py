from __future__ import annotations

import asyncio
import os
import signal

import pytest
import typer
import uvloop

from goodspeed.errors import (
    GoodSpeedError,
    InvalidRequest,
    LinkLost,
    Overloaded,
    ProtocolError,
    Refused,
    TargetChanged,
    TokenizerMismatch,
    UnknownModel,
    VersionMismatch,
)
from goodspeed_agent.exits import Exit, exit_codes, run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("temperature is -1"), 2),
        (Refused("no", code="invalid_request"), 3),
        (Overloaded("full", retry_after_s=1.0), 3),
        (ProtocolError("odd"), 3),
        (VersionMismatch(1, 2), 3),
        (LinkLost("gone"), 4),
        (UnknownModel("what"), 5),
        (TokenizerMismatch("other"), 5),
        (TargetChanged("other"), 5),
    ],
)
def test_an_error_is_one_sentence_and_a_code(
    error: GoodSpeedError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, exit_codes():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == f"goodspeed-agent: {error}\n"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), Exit.INTERRUPTED), (asyncio.CancelledError(), Exit.TERMINATED)]
)
def test_signals_need_no_sentence(error: BaseException, code: Exit, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, exit_codes():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == ""


def test_a_defect_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError


def test_the_loop_is_uvloop() -> None:
    async def which() -> type:
        return type(asyncio.get_running_loop())

    assert run(which()) is uvloop.Loop


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, asyncio.CancelledError)]
)
def test_a_signal_lets_everything_close_in_order(number: signal.Signals, raised: type[BaseException]) -> None:
    closed = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    with pytest.raises(raised):
        run(work())
    assert closed == [True]
