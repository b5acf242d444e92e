"""The whole picture, at any size."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import draw
from goodspeed_server.monitor.history import History, Shown
from goodspeed_server.monitor.state import SORTS, ViewState, press
from goodspeed_server.monitor.view import View, extent, view_lines
from tests.monitor_examples import AGENT, SNAPSHOT, any_snapshot, any_text, drawn, unhurried

any_state = st.builds(
    ViewState,
    sort=st.sampled_from(list(SORTS)),
    reverse=st.booleans(),
    filter=st.sampled_from(["", "edge", "1", "nobody's"]),
    typing=st.booleans(),
    timeline=st.booleans(),
    help=st.booleans(),
    paused=st.booleans(),
    scroll=st.integers(0, 250),
)


def crowd(count: int) -> ServerSnapshot:
    agents = tuple(
        msgspec.structs.replace(AGENT, name=f"edge-{number:03}", goodput=float(number % 7)) for number in range(count)
    )
    return msgspec.structs.replace(SNAPSHOT, agents=agents, streams=2 * count)


def seen(view: View, width: int, height: int) -> list[str]:
    return ["".join(segment.text for segment in line) for line in view_lines(view, width, height)]


@unhurried
@given(any_snapshot, st.integers(1, 260), st.none() | st.integers(1, 60), any_text, st.none() | any_state)
def test_any_snapshot_is_drawn_at_any_size(
    snapshot: ServerSnapshot, width: int, height: int | None, notice: str, state: ViewState | None
) -> None:
    history = History()
    history.add(snapshot)
    lines = view_lines(View.of(snapshot, history, state, notice), width, height)
    assert {sum(segment.cell_length for segment in line) for line in lines} == {width}
    text = "".join(segment.text for line in lines for segment in line)
    assert text.isprintable(), "a peer's name must not move the cursor"
    if height is not None:
        assert len(lines) == height


@unhurried
@given(st.integers(0, 200), st.integers(20, 250), st.integers(6, 80), any_state)
def test_any_number_of_agents_fits_any_terminal(agents: int, width: int, height: int, state: ViewState) -> None:
    view = View.of(crowd(agents), History(), state)
    lines = seen(view, width, height)
    assert {len(line) for line in lines} == {width}
    assert len(lines) == height
    if not state.help:
        for line in lines:
            name = line.partition("edge-")[2][:3]
            if name.isdigit():
                assert int(name) < agents
                assert state.filter in f"edge-{name}"


@unhurried
@given(st.integers(1, 120), st.integers(30, 120), st.integers(12, 50))
def test_scrolling_shows_everybody(agents: int, width: int, height: int) -> None:
    state, names = ViewState(), set[str]()
    snapshot = crowd(agents)
    while True:
        view = View.of(snapshot, History(), state)
        names |= {line.partition("edge-")[2][:3] for line in seen(view, width, height) if "● edge-" in line}
        following = press(state, "pagedown", extent(view, width, height))
        if following == state:
            break
        state = following
    assert names == {f"{number:03}" for number in range(agents)}


@unhurried
@given(any_snapshot)
def test_a_terminal_without_unicode_gets_ascii(snapshot: ServerSnapshot) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    Console(file=stream, width=100).print(draw(snapshot))
    stream.flush()
    assert {len(line) for line in buffer.getvalue().decode("ascii").splitlines()} == {100}


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_picture_says_what_the_snapshot_says(width: int) -> None:
    text = "\n".join(drawn(SNAPSHOT, width))
    for part in (
        *("tiny-target", "up 1:02:05", "goodput   41.2 tok/s", "utility   3.72 plain 3.10", "Jain      0.91"),
        *("speed-up  1.64x plain", "length    3.00 tok/verdict", "rounds    38.2/s 26.5 ms"),
        *("scheduler goodspeed", "verifying coupled packed", "capacity  32 tok/round"),
        *("running   2/16", "waiting   3 streams", "512/8.19k", "peak 40.0"),
        *("edge-1", "3.5", "0.75", "41.2", "48.0", "#100", "100", "edge-slow +40"),
    ):
        assert part in text, part
    assert "by price" in "\n".join(drawn(msgspec.structs.replace(SNAPSHOT, capacity=None), width))
    assert "draining" not in text


def test_a_draining_server_and_a_notice_are_seen() -> None:
    draining = msgspec.structs.replace(SNAPSHOT, draining=True)
    assert "draining" in drawn(draining, 80)[0]
    assert "connection lost" in drawn(SNAPSHOT, 80, notice="connection lost")[0]


def test_the_last_line_says_what_keys_do_and_what_was_chosen() -> None:
    def last(state: ViewState, agents: int = 2) -> str:
        return seen(View.of(crowd(agents), History(), state), 120, 30)[-1]

    assert "q quit" in last(ViewState())
    assert "sort: order of linking" in last(ViewState())
    assert "sort: rtt▼" in last(ViewState(sort="rtt"))
    assert "sort: name▼" in last(ViewState(sort="name", reverse=True))
    assert "filter: edge" in last(ViewState(filter="edge"))
    assert "ed_" in last(ViewState(filter="ed", typing=True))
    assert "paused" in last(ViewState(paused=True))
    assert "scroll" in last(ViewState(), agents=60)
    assert "scroll" not in last(ViewState())


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("state", [ViewState(), ViewState(paused=True), ViewState(sort="rtt", filter="a long filter")])
def test_where_the_last_line_is_short_whole_entries_are_missing(width: int, state: ViewState) -> None:
    whole = seen(View.of(crowd(60), History(), state), 200, 30)[-1]
    entries = [entry.strip() for entry in whole.replace(" paused ", "").split("  ")]
    last = seen(View.of(crowd(60), History(), state), width, 30)[-1].replace(" paused ", "")
    there = [entry.strip() for entry in last.split("  ") if entry.strip()]
    assert set(there) <= set(entries)
    assert there[0] == "q quit"
    if width >= 40:
        assert there[1] == "? help"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_help_is_whole_at_any_width(width: int) -> None:
    def words(width: int, height: int) -> list[str]:
        lines = seen(View.of(SNAPSHOT, History(), ViewState(help=True)), width, height)
        return [word for line in lines if line.startswith("│") for word in line.strip("│ ").split()]

    def explained(said: list[str]) -> list[str]:
        return said[said.index("quit") :]

    everything = set(explained(words(300, 80))) - {"PgUp", "PgDn", "Home", "End"}
    assert everything <= set(words(width, 80))
    short = words(width, 16)
    assert "a taller terminal shows more" in " ".join(short)
    assert "a taller terminal" not in " ".join(words(width, 80))


def test_a_filter_that_nobody_matches_says_so() -> None:
    lines = seen(View.of(crowd(3), History(), ViewState(filter="phone")), 80, 24)
    assert any("no agent's name contains 'phone'" in line for line in lines)
    assert any("0 of 3" in line for line in lines)


def test_a_key_takes_the_rounds_away_and_another_explains_them() -> None:
    def text(state: ViewState) -> str:
        return "\n".join(seen(View.of(SNAPSHOT, History(), state), 100, 40))

    assert "#100" in text(ViewState())
    assert "#100" not in text(ViewState(timeline=False))
    assert "the pass, with planning and committing" in text(ViewState(help=True))


def test_a_history_follows_each_agent_by_the_second() -> None:
    history = History()
    for second, alpha in enumerate((0.5, 0.6, 0.7)):
        for _ in range(4):
            rows = tuple(msgspec.structs.replace(AGENT, name="twin", alpha=value) for value in (alpha, 0.1))
            history.add(msgspec.structs.replace(SNAPSHOT, uptime_s=10.0 + second, agents=rows))
    first, second_row = history.rows(rows)
    assert first == Shown(rows[0], (0.5, 0.6, 0.7), (3.5, 3.5, 3.5))
    assert second_row.acceptance == (0.1, 0.1, 0.1)
    history.add(msgspec.structs.replace(SNAPSHOT, uptime_s=1.0, agents=rows[:1]))
    assert history.rows(rows)[0].acceptance == (0.7,), "a server that was started anew"
