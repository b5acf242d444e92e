"""What every test runs under: one thread, and examples that are the same on every run; and what many of them need."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from goodspeed_agent.tokenizer import TokenizerCache
    from goodspeed_server.observer import RoundRecord

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# A shell starts background jobs with SIGINT ignored, and so would be every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart() -> None:
    """Before any test is imported; a process that only deals tests out to others does not wait for torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command sets up the log of its process, which is the tests' where it runs in this one."""
    names = (None, "goodspeed_agent", "goodspeed_server", "goodspeed.engine", "websockets.server")
    logs = [logging.getLogger(name) for name in names]
    before = [(log.level, list(log.handlers)) for log in logs]
    yield
    for log, (level, handlers) in zip(logs, before, strict=True):
        log.setLevel(level)
        log.handlers[:] = handlers


@pytest.fixture
def cache(tmp_path: Path) -> TokenizerCache:
    """An agent's cache, empty, and no other test's."""
    from goodspeed_agent.tokenizer import TokenizerCache

    return TokenizerCache(tmp_path)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of a command."""
    monkeypatch.setenv("GOODSPEED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[RoundRecord]:
    """Every round the server runs."""
    from goodspeed_server.telemetry import Telemetry

    seen: list[RoundRecord] = []
    note = Telemetry.round_over

    def round_over(self: Telemetry, record: RoundRecord) -> None:
        seen.append(record)
        note(self, record)

    monkeypatch.setattr(Telemetry, "round_over", round_over)
    return seen
