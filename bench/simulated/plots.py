"""Pictures of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.simulated.grid import Cell
from bench.simulated.instances import Comparison
from bench.simulated.rounds import Replay
from bench.simulated.servers import Course, Run
from bench.simulated.worlds import POLICIES

__all__ = ["draw_grid", "draw_instances", "draw_rounds", "draw_servers"]

Floats = NDArray[np.float64]

OURS, PAPER, RIVAL = "#0072b2", "#d55e00", "#888888"
PLACEMENT_COLOURS = {
    "random": "#b0b0b0", "round robin": "#000000", "least streams": "#e69f00", "least streams, weighted": "#f0e442",
    "lowest token price": "#cc79a7", "lowest price": OURS, "two choices": "#56b4e9", "lowest price, stale": PAPER,
    "two choices, stale": "#009e73",
}  # fmt: skip
SCHEDULE_COLOURS = {"GoodSpeed-Sched": PAPER, "Fixed-S": "#555555", "Random-S": "#b0b0b0"}

mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "goodspeed"})


def draw_instances(comparison: Comparison, path: Path) -> None:
    """Goodput by policy, and our ratios to the rivals in the same instance."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(POLICIES)
    _boxes(left, [comparison.geometric_mean(name) for name in names], names, [_colour(name) for name in names])
    left.scatter(
        [comparison.slowest(name).mean() for name in names],
        range(len(names)),
        marker="|",
        s=90,
        color="black",
        zorder=3,
    )
    left.set(xlabel="tokens/s of an agent (box: geometric means; bar: slowest agent, mean)", xlim=(0, None))
    rivals = ["GoodSpeed-Sched", "best fixed", "best fixed, rolling", "plain", "co-located"]
    _boxes(right, [comparison.ratio("seconds", name) for name in rivals], rivals, [_colour(name) for name in rivals])
    right.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="goodput of 'seconds' / the rival's", xlim=(0, None))
    figure.suptitle(f"{len(comparison.goodput['plain'])} random instances of 8 heterogeneous agents")
    figure.savefig(path, dpi=130)


def draw_grid(cells: Sequence[Cell], path: Path) -> None:
    """One map for each load and draft speed: acceptance against round trip."""
    streams = sorted({cell.streams for cell in cells})
    drafts = sorted({cell.draft_ms for cell in cells})
    alphas = sorted({cell.alpha for cell in cells})
    trips = sorted({cell.round_trip_ms for cell in cells})
    ratio = {(cell.streams, cell.draft_ms, cell.alpha, cell.round_trip_ms): cell.ratio for cell in cells}
    figure = Figure(figsize=(2.6 * len(drafts) + 1, 2.1 * len(streams) + 0.8), layout="constrained")
    axes = figure.subplots(len(streams), len(drafts), squeeze=False, sharex=True, sharey=True)
    norm = TwoSlopeNorm(1.0, 0.8, 2.0)
    for row, load in enumerate(streams):
        for column, draft in enumerate(drafts):
            panel = axes[row, column]
            values = np.array([[ratio[load, draft, alpha, trip] for trip in trips] for alpha in alphas])
            image = panel.imshow(values, origin="lower", aspect="auto", cmap="RdBu", norm=norm)
            for (y, x), value in np.ndenumerate(values):
                colour = "white" if value > 1.7 else "black"
                panel.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
            panel.set_xticks(range(len(trips)), [f"{trip:.0f}" for trip in trips])
            panel.set_yticks(range(len(alphas)), [f"{alpha:.2f}" for alpha in alphas])
            panel.set_title(f"{load} streams, {draft:.0f} ms/token" if load > 1 else f"1 stream, {draft:.0f} ms/token")
    figure.supxlabel("round trip, ms")
    figure.supylabel("acceptance rate")
    figure.colorbar(image, ax=axes, label="goodput over central decoding's", extend="max", shrink=0.8)
    figure.savefig(path, dpi=130)


