"""Traces: what a replay makes of one, held against worlds that are known; and what is said of files that are none."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.errors import GoodSpeedError, InvalidRequest
from goodspeed.scenarios import Results, Run
from goodspeed.scenarios.cli import chosen
from goodspeed.scenarios.simulating import policy_of
from goodspeed.simulation import Agent, Engine, Result, RoundsKind, Script, Text, Texts, simulate
from goodspeed.simulation.texts import Reading
from goodspeed.traces import (
    Closed,
    Ended,
    Event,
    Header,
    Joined,
    Known,
    Opened,
    Passed,
    Planned,
    Served,
    Trace,
    Verdict,
    Weighed,
    read_trace,
    to_line,
)
from goodspeed.traces.learning import RecordedAgent, RecordedText, hits_of, learn, rates
from goodspeed.traces.replaying import RECORDED, replay, scenario_of
from tests.simulated_traces import header, simulate_and_trace

ENGINE = Engine(0.03, 0.001, 0.0006, noise=0.05, between_s=0.002)
AGENTS = [
    Agent(0.004, 0.01, 0.85, jitter_s=0.002),
    Agent(0.008, 0.02, 0.7, jitter_s=0.004),
    Agent(0.012, 0.05, 0.55, jitter_s=0.01),
]
TEXTS = Texts(lambda random: int(random.integers(10, 80)), lambda random: int(random.integers(40, 160)), think_s=0.3)
DURATION_S = 50.0
TOLERANCE = 0.1
"""Of each agent's goodput: that much chance is on either side."""


def per_stream(streams: int) -> int:
    return 2 * streams


def goodputs(result: Result) -> np.ndarray:
    """While the server had something of theirs to write, [agents]."""
    seconds = np.zeros(len(result.tokens))
    for span in result.spans:
        seconds[span.agent] += span.end - span.begin
    return result.tokens / seconds


@pytest.mark.parametrize(
    ("scheduler", "other", "texts"),
    [
        pytest.param("goodspeed", "seconds", TEXTS, id="texts in a closed loop"),
        pytest.param("seconds", "goodspeed", None, id="one text without an end"),
    ],
)
def test_a_replay_agrees_with_the_world_that_was_recorded(
    scheduler: str, other: str, texts: Texts | None, tmp_path: Path
) -> None:
    agents = [replace(agent, texts=texts) for agent in AGENTS]
    rounds: RoundsKind = "rolling" if scheduler == "seconds" else "barrier"
    capacity = None if scheduler == "seconds" else per_stream
    file = tmp_path / "run.trace"
    known = simulate_and_trace(
        file, agents, ENGINE, scheduler, rounds=rounds, capacity=capacity, duration_s=DURATION_S, seed=1
    )
    trace = read_trace(file)
    scenario = chosen(scenario_of(trace), [scheduler, other], None, None)
    results = replay(trace, scenario, closed_loop=texts is not None)
    assert results.labels == [RECORDED, scheduler, other]
    recorded, again, otherwise = results.runs
    assert recorded.goodputs == pytest.approx(goodputs(known), rel=1e-3)
    assert again.goodputs == pytest.approx(recorded.goodputs, rel=TOLERANCE)
    # The world itself under the other scheduler, by other chance than the trace's.
    policy = policy_of(scenario.server, scenario.contenders[1])
    truth = simulate(
        agents,
        ENGINE,
        policy.scheduler,
        rounds=policy.rounds,
        capacity=None if policy.unlimited else per_stream,
        duration_s=DURATION_S,
        warm_up_s=0.0,
        seed=7,
    )
    assert otherwise.goodputs == pytest.approx(goodputs(truth), rel=TOLERANCE)
    # It would not agree by being the same under any scheduler.
    assert abs(np.log(otherwise.goodputs / again.goodputs)).max() > 2 * TOLERANCE


def trace_of(*events: Event, **about: object) -> Trace:
    return Trace("t", header(ENGINE, **about), (Joined(0.0, 0, "box", "a draft"), *events))


def opened(at: float, stream: int = 0, wanted: int = 20, **more: float) -> Opened:
    return Opened(at, stream, 0, 5, wanted, 0.0, 8, 1.0, more.get("waited_s", 0.0))


def text_of(*events: Event) -> RecordedText:
    (agent,) = learn(trace_of(opened(0.0), *events)).agents
    (text,) = agent.texts
    return text


