"""The picture of the monitor, from a snapshot recorded on a real server.

```
goodspeed-server top ws://HOST:PORT --once --json > snapshot.json
python -m bench.picture --snapshot snapshot.json --out docs/monitor.svg
```
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme

from goodspeed.errors import GoodSpeedError
from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import draw
from goodspeed_server.monitor.view import Picture

_THEME = TerminalTheme(
    background=(13, 17, 23),
    foreground=(201, 209, 217),
    normal=[
        (72, 79, 88),
        (230, 148, 46),
        (69, 147, 232),
        (230, 148, 46),
        (69, 147, 232),
        (169, 209, 247),
        (169, 209, 247),
        (201, 209, 217),
    ],
)
_FULL_BLOCKS = re.compile("(█+)")


def picture_svg(snapshot: ServerSnapshot, width: int) -> str:
    """Draw a snapshot as an SVG that shows what a terminal of this width shows."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(_Seamless(draw(snapshot)))
    return console.export_svg(title="goodspeed-server top", theme=_THEME, unique_id="monitor")


class _Seamless:
    """Full blocks become coloured backgrounds: between characters, an SVG in a browser shows seams."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in self._picture.__rich_console__(console, options):
            yield from _without_blocks(segment) if isinstance(segment, Segment) else [segment]


def _without_blocks(segment: Segment) -> Iterator[Segment]:
    style = segment.style
    if style is None or "█" not in segment.text:
        yield segment
        return
    for part in filter(None, _FULL_BLOCKS.split(segment.text)):
        if part[0] == "█":
            yield Segment(" " * len(part), Style(bgcolor=style.color))
        else:
            yield Segment(part, style)


def main(
    snapshot: Annotated[Path, typer.Option(help="What `goodspeed-server top URL --once --json` printed.")],
    out: Annotated[Path, typer.Option(help="The SVG to write.")],
    width: Annotated[int, typer.Option(help="Of the terminal, in characters.", min=1)] = 120,
) -> None:
    """Draw a recorded snapshot of a server as the monitor shows it."""
    try:
        recorded = ServerSnapshot.from_json(snapshot.read_bytes())
        svg = picture_svg(recorded, width)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(svg, encoding="utf-8")
    except (GoodSpeedError, OSError) as error:
        typer.echo(f"no picture: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
