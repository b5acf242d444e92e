"""The table of agents."""

from __future__ import annotations

import msgspec
import pytest
from rich.cells import cell_len

from goodspeed.snapshot import ServerSnapshot
from tests.monitor_examples import AGENT, SNAPSHOT, drawn


def with_agents(count: int) -> ServerSnapshot:
    agents = tuple(
        msgspec.structs.replace(AGENT, name=f"edge-{index}", streams=index % 2, goodput=2.0) for index in range(count)
    )
    return msgspec.structs.replace(SNAPSHOT, agents=agents)


def test_a_server_without_agents_says_how_to_start_one() -> None:
    assert any("goodspeed-agent" in line for line in drawn(msgspec.structs.replace(SNAPSHOT, agents=()), 80))


@pytest.mark.parametrize(
    ("width", "seen", "unseen"),
    [
        (40, {"agent", "tok/s", "acceptance"}, {"budget", "drafter", "history"}),
        (80, {"agent", "drafter", "streams", "budget", "acceptance", "tok/s", "history"}, {"drafted", "prefill"}),
        (120, {"agent", "history", "drafted", "accepted"}, {"prefill"}),
        (200, {"agent", "history", "drafted", "accepted", "prefill"}, set()),
    ],
)
def test_columns_are_dropped_in_the_order_of_importance(width: int, seen: set[str], unseen: set[str]) -> None:
    heading = next(line for line in drawn(SNAPSHOT, width) if "tok/s" in line and "agent" in line)
    titles = set(heading.split())
    assert seen <= titles
    assert not unseen & titles


def test_agents_beyond_the_height_are_counted_and_idle_ones_go_first() -> None:
    lines = drawn(with_agents(40), 100, height=30)
    assert len(lines) == 30
    rows = [line for line in lines if "edge-" in line]
    assert all(int(line.split("edge-")[1].split()[0]) % 2 == 1 for line in rows), "only those with streams"
    assert any(f"+ {40 - len(rows)} more, {2 * (40 - len(rows))}.0 tok/s together" in line for line in lines)


def test_agents_that_fit_are_all_shown() -> None:
    for height in (None, 60):
        lines = drawn(with_agents(40), 100, height=height)
        assert sum("edge-" in line for line in lines) == 40
        assert not any("more" in line for line in lines)


def test_widths_are_measured_in_columns_not_characters() -> None:
    wide = msgspec.structs.replace(SNAPSHOT, agents=(msgspec.structs.replace(AGENT, name="日本語" * 9),))
    assert {cell_len(line) for line in drawn(wide, 80)} == {80}
