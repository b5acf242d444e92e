"""The plots: the paper's figures 2 to 4 from our runs, and those that it has not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.edges.policies import OURS, PAPER
from bench.edges.results import Comparison, Response, Results, Spread, described, geometric_mean
from goodspeed_bench.fleet import Edge
from goodspeed_bench.recorder import Seen

__all__ = ["FIGURES", "draw"]

Floats = NDArray[np.float64]

_COLOURS = {
    "plain": "#8c8c8c",
    "Fixed-S": "#e08214",
    "Fixed-S, rolling": "#fdb863",
    "Random-S": "#b35806",
    "GoodSpeed-Sched": "#2166ac",
    "GoodSpeed-Sched, rolling": "#92c5de",
    "throughput": "#762a83",
    "throughput, rolling": "#c2a5cf",
    "co-located": "#d6604d",
    "ours": "#1b7837",
    "seconds alone": "#7fbf7b",
}
_OTHER = "#333333"
_AVERAGE = 10
"""Rounds in the paper's moving average."""
_SMOOTH_S = 2.0
FIGURES = {
    "estimates.png": "estimated against realised goodput, by round (the paper's figure 2)",
    "times.png": "where a round's wall time goes (the paper's figure 3)",
    "utility.png": "utility of the running mean goodput (the paper's figure 4), by round and by the clock",
    "goodput.png": "goodput of each edge, by policy",
    "concurrency.png": "throughput against per-user speed, over concurrency",
    "budgets.png": "budgets and estimated acceptance rates over time, while the edges change",
    "response.png": "goodput over time, while the edges change",
}


def draw(results: Results, folder: Path) -> None:
    """Write every plot of `FIGURES` into a folder that exists."""
    with _style():
        first = results.comparisons[0]
        figures = {
            "estimates.png": _estimates(first, results.edges),
            "times.png": _times(results.comparisons),
            "utility.png": _utility(first, results.edges),
            "goodput.png": _goodput(results.comparisons, results.edges),
            "concurrency.png": _concurrency(results),
            "budgets.png": _budgets(results.response, results.edges),
            "response.png": _response(results.response, results.edges, described(results.pass_time)),
        }
        assert figures.keys() == FIGURES.keys()
        for name, figure in figures.items():
            figure.savefig(folder / name)


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "figure.dpi": 130,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
            "legend.frameon": False,
        }
    )


def _label(edge: Edge) -> str:
    return f"{edge.name}: {edge.draft.removeprefix('pico-draft-')}, {edge.draft_ms:g} ms, {edge.round_trip_ms:g} ms"


def _colour(policy: str) -> str:
    return _COLOURS.get(policy, _OTHER)


def _of(verdicts: Sequence[Seen], edge: Edge) -> list[Seen]:
    return [seen for seen in verdicts if seen.edge == edge.name]


