"""What keys do, and what is seen then."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.monitor.history import Shown
from goodspeed_server.monitor.state import SORTS, Extent, ViewState, arranged, press
from tests.monitor_examples import AGENT, unhurried

NOWHERE = Extent(0, 0)

KEYS = ["q", "s", "S", "/", "t", "h", "?", "p", "up", "down", "pageup", "pagedown", "home", "end", "escape"]
any_key = st.sampled_from([*KEYS, "c-m", "c-h", "c-u", "f5", "x", "e"])
any_extent = st.builds(Extent, st.integers(0, 200), st.integers(0, 60))

any_rows = st.lists(
    st.builds(
        lambda name, goodput, alpha, streams: Shown(
            msgspec.structs.replace(AGENT, name=name, goodput=goodput, alpha=alpha, streams=streams)
        ),
        st.sampled_from(["edge-1", "Edge-2", "phone", "straße", ""]),
        st.sampled_from([0.0, 1.0, 2.5, math.nan, math.inf]),
        st.sampled_from([0.1, 0.5]),
        st.integers(0, 2),
    ),
    max_size=12,
)


def pressed(*keys: str, state: ViewState | None = None, extent: Extent = NOWHERE) -> ViewState:
    state = state or ViewState()
    for key in keys:
        state = press(state, key, extent)
    return state


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("q", ViewState(done=True)),
        ("t", ViewState(timeline=False)),
        ("tt", ViewState()),
        ("h", ViewState(help=True)),
        ("??", ViewState()),
        ("p", ViewState(paused=True)),
        ("ss", ViewState(sort="goodput")),
        ("ssS", ViewState(sort="goodput", reverse=True)),
        ("ssSs", ViewState(sort="acceptance")),
        ("s" * len(SORTS), ViewState()),
        ("/q?t", ViewState(typing=True, filter="q?t")),
        (["/", "e", "d", "c-h", "c-m", "p"], ViewState(filter="e", paused=True)),
        (["/", "e", "escape"], ViewState()),
        (["/", "e", "c-m", "escape"], ViewState()),
        (["f5", "x", "\x00"], ViewState()),
        (["/", "\x1b", "left"], ViewState(typing=True)),
    ],
)
def test_keys(keys: str | list[str], expected: ViewState) -> None:
    assert pressed(*keys) == expected


@pytest.mark.parametrize(
    ("keys", "scroll"),
    [
        (["down"], 1),
        (["down", "up", "up"], 0),
        (["pagedown"], 9),
        (["pagedown", "pagedown", "pagedown", "pagedown"], 15),
        (["end", "down"], 15),
        (["end", "up", "pageup"], 5),
        (["end", "home"], 0),
        (["end", "s"], 0),
    ],
)
def test_scrolling_ends_where_the_agents_do(keys: list[str], scroll: int) -> None:
    assert pressed(*keys, extent=Extent(agents=25, room=10)).scroll == scroll


@given(st.lists(st.tuples(any_key | st.characters(), any_extent), max_size=30))
def test_any_keys_lead_to_a_state_that_can_be_looked_at(keys: list[tuple[str, Extent]]) -> None:
    state = ViewState()
    for key, extent in keys:
        state = press(state, key, extent)
        assert state.sort in SORTS
        assert state.scroll >= 0
        assert state.filter.isprintable()
        if extent.agents <= extent.room and key in {"up", "down", "pageup", "pagedown", "end"} and not state.typing:
            assert state.scroll == 0


@unhurried
@given(any_rows, st.sampled_from(list(SORTS)), st.booleans(), st.sampled_from(["", "edge", "EDGE", "strasse", "?"]))
def test_what_is_shown_is_what_the_filter_lets_through_in_order(
    rows: list[Shown], sort: str, reverse: bool, text: str
) -> None:
    seen = arranged(rows, ViewState(sort=sort, reverse=reverse, filter=text))
    kept = [row for row in rows if text.casefold() in row.agent.name.casefold()]
    assert sorted(map(id, seen)) == sorted(map(id, kept))
    places = {id(row): place for place, row in enumerate(rows)}
    for one, other in itertools.pairwise(seen):
        first, second = SORTS[sort](one.agent), SORTS[sort](other.agent)
        if sort == "linked":
            assert (places[id(one)] < places[id(other)]) != reverse
        elif first == second:
            assert places[id(one)] < places[id(other)], "those that are alike stay in order"
        else:
            assert (first < second) != reverse


def test_numbers_are_sorted_from_the_largest_and_names_from_a() -> None:
    rows = [
        Shown(msgspec.structs.replace(AGENT, name=name, goodput=goodput, network_ms=network_ms))
        for name, goodput, network_ms in (("b", 1.0, 9.0), ("A", 3.0, 90.0), ("c", math.nan, 30.0))
    ]
    for sort, names in (("name", "Abc"), ("goodput", "Abc"), ("rtt", "Acb"), ("linked", "bAc")):
        state = ViewState(sort=sort)
        assert "".join(row.agent.name for row in arranged(rows, state)) == names
        if sort != "linked":
            turned = arranged(rows, replace(state, reverse=True))
            assert "".join(row.agent.name for row in turned) == names[::-1]
