"""The live monitor: in the server's own terminal, or from afar."""

from __future__ import annotations

from goodspeed_server.monitor.live import run_monitor
from goodspeed_server.monitor.top import fetch_snapshot, snapshots, top
from goodspeed_server.monitor.view import draw

__all__ = ["draw", "fetch_snapshot", "run_monitor", "snapshots", "top"]
