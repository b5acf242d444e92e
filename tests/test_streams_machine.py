"""Whatever happens between agents and servers, every text is the target's; and the machine that says so is no fool."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from goodspeed.errors import ProtocolError
from goodspeed.messages import Verdict
from goodspeed.prefixes import PrefixIndex
from goodspeed.stream import ServedStream, Transcript
from goodspeed_server.passes import PlannedPass
from goodspeed_server.settling import Settling
from tests.streams.machine import SlicesMachine, StreamsMachine
from tests.streams.target import RememberingEngine

TestStreams = StreamsMachine.TestCase
TestStreams.settings = settings(max_examples=50, stateful_step_count=40)
TestSlices = SlicesMachine.TestCase
TestSlices.settings = settings(max_examples=50, stateful_step_count=40)

SEARCH = settings(
    max_examples=2000, stateful_step_count=40, phases=[Phase.generate], print_blob=False, report_multiple_bugs=False
)


def _without_the_servers_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedStream, "missing", lambda self, base: [])


def _without_the_agents_base(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: Transcript, verdict: Verdict, drafted: Sequence[int]) -> list[int]:
        if verdict.base > self.length:
            raise ProtocolError("a gap")
        new = [*drafted[: verdict.accepted], *verdict.tokens]
        self.tokens += new
        self.finish = verdict.finish or self.finish
        return new

    monkeypatch.setattr(Transcript, "apply", apply)


def _with_prompts_that_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedStream, "prefilled", property(lambda self: self.cached >= self.length - 2))


def _without_the_last_token_that_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = RememberingEngine.copy
    monkeypatch.setattr(RememberingEngine, "copy", lambda self, source, row, end: copy(self, source, row, end - 1))


def _with_rows_that_nobody_writes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are taken to be as long as no newcomer has what they hold."""
    hold = PrefixIndex.hold

    def hold_on(self: PrefixIndex[Any], holder: Any, scope: Hashable, tokens: Sequence[int], length: int) -> None:
        if length > self.held(holder):
            hold(self, holder, scope, tokens, length)

    monkeypatch.setattr(PrefixIndex, "cut", lambda *_: None)
    monkeypatch.setattr(PrefixIndex, "hold", hold_on)


def _with_rows_that_are_free_before_their_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a pass were over for all its streams when it is for the first."""
    commit = Settling.commit

    def commit_all(self: Settling, planned: PlannedPass, *args: Any, **options: Any) -> Iterator[None]:
        for live in planned.verified:
            live.use.in_pass = False
        return commit(self, planned, *args, **options)

    monkeypatch.setattr(Settling, "commit", commit_all)


class BehindTheBarrier(SlicesMachine):
    """Begins where each stream is verified upon a draft, which tells by its base alone whether it is the one."""

    @initialize(budgets=st.lists(st.integers(2, 6), min_size=1, max_size=3))
    def start(self, budgets: list[int]) -> None:
        self.begin("barrier", budgets, known=False)


@pytest.mark.parametrize(
    ("plant", "machine"),
    [
        (_without_the_servers_base, BehindTheBarrier),
        (_without_the_agents_base, StreamsMachine),
        (_with_prompts_that_are_skipped, StreamsMachine),
        (_without_the_last_token_that_is_copied, StreamsMachine),
        (_with_rows_that_nobody_writes_to, StreamsMachine),
        (_with_rows_that_are_free_before_their_slice, SlicesMachine),
    ],
)
def test_it_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], machine: type[StreamsMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    # Which examples are tried follows from the seed: a dozen to a few hundred are needed, now and then 700.
    searched = seed(1)(type(machine.__name__, (machine,), {}))
    with pytest.raises((AssertionError, ProtocolError)):
        run_state_machine_as_test(searched, settings=SEARCH)
