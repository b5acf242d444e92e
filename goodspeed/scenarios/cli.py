"""`goodspeed simulate` and `goodspeed bench`: compare schedulers in a scenario; `goodspeed check-rule`."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import typer
from rich.console import Console

from goodspeed.errors import GoodSpeedError, InvalidRequest, ModelError
from goodspeed.extras import how_to_install
from goodspeed.paths import expanded
from goodspeed.rules import rule_named, use_rule
from goodspeed.scenarios.reading import problem_said, read_scenario
from goodspeed.scenarios.results import Results
from goodspeed.scenarios.scenario import LONGEST_S, Scenario
from goodspeed.scenarios.showing import tables

__all__ = ["bench", "check", "chosen", "simulate"]

ScenarioFile: TypeAlias = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A TOML file.")]
Schedulers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--scheduler", help="Instead of the scenario's: a name, or your own, module:Class. May be repeated."),
]
Seeds: TypeAlias = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="Instead of the scenario's. May be repeated.")
]
Out: TypeAlias = Annotated[Path | None, typer.Option(help="Folder for the results, results.json.")]
Plot: TypeAlias = Annotated[
    Path | None, typer.Option(help="Draw the comparison: a .png or .svg file. Needs matplotlib.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the results' JSON instead of tables.")]

_PLOTS = (".png", ".svg", ".pdf")
_RESULTS = "results.json"


def simulate(
    scenario: Annotated[Path | None, typer.Argument(metavar="[SCENARIO]", help="A TOML file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Instead of a scenario: replay what goodspeed-server run --trace wrote.")
    ] = None,
    closed_loop: Annotated[
        bool, typer.Option("--closed-loop", help="With --trace: texts follow the ends of those before, not the clock.")
    ] = False,
    scheduler: Schedulers = None,
    seed: Seeds = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Virtual seconds, instead of the scenario's; of a shorter run the warm-up is shorter too."),
    ] = None,
    out: Out = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Compare schedulers on a virtual clock: seconds, for minutes of many agents."""
    with errors_named():
        _check_plot(plot)
        out, plot = out and expanded(out), plot and expanded(plot)
        run = _what_to_simulate(scenario, trace, scheduler, seed, duration, closed_loop=closed_loop)
        _check_folders(out, plot)
        console = Console(stderr=True)
        with console.status("") as status:
            results = run(lambda label, seed: status.update(f"{label}, seed {seed}"))
        show(results, as_json=as_json)
        keep(results, out, plot)


_Watch: TypeAlias = Callable[[str, int], None]


def _what_to_simulate(
    scenario: Path | None,
    trace: Path | None,
    schedulers: list[str] | None,
    seeds: list[int] | None,
    duration_s: float | None,
    *,
    closed_loop: bool,
) -> Callable[[_Watch], Results]:
    if (scenario is None) == (trace is None):
        raise InvalidRequest("give one thing to simulate: a scenario's file, or --trace and a trace's")
    if trace is not None:
        # Imported here, and below: `--help` does not wait for it.
        from goodspeed.traces.reading import read_trace
        from goodspeed.traces.replaying import replay, scenario_of

        recorded = read_trace(expanded(trace))
        again = chosen(scenario_of(recorded, trusted=schedulers or ()), schedulers, seeds, duration_s)
        return lambda watch: replay(recorded, again, closed_loop=closed_loop, watch=watch)
    if closed_loop:
        raise InvalidRequest("--closed-loop says how a --trace is replayed: a scenario says so itself")
    assert scenario is not None
    from goodspeed.scenarios.simulating import simulate_scenario

    what = chosen(read_scenario(expanded(scenario)), schedulers, seeds, duration_s)
    return lambda watch: simulate_scenario(what, watch)


