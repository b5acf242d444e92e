"""The queue in front of the rows: fair among agents, bounded, and honest about places."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import Overloaded, Refused
from goodspeed_server.admission import Admission
from tests.queueing import NOBODY, WEIGHTS, join, queue


def test_first_in_first_out_among_equals() -> None:
    waiting = queue("b1", "a1", "c1")
    assert [waiting.next(NOBODY) for _ in range(4)] == [[("b1", 0)], [("a1", 1)], [("c1", 2)], []]


def test_who_has_fewer_rows_comes_first_whoever_came_first() -> None:
    waiting = queue("a1", "a2", "b1")
    assert list(waiting.order({"a": 1})) == ["b1", "a1", "a2"]
    assert list(waiting.order({})) == ["a1", "b1", "a2"]
    assert list(waiting.order({"b": 3})) == ["a1", "a2", "b1"]


def test_among_equals_it_is_the_turn_of_who_has_been_without_a_row_for_longest() -> None:
    waiting = queue("a1", "a2", "b1", "b2")
    waiting.row_fell_free("a", held_s=1.0)
    join(waiting, "c1")
    assert list(waiting.order({})) == ["b1", "a1", "c1", "b2", "a2"]
    waiting.row_fell_free("b", held_s=1.0)
    assert list(waiting.order({"c": 1})) == ["a1", "b1", "c1", "a2", "b2"]


def test_a_greater_weight_has_more_rows() -> None:
    waiting = queue("a1", "a2", "a3", "c1", "c2", "c3", "c4")
    assert list(waiting.order({"a": 1, "c": 1})) == ["c1", "a1", "c2", "c3", "a2", "c4", "a3"]


def test_withdrawing_gives_back_what_waited_and_the_others_move_up() -> None:
    waiting = queue("a1", "b1", "a2", max_waiting=3)
    assert waiting.withdraw("c1") is None
    assert waiting.withdraw("a1") == 0
    assert waiting.withdraw("a1") is None
    join(waiting, "c1", 9)
    assert [waiting.next(NOBODY) for _ in range(4)] == [[("b1", 1)], [("a2", 2)], [("c1", 9)], []]
    assert (len(waiting), waiting.tokens) == (0, 0)


def test_who_has_left_for_a_while_is_back_where_it_stood() -> None:
    waiting = queue("a1", "b1", "b2", "c1", keep_s=30.0)
    assert waiting.leave("b1", "b one", now=1.0) == 1
    assert list(waiting.order(NOBODY)) == ["a1", "b2", "c1"], "no row is kept for it"
    join(waiting, "d1")
    assert join(waiting, "b3", 9, name="b one") == []
    assert list(waiting.order(NOBODY)) == ["a1", "b3", "c1", "d1", "b2"]
    assert (len(waiting.absences), waiting.absences.tokens) == (0, 0)


def test_a_place_is_kept_for_a_while_and_not_for_longer() -> None:
    waiting = queue("a1", "b1", keep_s=30.0)
    waiting.leave("a1", "a one", now=1.0)
    waiting.absences.expire(30.9)
    assert waiting.absences.held("a one") is not None
    waiting.absences.expire(waiting.absences.expires_at or 0.0)
    join(waiting, "a1", 9, name="a one")
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]
    brief = queue("a1")
    brief.leave("a1", "a one", now=1.0)
    assert len(brief.absences) == 0


def test_room_is_kept_as_far_as_nobody_who_is_there_wants_it() -> None:
    waiting = queue("a1", "b1", "c1", max_waiting=3, max_tokens=100, keep_s=30.0)
    waiting.leave("a1", "a one", now=1.0)
    waiting.leave("b1", "b one", now=2.0)
    assert join(waiting, "e1") == []
    assert waiting.absences.held("a one") is None, "who went first goes first"
    assert waiting.absences.held("b one") is not None
    assert join(waiting, "b1", name="b one") == []
    with pytest.raises(Overloaded):
        join(waiting, "a1", name="a one")
    waiting.leave("b1", "b one", now=3.0)
    assert waiting.absences.tokens == 1
    waiting.withdraw("c1")
    join(waiting, "d1", tokens=99)
    assert len(waiting.absences) == 0, "nor is memory"


@pytest.mark.parametrize("max_waiting", [0, 1, 3])
def test_a_full_queue_refuses_with_its_reason_and_keeps_what_it_has(max_waiting: int) -> None:
    names = [f"{owner}1" for owner in "abc"[:max_waiting]]
    waiting = queue(*names, max_waiting=max_waiting)
    already = f"taken and {max_waiting} streams wait already" if max_waiting else "taken"
    with pytest.raises(Refused, match=f"{already}: try again in 1.0 s.*--max-waiting") as refused:
        join(waiting, "d1", tokens=1)
    assert isinstance(refused.value, Overloaded)
    assert refused.value.code == "overloaded"
    assert list(waiting.order(NOBODY)) == names


def test_who_waits_with_most_makes_room_for_who_does_not_wait_yet() -> None:
    waiting = queue("a1", "a2", "a3", max_waiting=3)
    assert join(waiting, "b1") == [("a3", 2)]
    with pytest.raises(Overloaded):
        join(waiting, "b2")  # b would have as many as a
    with pytest.raises(Overloaded):
        join(waiting, "a4")
    assert join(waiting, "c1") == [("a2", 1)]
    assert list(waiting.order(NOBODY)) == ["a1", "b1", "c1"]


def test_prompts_that_wait_are_bounded_by_their_tokens() -> None:
    waiting = queue(max_tokens=100)
    join(waiting, "a1", 1, tokens=40)
    join(waiting, "a2", 2, tokens=50)
    with pytest.raises(Overloaded):
        join(waiting, "a3", 3, tokens=11)
    assert join(waiting, "b1", 4, tokens=10) == []
    # What has the most of what is short is displaced, last come first, and no more than is needed.
    assert join(waiting, "b2", 5, tokens=30) == [("a2", 2)]
    with pytest.raises(Overloaded):
        join(waiting, "c1", 6, tokens=101)
    assert (waiting.tokens, sorted(waiting.those(lambda key: True))) == (80, ["a1", "b1", "b2"])


def test_a_kept_place_is_no_better_than_the_one_that_was_left() -> None:
    waiting = queue("a1", "b1", keep_s=9.0)
    waiting.row_fell_free("a", 1.0)
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]
    waiting.leave("a1", "a one", now=1.0)
    assert join(waiting, "a1", now=2.0, name="a one") == []
    assert list(waiting.order(NOBODY)) == ["b1", "a1"]


def test_whoever_is_refused_at_once_is_told_to_come_back_one_after_another() -> None:
    waiting = queue(rows=4)
    for _ in range(50):
        waiting.row_fell_free("a", held_s=8.0)
    waits = [waiting.refusal(now=100.0).retry_after_s for _ in range(20)]
    assert waits[:4] == [pytest.approx(2.0 * place) for place in (1, 2, 3, 4)]
    assert waits[-1] == 30.0
    # Nobody is told of what is over.
    assert waiting.refusal(now=1000.0).retry_after_s == pytest.approx(2.0)
    for _ in range(50):
        waiting.row_fell_free("a", held_s=0.01)
    assert waiting.refusal(now=2000.0).retry_after_s == 0.5


requests = st.lists(st.tuples(st.sampled_from(sorted(WEIGHTS)), st.integers(1, 30)), min_size=1, max_size=25)
held_rows = st.dictionaries(st.sampled_from(sorted(WEIGHTS)), st.integers(0, 4))


@given(requests, held_rows)
def test_a_place_is_how_often_a_row_is_given_away_until_then(some: list[tuple[str, int]], rows: dict[str, int]) -> None:
    waiting = queue(max_waiting=100)
    arrived = []
    for number, (owner, tokens) in enumerate(some):
        join(waiting, f"{owner}{number}", number, tokens)
        arrived.append((owner, number))
    held, places = Counter(rows), waiting.order(rows)
    together = queue(max_waiting=100)
    for number, (owner, tokens) in enumerate(some):
        join(together, f"{owner}{number}", number, tokens)
    assert [key for key, _ in together.next(rows, 7)] == places[:7]
    assert together.order(held + Counter(places[place][0] for place in range(min(7, len(places))))) == places[7:]
    for told in places:
        # By brute force: fewest rows for the weight, then whoever came first.
        owner, number = min(arrived, key=lambda one: (held[one[0]] / WEIGHTS[one[0]], one[1]))
        assert told == f"{owner}{number}"
        assert waiting.next(held) == [(told, number)]
        arrived.remove((owner, number))
        held[owner] += 1
    assert arrived == []


def test_two_that_come_back_under_other_names_may_have_one_place_between_them() -> None:
    waiting: Admission[object, str, int] = Admission(4, max_waiting=8, max_tokens=100, keep_s=9.0)
    keys = [object(), object()]

    def wait(key: object, owner: str, name: str) -> None:
        assert waiting.wait(key, 0, owner=owner, weight=lambda: 1.0, tokens=1, now=0.0, name=name) == []

    for key, name in zip(keys, "xy", strict=True):
        wait(key, "a", name)
    waiting.row_fell_free("a", 1.0)
    for key, name in zip(keys, "xy", strict=True):
        waiting.leave(key, name, now=1.0)
    for key, name, owner in zip(keys, "xy", "bc", strict=True):
        wait(key, owner, name)
    assert waiting.order(NOBODY) == keys, "and keys do not compare"
