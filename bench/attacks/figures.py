"""What came of every attack, as figures, as lines to read, and as what falls short of the aim."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.attacks.cases import Case
from bench.attacks.floods import Flood
from bench.attacks.pairing import Compared

__all__ = ["AIM", "Row", "Waits", "claim_lines", "flood_lines", "row_of", "shortfalls", "waits_of"]

AIM = 0.95
"""Of their goodput, which honest agents are to keep."""
_WIDTH = 118


@dataclass(frozen=True, slots=True)
class Waits:
    """How long newcomers took, who may have been still waiting when they were last seen."""

    median_ms: float
    median_is_bound: bool
    """Whether the median is this or more, depending on how long those would have waited."""
    most_ms: float
    most_is_bound: bool

    def __str__(self) -> str:
        median, most = ("≥" * self.median_is_bound, "≥" * self.most_is_bound)
        return f"{median}{self.median_ms:.0f}/{most}{self.most_ms:.0f}"


def waits_of(linked_up_s: Sequence[float], waited_s: Sequence[float]) -> Waits | None:
    """Median and most of times some of which are known from below only.

    Args:
        linked_up_s: of newcomers who were welcomed in the end.
        waited_s: of those who had not been when they were last seen.

    Returns:
        None if there was none of either.
    """
    least_s = [*linked_up_s, *waited_s]
    if not least_s:
        return None
    median_s = statistics.median(least_s)
    longest_s = statistics.median([*linked_up_s, *(math.inf for _ in waited_s)])
    return Waits(1e3 * median_s, median_s < longest_s, 1e3 * max(least_s), bool(waited_s))


@dataclass(frozen=True, slots=True)
class Row:
    """Of one flood; medians over the turns, of what an attacked case has against the controls around it."""

    name: str
    kept: float
    """By honest agents of their goodput, whatever the machine's speed: `Case.worth`, over the same in the controls."""
    kept_least: float
    per_cpu_s: float
    """Honest tokens per second of the server's processor time, likewise."""
    per_busy_s: float
    """Per second of the engine's busy time, likewise."""
    per_s: float
    """Per second of the clock, likewise."""
    cpu_share: float
    """Of a core, in the server's process beside the engine's passes, more than in the controls."""
    rss_grown_bytes: float
    """More than in the controls."""
    newcomers: Waits | None
    """Those of all turns who were not turned away; None if all were."""
    kept_out: int
    """Newcomers that were refused, were cut off, or gave up, in all turns."""
    met: bool
    """Whether in every turn one of the flood's defences met it, if it has any."""
    met_by: Mapping[str, int]
    """These defences' refusals, by code, in all turns."""
    refusals: Mapping[str, int]
    """All refusals, likewise."""
    throttled_s: float
    got: Sequence[Mapping[str, Any]]
    """What the attacker says it got, for each turn."""

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def row_of(flood: Flood, turns: Sequence[Compared[Case]]) -> Row:
    """What came of one flood in all its turns."""
    cases = [turn.attacked for turn in turns]

    def ratios(over: Callable[[Case], float]) -> list[float]:
        return [turn.ratio(lambda case: case.tokens / over(case)) for turn in turns]

    def median_more(of: Callable[[Case], float]) -> float:
        return statistics.median(turn.more(of) for turn in turns)

    kept = [turn.ratio(lambda case: case.worth) for turn in turns]
    refusals = sum((case.refusals for case in cases), Counter[str]())
    return Row(
        flood.name,
        kept=statistics.median(kept),
        kept_least=min(kept),
        per_cpu_s=statistics.median(ratios(lambda case: case.cpu_s)),
        per_busy_s=statistics.median(ratios(lambda case: case.busy_s)),
        per_s=statistics.median(ratios(lambda case: case.seconds)),
        cpu_share=median_more(lambda case: (case.cpu_s - case.busy_s) / case.seconds),
        rss_grown_bytes=median_more(lambda case: case.rss_grown_bytes),
        newcomers=waits_of(
            [wait_s for case in cases for wait_s in case.newcomers.linked_up_s],
            [wait_s for case in cases for wait_s in case.newcomers.waited_s],
        ),
        kept_out=sum(case.newcomers.kept_out for case in cases),
        met=not flood.met_by or all(case.met_by(flood) for case in cases),
        met_by={code: refusals[code] for code in flood.met_by if refusals[code]},
        refusals=dict(refusals.most_common()),
        throttled_s=sum(case.throttled_s for case in cases),
        got=[case.got for case in cases],
    )


def shortfalls(rows: Sequence[Row], claims: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not as it should be, a sentence each: floods that were not met, and whatever is below the aim."""
    unmet = [f"{row.name}: none of its defences met it in every turn" for row in rows if not row.met]
    floods = [
        f"{row.name}: honest agents keep {row.kept:.3f} of their goodput, below {AIM:g}"
        for row in rows
        if row.kept < AIM
    ]
    others = [
        f"{name}: others have {row['others']:.3f} of their tokens per busy second, below {AIM:g}"
        for name, row in claims.items()
        if row["others"] < AIM
    ]
    return [*unmet, *floods, *others]


def flood_lines(rows: Sequence[Row]) -> list[str]:
    """To read."""
    columns = f"{'keep':>6} {'CPU s':>6} {'busy s':>6} {'s':>6} {'core':>6} {'MiB':>6} {'newcomers ms':>13} {'out':>4}"
    lines = [
        f"what honest agents keep beside each (aim {AIM:g}), and their tokens per second of time over those",
        "without it; what of a core it costs more; what newcomers waited for a link, median/most (≥: some were",
        "still waiting), and how many were kept out",
        f"{'':<24} {columns}",
    ]
    for row in rows:
        lines.append(
            f"{row.name:<24} {row.kept:>6.3f} {row.per_cpu_s:>6.3f} {row.per_busy_s:>6.3f} {row.per_s:>6.3f} "
            f"{row.cpu_share:>6.1%} {row.rss_grown_bytes / 2**20:>6.1f} {row.newcomers or 'none'!s:>13} "
            f"{row.kept_out:>4}"
        )
        lines += _indented(f"met by: {_defences(row)}")
        lines += [line for got in row.got[-1:] for line in _indented(f"got: {got}")]
    return lines


def _defences(row: Row) -> str:
    parts = [f"{code} {count}" for code, count in row.met_by.items()]
    if row.throttled_s:
        parts.append(f"not read for {row.throttled_s:.0f} s")
    return ", ".join(parts) or ("nothing, as it does nothing" if row.met else "NOTHING")


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)


def claim_lines(ratios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """To read."""
    lines = [
        f"tokens per second of server busy time, over those beside an honest agent (aim {AIM:g} for others)",
        f"{'in the last place':<28} {'others':>8} {'its own':>8} {'drafted':>8}  state",
    ]
    lines += [
        f"{name:<28} {row['others']:>8.3f} {row['own']:>8.3f} {row['drafted']:>8.2f}  {row['state']}"
        for name, row in ratios.items()
    ]
    return lines
