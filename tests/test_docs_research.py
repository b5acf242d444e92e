"""What docs/research.md shows is what is in the tree, and it works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from goodspeed.scenarios import Scenario
from goodspeed.scenarios.simulating import simulate_scenario
from goodspeed.scheduling import make_scheduler
from goodspeed.utility import AlphaFair

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/research.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_are_the_files_and_about_thirty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, rule = blocks("python")
    assert shown == (ROOT / "bench/examples/deficit.py").read_text()
    assert rule == (ROOT / "bench/examples/match.py").read_text()
    assert len(shown.splitlines()) <= 32
    monkeypatch.chdir(ROOT)
    assert type(make_scheduler("bench/examples/deficit.py:Deficit(odds=0.4)", AlphaFair())).__name__ == "Deficit"


def test_the_scenario_that_is_shown_runs() -> None:
    scenario = msgspec.convert(tomllib.loads(blocks("toml")[1]), Scenario)
    short = msgspec.structs.replace(scenario, duration_s=10.0, seeds=(0,))
    assert all(run.total > 0 for run in simulate_scenario(short).runs)


def test_every_path_on_the_page_is_there() -> None:
    paths = set(re.findall(r"(?:bench|goodspeed|docs)/[\w/.-]+\.(?:py|toml|png)", PAGE))
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
