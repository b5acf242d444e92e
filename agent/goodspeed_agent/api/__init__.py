"""An OpenAI-compatible HTTP API in front of an agent."""

from __future__ import annotations

from goodspeed_agent.api.app import Api

__all__ = ["Api"]