def seen(text: RecordedText) -> str:
    """Of what was written: + right, - wrong, ? unknown."""
    return "".join("-+?"[known] for known in text.known()[: text.written])


def test_verdicts_say_where_the_misses_are() -> None:
    text = text_of(
        Verdict(1.0, 0, 4, 4, 2, 3),  # two right, the third wrong
        Verdict(2.0, 0, 0, 0, 0, 1),  # the server alone
        Verdict(3.0, 0, 2, 2, 2, 3),  # all right, and a bonus token that nobody guessed
        Verdict(4.0, 0, 3, 1, 1, 2, end="nothing to say"),
        Verdict(5.0, 0, 3, 1, 1, 2, end="priced out"),
    )
    assert seen(text) == "++-" + "?" + "++?" + "+-" + "+?"


def test_a_text_that_ends_within_its_draft_says_nothing_of_the_rest() -> None:
    text = text_of(Verdict(1.0, 0, 4, 4, 2, 2), Ended(1.0, 0, "stop"))
    assert (seen(text), text.new_tokens) == ("++", 2)


def test_guesses_that_were_overtaken_are_known_too() -> None:
    text = text_of(Known(1.0, 0, 0, 2, True), Verdict(1.0, 0, 0, 0, 0, 4))
    assert seen(text) == "++-?"


@settings(max_examples=40)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 99))
def test_what_is_known_stays_and_the_rest_is_drawn_by_the_rate(known: list[int], rate: float, seed: int) -> None:
    text = RecordedText(opened(0.0, wanted=len(known)), 1.0)
    text.facts = [(place, hit, not hit) for place, hit in enumerate(known) if hit >= 0]
    hits = hits_of(text, rate, np.random.default_rng(seed))
    assert [hit for hit, was in zip(hits.tolist(), known, strict=True) if was >= 0] == [w == 1 for w in known if w >= 0]
    likely = rates(text.known(), rate)
    assert np.all((likely >= 0) & (likely <= 1))
    if all(was < 0 for was in known):
        assert likely == pytest.approx(rate)


def test_unknown_positions_are_as_good_as_those_nearby() -> None:
    known = np.full(400, -1, np.int8)
    known[:200:2], known[200::2] = 1, 0
    likely = rates(known, 0.5)
    assert likely[100] > 0.8
    assert likely[300] < 0.2


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_runs_count_the_right_guesses_up_to_the_next_miss(hits: list[bool]) -> None:
    user = Reading(Script([Text(0.0, 0.0, 0, len(hits), np.array(hits))]))
    user.lengths()
    counted = [next((n for n, hit in enumerate(hits[at:]) if not hit), len(hits) - at) for at in range(len(hits))]
    assert user.runs().tolist() == counted


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=20))
def test_lanes_are_as_few_as_can_be(times: list[tuple[int, int]]) -> None:
    agent = RecordedAgent("box", "a draft", [RecordedText(opened(float(at)), float(at + took)) for at, took in times])
    lanes = agent.lanes()
    assert sorted(map(id, agent.texts)) == sorted(id(text) for lane in lanes for text in lane)
    for lane in lanes:
        assert all(before.ended_at <= after.asked_at for before, after in itertools.pairwise(lane))
    at_once = max(sum(at <= when < at + took for at, took in times) for when, _ in times)
    assert len(lanes) == at_once


def test_ways_are_drawn_as_they_were_measured() -> None:
    measured = (0.01, 0.02, 0.02, 0.05)
    agent = Agent(0.01, 0.0125, 0.5, ways_s=measured)
    jitters = np.random.default_rng(0).standard_exponential((4000, 2)).sum(-1).tolist()
    drawn = [agent.away_s(jitter) for jitter in jitters]
    assert set(drawn) == set(measured)
    assert np.mean(drawn) == pytest.approx(np.mean(measured), rel=0.03)


def two_texts() -> Trace:
    """Ten tokens, a pause of two seconds, ten more."""
    first = [Verdict(1.0 + n / 10, 0, 0, 0, 0, 1) for n in range(10)]
    second = [Verdict(4.0 + n / 10, 1, 0, 0, 0, 1) for n in range(10)]
    passes: list[Event] = [Passed(verdict.at, 1, 1, 0.09, 0.01) for verdict in (*first, *second)]
    both: list[Event] = sorted([*first, *second, *passes], key=lambda event: event.at)
    return trace_of(
        opened(0.9, 0), *both[:20], Ended(1.9, 0, "length"), opened(3.9, 1), *both[20:], Ended(4.9, 1, "length"),
        scheduler="plain", rounds="barrier",
    )  # fmt: skip


