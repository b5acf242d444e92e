"""A scenario in real processes, in small; and what its users ask for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goodspeed.errors import GoodSpeedError, InvalidRequest, SchedulerFault
from goodspeed.scenarios import AgentGroup, Contender, Scenario, Server, read_scenario
from goodspeed.scenarios.people import people
from goodspeed.scenarios.results import Results
from goodspeed.scenarios.scenario import Acceptance, Arrivals, Spread, Verification
from goodspeed.scenarios.simulating import agents_of
from goodspeed.traces import Joined, read_trace
from goodspeed_bench.contest import bench_scenario, settings_of
from goodspeed_bench.errands import busy_edges, read_prompts
from goodspeed_bench.fleet import edges_of
from goodspeed_bench.host import Answer, Host, Load, Stop
from goodspeed_bench.hosts import Ask, hosts
from goodspeed_bench.toxics import Bandwidth, Latency

SHIPPED = Path(__file__).parents[1] / "bench/scenarios"
OWN = Path(__file__).parents[1] / "bench/examples/deficit.py"


async def test_a_scenario_runs_in_real_processes(tmp_path: Path) -> None:
    """Weights, somebody who joins late, and a scheduler of one's own, against plain decoding."""
    quick = {"draft": "pico-draft-s", "draft_ms": 1.0, "round_trip_ms": 4.0, "new_tokens": 2, "texts": 1}
    scenario = Scenario(
        "small",
        (AgentGroup("near", weight=2.0, **quick), AgentGroup("late", joins_at_s=0.5, **quick)),  # type: ignore[arg-type]
        duration_s=1.5,
        warm_up_s=0.1,
        server=Server(capacity=8, verification=Verification(emulated=False)),
        schedulers=(Contender(f"{OWN}:Deficit(odds=0.2)", "own", rounds="barrier"), "plain"),
    )
    said: list[str] = []

    @contextlib.asynccontextmanager
    async def here(_rule: str) -> AsyncIterator[Ask]:
        yield Host(tmp_path).obey

    results = await bench_scenario(
        scenario,
        tmp_path,
        rehearse=1,
        device="cpu",
        dtype="float32",
        watch=said.append,
        agents=here,
        traces=tmp_path / "traces",
    )
    for contender, scheduler in (("own", f"{OWN}:Deficit(odds=0.2)"), ("plain", "plain")):
        trace = read_trace(tmp_path / f"traces/{contender}-0.jsonl")
        assert trace.header.scheduler == scheduler
        assert {event.name for event in trace.events if isinstance(event, Joined)} == {"near", "late"}
    assert said[1:] == ["rehearsing, seed 0", "own, seed 0", "plain, seed 0"]
    assert Results.from_json(results.to_json()) == results
    assert (results.kind, results.differing_texts) == ("real", 0)
    assert results.texts == 2
    for run in results.runs:
        near, late = run.agents
        assert near.goodput > 0 < late.goodput
        assert near.texts > 0
        assert near.first_token_ms is not None
        assert near.text_s is not None
        assert near.first_token_ms.p50 <= 1e3 * near.text_s.p50
        assert run.rounds > 0
        assert run.round_ms is not None


async def test_a_scheduler_that_fails_in_a_bench_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import numpy as np\nfrom goodspeed.scheduling import Plan\n\nclass Bad:\n    asked = 0\n"
        "    def plan(self, demand, capacity):\n        self.asked += 1\n"
        "        return Plan(np.zeros(len(demand), dtype=np.int64) - (self.asked > 3))\n"
    )
    group = AgentGroup("near", draft="suffix", draft_ms=1.0, round_trip_ms=4.0, new_tokens=8, texts=1)
    scenario = Scenario(
        "small",
        (group,),
        duration_s=600.0,
        server=Server(capacity=8, rounds="barrier", verification=Verification(emulated=False)),
        schedulers=(Contender(f"{tmp_path / 'bad.py'}:Bad", "mine"),),
    )

    @contextlib.asynccontextmanager
    async def here(_rule: str) -> AsyncIterator[Ask]:
        host = Host(tmp_path)
        yield host.obey
        await host.obey(Stop())

    with pytest.raises(SchedulerFault, match="mine, seed 0: Bad gave a stream a budget of -1"):
        await bench_scenario(
            scenario, tmp_path, rehearse=0, device="cpu", dtype="float32", watch=lambda _: None, agents=here
        )


def test_a_contender_that_cannot_be_is_refused_before_anything_runs() -> None:
    scenario = read_scenario(SHIPPED / "own.toml")
    with pytest.raises(InvalidRequest, match="scheduler 'nothing' does not exist"):
        settings_of(scenario, Contender("nothing"), streams=1, tokens=None)
    settings = settings_of(scenario, Contender("fixed", capacity=7, early_stop=True), streams=3, tokens=None)
    assert (settings.rounds.capacity, settings.rounds.rounds, settings.rounds.early_stop) == (7, "rolling", True)


def test_links_are_those_of_the_simulator() -> None:
    """One way takes as long on average, jitter included; and boxes are as fast."""
    group = AgentGroup("far", 5, acceptance=0.5, round_trip_ms=Spread(10, 90), draft_ms=Spread(4, 9), jitter_ms=3.0)
    scenario = Scenario("x", (group,))
    for edge, agent in zip(edges_of(scenario, 7), agents_of(scenario, people(scenario, 7)), strict=True):
        bandwidth, latency = (toxic for direction, toxic in edge.toxics if direction == "upstream")
        assert bandwidth == Bandwidth(1250.0)
        assert isinstance(latency, Latency)
        assert latency.latency_ms == pytest.approx(1e3 * (agent.latency_s + agent.jitter_s))
        assert latency.latency_ms - latency.jitter_ms >= 1e3 * agent.latency_s - 1e-9
        assert edge.draft_ms == 1e3 * agent.draft_s


def test_what_users_ask_for_depends_on_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    closed = AgentGroup("closed", 2, prompts="mine.jsonl", new_tokens=Spread(5, 50), texts=3, chat=True, think_s=1.0)
    timed = AgentGroup("timed", acceptance=Acceptance(0.1, 0.2), new_tokens=8, arrivals=Arrivals(2.0))
    scenario = Scenario("x", (closed, timed), duration_s=50.0)
    prompts = read_prompts(scenario, tmp_path)
    one, two, three = busy_edges(scenario, prompts, 1)
    assert busy_edges(scenario, prompts, 1) == [one, two, three] != busy_edges(scenario, prompts, 2)
    assert [errand.prompt for errand in one.errands] == ["one", "two", "one"]
    assert all(5 <= errand.new_tokens <= 50 and errand.pause_s > 0 for errand in one.errands if errand.new_tokens)
    assert one.errands[0].request.prompt == [{"role": "user", "content": "one"}]
    assert len({errand.seed for edge in (one, two, three) for errand in edge.errands}) == 6 + len(three.errands)
    times = [errand.at_s for errand in three.errands if errand.at_s is not None]
    assert times == sorted(times)
    assert len(times) == len(three.errands) == pytest.approx(100, abs=40)


async def test_what_an_agent_process_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    async with hosts(count=1) as ask:
        with pytest.raises(GoodSpeedError, match=r"nowhere\.py"):
            await ask(Load((str(tmp_path / "nowhere.py") + ":Mine",)))
        assert await ask(Stop()) == Answer(), "and it lives on"
