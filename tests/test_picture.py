"""The README's picture of the monitor."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from bench import picture
from tests.monitor_examples import SNAPSHOT


def make_picture(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(picture.main)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_a_recorded_snapshot_becomes_an_svg(tmp_path: Path) -> None:
    recorded, out = tmp_path / "snapshot.json", tmp_path / "docs" / "monitor.svg"
    recorded.write_bytes(SNAPSHOT.to_json() + b"\n" + SNAPSHOT.to_json() + b"\n")
    assert make_picture("--seen", str(recorded), "--out", str(out)) == (0, "")
    svg = out.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "edge-1" in svg
    assert "█" not in svg


@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_picture_of_nothing_is_refused(tmp_path: Path, content: bytes | None) -> None:
    recorded = tmp_path / "snapshot.json"
    if content is not None:
        recorded.write_bytes(content)
    code, said = make_picture("--seen", str(recorded), "--out", str(tmp_path / "out.svg"))
    assert code == 1
    assert "no picture" in said
