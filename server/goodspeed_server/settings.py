"""What an operator chooses, with defaults that suit a first run."""

from __future__ import annotations

from dataclasses import dataclass, field

from goodspeed.catalog import DEFAULT_TARGET
from goodspeed_server.round_loop import RoundSettings

__all__ = ["ServerSettings"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server's configuration; `auto` and None mean: choose for me."""

    model: str = DEFAULT_TARGET
    host: str = "127.0.0.1"
    port: int = 8765
    scheduler: str = "goodspeed"
    fairness: float = 1.0
    rule: str = "coupled"
    layout: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_streams: int = 64
    """Rows of the KV slab."""
    max_length: int | None = None
    """Tokens a stream, prompt included; None: what the model was made for, at most `AUTO_MAX_LENGTH`."""
    threads: int | None = None
    """CPU threads of the forward pass; None: torch's own choice."""
    rounds: RoundSettings = field(default_factory=RoundSettings)


AUTO_MAX_LENGTH = 4096
