from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.monitor import marks
from tests.monitor_examples import unhurried


def test_a_spark_is_the_whole_last_minute_with_the_newest_value_at_the_right() -> None:
    minute = tuple(float(second) for second in range(60))
    assert marks.spark(minute, 60, 59.0)[-1] == "█"
    assert marks.spark(minute, 6, 59.0) == "▁▂▃▅▆▇", "ten seconds in a column are their mean"
    assert marks.spark(minute[:30], 6, 59.0) == "   ▁▂▃", "half a minute takes half of it"
    assert marks.spark((*minute, 0.0), 60, 59.0)[-1] == "▁"
    assert marks.spark((), 3, 0.0) == "   "
    assert marks.spark((0.0,) * 60, 2, 0.0) == "▁▁"


@unhurried
@given(st.lists(st.floats(0, 1e6), max_size=80), st.integers(1, 200))
def test_what_is_resampled_spans_a_minute(values: list[float], width: int) -> None:
    columns = marks.resampled(values, width)
    minute = values[-60:]
    assert len(columns) == -(-len(minute) * width // 60)
    if minute:
        assert min(minute) <= min(columns) * (1 + 1e-9)
        assert max(columns) <= max(minute) * (1 + 1e-9)
        if width >= 60:
            assert columns[-1] == minute[-1]


@unhurried
@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(0, 50), st.integers(1, 6))
def test_an_area_stacks_up_to_its_levels(values: list[float], width: int, height: int) -> None:
    peak = max(values, default=0.0)
    lines = marks.area(values, width, height, peak)
    assert [len(line) for line in lines] == [width] * height
    for column, value in enumerate(reversed(marks.resampled(values, width)), start=1):
        level = sum(" ▁▂▃▄▅▆▇█".index(line[-column]) for line in lines)
        exact = value / peak * 8 * height if peak > 0 else 0.0
        assert level == pytest.approx(max(1.0, exact), abs=0.5 + 1e-6)


@unhurried
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.floats(0.01, 1e6), st.integers(0, 200))
def test_a_trail_turns_where_its_times_do(durations: list[float], per_column: float, width: int) -> None:
    sizes = marks.trail(durations, per_column, width)
    assert len(sizes) == len(durations)
    assert min(sizes) >= 0
    for count in range(1, len(sizes) + 1):
        assert sum(sizes[:count]) == pytest.approx(min(width, sum(durations[:count]) / per_column), abs=0.5 + 1e-6)


@unhurried
@given(st.floats(-1, 2), st.integers(0, 40))
def test_bars_and_dots_are_as_wide_as_asked(share: float, width: int) -> None:
    for filled, rest in (marks.bar(share, width), marks.dots(share, 1.0, width)):
        assert len(filled) + len(rest) == width
    assert not set(marks.bar(share, width)[0]) & set(marks.bar(share, width)[1]), "told apart without colour"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (4.267, "4.27"),
        (9.996, "10.0"),
        (45.26, "45.3"),
        (231.4, "231"),
        (999.6, "1.00k"),
        (12345.0, "12.3k"),
        (-2.5, "-2.50"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_rates_have_three_digits(value: float, text: str) -> None:
    assert marks.rate(value) == text


@unhurried
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_rates_stay_short(value: float) -> None:
    assert len(marks.rate(value)) <= 7


def test_durations() -> None:
    assert marks.duration(245.9) == "0:04:05"
    assert marks.duration(3 * 86400 + 3600) == "3d 1:00:00"


def test_a_trail_of_times_beyond_counting_fills_its_width() -> None:
    assert marks.trail([1e308, 1.0], 1e-10, 5) == [5, 0]
