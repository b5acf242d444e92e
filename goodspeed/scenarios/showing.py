"""Results as people read them: tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from goodspeed.scenarios.results import Quantiles, Results, Run

__all__ = ["tables"]

_ROWS = 16
"""More agents than that are shown as groups."""
_LATE = 0.05
"""A share of drafts or passes that is worth a word."""


def tables(results: Results) -> RenderableType:
    """Contenders side by side, then what each agent got; means over the seeds."""
    return Group(_contenders(results), _agents(results), *_remarks(results))


def _contenders(results: Results) -> Table:
    scenario = results.scenario
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else f"seed {results.seeds[0]}"
    caption = f"tokens/s; {results.kind}, {scenario.duration_s:g} s each, {seeds}"
    table = Table(title=escape(scenario.name), caption=caption, box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("scheduler", overflow="fold")
    timed = [run for run in results.runs if any(agent.texts for agent in run.agents)]
    headings = ["all", "geo. mean", "least", "sum log", "Jain", "round ms p50", "p99", "busy"]
    for heading in [*headings, *(["1st token ms p50", "p99"] if timed else [])]:
        table.add_column(heading, justify="right")
    for label in results.labels:
        runs = results.of(label)
        figures = [
            _mean(runs, lambda run: run.total, 1),
            _mean(runs, lambda run: run.geometric_mean, 2),
            _mean(runs, lambda run: run.least, 2),
            _mean(runs, lambda run: run.log_utility, 2),
            _mean(runs, lambda run: run.jain, 3),
            *_quantiles([run.round_ms for run in runs]),
            f"{fmean(run.busy for run in runs):.0%}",
        ]
        if timed:
            figures += _quantiles([agent.first_token_ms for run in runs for agent in run.agents])
        table.add_row(escape(label), *figures)
    return table


def _agents(results: Results) -> Table:
    table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("agent")
    for label in results.labels:
        table.add_column(escape(label), justify="right", overflow="fold")
    for name, goodputs in _rows(results):
        table.add_row(escape(name), *(f"{goodput:.2f}" for goodput in goodputs))
    return table


def _rows(results: Results) -> Iterator[tuple[str, list[float]]]:
    """Names, and tokens per second under each contender."""
    agents = results.runs[0].agents
    grouped = len(agents) > _ROWS
    names = dict.fromkeys(agent.group if grouped else agent.name for agent in agents)
    for name in names:
        yield (
            name,
            [
                fmean(
                    agent.goodput
                    for run in results.of(label)
                    for agent in run.agents
                    if (agent.group if grouped else agent.name) == name
                )
                for label in results.labels
            ],
        )


def _remarks(results: Results) -> Iterator[str]:
    """What has to be known before the figures are believed."""
    yield from map(escape, results.remarks)
    if results.kind == "simulated":
        return
    if results.texts:
        yield f"{results.texts} texts, token for token under every scheduler: {results.differing_texts} differ"
    for what, figure in (("drafts", "late_drafts"), ("passes", "late_passes")):
        late = max(getattr(run, figure) for run in results.runs)
        if late > _LATE:
            yield f"up to {late:.0%} of {what} took longer than they should have: this machine is too slow, or too busy"


def _mean(runs: Sequence[Run], figure: Callable[[Run], float], digits: int) -> str:
    return f"{fmean(map(figure, runs)):.{digits}f}"


def _quantiles(known: Sequence[Quantiles | None]) -> list[str]:
    there = [each for each in known if each is not None]
    if not there:
        return ["-", "-"]
    return [f"{fmean(each.p50 for each in there):.0f}", f"{fmean(each.p99 for each in there):.0f}"]
