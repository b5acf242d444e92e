"""An OpenAI-compatible HTTP API in front of an agent."""

from __future__ import annotations

from goodspeed_agent.api.app import make_app

__all__ = ["make_app"]