def bench(
    scenario: ScenarioFile,
    scheduler: Schedulers = None,
    seed: Seeds = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds, instead of the scenario's; of a shorter run the warm-up is shorter too."),
    ] = None,
    rehearse: Annotated[
        int,
        typer.Option(min=0, help="Compute drafts beforehand, so many tokens from each place in every text; 0: none."),
    ] = 6,
    device: Annotated[str, typer.Option(help="Of the target: auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the target: auto, float32, bfloat16 or float16.")] = "auto",
    traces: Annotated[
        Path | None, typer.Option(help="Folder for a trace of each run, which simulate --trace replays.")
    ] = None,
    out: Out = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Compare schedulers in real processes on this machine: a server, agents, emulated links."""
    with errors_named():
        _check_plot(plot)
        scenario, out, plot = expanded(scenario), out and expanded(out), plot and expanded(plot)
        what = chosen(read_scenario(scenario), scheduler, seed, duration)
        _check_folders(out, plot)
        for library in ("torch", "transformers"):
            if importlib.util.find_spec(library) is None:
                raise ModelError(f"a bench needs {library}, which is missing: {how_to_install('models')}")
        if importlib.util.find_spec("goodspeed_bench") is None:
            raise ModelError("a bench needs goodspeed_bench, which this installation lacks: install all of goodspeed")
        # Imported here: it is made of a server and agents, which the core knows nothing of.
        from goodspeed_bench.cli import bench as run

        results = run(
            what, scenario.parent, rehearse=rehearse, device=device, dtype=dtype, traces=traces and expanded(traces)
        )
        show(results, as_json=as_json)
        keep(results, out, plot)


def check(
    rule: Annotated[str, typer.Argument(help="coupled, ratio, or your own: module:Class or file.py:Class.")],
    trials: Annotated[int, typer.Option(min=100, help="Texts for each way to draft.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of target and draft.")] = 0,
) -> None:
    """Try by brute force whether a verification rule is lossless."""
    with errors_named():
        if importlib.util.find_spec("torch") is None:
            raise ModelError(f"judging needs torch, which is missing: {how_to_install('models')}")
        from goodspeed.rule_checking import check_rule

        findings = check_rule(rule_named(use_rule(rule)), trials=trials, seed=seed)
        for finding in findings:
            said = "as the target alone" if finding.lossless else "NOT as the target alone"
            print(f"drafts {finding.drafts:8} {finding.accepted:6.1%} accepted, {said} ({finding.score:+.1f} sigma)")
        if not all(finding.lossless for finding in findings):
            raise typer.Exit(1)


def chosen(
    scenario: Scenario, schedulers: list[str] | None, seeds: list[int] | None, duration_s: float | None
) -> Scenario:
    """A scenario with what the command line changes in it.

    Raises:
        InvalidRequest: it cannot be that way.
    """
    changes: dict[str, object] = {}
    if schedulers:
        # One that is in the scenario keeps what it says of rounds and capacity.
        known = {contender.label: msgspec.to_builtins(contender) for contender in scenario.contenders}
        changes["schedulers"] = [known.get(name, name) for name in schedulers]
    if seeds:
        changes["seeds"] = seeds
    if duration_s is not None:
        if not 0 < duration_s <= LONGEST_S:
            raise InvalidRequest(f"--duration is {duration_s:g}: it must be above 0 seconds and at most {LONGEST_S:,}")
        changes["duration_s"] = duration_s
        # A warm-up is a share of the run: of a shorter one it is as large a share.
        changes["warm_up_s"] = scenario.warm_up_s * min(1.0, duration_s / scenario.duration_s)
    try:
        return msgspec.convert(msgspec.to_builtins(scenario) | changes, Scenario)
    except msgspec.ValidationError as error:
        raise InvalidRequest(problem_said(str(error))) from None


def keep(results: Results, out: Path | None, picture: Path | None) -> None:
    """Write what was asked for.

    Raises:
        InvalidRequest: a file cannot be written.
    """
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / _RESULTS).write_bytes(results.to_json())
        if picture is not None:
            from goodspeed.scenarios.plotting import plot as draw

            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(results, picture)
    except OSError as error:
        raise InvalidRequest(f"the results cannot be written: {error}") from None


def show(results: Results, *, as_json: bool) -> None:
    """Print them."""
    if as_json:
        print(results.to_json().decode(), end="")
    else:
        Console().print(tables(results))


@contextlib.contextmanager
def errors_named() -> Iterator[None]:
    """Exit with a sentence; a traceback always means a defect."""
    try:
        yield
    except GoodSpeedError as error:
        print(f"goodspeed: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, InvalidRequest) else 1) from None


def _check_plot(file: Path | None) -> None:
    """Before anything is run, rather than behind it."""
    if file is None:
        return
    if file.suffix not in _PLOTS:
        raise InvalidRequest(f"a plot is a {', '.join(_PLOTS)} file, and {file} is none")
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest(f"plots need matplotlib, which is missing: {how_to_install('bench')}")


def _check_folders(out: Path | None, picture: Path | None) -> None:
    """Make them, and see that results can be written there: a run that cannot be kept is a run lost."""
    for file in (None if out is None else out / _RESULTS, picture):
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                file.open("ab").close()
            else:
                tempfile.TemporaryFile(dir=file.parent).close()
        except OSError as error:
            raise InvalidRequest(f"the results cannot be written to {file}: {error.strerror}") from None
