from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.leads import PROBE_EVERY_S, PROBE_GIVE_UP_S, Probing, overtaken
from goodspeed.timing import Pace


def first_in_time(draft: int, turnaround: int, one_pass: int) -> int | None:
    """Passes run back to back, a token each, while guesses arrive: how many come too late, event by event."""
    for late in range(2000):
        pass_begins, guess_here = late * one_pass, turnaround + (late + 1) * draft
        if guess_here <= pass_begins:
            return late
    return None


@given(st.integers(0, 30), st.integers(0, 60), st.integers(1, 30))
def test_as_many_are_overtaken_as_arrive_too_late(draft: int, turnaround: int, one_pass: int) -> None:
    late = overtaken(Pace(draft, turnaround), one_pass, chance=1.0)
    simulated = first_in_time(draft, turnaround, one_pass)
    assert late == simulated


@pytest.mark.parametrize(("chance", "late"), [(1.0, 2), (0.4, 2), (0.36, None), (0.3, None), (0.0, None)])
def test_who_is_hardly_ever_right_so_far_ahead_need_not_guess(chance: float, late: int | None) -> None:
    """Two are overtaken: the third is of use if three in a row are right."""
    assert overtaken(Pace(1.0, 2.0), 3.0, chance) == late


@pytest.mark.parametrize("pass_s", [0.01, 0.02])
def test_who_guesses_no_faster_than_the_server_decodes_need_not_guess(pass_s: float) -> None:
    assert overtaken(Pace(0.02, 0.0), pass_s, 1.0) is None


def test_who_is_here_at_once_is_not_overtaken() -> None:
    assert overtaken(Pace(0.0, 0.0), 0.02, 0.5) == 0


def test_a_probe_is_wanted_at_once_and_until_it_is_answered() -> None:
    probing = Probing()
    assert [probing.wanted(now) for now in (1.0, 1.0, 4.0)] == [True] * 3


def test_probes_are_spaced_from_answer_to_question() -> None:
    probing = Probing()
    assert probing.wanted(1.0)
    probing.answered(3.0)
    assert not probing.wanted(3.0 + 0.9 * PROBE_EVERY_S)
    assert probing.wanted(3.0 + PROBE_EVERY_S)


def test_an_answer_nobody_asked_for_does_not_put_the_next_question_off() -> None:
    probing = Probing()
    probing.answered(7.0)
    assert probing.wanted(7.0)


def test_a_probe_that_is_never_answered_is_forgotten_and_another_is_asked_for() -> None:
    probing = Probing()
    assert probing.wanted(0.0)
    assert probing.wanted(PROBE_GIVE_UP_S)
    given_up_at = PROBE_GIVE_UP_S + 0.1
    assert not probing.wanted(given_up_at)
    assert not probing.wanted(given_up_at + 0.9 * PROBE_EVERY_S)
    assert probing.wanted(given_up_at + PROBE_EVERY_S)
