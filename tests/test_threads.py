"""How many threads are chosen, by timings that are made up."""

from __future__ import annotations

import itertools
import os
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.threads import candidates, contenders, quickest, timed, usable_cores


@given(st.integers(1, 300))
def test_powers_of_two_and_all_cores_are_tried(cores: int) -> None:
    counts = candidates(cores)
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1, cores)
    assert all(count & (count - 1) == 0 for count in counts[:-1])
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(counts))


def test_no_more_cores_than_this_process_may_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("timings", "threads"),
    [
        ({1: [9.0], 2: [5.0], 4: [3.0], 8: [4.0]}, 4),
        ({1: [9.0], 2: [5.0], 4: [4.9], 8: [4.8]}, 2),  # Six more threads for 4% are better left to others.
        ({1: [9.0], 2: [5.0], 4: [4.9], 8: [4.7]}, 4),
        ({1: [3.0, 3.0, 3.0], 2: [2.0, 90.0, 2.0]}, 2),  # Once in a while something else runs.
        ({1: [3.0, 3.0, 3.0], 2: [0.1, 4.0, 4.0]}, 1),
        ({1: [0.05]}, 1),
    ],
)
def test_the_fewest_that_are_about_as_quick_as_any(timings: dict[int, list[float]], threads: int) -> None:
    assert quickest(timings) == threads


@given(st.dictionaries(st.integers(1, 64), st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=9), min_size=1))
def test_never_much_slower_than_the_quickest(timings: dict[int, list[float]]) -> None:
    chosen = quickest(timings)
    medians = {count: statistics.median(steps) for count, steps in timings.items()}
    assert medians[chosen] * 0.95 <= min(medians.values()) * (1 + 1e-9)
    assert all(medians[count] > medians[chosen] or count >= chosen for count in medians)


class Machine:
    """Its steps take as long as it says, on a clock of its own."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.now_s = 0.0
        self.steps: list[int] = []

    def step(self, threads: int) -> None:
        first = threads not in self.steps
        self.steps.append(threads)
        self.now_s += self.seconds[threads] + (100.0 if first else 0.0)


def test_what_is_measured_takes_turns_and_leaves_the_first_of_each_out() -> None:
    machine = Machine({1: 0.125, 2: 0.0625, 4: 0.03125})
    timings = timed(machine.step, [1, 2, 4], lambda: machine.now_s)
    assert timings == {1: [0.125] * 7, 2: [0.0625] * 7, 4: [0.03125] * 7}
    assert machine.steps == [1, 2, 4] * 8


def test_a_slow_machine_is_measured_in_fewer_rounds() -> None:
    machine = Machine({1: 4.0, 2: 2.0})
    assert timed(machine.step, [1, 2], lambda: machine.now_s) == {1: [4.0], 2: [2.0]}


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.1, 8: 1.0}, [8]),  # A large model: fewer threads would be run for long, and for nothing.
        ({1: 1.0, 2: 0.75, 4: 1.0, 8: 1.25}, [1, 2, 4, 8]),
        ({1: 0.5, 2: 8.0}, [1, 2]),  # The cores are others'.
        ({1: 8.0, 2: 1.0, 4: 1.5, 8: 9.0}, [2, 4, 8]),
        ({1: 3.0}, [1]),
    ],
)
def test_fewer_threads_are_not_tried_once_they_take_twice_as_long(seconds: dict[int, float], kept: list[int]) -> None:
    machine = Machine(seconds)
    assert contenders(machine.step, list(seconds), lambda: machine.now_s) == kept
    assert set(machine.steps) <= {max(1, kept[0] // 2), *kept}
    assert quickest({count: [seconds[count]] for count in kept}) == quickest({n: [s] for n, s in seconds.items()})


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10.0), min_size=1))
def test_nothing_is_run_for_long(seconds: dict[int, float]) -> None:
    machine = Machine(seconds)
    kept = contenders(machine.step, list(seconds), lambda: machine.now_s)
    assert max(seconds) in kept
    assert len(machine.steps) <= 2 * len(kept) + 2
