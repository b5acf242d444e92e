"""What an operator chooses, with defaults that suit a first run; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from goodspeed.catalog import DEFAULT_TARGET

__all__ = ["AUTO_MAX_LENGTH", "CAPACITY_PER_STREAM", "RoundSettings", "ServerSettings"]

AUTO_MAX_LENGTH = 4096
"""The most tokens a stream gets unless the operator asks for more."""
CAPACITY_PER_STREAM = 4
"""A verification a few tokens long costs little more than one decoding step on most hardware."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """What an operator chooses about rounds."""

    capacity: int | None = None
    """Draft tokens one pass may verify, `C`; None: `CAPACITY_PER_STREAM` for each open stream."""
    round_timeout_s: float = 0.5
    """How long the barrier waits for drafts."""
    prefill_chunk: int = 512
    """Prompt tokens one pass may carry beside its drafts, so that a long prompt stalls nobody."""
    max_waiting: int = 64
    beta: float = 0.5
    """The step of equation (4); the paper's value."""


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
