"""What came of every attack, as figures and as lines to read."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.attacks.beside import Case
from bench.attacks.floods import Flood

__all__ = ["AIM", "Row", "claim_lines", "flood_lines", "row_of"]

AIM = 0.95
"""Of their goodput, which honest agents are to keep."""


@dataclass(frozen=True, slots=True)
class Row:
    """Of one flood; medians over the turns, of ratios within a turn where they are ratios."""

    name: str
    per_cpu_s: float
    """Honest tokens per second of the server's processor time, over the same in the control."""
    per_cpu_s_least: float
    per_busy_s: float
    """Per second of the engine's busy time, likewise."""
    per_s: float
    """Per second of the clock, likewise."""
    cpu_share: float
    """Of a core, in the server's process beside the engine's passes, more than in the control."""
    rss_grown_bytes: float
    """More than in the control."""
    linked_up_ms: float
    """The median newcomer."""
    linked_up_ms_most: float
    kept_out: int
    """Newcomers that were not let in, in all turns."""
    met: Sequence[str]
    """The defences that met it in every turn."""
    refusals: Mapping[str, int]
    """By code, in all turns."""
    throttled_s: float
    got: Sequence[Mapping[str, Any]]
    """What the attacker says it got, for each turn."""

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def row_of(flood: Flood, attacked: Sequence[Case], control: Sequence[Case]) -> Row:
    """Compare an attacker's cases with its control's, turn by turn."""
    pairs = list(zip(attacked, control, strict=True))

    def ratios(over: Callable[[Case], float]) -> list[float]:
        return [(bad.tokens / over(bad)) / (good.tokens / over(good)) for bad, good in pairs]

    def beside_passes(case: Case) -> float:
        return (case.cpu_s - case.busy_s) / case.seconds

    per_cpu_s = ratios(lambda case: case.cpu_s)
    linked_up_s = [seconds for case in attacked for seconds in case.linked_up_s]
    return Row(
        flood.name,
        per_cpu_s=statistics.median(per_cpu_s),
        per_cpu_s_least=min(per_cpu_s),
        per_busy_s=statistics.median(ratios(lambda case: case.busy_s)),
        per_s=statistics.median(ratios(lambda case: case.seconds)),
        cpu_share=statistics.median(beside_passes(bad) - beside_passes(good) for bad, good in pairs),
        rss_grown_bytes=statistics.median(bad.rss_grown_bytes - good.rss_grown_bytes for bad, good in pairs),
        linked_up_ms=1e3 * statistics.median(linked_up_s) if linked_up_s else float("inf"),
        linked_up_ms_most=1e3 * max(linked_up_s, default=float("inf")),
        kept_out=sum(case.kept_out for case in attacked),
        met=[code for code in flood.met_by if all(code in case.met(flood) for case in attacked)],
        refusals=dict(sum((case.refusals for case in attacked), Counter[str]()).most_common()),
        throttled_s=sum(case.throttled_s for case in attacked),
        got=[case.got for case in attacked],
    )


def flood_lines(rows: Sequence[Row]) -> list[str]:
    """To read."""
    lines = [
        f"honest agents' tokens beside each, over those without it (aim {AIM:g}); what of a core it costs more",
        f"{'':<26} {'per CPU s':>9} {'busy s':>7} {'s':>6} {'core':>6} {'MiB':>6} {'newcomer ms':>12}  met by",
    ]
    for row in rows:
        refused = ", ".join(f"{code} {count}" for code, count in row.refusals.items())
        throttled = f"not read for {row.throttled_s:.0f} s" if row.throttled_s else ""
        lines.append(
            f"{row.name:<26} {row.per_cpu_s:>9.3f} {row.per_busy_s:>7.3f} {row.per_s:>6.3f} {row.cpu_share:>6.1%} "
            f"{row.rss_grown_bytes / 2**20:>6.1f} {row.linked_up_ms:>5.0f}/{row.linked_up_ms_most:<6.0f}  "
            f"{'; '.join(part for part in (refused, throttled) if part) or 'NOTHING'}"
        )
        lines += [f"    got: {got}" for got in row.got[-1:]]
    return lines


def claim_lines(ratios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """To read."""
    lines = [
        "tokens per second of server busy time, over those with an honest agent in the last place",
        f"{'in the last place':<28} {'others':>8} {'its own':>8} {'drafted':>8}  state",
    ]
    lines += [
        f"{name:<28} {row['others']:>8.3f} {row['own']:>8.3f} {row['drafted']:>8.2f}  {row['state']}"
        for name, row in ratios.items()
    ]
    return lines
