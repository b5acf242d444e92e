"""Scenario files: what they may say, what is said of those that are wrong, and what comes of a run."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.estimation import expected_tokens
from goodspeed.scenarios import AgentGroup, Contender, Results, Scenario, read_scenario
from goodspeed.scenarios.cli import chosen
from goodspeed.scenarios.people import people
from goodspeed.scenarios.scenario import Acceptance, Arrivals, Spread, Verification
from goodspeed.scenarios.simulating import agents_of, engine_of, simulate_scenario

SHIPPED = sorted(Path(__file__).parents[1].glob("bench/scenarios/*.toml"))
MIXED = """
name = "mixed"
seeds = [3, 4]
duration_s = 8.0
warm_up_s = 1.0
schedulers = ["seconds", { name = "paper", scheduler = "goodspeed", rounds = "barrier", capacity = 8 }]
[[agents]]
name = "near"
count = 3
acceptance = 0.8
[[agents]]
name = "far"
acceptance = { low = 0.3, high = 0.5 }
round_trip_ms = { low = 50, high = 90 }
new_tokens = 20
prompt_tokens = { low = 10, high = 90 }
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    file = tmp_path / "scenario.toml"
    file.write_text(MIXED)
    return file


def refusal(folder: Path, text: str) -> str:
    file = folder / "wrong.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        read_scenario(file)
    return str(refused.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_what_ships_runs(file: Path) -> None:
    scenario = read_scenario(file)
    short = chosen(scenario, None, [0], scenario.warm_up_s + 5.0)
    results = simulate_scenario(short)
    assert results.labels == [contender.label for contender in scenario.contenders]
    assert all(run.total > 0 for run in results.runs)
    outcomes = {tuple(agent.goodput for agent in run.agents) for run in results.runs}
    assert len(outcomes) == len(results.runs), "no contender differs from another in what is not simulated"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("agents = [{name = 'a'}]", "name is missing"),
        ("name = 'x'", "agents is missing"),
        ("name = 'x'\nagents = []", "agents: Expected `array` of length >= 1"),
        ("name = 'x'\nagents = [{name = 'a', acceptence = 0.5}]", "no key agents[0].acceptence: did you mean acc"),
        ("name = 'x'\nserver.capcity = 3\nagents = [{name = 'a'}]", "no key server.capcity: did you mean capacity?"),
        ("name = 'x'\nzzz = 3\nagents = [{name = 'a'}]", "no key zzz: there are name, agents, about"),
        ("name = 'x'\nagents = [{name = 'a', count = 0}]", "agents[0].count must be a whole number, 1 or above"),
        ("name = 'x'\nagents = [{name = 'a', acceptance = 1.5}]", "[0].acceptance must be 0 or above and at most 1"),
        ("name = 'x'\nagents = [{name = 'a', acceptance = {at_s = [2, 1], rate = [0, 1]}}]", "at_s must be in order"),
        ("name = 'x'\nagents = [{name = 'a', acceptance = {}}]", "agents[0].acceptance: give low and high, or at_s"),
        ("name = 'x'\nagents = [{name = 'a', draft_ms = {low = 3, high = 1}}]", "agents[0].draft_ms: low must be"),
        ("name = 'x'\nagents = [{name = 'a', arrivals = {per_s = 1}}]", "agents[0]: texts that arrive must end"),
        ("name = 'x'\nagents = [{name = 'a'}, {name = 'a'}]", "two agents are called a: give each a name of its own"),
        ("name = 'x'\nschedulers = ['fixed', 'fixed']\nagents = [{name = 'a'}]", "two schedulers are called fixed"),
        ("name = 'x'\nwarm_up_s = 60\nagents = [{name = 'a'}]", "warm_up_s is 60: what comes before anything"),
        ("name = 'x'\nserver.rounds = 'square'\nagents = [{name = 'a'}]", "server.rounds: Invalid enum value 'square'"),
        ("name = ", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("agent", "more", "sentence"),
    [
        ("", "seeds = [1, -1]", "seeds[1] must be a whole number, 0 or above and at most"),
        ("", "seeds = [1, 2, 1]", "seeds has 1 more than once"),
        ("", "duration_s = inf", "duration_s must be above 0 and at most 10,000,000"),
        ("", "warm_up_s = nan", "warm_up_s must be 0 or above and at most 1,000,000,000"),
        ("", "server.fairness = inf", "server.fairness must be 0 or above and at most"),
        ("", "server.verification = {fixed_ms = 0, token_ms = 0}", "server.verification: a pass must take time"),
        ("", "server.verification.passes = [[1, 1, 0]]", "verification.passes[0][2] must be 0.01 or above and at most"),
        ("draft_ms = 0", "", "agents[0].draft_ms must be above 0 and at most 1,000,000,000"),
        ("draft_ms = inf", "", "agents[0].draft_ms must be above 0 and at most"),
        ("draft_ms = {low = 0, high = 2}", "", "agents[0]: draft_ms.low must be above 0"),
        ("draft_ms = {low = 1, high = inf}", "", "agents[0].draft_ms.high must be 0 or above and at most"),
        ("round_trip_ms = inf", "", "agents[0].round_trip_ms must be 0 or above and at most"),
        ("weight = inf", "", "agents[0].weight must be above 0 and at most 1,000,000"),
        ("weight = 0", "", "agents[0].weight must be above 0 and at most 1,000,000"),
        (
            "new_tokens = 9, arrivals = {per_s = 1e9}",
            "",
            "agents[0].arrivals.per_s must be 0 or above and at most 1,000",
        ),
        ("joins_at_s = 9, leaves_at_s = 9", "", "agents[0]: leaves_at_s is 9: it must be above joins_at_s, 9"),
        ("joins_at_s = 60", "", "agents[0].joins_at_s is 60: it must be less than duration_s, 60"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_what_it_may_be(
    tmp_path: Path, agent: str, more: str, sentence: str
) -> None:
    text = f"name = 'x'\n{more}\nagents = [{{ name = 'a'{agent and ', '}{agent} }}]"
    assert sentence in refusal(tmp_path, text)


def test_files_of_ones_own_are_looked_for_beside_the_scenario_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, names in ((beside, ("both", "one", "rule")), (here, ("both", "other"))):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.py").write_text("from goodspeed.scheduling import FixedS as Own\n")
    monkeypatch.chdir(here)
    file = beside / "scenario.toml"
    text = (
        "name = 'x'\nagents = [{name = 'a', acceptance = 0.5}]\nschedulers = ['both.py:Own(length=2)', 'other.py:Own', "
    )
    file.write_text(f"{text}{{ name = 'n', scheduler = './one.py:Own' }}, 'fixed']\nserver.rule = 'rule.py:Own'")
    scenario = read_scenario(file)
    assert [(each.label, each.scheduler) for each in scenario.contenders] == [
        ("both.py:Own(length=2)", f"{beside / 'both.py'}:Own(length=2)"),
        ("other.py:Own", "other.py:Own"),
        ("n", f"{beside / 'one.py'}:Own"),
        ("fixed", "fixed"),
    ]
    assert scenario.server.rule == f"{beside / 'rule.py'}:Own"
    assert chosen(scenario, ["both.py:Own(length=2)"], None, None).contenders == scenario.contenders[:1]
    file.write_text(f"{text}'none.py:Own']")
    with pytest.raises(InvalidRequest) as refused:
        read_scenario(file)
    looked = f"there is no {beside / 'none.py'} nor {here / 'none.py'}"
    assert str(refused.value) == f"{file}: schedulers[2] is none.py:Own, and {looked}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.toml cannot be read"):
        read_scenario(tmp_path / "nowhere.toml")


def test_ranges_are_drawn_once_for_each_agent_and_seed() -> None:
    group = AgentGroup("far", 200, draft_ms=Spread(4.0, 30.0, log=True), acceptance=Acceptance(0.2, 0.6))
    scenario = Scenario("x", (group, AgentGroup("near", 2, acceptance=0.5)))
    here, again, elsewhere = people(scenario, 1), people(scenario, 1), people(scenario, 2)
    assert here == again != elsewhere
    assert [person.name for person in here[198:]] == ["far-199", "far-200", "near-1", "near-2"]
    times = np.log([person.draft_ms for person in here[:200]])
    assert (times.min(), times.max()) == pytest.approx((math.log(4), math.log(30)), abs=0.1)
    rates = [agent.alpha_at(0.0) for agent in agents_of(scenario, here)]
    assert 0.2 <= min(rates[:200]) < 0.25
    assert 0.55 < max(rates[:200]) <= 0.6
    assert rates[200:] == [0.5, 0.5]
    with_another = people(Scenario("x", (group, AgentGroup("near", 7))), 1)
    assert with_another[:200] == here[:200], "a group stays as it is, whatever is written of others"


def test_acceptance_changes_with_time_or_is_what_was_measured() -> None:
    changing = AgentGroup("a", acceptance=Acceptance(at_s=(10.0, 20.0), rate=(0.8, 0.4)))
    measured = AgentGroup("b", draft="pico-draft-s", temperature=0.35)
    scenario = Scenario("x", (changing, measured))
    one, other = agents_of(scenario, people(scenario, 0))
    assert [one.alpha_at(now) for now in (0.0, 10.0, 15.0, 99.0)] == pytest.approx([0.8, 0.8, 0.6, 0.4])
    cold, warm = (
        agents_of(scenario, people(scenario, 0))[0].alpha_at(0.0)
        for scenario in (Scenario("x", (AgentGroup("b", draft="pico-draft-s", temperature=t),)) for t in (0.0, 0.7))
    )
    assert other.alpha_at(0.0) == pytest.approx((cold + warm) / 2)
    assert cold != warm
    unknown = Scenario("x", (AgentGroup("c", draft="suffix"),))
    with pytest.raises(InvalidRequest, match="agents called c need an acceptance: suffix is no bundled draft"):
        agents_of(unknown, people(unknown, 0))


def test_arrivals_swing_about_their_mean() -> None:
    arrivals = Arrivals(0.5, swing=0.8, period_s=100.0)
    assert [arrivals.at(now) for now in (0.0, 25.0, 75.0)] == pytest.approx([0.5, 0.9, 0.1])


def test_passes_that_were_measured_are_fitted() -> None:
    shapes = ((1, 1), (4, 40), (16, 20), (8, 99))
    passes = tuple((rows, tokens, 20 + 0.5 * rows + 0.1 * tokens) for rows, tokens in shapes)
    engine = engine_of(Verification(passes=passes))
    assert (engine.fixed_s, engine.row_s, engine.token_s) == pytest.approx((0.02, 5e-4, 1e-4), rel=1e-3)


def test_a_lone_agent_gets_what_was_computed() -> None:
    group = AgentGroup("lone", draft_ms=10.0, round_trip_ms=40.0, acceptance=0.7)
    contender = Contender("fixed(length=4)", capacity=4)
    results = simulate_scenario(Scenario("x", (group,), duration_s=400.0, schedulers=(contender,)))
    (run,) = results.runs
    cycle_s = 0.04 + 0.04 + 0.035 + 5 * 0.0006
    assert run.agents[0].goodput == pytest.approx(expected_tokens(0.7, 4) / cycle_s, rel=0.03)
    assert run.round_ms is not None
    assert run.round_ms.p50 == pytest.approx(1e3 * cycle_s)


def test_results_say_what_ran_and_can_be_read_back(mixed: Path, tmp_path: Path) -> None:
    arguments = ["simulate", str(mixed), "--out", str(tmp_path / "out"), "--seed", "9"]
    plotted = ["--plot", str(tmp_path / "plots" / "x.svg")]
    shown = CliRunner().invoke(app, [*arguments, *plotted], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.stderr
    assert all(word in shown.stdout for word in ("mixed", "seconds", "paper", "near-3", "far", "Jain", "p99"))
    assert "<svg" in (tmp_path / "plots" / "x.svg").read_text()
    data = (tmp_path / "out" / "results.json").read_bytes()
    results = Results.from_json(data)
    assert results.kind == "simulated"
    assert results.seeds == (9,)
    assert results.machine.cores >= 1
    assert results.versions.numpy == np.__version__
    assert results.scenario == chosen(read_scenario(mixed), None, [9], None)
    run = results.runs[0]
    far = run.agents[3]
    assert (far.name, far.group) == ("far", "far")
    assert far.texts > 1
    assert far.first_token_ms is not None
    assert far.first_token_ms.p50 > 50
    derived = json.loads(data)["runs"][0]["derived"]
    assert derived["total"] == pytest.approx(sum(agent.goodput for agent in run.agents))
    assert derived["log_utility"] == pytest.approx(sum(math.log(agent.goodput) for agent in run.agents))
    with pytest.raises(CorruptData):
        Results.from_json(b"{}")


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_results_that_cannot_be_written_are_refused_before_anything_runs(
    option: str, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("goodspeed.scenarios.simulating.simulate_scenario", run)
    (tmp_path / "a file").touch()
    (tmp_path / "folder.svg" / "results.json").mkdir(parents=True)
    for place in ("a file/x.svg", "folder.svg"):
        refused = CliRunner().invoke(app, ["simulate", str(mixed), option, str(tmp_path / place)])
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"the results cannot be written to {tmp_path / place}" in refused.stderr


def test_results_that_cannot_be_written_in_the_end_are_shown(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    failed = CliRunner().invoke(app, ["simulate", str(mixed), "--json", "--out", str(tmp_path / "out")])
    assert Results.from_json(failed.stdout.encode()).runs
    assert (failed.exit_code, "No space left" in failed.stderr) == (2, True)


def test_a_bench_without_its_package_says_so(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "goodspeed_bench" else there(name, *rest)
    )
    refused = CliRunner().invoke(app, ["bench", str(mixed)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "goodspeed: a bench needs goodspeed_bench, which this installation lacks" in refused.stderr


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_names_are_whole_however_narrow_the_terminal_is(mixed: Path, width: int) -> None:
    names = ["goodspeed(utility=None)", "fixed(length=2)"]
    words = [word for name in names for word in ("--scheduler", name)]
    shown = CliRunner().invoke(app, ["simulate", str(mixed), *words], env={"COLUMNS": str(width)})
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= width
    for name in names:
        assert any(line.split()[:1] == [name] for line in lines)
    assert any("near-3" in line.split() for line in lines)
    heading = " ".join(shown.stdout.split())
    assert all(word in heading for word in ("all", "least", "sum log"))
    assert ("--json has more figures" in heading) == (width < 200)


BAD = """
import numpy as np
from goodspeed.scheduling import Plan

class Bad:
    def __init__(self, how):
        self.how, self.asked = how, 0

    def plan(self, demand, capacity):
        self.asked += 1
        zeros = np.zeros(len(demand), dtype=np.int64)
        if self.asked < 6:
            return Plan(zeros)
        match self.how:
            case "overspends":
                return Plan(demand.limit)
            case "fraction":
                return Plan(zeros + 0.5)
            case "negative":
                return Plan(zeros - 1)
            case "shape":
                return Plan(zeros[:0])
        raise LookupError("nobody there")
"""


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("overspends", "Bad gave out 16 tokens: the capacity is 3"),
        ("fraction", "Bad answered float64 of shape (1,) for 1 streams: it must be one integer a stream"),
        ("negative", "Bad gave a stream a budget of -1"),
        ("shape", "Bad answered int64 of shape (0,)"),
        ("raises", "Bad raised LookupError: nobody there"),
    ],
)
@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
def test_a_scheduler_that_goes_wrong_is_named_with_contender_and_seed(
    tmp_path: Path, rounds: str, how: str, sentence: str
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    file = tmp_path / "scenario.toml"
    contender = f"""{{ name = "mine", scheduler = "{tmp_path / "bad.py"}:Bad(how='{how}')", rounds = "{rounds}" }}"""
    file.write_text(
        f"name = 'x'\nseeds = [7]\nserver.capacity = 3\nschedulers = [{contender}]\n"
        "agents = [{name = 'a', acceptance = 0.5}]"
    )
    refused = CliRunner().invoke(app, ["simulate", str(file)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("goodspeed: mine, seed 7: Bad ")
    assert sentence in refused.stderr


def test_the_same_seed_gives_the_same_figures_and_the_command_line_decides(mixed: Path) -> None:
    runner = CliRunner()
    one, two = (
        json.loads(
            runner.invoke(
                app, ["simulate", str(mixed), "--json", "--scheduler", "paper", "--scheduler", "fixed(length=2)"]
            ).stdout
        )
        for _ in range(2)
    )
    assert one["runs"] == two["runs"]
    assert [run["scheduler"] for run in one["runs"]] == ["paper", "fixed(length=2)"] * 2
    assert one["scenario"]["schedulers"][0]["capacity"] == 8, "one of the scenario's stays as it is there"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheduler", "sceonds"], "scheduler 'sceonds' does not exist: did you mean seconds?"),
        (["--scheduler", "fixed", "--scheduler", "fixed"], "two schedulers are called fixed"),
        (["--plot", "picture.doc"], "a plot is a .png, .svg, .pdf file, and picture.doc is none"),
        (["--duration", "0"], "--duration is 0: it must be above 0 seconds and at most 10,000,000"),
        (["--duration", "-1"], "--duration is -1: it must be above 0 seconds"),
        (["--duration", "inf"], "--duration is inf: it must be above 0 seconds"),
        (["--duration", "nan"], "--duration is nan: it must be above 0 seconds"),
        (["--seed", "3", "--seed", "3"], "seeds has 3 more than once: each must be another"),
        (["--seed", "9999999999"], "seeds[0] must be a whole number, 0 or above and at most 1,000,000,000"),
    ],
)
def test_a_wrong_option_is_a_sentence(mixed: Path, arguments: list[str], sentence: str) -> None:
    refused = CliRunner().invoke(app, ["simulate", str(mixed), *arguments])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert sentence in refused.stderr


def test_a_shorter_run_has_a_shorter_warm_up_and_a_longer_one_no_longer_one(mixed: Path) -> None:
    scenario = read_scenario(mixed)
    assert [chosen(scenario, None, None, duration_s).warm_up_s for duration_s in (0.8, 8.0, 80.0)] == [0.1, 1.0, 1.0]


def test_a_plot_without_matplotlib_says_what_to_install(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    refused = CliRunner().invoke(app, ["simulate", str(mixed), "--plot", "x.png"])
    assert refused.exit_code == 2
    assert "pip install '.[bench]'" in refused.stderr


def test_rolling_rounds_are_not_simulated_under_the_ratio_rule(mixed: Path) -> None:
    mixed.write_text('server.rule = "ratio"\n' + MIXED)
    refused = CliRunner().invoke(app, ["simulate", str(mixed)])
    assert "seconds: rolling rounds are simulated under the coupled rule only" in refused.stderr
