"""Where a text stands in the server's queue, as its user sees it."""

from __future__ import annotations

import io

from rich.console import Console

from goodspeed_agent.waiting import WaitingLine


def test_elsewhere_than_on_a_terminal_few_lines_stay() -> None:
    said: list[str] = []
    with WaitingLine(Console(file=io.StringIO()), said.append) as line:
        for place in (40, 39, 20, 19, 12, 10, 5, 4, 3, 2, 1):
            line.at(place)
        line.over()
        line.at(7)
    assert [sentence.split(": ")[1] for sentence in said] == [
        f"place {place} in its queue" for place in (40, 20, 10, 5, 2, 1, 7)
    ]


def test_on_a_terminal_one_line_changes_and_goes() -> None:
    written = io.StringIO()
    with WaitingLine(Console(file=written, force_terminal=True, color_system=None), lambda _: None) as line:
        line.at(2)
        line.at(1)
    erased = "\r\x1b[2K"
    place = "waiting for a row on the server: place {} in its queue".format
    assert written.getvalue() == f"{place(2)}{erased}{place(1)}{erased}"


def test_who_never_waits_reads_nothing() -> None:
    written, said = io.StringIO(), list[str]()
    for console in (Console(file=written), Console(file=written, force_terminal=True)):
        with WaitingLine(console, said.append) as line:
            line.over()
    assert (written.getvalue(), said) == ("", [])