def only(results: Results, label: str) -> Run:
    (run,) = results.of(label)
    return run


def test_the_recorded_run_is_told_as_it_was() -> None:
    trace = two_texts()
    run = only(replay(trace, chosen(scenario_of(trace), ["plain"], None, None)), RECORDED)
    (box,) = run.agents
    assert box.goodput == pytest.approx(20 / 2.0)  # the pause does not count
    assert (box.texts, run.rounds) == (2, 20)
    assert run.busy == pytest.approx(20 * 0.09 / 4.9)
    until_3 = replay(trace, chosen(scenario_of(trace), ["plain"], None, 3.0))
    assert only(until_3, RECORDED).agents[0].texts == 1


@pytest.mark.parametrize(("closed_loop", "texts"), [(False, 1), (True, 2)])
def test_texts_are_asked_for_when_they_were_or_behind_each_other(closed_loop: bool, texts: int) -> None:
    trace = two_texts()
    # Passes of a tenth of the time: by the clock the second text begins at 3.9 s, and behind the first at 3 s.
    fast = Trace(trace.name, trace.header, tuple(_sped_up(event) for event in trace.events))
    results = replay(fast, chosen(scenario_of(fast), ["plain"], None, 3.5), closed_loop=closed_loop)
    assert only(results, "plain").agents[0].texts == texts


def _sped_up(event: Event) -> Event:
    return Passed(event.at, event.rows, event.tokens, 0.009, 0.0) if isinstance(event, Passed) else event


def written(file: Path, *events: Event, **about: object) -> Path:
    file.write_bytes(b"".join(map(to_line, (header(ENGINE, **about), Joined(0.0, 0, "box", "a draft"), *events))))
    return file


SHORT = (opened(0.1), Verdict(0.2, 0, 2, 2, 1, 2, 2, 8.0, 20.0), Passed(0.2, 1, 3, 0.04, 0.001))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: b"", "is empty: a server writes a trace from its start on"),
        (lambda whole: b"name = 'a scenario'\n", "is no trace: its first line is not the header"),
        (lambda whole: b"\xff\xfe\x00", "is no trace: its first line is not the header"),
        (lambda whole: b"{}\n", "is no trace: its first line is not the header"),
        (lambda whole: whole.replace(b'_trace":2', b'_trace":9'), "a trace of version 9 and this goodspeed reads"),
        (lambda whole: whole.splitlines(keepends=True)[0], "nothing was verified while t was written"),
        (lambda whole: whole + b'["dance",1.0]\n', "line 6 of t is no event of a trace: Invalid value 'dance'"),
        (lambda whole: whole + b'["ended",1.0,7,"stop"]\n', "line 6 of t cannot be: no stream 7 was opened"),
        (lambda whole: whole + b'["verdict",1.0,0,2,2,3,9,0,0,null,0,""]\n', "line 6 of t cannot be: 9 tokens were"),
        (lambda whole: whole + b'["known",1.0,0,-5,2,true]\n', "2 guesses were right from position -5 on"),
        (lambda whole: whole + b'["opened",1,1,0,0,9,0,4,1,0]\n', "a text of 0 tokens was opened for 9 more"),
        (lambda whole: whole + b'["opened",1,1,3,4,9,0,4,1,0]\n', "nobody joined as agent 3"),
        (lambda whole: whole + b'["left",-1.0,0]\n', "line 6 of t cannot be: it happened at -1.0 s"),
    ],
)
def test_what_is_no_trace_is_refused_in_a_sentence(
    content: Callable[[bytes], bytes], sentence: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "t", *SHORT)
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(GoodSpeedError) as refused:
        read_trace(file)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="none cannot be read: No such file"):
        read_trace(tmp_path / "none")


