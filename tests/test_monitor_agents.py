"""The table of agents."""

from __future__ import annotations

import msgspec
import pytest
from rich.cells import cell_len

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor.columns import Scale, layout
from goodspeed_server.monitor.history import Shown
from tests.monitor_examples import AGENT, SNAPSHOT, drawn


def with_agents(count: int) -> ServerSnapshot:
    agents = tuple(
        msgspec.structs.replace(AGENT, name=f"edge-{index}", streams=index % 2, goodput=2.0) for index in range(count)
    )
    return msgspec.structs.replace(SNAPSHOT, agents=agents)


def test_a_server_without_agents_says_how_to_start_one() -> None:
    assert any("goodspeed-agent" in line for line in drawn(msgspec.structs.replace(SNAPSHOT, agents=()), 80))


ORDER = ["agent", "tok/s", "acceptance", "budget", "ms", "streams", "s", "drafts", "drafter", "accepted", "drafted"]
"""The last words of titles, the most important first."""


@pytest.mark.parametrize(
    ("width", "count"), [(20, 1), (26, 2), (37, 3), (60, 5), (70, 6), (78, 7), (100, 8), (130, 9), (200, 11)]
)
def test_columns_are_dropped_in_the_order_of_importance(width: int, count: int) -> None:
    heading = next(line for line in drawn(SNAPSHOT, width) if "│ agent" in line)
    assert {title for title in ORDER if title in heading.split()} == set(ORDER[:count])


def test_columns_in_which_there_is_nothing_to_see_take_no_room() -> None:
    def titles(**changes: object) -> set[str]:
        agent = msgspec.structs.replace(AGENT, **changes)
        lines = drawn(msgspec.structs.replace(SNAPSHOT, agents=(agent,)), 200)
        return set(next(line for line in lines if "│ agent" in line).split())

    assert titles(prefilling=0) & {"weight", "prefill"} == set()
    assert titles(prefilling=1) & {"weight", "prefill"} == {"prefill"}
    assert titles(prefilling=0, weight=2.0) & {"weight", "prefill"} == {"weight"}


def test_agents_beyond_the_height_are_counted() -> None:
    lines = drawn(with_agents(40), 100, height=30)
    assert len(lines) == 30
    rows = sum("edge-" in line and "edge-slow" not in line for line in lines)
    assert 0 < rows < 40
    assert any(f"1-{rows} of 40" in line for line in lines)


def test_agents_that_fit_are_all_shown() -> None:
    for height in (None, 70):
        lines = drawn(with_agents(40), 100, height=height)
        assert sum("edge-" in line and "edge-slow" not in line for line in lines) == 40
        assert not any("of 40" in line for line in lines)


def test_widths_are_measured_in_columns_not_characters() -> None:
    wide = msgspec.structs.replace(SNAPSHOT, agents=(msgspec.structs.replace(AGENT, name="日本語" * 9),))
    assert {cell_len(line) for line in drawn(wide, 80)} == {80}


def test_all_histories_of_budgets_have_one_scale() -> None:
    def row(name: str, *budgets: float) -> Shown:
        return Shown(msgspec.structs.replace(AGENT, name=name, budget=1.0), budget=budgets)

    rows = [row("edge-1", 8.0, 4.0), row("edge-2", 4.0, 2.0)]
    column = next(column for column, _ in layout([each.agent for each in rows], 250) if column.key == "budget history")
    drawn_as = [column.draw(each, 60, Scale.of(rows, 0.0))[0].text.strip() for each in rows]
    assert drawn_as == ["█▄", "▄▂"]