def _moving_average(values: Sequence[float], over: int = _AVERAGE) -> Floats:
    sums = np.cumsum(np.insert(np.asarray(values, dtype=np.float64), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - over, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _panels(edges: Sequence[Edge]) -> tuple[Figure, list[Axes]]:
    """A small plot for each edge, in two columns that share their axes."""
    figure = Figure(figsize=(9, 1.35 * math.ceil(len(edges) / 2) + 1.3), layout="constrained")
    grid = figure.subplots(math.ceil(len(edges) / 2), 2, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for place, edge in zip(axes, edges, strict=False):
        place.set_title(_label(edge), fontsize=8, loc="left")
    return figure, axes


def _estimates(comparison: Comparison, edges: Sequence[Edge]) -> Figure:
    figure, axes = _panels(edges)
    for place, edge in zip(axes, edges, strict=False):
        own = _of(comparison.traces[PAPER.name], edge)
        place.plot(_moving_average([seen.tokens for seen in own]), color=_OTHER, lw=1, label="realised")
        place.plot(
            _moving_average([seen.expected for seen in own]), color=_colour(PAPER.name), lw=1.6, label="estimated"
        )
    axes[0].legend(loc="upper right", ncols=2)
    figure.supxlabel("round")
    figure.supylabel("tokens a round")
    figure.suptitle(f"{PAPER.name}: estimated and realised goodput, moving averages of {_AVERAGE} rounds")
    return figure


def _times(comparisons: Sequence[Comparison]) -> Figure:
    heights = [len(comparison.policies) for comparison in comparisons]
    figure = Figure(figsize=(9, 1.0 + 0.5 * len(heights) + 0.28 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=heights)
    parts = (("receiving", "#92c5de"), ("verification", "#4d4d4d"), ("sending", "#f4a582"))
    for place, comparison in zip(grid.flat, comparisons, strict=True):
        names = list(reversed(comparison.policies))
        left = np.zeros(len(names))
        for part, colour in parts:
            values = [
                Spread.of(
                    1e3 * getattr(trial.times, f"{part}_s") / max(trial.times.rounds, 1)
                    for trial in comparison.trials(name)
                ).median
                for name in names
            ]
            place.barh(names, values, left=left, color=colour, label=part, height=0.7)
            left += np.array(values)
        place.grid(axis="y", visible=False)
        place.set_title(f"{comparison.target} target", loc="left")
        place.set_xlabel("ms a round")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Where a round's wall time goes")
    return figure


def _utility(comparison: Comparison, edges: Sequence[Edge]) -> Figure:
    figure = Figure(figsize=(9, 4.1), layout="constrained")
    by_round, by_clock = figure.subplots(1, 2)
    for policy, verdicts in comparison.traces.items():
        own = [_of(verdicts, edge) for edge in edges]
        rounds = min(map(len, own))
        means = [np.cumsum([seen.tokens for seen in one[:rounds]]) / np.arange(1, rounds + 1) for one in own]
        by_round.plot(np.log(means).sum(0), color=_colour(policy), label=policy)
        began_s = min(seen.at for seen in verdicts)
        times = np.linspace(1.0, max(seen.at for seen in verdicts) - began_s, 100)
        rates = [_until(one, began_s, times) for one in own]
        by_clock.plot(times, np.log(np.maximum(rates, 0.1)).sum(0), color=_colour(policy), label=policy)
    by_round.set(xlabel="round of every edge", ylabel="sum of log tokens a round", title="by round, as in the paper")
    by_clock.set(xlabel="seconds", ylabel="sum of log tokens a second", title="by the clock")
    figure.legend(*by_clock.get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.suptitle(f"Utility of the running mean goodput, {comparison.target} target")
    return figure


def _until(verdicts: Sequence[Seen], began_s: float, times: Floats) -> Floats:
    """Tokens per second from the beginning to each of some times."""
    tokens = np.insert(np.cumsum([seen.tokens for seen in verdicts]), 0, 0)
    return np.asarray(tokens[np.searchsorted([seen.at - began_s for seen in verdicts], times, "right")] / times)


def _goodput(comparisons: Sequence[Comparison], edges: Sequence[Edge]) -> Figure:
    figure = Figure(figsize=(5.2 * len(comparisons) + 2.5, 5.6), layout="constrained")
    grid = figure.subplots(1, len(comparisons), squeeze=False, sharey=True)
    for place, comparison in zip(grid.flat, comparisons, strict=True):
        shown = [name for name in comparison.policies if "rolling" not in name]
        for number, policy in enumerate(shown):
            spreads = [Spread.of(trial.rates[edge.name] for trial in comparison.trials(policy)) for edge in edges]
            rows = np.arange(len(edges)) + (number - (len(shown) - 1) / 2) * 0.1
            middle = np.array([spread.median for spread in spreads])
            errors = [middle - [s.least for s in spreads], np.array([s.most for s in spreads]) - middle]
            ours = policy == OURS.name
            place.errorbar(
                middle, rows, xerr=errors, fmt="D" if ours else "o", ms=5 if ours else 4, lw=1,
                color=_colour(policy), label=policy,
            )  # fmt: skip
        place.set_yticks(range(len(edges)), [_label(edge) for edge in edges])
        place.set_xlim(left=0)
        place.set(xlabel="tokens per second", title=f"{comparison.target} target")
    grid.flat[0].invert_yaxis()
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.suptitle("Goodput of each edge (draft, time for a drafted token, round trip): medians and ranges")
    return figure


def _concurrency(results: Results) -> Figure:
    figure = Figure(figsize=(6.5, 4.4), layout="constrained")
    place = figure.subplots()
    for policy in dict.fromkeys(point.trial.policy.name for point in results.concurrency):
        points = [point for point in results.concurrency if point.trial.policy.name == policy]
        speeds = [
            geometric_mean(rate * len(point.trial.rates) / point.streams for rate in point.trial.rates.values())
            for point in points
        ]
        totals = [sum(point.trial.rates.values()) for point in points]
        label = "plain (no speculation)" if policy == "plain" else policy
        place.plot(speeds, totals, "o-", color=_colour(policy), label=label)
        for point, speed, total in zip(points, speeds, totals, strict=True):
            place.annotate(str(point.streams), (speed, total), xytext=(5, 4), textcoords="offset points", fontsize=8)
    place.set_xlim(left=0)
    place.set_ylim(bottom=0)
    place.set(
        xlabel="tokens per second of a user (geometric mean)",
        ylabel="tokens per second of all",
        title=f"Throughput against per-user speed, by number of streams\n{described(results.pass_time)}",
    )
    place.legend(loc="lower left")
    return figure


def _mark_events(axes: Sequence[Axes], response: Response) -> None:
    for place in axes:
        for event in response.events:
            place.axvline(event.at_s, color="#bbbbbb", lw=1, ls="--", zorder=0)


def _budgets(response: Response, edges: Sequence[Edge]) -> Figure:
    figure, axes = _panels(edges)
    for place, edge in zip(axes, edges, strict=False):
        own = _of(response.verdicts, edge)
        times = [seen.at for seen in own]
        place.step(times, [seen.budget for seen in own], where="post", color=_colour(OURS.name), lw=0.8, label="budget")
        beside = place.twinx()
        beside.plot(times, [seen.alpha for seen in own], color="#b2182b", lw=1.2, label="estimated acceptance rate")
        beside.set_ylim(0, 1)
        beside.grid(visible=False)
        beside.spines["right"].set_visible(True)
        beside.tick_params(colors="#b2182b")
    _mark_events(axes, response)
    figure.supxlabel(f"seconds; dashed: {', then '.join(event.what for event in response.events)}")
    figure.supylabel("budget, tokens (green)")
    figure.suptitle(f"{response.policy}: budgets (green, left) and estimated acceptance rates (red, right)")
    return figure


def _response(response: Response, edges: Sequence[Edge], target: str) -> Figure:
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    total, each = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    times = np.arange(_SMOOTH_S / 2, response.seconds - _SMOOTH_S / 2, 0.1)
    everybody = _smoothed(response.verdicts, times)
    total.plot(times, everybody, color=_colour(OURS.name))
    colours = iter(("#2166ac", "#e08214", "#762a83"))
    for edge in edges:
        changed = any(event.what.startswith(edge.name) for event in response.events)
        each.plot(
            times,
            _smoothed(_of(response.verdicts, edge), times),
            lw=1.8 if changed else 0.8,
            color=next(colours) if changed else "#b0b0b0",
            label=_label(edge) if changed else None,
            zorder=2 if changed else 1,
        )
    each.plot([], [], lw=0.8, color="#b0b0b0", label="the others")
    _mark_events([total, each], response)
    for event in response.events:
        total.annotate(
            event.what, (event.at_s, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    total.set_ylim(0, 1.3 * max(everybody.max(), 1.0))  # room for the words
    total.set(ylabel="tokens per second", title="all edges")
    each.set_ylim(bottom=0)
    each.set(xlabel="seconds", ylabel="tokens per second", title="each edge")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{response.policy}: goodput smoothed over {_SMOOTH_S:g} s while the edges change, {target}")
    return figure


def _smoothed(verdicts: Sequence[Seen], times: Floats) -> Floats:
    """Tokens per second around each time."""
    tokens = np.insert(np.cumsum([seen.tokens for seen in verdicts]), 0, 0)
    at = [seen.at for seen in verdicts]
    after = np.searchsorted(at, times + _SMOOTH_S / 2, "right")
    before = np.searchsorted(at, times - _SMOOTH_S / 2, "right")
    return np.asarray((tokens[after] - tokens[before]) / _SMOOTH_S)
