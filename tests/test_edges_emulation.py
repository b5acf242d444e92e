"""What is emulated: a box's drafting time, a larger target's passes; the computation itself stays what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
import torch

from goodspeed.engine import Engine, Segment
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters import DraftSession, Guess
from goodspeed_bench.drafting import Paced, Remembering
from goodspeed_bench.target import ColocatedEngine, DraftSteps, EmulatedEngine, PassTime
from tests.tiny_models import tiny_llama

PARAMS = SamplingParams(temperature=0.7, seed=3)


class VirtualTime:
    """A clock that moves when somebody computes or sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class CountingDrafter:
    """Counts on from the last token, at most `most` tokens, in a second of virtual time for each call."""

    fingerprint = None
    max_draft = 16

    def __init__(self, step: int = 1, most: int = 16, time: VirtualTime | None = None) -> None:
        self.name = f"counting by {step}"
        self.calls = 0
        self._step, self._most, self._time = step, most, time

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        return self

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        for n in range(self._most):
            self.calls += 1
            if self._time is not None:
                self._time.now += 1.0
            yield Guess(tokens[-1] + self._step * (n + 1), 0.5)


def first(session: DraftSession, tokens: Sequence[int], count: int) -> list[int]:
    return [guess.token for guess in islice(session.guesses(tokens), count)]


def opened(drafter: Any) -> DraftSession:
    session: DraftSession = drafter.open(PARAMS, rule="coupled", vocab_size=50)
    return session


def test_no_guess_is_computed_twice() -> None:
    computing = CountingDrafter()
    remembering = Remembering(computing)
    assert first(opened(remembering), [1, 2], 4) == [3, 4, 5, 6]
    assert first(opened(remembering), [1, 2], 2) == [3, 4]
    assert first(opened(remembering), [1, 2, 3, 4], 2) == [5, 6]
    assert computing.calls == 4
    assert first(opened(remembering), [1, 2], 6) == [3, 4, 5, 6, 7, 8]
    assert first(opened(remembering), [2, 2], 1) == [3]
    assert computing.calls == 7


def test_a_drafter_with_no_more_to_say_is_not_asked_again() -> None:
    computing = CountingDrafter(most=0)
    session = opened(Remembering(computing))
    assert first(session, [1], 4) == first(session, [1], 3) == []


def test_other_parameters_are_other_drafts() -> None:
    computing = CountingDrafter()
    remembering = Remembering(computing)
    for params in (PARAMS, SamplingParams(temperature=0.7, seed=4)):
        first(remembering.open(params, rule="coupled", vocab_size=50), [1], 1)
    assert computing.calls == 2


def test_a_draft_takes_what_its_tokens_take_on_the_box() -> None:
    time = VirtualTime()
    paced = Paced(CountingDrafter(time=time), 1600.0, clock=time.clock, sleep=time.sleep)
    assert first(opened(paced), [1], 5) == [2, 3, 4, 5, 6]
    assert time.now == pytest.approx(100.0 + 5 * 1.6)
    assert time.slept == pytest.approx([0.6] * 5)
    assert (paced.pace.guesses, paced.pace.overruns) == (5, 0)


def test_what_takes_too_long_is_counted() -> None:
    time = VirtualTime()
    paced = Paced(CountingDrafter(time=time), 300.0, clock=time.clock, sleep=time.sleep)
    first(opened(paced), [1], 1)
    assert time.slept == []
    assert paced.pace.overruns == 1
    assert paced.pace.overrun_s == pytest.approx(0.7)
    assert paced.pace.emulated_s == pytest.approx(0.3)


def test_a_box_drafts_with_something_else_in_the_middle_of_a_draft() -> None:
    time = VirtualTime()
    paced = Paced(CountingDrafter(1), 1.0, clock=time.clock, sleep=time.sleep)
    guesses = opened(paced).guesses([1])
    assert [next(guesses).token, next(guesses).token] == [2, 3]
    paced.swap(CountingDrafter(5))
    assert [next(guesses).token, next(guesses).token] == [8, 13]


def shape(engine: type[Engine] = Engine, **more: Any) -> Engine:
    how: dict[str, Any] = {
        "rows": 2, "max_length": 32, "layout": "packed", "device": torch.device("cpu"), "dtype": torch.float32,
    }  # fmt: skip
    return engine(tiny_llama(), **how, **more)


WORK = [Segment(0, 0, [5, 6, 7], 3), Segment(1, 0, [8], 1)]


def test_a_larger_targets_pass_takes_its_time_and_computes_the_same() -> None:
    time = VirtualTime()
    engine = shape(EmulatedEngine, pass_time=PassTime(40.0, 2.0), clock=time.clock, sleep=time.sleep)
    before = time.now
    logits = engine.forward(WORK)
    assert torch.equal(logits, shape().forward(WORK))
    assert time.now - before == pytest.approx(0.040 + 4 * 0.002)
    assert engine.busy_clock is time.clock or engine.busy_clock() == time.now


def test_a_server_that_drafts_by_itself_takes_the_longest_drafts_steps_before_each_pass() -> None:
    time = VirtualTime()
    engine = shape(
        ColocatedEngine,
        pass_time=PassTime(40.0, 2.0),
        draft_steps=DraftSteps(5.0),
        clock=time.clock,
        sleep=time.sleep,
    )
    engine.forward(WORK)
    ended = time.now
    time.now += 0.006  # its agents draft; their steps are charged, and not once more
    engine.forward(WORK)
    assert time.now - ended == pytest.approx(2 * 0.005 + 0.040 + 4 * 0.002)
    ended = time.now
    time.now += 10.0  # there was nothing to do
    engine.forward(WORK)
    assert time.now - ended == pytest.approx(10.0 + 0.040 + 4 * 0.002)
