"""What was counted in one run beside an attacker, or beside who sits in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.attacks.floods import THROTTLED, Flood
from bench.attacks.newcomers import Newcomers

__all__ = ["Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """One run beside somebody."""

    seconds: float
    tokens: int
    """Committed to the honest agents."""
    cpu_s: float
    """Processor time of the server's process."""
    busy_s: float
    """Of the engine alone."""
    passes: int
    """It made."""
    rss_grown_bytes: float
    """From before the attacker came to when it is still there."""
    throttled_s: float
    refusals: Counter[str]
    """By code, since before the attacker came."""
    newcomers: Newcomers
    got: Mapping[str, Any]
    """What the attacker says it got."""

    @property
    def worth(self) -> float:
        """Tokens a pass, times the share of the processor time that passes have of the server's."""
        return self.tokens / self.passes * self.busy_s / self.cpu_s

    def met_by(self, flood: Flood) -> list[str]:
        """By which of its defences an attacker was met."""
        return [code for code in flood.met_by if self.refusals[code] or (code == THROTTLED and self.throttled_s)]
