"""`goodspeed-agent`: an edge agent on the command line."""

from __future__ import annotations

from goodspeed_agent.cli import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