@given(st.integers(1, 60))
def test_a_trace_that_is_cut_off_is_used_up_to_there(lost: int) -> None:
    events: tuple[Event, ...] = (*SHORT, Verdict(0.3, 0, 2, 2, 1, 2), Ended(0.4, 0, "length"))
    lines = b"".join(map(to_line, events))
    whole = lines[: len(lines) - lost]
    kept, partial = whole.count(b"\n"), not whole.endswith(b"\n")
    with TemporaryDirectory() as folder:
        file = written(Path(folder) / "t")
        file.write_bytes(file.read_bytes() + whole)
        trace = read_trace(file)
    assert trace.cut_off == partial
    assert len(trace.events) == 1 + kept
    remarks = list(trace.remarks())
    assert len(remarks) == 1
    assert ("is cut off within a line: it is used up to there" if partial else "was never closed") in remarks[0]


def test_how_a_trace_ends_is_told(tmp_path: Path) -> None:
    assert not list(read_trace(written(tmp_path / "t", *SHORT, Closed(1.0, "stopped"))).remarks())
    (full,) = read_trace(written(tmp_path / "t", *SHORT, Closed(1.0, "full"))).remarks()
    assert full == "t was full after 1.0 s: the run went on, the trace did not"


def test_whatever_an_operator_changed_is_told(tmp_path: Path) -> None:
    changes = (
        Planned(0.5, "fixed", 1.0, "barrier", 60.0, None),
        Planned(0.6, "fixed", 1.0, "barrier", 60.0, 24),
        Planned(0.6, "fixed", 1.0, "barrier", 60.0, 24),
        Planned(0.7, "fixed", 2.0, "barrier", 0.25, None),
        Weighed(0.8, "box\x1b", 2.0),
        Weighed(0.8, "box", None),
        Served(0.9, "box", "drained"),
        Served(0.9, "box", "drained undrafted"),
        Served(0.9, "box", "served"),
    )
    trace = read_trace(written(tmp_path / "t", *SHORT, *changes, Closed(1.0, "stopped")))
    assert list(trace.remarks()) == [
        "from 0.5 s on fixed planned, rounds were behind the barrier: a replay keeps to what the server began with",
        "from 0.6 s on the capacity was 24: a replay keeps to what the server began with",
        (
            "from 0.7 s on fairness was 2, the capacity was for the server to choose, the barrier waited 250 ms: a "
            "replay keeps to what the server began with"
        ),
        "from 0.8 s on box? weighed 2: in a replay it weighs what it did at its last text",
        "from 0.8 s on box weighed as its token says: in a replay it weighs what it did at its last text",
        "from 0.9 s on box was drained: texts that it was refused are in no replay",
        "from 0.9 s on box was drained, and asked for no drafts: a replay asks for them",
        "from 0.9 s on box was served again",
    ]
    assert set(trace.remarks()) <= set(replay(trace, chosen(scenario_of(trace), ["fixed"], None, None)).remarks)
    many = [Weighed(0.5, "box", float(weight)) for weight in range(1, 31)]
    trace = read_trace(written(tmp_path / "t", *SHORT, *many, Closed(1.0, "stopped")))
    assert list(trace.remarks())[20:] == ["and 10 more changes, which no replay follows either"]


