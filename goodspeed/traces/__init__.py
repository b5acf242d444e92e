"""Traces: what a server did, pass by pass and verdict by verdict, without a word of any text; and their replay.

A server writes one (`goodspeed-server run --trace`); `goodspeed simulate --trace` runs it again under other schedulers.
"""

from goodspeed.traces.events import (
    VERSION,
    Closed,
    Ended,
    Event,
    Header,
    Joined,
    Known,
    Left,
    Opened,
    Passed,
    Planned,
    Served,
    Verdict,
    Weighed,
    to_line,
)
from goodspeed.traces.reading import Trace, read_trace

__all__ = [
    "VERSION",
    "Closed",
    "Ended",
    "Event",
    "Header",
    "Joined",
    "Known",
    "Left",
    "Opened",
    "Passed",
    "Planned",
    "Served",
    "Trace",
    "Verdict",
    "Weighed",
    "read_trace",
    "to_line",
]
