"""Goodput and acceptance of every agent over the time of an experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.tuning.live import DOMAINS, Experiment

__all__ = ["draw"]

COLOURS = ("#0072b2", "#d55e00", "#009e73")
SMOOTHED_S = 6.0


def draw(seen: Experiment, path: Path) -> None:
    """Two panels above one time axis, with the phases behind them."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    at_s = np.array([reading.at_s for reading in seen.readings])
    for domain, colour in zip(DOMAINS, COLOURS, strict=True):
        agent = f"edge-{domain}"
        committed = np.array([reading.committed[agent] for reading in seen.readings], dtype=np.float64)
        before = np.interp(at_s - SMOOTHED_S, at_s, committed)
        span = np.minimum(SMOOTHED_S, np.maximum(at_s - at_s[0], 0.5))
        above.plot(at_s, (committed - before) / span, color=colour, label=agent, linewidth=1.2)
        below.plot(at_s, [reading.alpha[agent] for reading in seen.readings], color=colour, linewidth=1.0)
        for phase in seen.phases:
            if phase.name != "tuning":
                mean = seen.goodput(agent, phase)
                above.hlines(mean, phase.begin_s, phase.end_s, color=colour, linestyle=":", linewidth=1.5)
    for axes in (above, below):
        for phase in seen.phases:
            shade = "#f2e6c8" if phase.name == "tuning" else "#e4eef7" if phase.name == "tuned" else "#f4f4f4"
            axes.axvspan(phase.begin_s, phase.end_s, color=shade, zorder=-1)
        axes.spines[["top", "right"]].set_visible(False)
    for phase in seen.phases:
        above.text(
            (phase.begin_s + phase.end_s) / 2, 1.0, phase.name, ha="center", transform=above.get_xaxis_transform()
        )
    above.set(ylabel=f"tokens/s ({SMOOTHED_S:g} s; dotted: phase)", ylim=(0, None))
    below.set(ylabel="estimated acceptance", xlabel="seconds", ylim=(0, 1))
    above.legend(loc="lower left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
