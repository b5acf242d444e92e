"""A conversation in a terminal."""

from __future__ import annotations

from goodspeed_agent.chat.conversation import Conversation
from goodspeed_agent.chat.repl import chat

__all__ = ["Conversation", "chat"]
