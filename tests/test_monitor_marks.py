from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.monitor import marks
from tests.monitor_examples import unhurried


def test_a_spark_ends_with_the_newest_value() -> None:
    assert marks.spark((0.0, 1.0, 4.0, 8.0), 6, 8.0) == "  ▁▁▄█"
    assert marks.spark((0.0, 1.0, 4.0, 8.0), 2, 8.0) == "▄█"
    assert marks.spark((), 3, 0.0) == "   "
    assert marks.spark((0.0, 0.0), 2, 0.0) == "▁▁"


@unhurried
@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(0, 50), st.integers(1, 6))
def test_an_area_stacks_up_to_its_levels(values: list[float], width: int, height: int) -> None:
    peak = max(values, default=0.0)
    lines = marks.area(values, width, height, peak)
    assert [len(line) for line in lines] == [width] * height
    shown = values[-width:] if width else []
    for column, value in enumerate(reversed(shown), start=1):
        level = sum(" ▁▂▃▄▅▆▇█".index(line[-column]) for line in lines)
        exact = value / peak * 8 * height if peak > 0 else 0.0
        assert level == pytest.approx(max(1.0, exact), abs=0.5 + 1e-6)


@unhurried
@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=6), st.integers(0, 200))
def test_shares_fill_the_width_in_proportion(values: list[float], width: int) -> None:
    parts = marks.shares(values, width)
    total = sum(values)
    if total == 0:
        assert parts == [0] * len(values)
        return
    assert sum(parts) == width
    for part, value in zip(parts, values, strict=True):
        assert part == pytest.approx(width * value / total, abs=1 + 1e-6)


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