def test_rolling_rounds_are_not_replayed_by_a_rule_that_shares_no_noise(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t", *SHORT, Closed(2.0, "stopped"), rule="ratio"))
    with pytest.raises(InvalidRequest, match="seconds: under the rule ratio a trace does not say"):
        replay(trace, chosen(scenario_of(trace), ["seconds"], None, None))
    behind = replay(trace, chosen(scenario_of(trace), ["fixed"], None, None))
    assert only(behind, "fixed").total > 0


def test_what_is_taken_for_granted_is_told(tmp_path: Path) -> None:
    silent = trace_of(opened(0.1, waited_s=0.05), Verdict(0.2, 0, 0, 0, 0, 1), Passed(0.2, 1, 1, 0.04, 0.0))
    remarks = replay(silent, chosen(scenario_of(silent), ["plain"], None, None)).remarks
    assert "box never drafted: how fast, how far away and how good they are is taken for granted" in remarks
    assert "1 texts waited for one of 64 rows: a replay has a row for each" in remarks


def command(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["simulate", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_replays(tmp_path: Path) -> None:
    file = written(tmp_path / "t", *SHORT, Closed(1.0, "stopped"), scheduler="goodspeed", rounds="barrier")
    code, output, _ = command("--trace", file, "--scheduler", "goodspeed", "--scheduler", "plain", "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, "goodspeed", "plain"])
    assert results.scenario.schedulers[1] != "goodspeed"  # as it was run
    code, output, _ = command("--trace", file, "--scheduler", "plain")
    assert code == 0
    assert "box" in output


OWN = """
from pathlib import Path
from goodspeed.rules import Coupled
from goodspeed.scheduling import PlainDecoding

Path("imported").touch()


class Mine(PlainDecoding):
    def __init__(self, **options):
        Path("made").touch()


class Rule(Coupled):
    name = "theirs"

    def __init__(self):
        Path("made").touch()
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a module that leaves a file behind if anything in it is made."""
    (tmp_path / "strangers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize("name", ["strangers:Mine", "strangers:Mine(x=1)", "strangers.py:Mine", "./strangers.py:Mine"])
def test_a_class_that_a_trace_names_is_not_run(name: str, stranger: Path) -> None:
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), scheduler=name, rounds="barrier")
    code, output, _ = command("--trace", file, "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, "seconds", "goodspeed", "fixed", "plain"])
    assert any(f"recorded under {name}, a class of somebody's own" in remark for remark in results.remarks)
    assert sorted(path.name for path in stranger.iterdir()) == ["strangers.py", "t"]


def test_a_class_that_a_trace_names_is_replayed_as_it_was_run_where_its_user_names_it_too(stranger: Path) -> None:
    name = "strangers:Mine"
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), scheduler=name, rounds="barrier", capacity=7)
    code, output, _ = command("--trace", file, "--scheduler", name, "--json")
    results = Results.from_json(output.encode())
    assert (code, results.labels) == (0, [RECORDED, name])
    (again,) = results.scenario.contenders[1:]
    assert (again.rounds, again.capacity) == ("barrier", 7)
    assert not any("somebody's own" in remark for remark in results.remarks)


@pytest.mark.parametrize("rule", ["strangers:Rule", "theirs"])
def test_a_rule_that_a_trace_names_is_not_run(rule: str, stranger: Path) -> None:
    file = written(stranger / "t", *SHORT, Closed(1.0, "stopped"), rule=rule)
    code, output, trouble = command("--trace", file, "--scheduler", "seconds")
    assert (code, output) == (2, "")
    assert f"seconds: the trace was recorded under the rule {rule}, which is not here" in trouble
    code, output, _ = command("--trace", file, "--scheduler", "fixed", "--json")
    assert (code, Results.from_json(output.encode()).labels) == (0, [RECORDED, "fixed"])
    assert sorted(path.name for path in stranger.iterdir()) == ["strangers.py", "t"]


def test_an_agent_may_be_called_anything(tmp_path: Path) -> None:
    file = tmp_path / "[bold]t"
    odd = "[/b]\x1b[2J$"
    lines: tuple[Header | Event, ...] = (
        header(ENGINE, scheduler="plain", rounds="barrier"), Joined(0.0, 0, odd, odd), *SHORT,
    )  # fmt: skip
    file.write_bytes(b"".join(map(to_line, lines)))
    code, output, _ = command("--trace", file, "--scheduler", "plain")
    assert code == 0
    assert "[/b]?[2J$" in output
    assert "[bold]t, recorded" in output
    assert "\x1b" not in output


def test_a_pass_whose_agents_have_gone_teaches_nothing() -> None:
    gone = trace_of(*SHORT, Passed(0.5, 0, 0, 9.0, 0.0))
    assert learn(gone).engine == learn(trace_of(*SHORT)).engine


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give one thing to simulate"),
        (("a.toml", "--trace", "t"), "give one thing to simulate"),
        (("a.toml", "--closed-loop"), "--closed-loop says how a --trace is replayed"),
        (("--trace", "no-such-file"), "the trace no-such-file cannot be read"),
    ],
)
def test_the_command_refuses_in_a_sentence(words: Sequence[str], sentence: str) -> None:
    code, output, trouble = command(*words)
    assert (code, output) == (2, "")
    assert sentence in trouble


def test_an_agent_that_draws_nothing_more_is_done() -> None:
    user = Reading(Script([Text(1.0, 0.5, 3, 4, np.ones(4, bool))]))
    assert (user.first_at(0.0), user.next_at(1.0)) == (1.0, math.inf)
