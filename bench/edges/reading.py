"""The written reading beside the figures: every number in it is taken from the results it describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.edges.figures import FIGURES
from bench.edges.policies import OURS, PAPER
from bench.edges.results import Comparison, Results, Spread, described, geometric_mean, jain, log_utility, ratios

__all__ = ["write_reading"]

_AIMS = {PAPER.name: 1.4, "Fixed-S": 1.25}
"""What the geometric mean under `ours` shall be, at least, of that under each of these."""

_NOISY = 0.05
"""With more passes or drafts late than this, the emulation is not what it claims to be."""


def write_reading(results: Results, file: Path) -> None:
    """Write it as Markdown."""
    file.write_text("\n".join(_reading(results)) + "\n")


def _reading(results: Results) -> Iterator[str]:
    yield "# Emulated edges"
    yield ""
    workload, window = results.workload, results.window
    yield (
        f"Written by `{results.command}` in {results.took_s / 60:.0f} minutes on {results.machine}. A real server, "
        "real agents and the bundled models; draft times and links are emulated, as `bench/scenarios/edges.toml` says. "
        f"Every edge has one user, who asks for one text of {workload.new_tokens} tokens after the other, "
        f"T = {workload.temperature:g}. All policies get the same prompts and seeds and take turns; each run measures "
        f"{window.measured_s:g} s behind a warm-up of {window.warmup_s:g} s. Tables show medians and ranges of "
        f"{len(results.comparisons[0].repetitions)} repetitions; ratios are taken within a repetition."
    )
    for comparison in results.comparisons:
        yield from _comparison(comparison)
    yield from _concurrency(results)
    yield ""
    yield "## Plots"
    yield ""
    for name, what in FIGURES.items():
        yield f"- [{name}]({name}): {what}"


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield ""
    yield f"## The {comparison.target} target"
    yield ""
    if comparison.pass_time is None:
        yield "Passes take the time of the bundled target itself, which shares two cores with everything else here."
    else:
        yield f"The bundled target, emulating a larger one: {described(comparison.pass_time)}."
    if comparison.sweep:
        yield "`C` is the best of those tried in short runs before."
    yield ""
    yield "| policy | C | tokens/s an edge, geometric mean | slowest edge | all | Jain | sum of log | ours / this |"
    yield "|---|---|---|---|---|---|---|---|"
    for policy in comparison.policies:
        yield _row(comparison, policy)
    yield ""
    yield from _aims(comparison)
    yield from _losses(comparison)
    yield from _trust(comparison)


def _row(comparison: Comparison, policy: str) -> str:
    trials = comparison.trials(policy)
    rates = [list(trial.rates.values()) for trial in trials]
    capacity = trials[0].policy.capacity
    cells = [
        policy,
        "" if capacity is None else str(capacity),
        str(Spread.of(map(geometric_mean, rates))),
        str(Spread.of(map(min, rates))),
        f"{Spread.of(map(sum, rates)).median:.0f}",
        f"{Spread.of(map(jain, rates)).median:.3f}",
        f"{Spread.of(map(log_utility, rates)).median:.2f}",
        str(ratios(comparison, OURS.name, policy)),
    ]
    return f"| {' | '.join(cells)} |"


def _aims(comparison: Comparison) -> Iterator[str]:
    for rival, aim in _AIMS.items():
        reached = ratios(comparison, OURS.name, rival)
        verdict = "reached" if reached.least >= aim else "reached in the median" if reached.median >= aim else "missed"
        yield f"- `{OURS.name}` against {rival}: {reached} times its geometric mean; the aim of {aim:g} is {verdict}."
    ours, theirs = (_slowest(comparison, policy) for policy in (OURS.name, PAPER.name))
    verdict = "no worse off" if ours.median >= theirs.median else "worse off"
    yield f"- The slowest edge is {verdict} than under {PAPER.name}: {ours} against {theirs} tokens/s."
    plain = ratios(comparison, OURS.name, "plain")
    yield f"- Against no speculation at all, a fixed length of 0: {plain} times its geometric mean."


def _slowest(comparison: Comparison, policy: str) -> Spread:
    return Spread.of(min(trial.rates.values()) for trial in comparison.trials(policy))


def _losses(comparison: Comparison) -> Iterator[str]:
    """Where somebody is better off under another policy."""
    rivals = [policy for policy in comparison.policies if policy != OURS.name]
    ahead = [rival for rival in rivals if ratios(comparison, OURS.name, rival).median < 1]
    if ahead:
        yield f"- We lose, by the geometric mean, to: {', '.join(ahead)}."
    for rival in rivals:
        better = [
            f"{edge} ({theirs:.1f} against {ours:.1f})"
            for edge in comparison.repetitions[0][0].rates
            if (theirs := _rate(comparison, rival, edge)) > (ours := _rate(comparison, OURS.name, edge))
        ]
        if better:
            yield f"- Better off under {rival}: {', '.join(better)}."


def _rate(comparison: Comparison, policy: str, edge: str) -> float:
    return Spread.of(trial.rates[edge] for trial in comparison.trials(policy)).median


def _trust(comparison: Comparison) -> Iterator[str]:
    trials = [trial for repetition in comparison.repetitions for trial in repetition]
    late_passes = max(trial.pass_overrun_share for trial in trials)
    late_drafts = max(trial.draft_overrun_share for trial in trials)
    late_time = max(trial.draft_overrun_time_share for trial in trials)
    torn = comparison.differing_texts + sum(trial.torn for trial in trials)
    if late_passes > _NOISY or late_drafts > _NOISY:
        yield "- **The machine was not quiet: these figures are no evidence of anything.**"
    yield (
        f"- How far to trust it: in the worst run {late_passes:.0%} of the passes and {late_drafts:.1%} of the drafts "
        "took longer to compute than they were emulated to take, the drafts by "
        f"{late_time:.2%} of their time together."
    )
    yield f"- Of {comparison.texts} texts, written under every policy in every repetition, {torn} ever differed."


def _concurrency(results: Results) -> Iterator[str]:
    yield ""
    yield "## Concurrency"
    yield ""
    yield (
        "Tokens per second of all streams together, and of one (geometric mean), one run each; "
        f"{described(results.pass_time)}."
    )
    yield ""
    policies = list(dict.fromkeys(point.trial.policy.name for point in results.concurrency))
    yield f"| streams | {' | '.join(policies)} |"
    yield f"|---|{'---|' * len(policies)}"
    for streams in dict.fromkeys(point.streams for point in results.concurrency):
        yield f"| {streams} | {' | '.join(_points(results, streams, policies))} |"


def _points(results: Results, streams: int, policies: Sequence[str]) -> Iterator[str]:
    for policy in policies:
        for point in results.concurrency:
            if (point.streams, point.trial.policy.name) == (streams, policy):
                rates = point.trial.rates.values()
                yield f"{sum(rates):.0f}, {geometric_mean(rates) * len(rates) / streams:.1f}"
