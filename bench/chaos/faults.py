"""What goes wrong when: drawn before anything starts, so that a seed says it all."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Fault", "Kind", "faults_of"]

Kind: TypeAlias = Literal["kill server", "kill agent", "reset", "stall", "delay", "slice"]

_WEIGHTS: dict[Kind, float] = {"kill agent": 0.15, "reset": 0.4, "stall": 0.1, "delay": 0.2, "slice": 0.15}
_EVERY_S = 1.5
"""Between two faults, on average."""
_SERVER_EVERY_S = (25.0, 50.0)
"""Between two deaths of the server: it needs some seconds to load its target."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    """Behind the beginning."""
    kind: Kind
    agent: int = 0
    """Whose process or link it is; nothing to the server's death."""
    after_bytes: int = 0
    """*reset*: so many bytes still pass."""
    upstream: bool = False
    """*reset*: in which direction they are counted."""
    lasts_s: float = 0.0
    """*stall*, *delay* and *slice*."""
    delay_ms: float = 0.0
    """*delay*: every piece comes so much later."""
    slice_bytes: int = 0
    """*slice*: no piece is larger."""


def faults_of(seed: int, seconds: float, agents: int) -> list[Fault]:
    """Draw everything that goes wrong, in order."""
    noise = random.Random(seed)
    faults = []
    at_s = noise.expovariate(1 / _EVERY_S)
    while at_s < seconds:
        kind = noise.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        fault = Fault(
            at_s,
            kind,
            noise.randrange(agents),
            after_bytes=noise.randrange(400),
            upstream=noise.random() < 0.5,
            lasts_s=noise.uniform(0.5, 4.0),
            delay_ms=noise.uniform(20.0, 400.0),
            slice_bytes=noise.randrange(1, 40),
        )
        faults.append(fault)
        at_s += noise.expovariate(1 / _EVERY_S)
    at_s = noise.uniform(*_SERVER_EVERY_S) / 2
    while at_s < seconds:
        faults.append(Fault(at_s, "kill server"))
        at_s += noise.uniform(*_SERVER_EVERY_S)
    return sorted(faults, key=lambda fault: fault.at_s)
