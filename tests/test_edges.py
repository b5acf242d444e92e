"""The emulated edges end to end, in small: two agents, two policies, the same texts; and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.edges.figures import FIGURES, draw
from bench.edges.policies import OURS, PAPER, PLAIN
from bench.edges.reading import write_reading
from bench.edges.results import (
    Comparison,
    Concurrency,
    Event,
    Response,
    Results,
    Spread,
    geometric_mean,
    jain,
    ratios,
)
from goodspeed.scenarios import read_scenario
from goodspeed_bench.fleet import Edge, edges_of
from goodspeed_bench.host import Host, Rehearse, Start, Stop, Workload
from goodspeed_bench.hosts import part
from goodspeed_bench.policies import Policy
from goodspeed_bench.recorder import Seen, Times
from goodspeed_bench.trial import Setting, Trial, Window, run_trial, serving

EDGES = (Edge("edge-1", "pico-draft-s", 2.0, 10.0), Edge("edge-2", "suffix", 1.0, 4.0))
SCENARIO = Path(__file__).parents[1] / "bench/scenarios/edges.toml"
FIXED = Policy("Fixed-S", "fixed", "barrier", 16)


async def test_two_agents_get_the_same_texts_under_every_policy(tmp_path: Path) -> None:
    host = Host(tmp_path)
    workload = Workload(texts=1, new_tokens=8)
    setting = Setting(host.obey, EDGES, workload, Window(0.2, 1.0), None)
    async with serving(PLAIN, setting) as (_, _, address):
        await host.obey(Rehearse(address, EDGES, workload, depth=2))
    texts = []
    for policy in (PLAIN, FIXED):
        trial, recorder, reports = await run_trial(policy, setting)
        assert trial.rates.keys() == {"edge-1", "edge-2"}
        assert all(rate > 0 for rate in trial.rates.values())
        assert sum(seen.tokens for seen in recorder.verdicts) >= trial.committed > 0
        assert (trial.drafted > 0) == (policy is FIXED)
        assert trial.torn == 0
        texts.append({report.name: report.texts[0] for report in reports})
    for plainly, drafted in ((texts[0][edge.name], texts[1][edge.name]) for edge in EDGES):
        # How far a text has come when its time is up is the machine's business; what it says is not.
        both = min(len(plainly), len(drafted))
        assert plainly[:both] == drafted[:both] != []


def test_every_edge_is_at_home_in_one_process_and_always_the_same() -> None:
    fleet = tuple(edges_of(read_scenario(SCENARIO), seed=0))
    start = Start("ws://nowhere:1", fleet, Workload())
    parts = [part(start, place, 3) for place in range(3)]
    homes = [edge for mine in parts if isinstance(mine, Start) for edge in mine.edges]
    assert sorted(homes, key=lambda edge: edge.name) == list(fleet)
    for place, mine in enumerate(parts):
        assert isinstance(mine, Start)
        for edge in mine.edges:
            alone = Start("ws://nowhere:1", (edge,), Workload())
            assert part(alone, place, 3) == alone
    assert part(Stop(), 1, 3) == Stop()


def test_statistics() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def trial(policy: Policy, rates: Mapping[str, float]) -> Trial:
    return Trial(policy, dict(rates), Times(1.0, 2.0, 0.1, 20), 10, 5, 20, 0.0, 0.0, 0.0, 0)


def results() -> Results:
    """Two edges, three policies, two repetitions; the second edge is better off under plain decoding."""
    rates = {PLAIN: (8.0, 20.0), OURS: (16.0, 10.0), PAPER: (4.0, 10.0), FIXED: (5.0, 5.0)}
    turns = tuple(
        tuple(trial(policy, {"edge-1": one * turn, "edge-2": two * turn}) for policy, (one, two) in rates.items())
        for turn in (1, 2)
    )
    verdicts = [Seen(0.1 * n, f"edge-{1 + n % 2}", n % 5, 0.5, 1.9, 1 + n % 3) for n in range(60)]
    traces = {policy.name: verdicts for policy in (FIXED, PAPER, OURS)}
    return Results(
        command="a test",
        machine="none",
        edges=EDGES,
        workload=Workload(),
        window=Window(),
        comparisons=(Comparison("fast", None, (), turns, traces, 0, 4),),
        concurrency=tuple(Concurrency(streams, turns[0][n]) for streams in (1, 2) for n in (0, 1)),
        response=Response(OURS.name, 6.0, (Event(2.0, "edge-2 leaves"),), verdicts),
        pass_time=None,
        took_s=60.0,
    )


def test_ratios_are_taken_within_a_repetition() -> None:
    (comparison,) = results().comparisons
    spread = ratios(comparison, OURS.name, PAPER.name)
    assert (spread.least, spread.median, spread.most) == pytest.approx((2.0, 2.0, 2.0))


def test_the_reading_says_where_we_lose(tmp_path: Path) -> None:
    write_reading(results(), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert "Better off under plain: edge-2 (30.0 against 15.0)" in text
    assert "the aim of 1.4 is reached" in text
    assert "Of 4 texts, written under every policy in every repetition, 0 ever differed" in text


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    draw(results(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FIGURES)