def draw_rounds(gaps: Mapping[str, Floats], replays: Mapping[str, Sequence[Replay]], path: Path) -> None:
    """Convergence to the optimum, and the paper's figures 3 and 4."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    convergence, times, utility = figure.subplots(1, 3)
    for (name, rows), colour in zip(gaps.items(), (OURS, PAPER), strict=True):
        rounds = np.arange(1, rows.shape[1] + 1)
        convergence.fill_between(rounds, rows.min(0), rows.max(0), color=colour, alpha=0.15, linewidth=0)
        convergence.plot(rounds, np.median(rows, 0), color=colour, label=name)
    convergence.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    convergence.set(xlabel="round", ylabel="|U(X) - U(x*)| / |U(x*)|", yscale="log", ylim=(1e-6, 1))
    convergence.set_title("to the true optimum (median, range)")
    convergence.legend(frameon=False)
    _draw_times(times, replays)
    for name, runs in replays.items():
        path_of_mean = np.mean([run.utility for run in runs], axis=0)
        utility.plot(np.arange(1, len(path_of_mean) + 1), path_of_mean, color=SCHEDULE_COLOURS[name], label=name)
    utility.set(xlabel="round", ylabel="sum of log running mean goodput, tokens/round", ylim=(3, None))
    utility.set_title("the paper's figure 4")
    utility.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


def draw_servers(runs: Mapping[str, Run], course: Course, path: Path) -> None:
    """How far the prices of a place are apart, while servers die and come back, and what streams get of it."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    prices, goodput = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, run in runs.items():
        style = ":" if name == "round robin" else "--" if name.endswith("stale") else "-"
        prices.plot(run.spread, style, color=PLACEMENT_COLOURS[name], linewidth=1.3, label=name)
    for at_s, what in ((course.dies_s, "a tenth of\nthe servers die"), (course.returns_s, "and come back,\nempty")):
        prices.axvline(at_s, color="black", linewidth=0.8, linestyle=":")
        prices.text(at_s + 1, 0.45, what, va="top", fontsize=8, transform=prices.get_xaxis_transform())
    prices.set(xlabel="seconds", ylabel="standard deviation of prices over servers", yscale="log")
    prices.set(xlim=(0, course.ends_s))
    calm = slice(course.warm_s, course.dies_s)
    names = list(runs)
    for place, name in enumerate(names):
        mean, tenth = np.exp(runs[name].utility[calm].mean()), runs[name].tenth[calm].mean()
        goodput.plot([tenth, mean], [place, place], color=PLACEMENT_COLOURS[name], linewidth=3)
        goodput.plot(mean, place, "o", color=PLACEMENT_COLOURS[name])
        goodput.text(mean, place, f"  {mean:.2f}", va="center")
        goodput.text(tenth, place, f"{tenth:.2f}  ", va="center", ha="right")
    goodput.set_yticks(range(len(names)), names)
    goodput.invert_yaxis()
    goodput.margins(x=0.2)
    goodput.set(xlabel="tokens/s (left: a tenth are below; dot: geo. mean)", xlim=(0, None))
    figure.suptitle(f"{course.streams:,} streams on {course.servers} unlike servers")
    figure.savefig(path, dpi=130)


def _draw_times(axes: Axes, replays: Mapping[str, Sequence[Replay]]) -> None:
    names = list(replays)
    verification = [float(np.mean([run.verification_s for run in replays[name]])) for name in names]
    receiving = [float(np.mean([run.receiving_s for run in replays[name]])) for name in names]
    axes.bar(names, verification, color=OURS, width=0.6, label="verification")
    axes.bar(names, receiving, bottom=verification, color="#e69f00", width=0.6, label="receiving")
    for place, (one, other) in enumerate(zip(verification, receiving, strict=True)):
        axes.text(place, one / 2, f"{one:.1f}", ha="center", va="center", color="white")
        axes.text(place, one + other, f"{other:.1f}", ha="center", va="bottom")
    axes.set(ylabel="seconds for 1,000 tokens", ylim=(0, 1.25 * max(np.add(verification, receiving))))
    axes.set_title("the paper's figure 3")
    axes.legend(frameon=False, ncols=2, loc="upper center")


def _boxes(axes: Axes, rows: Sequence[Floats], names: Sequence[str], colours: Sequence[str]) -> None:
    boxes = axes.boxplot(
        list(rows), positions=range(len(rows)), orientation="horizontal", widths=0.6, patch_artist=True,
        medianprops={"color": "white"}, flierprops={"markersize": 3},
    )  # fmt: skip
    for box, colour in zip(boxes["boxes"], colours, strict=True):
        box.set(facecolor=colour, edgecolor=colour)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _colour(name: str) -> str:
    return OURS if name.startswith("seconds") else PAPER if name == "GoodSpeed-Sched" else RIVAL
