"""The arithmetic of the tuning benchmarks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.tuning.clients import CLIENTS
from bench.tuning.clients import report as report_clients
from bench.tuning.live import DOMAINS, Experiment, Phase, Reading, point
from bench.tuning.losses import figures, report
from bench.tuning.plots import draw


def card(loss: str, acceptance: float) -> dict[str, Any]:
    """A card in which everything is as it was before but the acceptance."""

    def by_client(rate: float) -> dict[str, Any]:
        lengths = {str(client.budget): 1.0 + rate for client in CLIENTS}
        found = {"acceptance": rate, "coupled": rate - 0.1, "length": lengths}
        return {client.name: dict.fromkeys(("0", "0.7", "1"), found) for client in CLIENTS}

    utility = {"before": {"1": 0.5}, "after": {"1": acceptance}}
    return {"training": {"loss": loss}, "before": by_client(0.5), "after": by_client(acceptance), "utility": utility}


def shown(table: Any) -> str:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_figures_are_means_over_clients_and_cards() -> None:
    found = figures([card("tv", 0.6), card("tv", 0.7)], "after", "0.7")
    assert found == {"acceptance": pytest.approx(0.65), "coupled": pytest.approx(0.55), "length": pytest.approx(1.65)}


def test_a_table_of_losses_marks_the_best_and_shows_the_spread() -> None:
    lines = shown(report([card("tv", 0.6), card("tv", 0.7), card("lk", 0.64)], "losses")).splitlines()
    assert [cell for line in lines if "before" in line for cell in line.split("│")][2].strip() == "0.500"
    assert "0.650 ±0.050*" in next(line for line in lines if "tv" in line)
    assert "0.640 ±0.000 " in next(line for line in lines if "lk" in line)


def test_a_table_of_clients_shows_every_seed() -> None:
    lines = shown(report_clients([card("block", 0.6), card("block", 0.7), card("utility", 0.8)])).splitlines()
    assert "0.6500 │ 0.6000 0.7000" in next(line for line in lines if "block" in line)
    assert "0.8000 │" in next(line for line in lines if "utility" in line)


def test_goodput_of_a_phase_is_counted_within_it(tmp_path: Path) -> None:
    def reading(at_s: float, committed: int) -> Reading:
        names = [f"edge-{domain}" for domain in DOMAINS]
        return Reading(at_s, dict.fromkeys(names, committed), dict.fromkeys(names, 0.5), dict.fromkeys(names, 4.0))

    seen = Experiment([reading(0.0, 0), reading(2.0, 100), reading(4.0, 300), reading(9.0, 400)])
    seen.phases = [Phase("raw", 1.0, 5.0), Phase("tuning", 5.0, 6.0)]
    assert seen.goodput("edge-code", seen.phases[0]) == pytest.approx(100.0)
    draw(seen, tmp_path / "live.png")
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")


def test_the_current_draft_is_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("v1", "v2", "v1"):
        (tmp_path / name).mkdir(exist_ok=True)
        point(tmp_path, tmp_path / name)
        assert (tmp_path / "current").resolve() == tmp_path / name
        assert not (tmp_path / "next").exists()
