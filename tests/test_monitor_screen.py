"""The screen that only writes what has changed, against a terminal that takes it literally."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import ConsoleDimensions

from goodspeed_server.monitor.history import History
from goodspeed_server.monitor.screen import Screen
from goodspeed_server.monitor.state import ViewState
from goodspeed_server.monitor.view import View, view_lines
from tests.monitor_examples import AGENT, SNAPSHOT, make_console, unhurried, written

_PIECES = re.compile(r"\x1b\[(\?2026[hl]|2J|[\d;]*m|(\d+);1H)|([^\x1b]+)")


class Terminal:
    """What is on it, line by line, styles left out."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}
        self._at = 0
        self._column = 0

    def take(self, text: str) -> None:
        taken = 0
        for piece in _PIECES.finditer(text):
            assert piece.start() == taken, f"not understood: {text[taken : piece.start()]!r}"
            taken = piece.end()
            code, line, words = piece.groups()
            if line:
                self._at, self._column = int(line), 0
            elif code == "2J":
                self.lines.clear()
            elif words:
                before = self.lines.get(self._at, "")
                self.lines[self._at] = before[: self._column] + words + before[self._column + len(words) :]
                self._column += len(words)
        assert taken == len(text)


any_frame = st.tuples(
    st.integers(0, 40),
    st.sampled_from([(80, 24), (100, 30), (60, 20)]),
    st.builds(ViewState, sort=st.sampled_from(["linked", "goodput"]), help=st.booleans(), scroll=st.integers(0, 9)),
)


@settings(unhurried, max_examples=40)
@given(st.lists(any_frame, min_size=1, max_size=6))
def test_the_screen_shows_the_last_picture_whatever_was_there(
    frames: list[tuple[int, tuple[int, int], ViewState]],
) -> None:
    console = make_console(80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    screen, terminal = Screen(console), Terminal()
    for agents, size, state in frames:
        console.size = ConsoleDimensions(*size)
        rows = tuple(msgspec.structs.replace(AGENT, name=f"edge-{n}", goodput=n % 5 + 0.5) for n in range(agents))
        view = View.of(msgspec.structs.replace(SNAPSHOT, agents=rows), History(), state)
        lines = view_lines(view, *screen.size)
        begun = len(written(console))
        screen.paint(lines, screen.size)
        terminal.take(written(console)[begun:])
        shown = ["".join(segment.text for segment in line) for line in lines]
        assert [terminal.lines[number].rstrip() for number in range(1, size[1] + 1)] == [
            line.rstrip() for line in shown
        ]
        assert {cell_len(line) for line in shown} == {size[0]}
