"""The figures of a run: kept as JSON from case to case, and drawn as tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench.gpu.cases import Case
from bench.gpu.hardware import Hardware
from bench.gpu.rounds import Timing, Way

__all__ = ["ON_A_CPU", "Report", "Result"]

ON_A_CPU = "This ran on the CPU: it shows that the command works, and no figure here says anything about a GPU."


@dataclass(frozen=True)
class Result:
    """One case."""

    shape: str
    case: Case
    tokens: int
    filled: float
    """The share of the cache that holds text, and not zeros."""
    bytes_floor_ms: float
    operations_floor_ms: float
    rounds: dict[Way, Timing]
    decoding: dict[Way, Timing]
    """The same rows without drafts."""
    split_ms: dict[str, float]
    """The fastest way's steps, each waited for."""

    @property
    def floor_ms(self) -> float:
        """The least that the forward pass could take."""
        return max(self.bytes_floor_ms, self.operations_floor_ms)

    @property
    def fastest(self) -> Way:
        """The way of the least median."""
        return min(self.rounds, key=lambda way: self.rounds[way].median_ms)

    @property
    def round_ms(self) -> float:
        """The measured round, in the fastest way."""
        return self.rounds[self.fastest].median_ms

    @property
    def ratio(self) -> float:
        """The measured round in floors."""
        return self.round_ms / self.floor_ms

    @property
    def decoding_ms(self) -> float:
        """A round of plain decoding, in the fastest way."""
        return min(timing.median_ms for timing in self.decoding.values())

    @property
    def gain(self) -> float:
        """Tokens per second of the target, with the drafts of the case's agents over without."""
        return self.case.expected_tokens / self.case.rows * self.decoding_ms / self.round_ms

    def to_json(self) -> dict[str, Any]:
        """With everything that is derived."""
        case = asdict(self.case) | {"budgets": list(self.case.budgets)}
        derived = {
            name: getattr(self, name) for name in ("floor_ms", "fastest", "round_ms", "ratio", "decoding_ms", "gain")
        }
        return asdict(self) | {"case": case} | derived


@dataclass
class Report:
    """Everything so far."""

    device: torch.device
    hardware: Hardware
    path: Path | None
    results: list[Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    """What the engine measured of each bucket."""

    def write(self) -> None:
        """Write it, whole or not at all: whatever ends the run, what was measured stays."""
        if self.path is None:
            return
        on_gpu = self.device.type == "cuda"
        about = {
            "gpu": on_gpu,
            "note": None if on_gpu else ON_A_CPU,
            "hardware": asdict(self.hardware),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        figures = {"results": [result.to_json() for result in self.results]}
        rest = {"skipped": self.skipped, "choices": self.choices}
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(json.dumps(about | figures | rest, indent=2) + "\n")
        os.replace(beside, self.path)

    def show(self, console: Console) -> None:
        """Draw it."""
        hardware = self.hardware
        console.print(
            f"{hardware.name}: copies {hardware.copy_bytes_per_s / 1e9:,.0f} GB/s (read and written), multiplies "
            f"{hardware.operations_per_s / 1e12:,.1f} TFLOP/s"
        )
        console.print(_rounds(self.results))
        console.print(_splits(self.results))
        for reason in self.skipped:
            console.print(f"left out: {reason}")
        if self.device.type != "cuda":
            console.print(ON_A_CPU)


def _rounds(results: Sequence[Result]) -> Table:
    table = Table(title="Medians, ms: the round from tokens on the host to verdicts on the host")
    for words in ("target", "round"):
        table.add_column(words)
    figures = ("tokens", "floor: bytes", "operations", "graphs", "eager", "packed", "round : floor", "plain", "gain")
    for name in figures:
        table.add_column(name, justify="right")
    for result in results:
        ways = (result.rounds.get(way) for way in ("graphs", "eager", "packed"))
        aim = "" if result.case.aim is None else f" (aim {result.case.aim:g})"
        table.add_row(
            result.shape,
            result.case.name,
            str(result.tokens),
            f"{result.bytes_floor_ms:.2f}",
            f"{result.operations_floor_ms:.2f}",
            *("-" if timing is None else f"{timing.median_ms:.2f}" for timing in ways),
            f"{result.ratio:.2f}{aim}",
            f"{result.decoding_ms:.2f}",
            f"{result.gain:.2f}",
        )
    return table


def _splits(results: Sequence[Result]) -> Table:
    table = Table(title="The fastest way's steps, ms, each waited for on its own")
    table.add_column("round")
    steps = list(results[0].split_ms) if results else []
    for step in steps:
        table.add_column(step, justify="right")
    for result in results:
        table.add_row(f"{result.shape}, {result.case.name}", *(f"{result.split_ms[step]:.2f}" for step in steps))
    return table
