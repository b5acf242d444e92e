"""Results as people read them: tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from goodspeed.scenarios.results import Quantiles, Results, Run

__all__ = ["tables"]

_ROWS = 16
"""More agents than that are shown as groups."""
_ROUND_P99, _TOKEN_P99 = "p99", " p99"
"""Behind the column that each goes with, and told apart by a blank that nobody sees."""
_EXPENDABLE = (_TOKEN_P99, _ROUND_P99, "1st token ms p50", "round ms p50", "busy", "Jain")
"""What a narrow terminal does without, the first first."""
_UNBOUNDED = 10_000
_LATE = 0.05
"""A share of drafts or passes that is worth a word."""


def tables(results: Results) -> RenderableType:
    """Contenders side by side, then what each agent got; means over the seeds."""
    return Group(_Fitting(results), _agents(results), *_remarks(results))


@dataclass(frozen=True, slots=True)
class _Fitting:
    """The contenders, with as many columns as there is room for beside whole names."""

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=_UNBOUNDED)
        for count in range(len(_EXPENDABLE) + 1):
            table = _contenders(self.results, without=_EXPENDABLE[:count])
            if Measurement.get(console, unbounded, table).maximum <= options.max_width:
                yield table
                return
        yield _contenders(self.results, without=_EXPENDABLE, folded=True)


def _contenders(results: Results, *, without: Sequence[str], folded: bool = False) -> Table:
    scenario = results.scenario
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else f"seed {results.seeds[0]}"
    caption = f"tokens/s; {results.kind}, {scenario.duration_s:g} s each, {seeds}"
    if without:
        caption += "; --json has more figures"
    table = Table(title=escape(scenario.name), caption=caption, box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("scheduler", overflow="fold", no_wrap=not folded)
    timed = [run for run in results.runs if any(agent.texts for agent in run.agents)]
    headings = ["all", "geo. mean", "least", "sum log", "Jain", "round ms p50", _ROUND_P99, "busy"]
    headings += ["1st token ms p50", _TOKEN_P99] if timed else []
    shown = [place for place, heading in enumerate(headings) if heading not in without]
    for place in shown:
        table.add_column(headings[place].strip(), justify="right", no_wrap=True)
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
        table.add_row(escape(label), *(figures[place] for place in shown))
    return table


def _agents(results: Results) -> Table:
    table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("agent", no_wrap=True)
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
