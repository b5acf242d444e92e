"""What came of a storm, as figures."""

from __future__ import annotations

import statistics
from typing import Any

from bench.chaos.fleet import Chaos

__all__ = ["sentences", "summary"]


def summary(chaos: Chaos) -> dict[str, Any]:
    """Everything that was counted."""
    storm, ledger = chaos.storm, chaos.ledger
    every = [seconds for recovered in chaos.recovered_s.values() for seconds in recovered]
    return {
        "seed": storm.seed,
        "seconds": storm.seconds,
        "agents": storm.agents,
        "streams": storm.agents * storm.streams,
        "distinct_texts": len(storm.orders),
        "faults": sum(chaos.injected.values()),
        "faults_by_kind": dict(sorted(chaos.injected.items())),
        "texts_asked_for": ledger.asked,
        "texts_compared": ledger.compared,
        "differences": len(ledger.differing),
        "texts_refused": len(ledger.failed),
        "recovery_s": _recovery(every),
        "recovery_s_by_kind": {kind: _recovery(seconds) for kind, seconds in sorted(chaos.recovered_s.items())},
        "complaints": chaos.complaints,
        "differing": ledger.differing[:5],
        "refused": ledger.failed[:5],
    }


def _recovery(seconds: list[float]) -> dict[str, float | int]:
    if not seconds:
        return {"count": 0}
    return {"count": len(seconds), "median": round(statistics.median(seconds), 3), "worst": round(max(seconds), 3)}


def sentences(figures: dict[str, Any]) -> list[str]:
    """The same, to be read."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures["faults_by_kind"].items())
    lines = [
        f"{figures['agents']} agents with {figures['streams']} streams, {figures['seconds']:.0f} s",
        f"{figures['faults']} faults: {kinds}",
        f"{figures['texts_asked_for']} texts asked for, {figures['texts_compared']} completed and compared",
        f"{figures['differences']} differ, {figures['texts_refused']} were refused",
    ]
    for kind, seconds in figures["recovery_s_by_kind"].items():
        median, worst, count = seconds["median"], seconds["worst"], seconds["count"]
        lines.append(f"back at work after {kind}: median {median} s, worst {worst} s ({count})")
    return [*lines, *(f"! {complaint}" for complaint in figures["complaints"])]
