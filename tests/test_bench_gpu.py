from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from bench.gpu.__main__ import main, measure_all
from bench.gpu.cases import CASES, Case
from bench.gpu.hardware import Hardware
from bench.gpu.report import ON_A_CPU
from bench.gpu.targets import SHAPES, Weights, build
from goodspeed.engine import Segment

CPU = torch.device("cpu")
app = typer.Typer()
app.command()(main)


def test_the_command_runs_through_on_the_cpu_and_says_that_it_was_one(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--shape", "tiny", "--rounds", "2", "--json", str(file)]
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert ON_A_CPU in ran.output
    figures = json.loads(file.read_text())
    assert figures["gpu"] is False
    assert figures["note"] == ON_A_CPU
    assert len(figures["results"]) == len(CASES["tiny"])
    for result in figures["results"]:
        assert result["filled"] == 1.0
        assert set(result["rounds"]) == set(result["decoding"]) == {"eager", "packed"}
        assert result["ratio"] == pytest.approx(result["round_ms"] / result["floor_ms"])
        assert sum(result["case"]["budgets"]) == result["case"]["capacity"]


def test_when_time_is_up_the_rest_is_named_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    report = measure_all(CPU, ["tiny"], 1, time.monotonic(), file, Console(file=io.StringIO()))
    assert report.results == []
    assert report.skipped == ["tiny: no time was left"]
    assert json.loads(file.read_text())["skipped"] == report.skipped


def test_what_does_not_fit_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.__main__.free_bytes", lambda device: 2**20)
    report = measure_all(CPU, ["tiny"], 1, time.monotonic() + 600, None, Console(file=io.StringIO()))
    assert len(report.skipped) == 1
    assert report.skipped[0].startswith("tiny: needs 0.3 GiB")


def test_without_a_gpu_it_says_how_to_try_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = CliRunner().invoke(app, [])
    assert ran.exit_code == 2
    assert "there is no GPU here" in ran.output


def test_the_floor_counts_what_a_pass_reads_and_computes() -> None:
    weights = Weights(body=1000, head=100, itemsize=2, attention_operations=10)
    hardware = Hardware("any", 0, copy_bytes_per_s=100.0, operations_per_s=1000.0)
    segments = [Segment(0, 8, [1, 1], 2), Segment(1, 4, [1], 1)]
    bytes_s, operations_s = hardware.floor_s(weights, segments, kv_bytes_per_token=4)
    assert bytes_s == pytest.approx((2 * 1100 + 4 * (10 + 5)) / 100)
    assert operations_s == pytest.approx((2 * 1000 * 3 + 2 * 100 * 3 + 10 * (2 * 10 + 5)) / 1000)


def test_a_target_is_made_as_large_as_was_said_before() -> None:
    model = build(SHAPES["tiny"](), CPU, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    module: nn.Module = model
    held = sum(parameter.nbytes for parameter in module.parameters())
    assert Weights.bytes_of(SHAPES["tiny"](), torch.bfloat16) == held
    embeddings = 512 * 64 * 2
    assert Weights.of(model).bytes == held - embeddings


@pytest.mark.parametrize(("shape", "billions"), [("qwen3-14b", 14.77), ("llama-3.1-8b", 8.03)])
def test_the_shapes_are_those_of_the_published_models(shape: str, billions: float) -> None:
    parameters = Weights.bytes_of(SHAPES[shape](), torch.bfloat16) / 2
    assert parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_budgets_are_where_no_token_is_better_elsewhere() -> None:
    case = Case(8, 28, 1024)
    assert sum(case.budgets) == 28
    assert list(case.budgets) == sorted(case.budgets)  # who is accepted more is given more
    assert case.expected_tokens > 8
