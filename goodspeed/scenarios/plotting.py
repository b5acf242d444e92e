"""Results as a picture: what each agent gets, what all of them get, and how long rounds take."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from goodspeed.scenarios.results import Results

__all__ = ["plot"]

_DOT_ROOM = 0.5
"""How wide a contender's dots are strewn, of the room it has."""


def plot(results: Results, file: Path) -> None:
    """Draw the comparison; means over the seeds."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        labels = results.labels
        figure = Figure(figsize=(10, 1.6 + 0.42 * len(labels)), layout="constrained")
        each, everybody, rounds = figure.subplots(1, 3, sharey=True, width_ratios=(2.2, 1, 1))
        _goodputs(each, results)
        _totals(everybody, results)
        _rounds(rounds, results)
        each.set_yticks(range(len(labels)), labels)
        each.invert_yaxis()
        figure.suptitle(f"{results.scenario.name} ({results.kind})", fontsize=10)
        figure.savefig(file, dpi=150)


def _goodputs(axes: Axes, results: Results) -> None:
    groups = list(dict.fromkeys(agent.group for agent in results.runs[0].agents))
    for place, label in enumerate(results.labels):
        runs = results.of(label)
        agents = runs[0].agents
        means = [fmean(run.agents[number].goodput for run in runs) for number in range(len(agents))]
        for number, (agent, goodput) in enumerate(zip(agents, means, strict=True)):
            height = place + _DOT_ROOM * ((number + 0.5) / len(agents) - 0.5)
            color = f"C{groups.index(agent.group) % 10}"
            axes.plot(goodput, height, "o", ms=4, color=color, alpha=0.8, mew=0)
        middle = fmean(run.geometric_mean for run in runs)
        axes.plot([middle, middle], [place - 0.35, place + 0.35], color="black", lw=1.5)
        axes.annotate(f"{middle:.1f}", (middle, place - 0.35), ha="center", va="bottom", fontsize=8)
    for number, group in enumerate(groups[:10]):
        axes.plot([], [], "o", ms=4, color=f"C{number % 10}", label=group)
    if len(groups) > 1:
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.18))
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens/s of each agent; bar: geometric mean")
    axes.grid(axis="x", alpha=0.3)


def _totals(axes: Axes, results: Results) -> None:
    totals = [fmean(run.total for run in results.of(label)) for label in results.labels]
    bars = axes.barh(range(len(totals)), totals, height=0.55, color="0.65")
    axes.bar_label(bars, [f"{total:.0f}" for total in totals], padding=2, fontsize=8)
    axes.set_xlabel("tokens/s, everybody")
    axes.margins(x=0.18)


def _rounds(axes: Axes, results: Results) -> None:
    for place, label in enumerate(results.labels):
        timed = [run.round_ms for run in results.of(label) if run.round_ms is not None]
        if not timed:
            continue
        middle, high = fmean(each.p50 for each in timed), fmean(each.p99 for each in timed)
        axes.plot([middle, high], [place, place], color="0.5", lw=1.5)
        axes.plot(middle, place, "o", ms=5, color="black")
        axes.plot(high, place, "|", ms=9, color="0.5")
    axes.set_xlim(left=0)
    axes.set_xlabel("ms a round: p50 to p99")
    axes.grid(axis="x", alpha=0.3)
