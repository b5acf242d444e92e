"""Pictures of the monitor, from what a monitor saw of a real server.

```
python -m bench.demo --record seen.jsonl              # or goodspeed-server top ws://HOST:PORT --json > seen.jsonl
python -m bench.picture --seen seen.jsonl --out docs/monitor.svg --width 100
```
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme

from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.snapshot import ServerSnapshot
from goodspeed_server.monitor import draw
from goodspeed_server.monitor.history import History
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


def picture_svg(seen: Sequence[ServerSnapshot], width: int, height: int | None = None) -> str:
    """Draw the last of some snapshots, with the others for its past, as a terminal of this size shows it."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    history = History()
    for snapshot in seen:
        history.add(snapshot)
    console.print(_Seamless(draw(seen[-1], history=history)), height=height)
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
    seen: Annotated[Path, typer.Option(help="What `goodspeed-server top URL --json` printed: the last line is drawn.")],
    out: Annotated[Path, typer.Option(help="The SVG to write.")],
    width: Annotated[int, typer.Option(help="Of the terminal, in characters.", min=1)] = 100,
    height: Annotated[
        int | None, typer.Option(help="Of the terminal; as high as it takes if not given.", min=1)
    ] = None,
) -> None:
    """Draw what was seen of a server as the monitor shows it."""
    try:
        recorded = [ServerSnapshot.from_json(line) for line in seen.read_bytes().splitlines() if line]
        if not recorded:
            raise InvalidRequest(f"{seen} holds no snapshot: `goodspeed-server top URL --json` prints some")
        svg = picture_svg(recorded, width, height)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(svg, encoding="utf-8")
    except (GoodSpeedError, OSError) as error:
        typer.echo(f"no picture: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
