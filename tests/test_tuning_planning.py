"""The ranking by hand, and `goodspeed tune --plan` from a server's state."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from goodspeed.__main__ import app
from goodspeed.catalog import bundled
from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed.tuning.cli import _ranking, _results
from goodspeed.tuning.planning import expected_length, measured_flops, plan
from goodspeed.tuning.state import clients_of, read_state
from tests.monitor_examples import AGENT, SNAPSHOT
from tests.tiny_models import tiny_llama


def agent(name: str, drafter: str, **figures: float) -> AgentRow:
    shape: dict[str, float] = {"streams": 1, "budget": 2.0, "alpha": 0.5, "goodput": 10.0, "weight": 1.0}
    return msgspec.structs.replace(AGENT, name=name, drafter=drafter, **shape | figures)


def state(*agents: AgentRow, fairness: float = 1.0) -> ServerSnapshot:
    return msgspec.structs.replace(SNAPSHOT, agents=agents, fairness=fairness)


def saved(folder: Path, snapshot: ServerSnapshot) -> Path:
    path = folder / "state.json"
    path.write_bytes(snapshot.to_json() + b"\n")
    return path


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.999, 1.0])
def test_expected_length_is_its_sum(alpha: float) -> None:
    for budget in range(5):
        assert expected_length(alpha, budget) == pytest.approx(math.fsum(alpha**k for k in range(budget + 1)))


def test_the_ranking_is_that_of_hand_arithmetic() -> None:
    """Half the gap: 0.5 becomes 0.75, so that two drafted tokens make 2.3125 rather than 1.75 tokens a round."""
    at_work = state(
        agent("a", "small", streams=2, weight=3.0),
        agent("b", "small", alpha=0.0, budget=1.0),
        agent("c", "large"),
        agent("d", "suffix"),
        agent("e", "idle", streams=0),
    )
    parameters = {"small": 1000, "large": 4000, "idle": 7}
    candidates, others = plan(at_work, parameters, train_tokens=6e5, flops=1e6, gap_closed=0.5)
    assert others == ["suffix"]
    assert [one.drafter for one in candidates] == ["small", "large"]
    small, large = candidates
    ratio = math.log(2.3125 / 1.75)
    assert small.gain == pytest.approx(2 * 3.0 * ratio + math.log(1.5))
    assert large.gain == pytest.approx(ratio)
    assert (small.agents, small.streams, large.agents, large.streams) == (2, 3, 1, 1)
    assert small.alpha == pytest.approx((2 * 0.5 + 0.0) / 3)
    assert small.alpha_after == pytest.approx((2 * 0.75 + 0.5) / 3)
    assert small.budget == pytest.approx((2 * 2 + 1) / 3)
    assert small.length == pytest.approx((2 * 1.75 + 1) / 3)
    assert small.length_after == pytest.approx((2 * 2.3125 + 1.5) / 3)
    assert small.hours == pytest.approx(6 * 1000 * 6e5 / 1e6 / 3600)
    assert large.gain_per_hour == pytest.approx(ratio / (6 * 4000 * 6e5 / 1e6 / 3600))


def test_throughput_counts_tokens_and_an_idle_stream_is_no_infinity() -> None:
    """At fairness 0 the gain is in tokens per second; under logarithms a stream that had nothing stays finite."""
    at_work = state(agent("a", "small", streams=2, goodput=14.0), fairness=0.0)
    (one,), _ = plan(at_work, {"small": 1}, train_tokens=1, flops=1, gap_closed=0.5)
    assert one.gain == pytest.approx(14.0 * (2.3125 / 1.75 - 1))
    (one,), _ = plan(state(agent("a", "small", goodput=0.0)), {"small": 1}, train_tokens=1, flops=1, gap_closed=0.5)
    assert one.gain == pytest.approx(math.log(2.3125 / 1.75))


@pytest.mark.parametrize("gap_closed", [0.0, 1.0, -0.1, math.nan])
def test_a_gap_that_is_no_share_is_refused(gap_closed: float) -> None:
    with pytest.raises(InvalidRequest, match="a share between 0 and 1"):
        plan(state(agent("a", "x")), {}, train_tokens=1, flops=1, gap_closed=gap_closed)


def test_nobody_generating_is_said() -> None:
    for agents in ((), (agent("a", "x", streams=0),)):
        with pytest.raises(InvalidRequest, match="no agent of that server has a stream"):
            plan(state(*agents), {}, train_tokens=1, flops=1, gap_closed=0.5)


def test_operations_are_measured() -> None:
    assert 1e8 < measured_flops("cpu", seconds=0.01) < 1e15


def test_links_of_one_name_are_one_client() -> None:
    rows = (
        agent("edge", "x", streams=3, budget=4.0, goodput=30.0, tokens_per_round=2.0, weight=1.5),
        agent("edge", "y", streams=1, budget=1.0, goodput=2.0, tokens_per_round=1.0, weight=0.5),
        agent("other", "x", budget=2.6, goodput=0.0, tokens_per_round=1.25),
        agent("gone", "x", streams=0),
    )
    edge, other = clients_of(state(*rows))
    assert (edge.name, edge.budget, edge.weight) == ("edge", round(13 / 4), 5.0)
    assert edge.goodput == pytest.approx(7 / 4)
    assert edge.rounds_per_s == pytest.approx(8 / (7 / 4))  # eight tokens a second for each of its streams
    assert (other.budget, other.goodput) == (3, 1.25)
    assert other.rounds_per_s > 0


def test_the_last_state_of_a_file_counts(tmp_path: Path) -> None:
    path = saved(tmp_path, state(agent("new", "x")))
    path.write_bytes(state(agent("old", "x")).to_json() + b"\n\n" + path.read_bytes() + b"\n  \n")
    assert read_state(path).agents[0].name == "new"


def test_a_state_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with pytest.raises(InvalidRequest, match=r"No such file.*goodspeed-server top URL --once --json > state\.json"):
        read_state(path)
    path.write_bytes(b" \n")
    with pytest.raises(CorruptData, match="is empty"):
        read_state(path)
    for content in (b"{}", b"\xff\xfe", b"hello"):
        path.write_bytes(content)
        with pytest.raises(CorruptData, match="holds no state of a server"):
            read_state(path)


def test_plan_prints_json_with_parameters_from_cards_and_folders(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "mine")
    drafts = [agent("a", "pico-draft-s"), agent("b", str(tmp_path / "mine")), agent("c", "suffix")]
    path = saved(tmp_path, state(*drafts))
    sizes = ("--steps", "10", "--batch-rows", "2", "--row-tokens", "8", "--accumulate", "3", "--flops", "1e9")
    result = CliRunner().invoke(app, ["tune", "--plan", "--state", str(path), "--json", *sizes])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["not_models"] == ["suffix"]
    assert told["flops"] == 1e9
    assert told["train_tokens"] == 10 * 2 * 8 * 3
    parameters = {one["drafter"]: one["parameters"] for one in told["candidates"]}
    (bundled_one,) = (one for one in bundled() if one.name == "pico-draft-s")
    assert parameters == {"pico-draft-s": bundled_one.parameters, str(tmp_path / "mine"): model.num_parameters()}
    for one in told["candidates"]:
        assert one["hours"] == pytest.approx(6 * one["parameters"] * 480 / 1e9 / 3600)
        assert one["gain_per_hour"] == pytest.approx(one["gain"] / one["hours"])
    assert told["candidates"][0]["gain_per_hour"] >= told["candidates"][1]["gain_per_hour"]


def test_a_draft_whose_weights_are_cut_off_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "mine" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"\x08")
    path = saved(tmp_path, state(agent("b", str(weights.parent))))
    result = CliRunner().invoke(app, ["tune", "--plan", "--state", str(path), "--flops", "1e9"])
    assert result.exit_code == 1
    assert f"{weights} cannot be read" in result.stderr


def test_plan_prints_a_table_with_its_arithmetic(tmp_path: Path) -> None:
    path = saved(tmp_path, state(agent("a", "pico-draft-s"), agent("c", "suffix")))
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["tune", "--plan", "--state", str(path), "--flops", "1e9"])
    assert result.exit_code == 0, result.output
    for part in ("pico-draft-s", "0.500 -> 0.625", "alpha moves 25%", "not models that can be tuned from here: suffix"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("content", "options", "code", "sentence"),
    [
        (None, (), 2, "--plan reads --state"),
        (b"", ("--state", "state.json"), 1, "is empty"),
        (state().to_json(), ("--state", "state.json"), 2, "no agent of that server has a stream"),
        (state(agent("a", "x")).to_json(), ("--state", "state.json", "--gap-closed", "1"), 2, "between 0 and 1"),
    ],
)
def test_errors_of_plan_are_sentences(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    options: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("state.json").write_bytes(content)
    result = CliRunner().invoke(app, ["tune", "--plan", "--flops", "1", *options])
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_a_plain_goodspeed_imports_no_torch() -> None:
    """It lists models and prints help on machines that have none, and where it is there, it would cost seconds."""
    script = "import sys, goodspeed.__main__; print(*({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ""


def at_80_columns(table: Table) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_no_figure_is_cut_off_at_80_columns() -> None:
    """Two budgets of one client, and names with brackets, as somebody's folder may have."""

    def measured(acceptance: float) -> dict[str, object]:
        return {"acceptance": acceptance, "coupled": acceptance, "length": {"3": 1 + acceptance, "12": 2 + acceptance}}

    card: dict[str, object] = {
        "description": "a draft, tuned",
        "before": {"edge-prose[1]": {"0.7": measured(0.361)}},
        "after": {"edge-prose[1]": {"0.7": measured(0.472)}},
    }
    shown = at_80_columns(_results(card))
    for figure in ("edge-prose[1]", "0.361 -> 0.472", "1.36 -> 1.47 at S = 3", "2.36 -> 2.47 at S = 12"):
        assert figure in shown
    name = "/srv/drafts/of-a-long-name/[second]"
    at_work = state(agent("a", name, streams=12, goodput=140.0))
    candidates, _ = plan(at_work, {name: 10**9}, train_tokens=1e6, flops=1e12, gap_closed=0.5)
    ranked = at_80_columns(_ranking(candidates))
    assert "…" not in shown + ranked
    for figure in (f"{candidates[0].hours:.4f}", f"{candidates[0].gain_per_hour:.3g}"):
        assert figure in ranked
