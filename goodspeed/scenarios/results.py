"""What comes of a scenario: one JSON file with all that is needed to judge it, and to run it again."""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
from msgspec import Struct

import goodspeed
from goodspeed.errors import CorruptData
from goodspeed.scenarios.people import Person
from goodspeed.scenarios.scenario import Scenario
from goodspeed.utility import jain_index

__all__ = ["AgentOutcome", "Machine", "Quantiles", "Results", "Run", "Versions"]

_LEAST = 1e-3
"""Tokens per second that stand for none at all where a logarithm is taken."""


class Machine(Struct, frozen=True):
    """What it ran on."""

    cpu: str
    cores: int
    memory_bytes: int | None
    os: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
        return cls(_cpu(), os.cpu_count() or 1, pages, f"{platform.system()} {platform.release()}")


class Versions(Struct, frozen=True):
    """What ran."""

    python: str
    goodspeed: str
    commit: str | None
    """Of a checkout; with a + behind it where files differ from it."""
    numpy: str
    torch: str | None
    transformers: str | None

    @classmethod
    def here(cls) -> Versions:
        """Of this process."""
        torch, transformers = (_installed(name) for name in ("torch", "transformers"))
        return cls(
            platform.python_version(), goodspeed.__version__, _commit(), np.__version__, torch, transformers
        )  # fmt: skip


class Quantiles(Struct, frozen=True):
    """The middle, and what one in a hundred exceeds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles | None:
        """Of some values; None of none."""
        if not len(values):
            return None
        middle, high = np.quantile(np.asarray(values), (0.5, 0.99)).tolist()
        return cls(middle, high)


class Written(Protocol):
    """A text that is complete; times in seconds, on one clock."""

    @property
    def asked_at(self) -> float:
        """When its user asked for it."""

    @property
    def first_at(self) -> float:
        """When its first token was there."""

    @property
    def done_at(self) -> float:
        """When its last was."""


class AgentOutcome(Struct, frozen=True):
    """What one agent's user got."""

    name: str
    group: str
    weight: float
    goodput: float
    """Tokens per second, behind the warm-up and while it was there."""
    texts: int = 0
    """That were asked for behind the warm-up and are complete."""
    first_token_ms: Quantiles | None = None
    """From asking to the first token."""
    text_s: Quantiles | None = None
    """From asking to the last."""

    @classmethod
    def of(cls, person: Person, goodput: float, texts: Sequence[Written]) -> AgentOutcome:
        """Of one agent's texts."""
        return cls(
            name=person.name,
            group=person.group.name,
            weight=person.group.weight,
            goodput=goodput,
            texts=len(texts),
            first_token_ms=Quantiles.of([1e3 * (text.first_at - text.asked_at) for text in texts]),
            text_s=Quantiles.of([text.done_at - text.asked_at for text in texts]),
        )


class Run(Struct, frozen=True):
    """One contender with one seed."""

    scheduler: str
    """The contender's label."""
    seed: int
    agents: list[AgentOutcome]
    rounds: int
    round_ms: Quantiles | None
    """From one pass's end to the next one's."""
    busy: float
    """The share of the time in which the engine was at work."""
    late_drafts: float = 0.0
    """Real runs: the share of guesses that took longer than on the box that is emulated."""
    late_passes: float = 0.0
    """The same, of passes."""

    @property
    def goodputs(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Tokens per second, [agents]."""
        return np.array([agent.goodput for agent in self.agents])

    @property
    def total(self) -> float:
        """Tokens per second, everybody together."""
        return float(self.goodputs.sum())

    @property
    def log_utility(self) -> float:
        """The sum of weighted logarithms of tokens per second: what proportional fairness maximises."""
        return sum(agent.weight * math.log(max(agent.goodput, _LEAST)) for agent in self.agents)

    @property
    def geometric_mean(self) -> float:
        """Of the agents' tokens per second, weighted."""
        return math.exp(self.log_utility / sum(agent.weight for agent in self.agents))

    @property
    def least(self) -> float:
        """Tokens per second of who has least."""
        return float(self.goodputs.min())

    @property
    def jain(self) -> float:
        """Jain's index."""
        return jain_index(self.goodputs)


class Results(Struct, frozen=True):
    """All runs of a scenario."""

    kind: Literal["simulated", "real"]
    command: str
    machine: Machine
    versions: Versions
    seeds: tuple[int, ...]
    scenario: Scenario
    """Whole, as it was run: what the command line changed is changed in it."""
    runs: list[Run]
    took_s: float
    texts: int = 0
    """Real runs under the coupled rule: how many texts were compared, token for token, over all runs of a seed."""
    differing_texts: int = 0
    """How many of them were not the same in all."""
    remarks: tuple[str, ...] = ()
    """What has to be known before the figures are believed."""

    def of(self, label: str) -> list[Run]:
        """One contender's, a seed each."""
        return [run for run in self.runs if run.scheduler == label]

    @property
    def labels(self) -> list[str]:
        """The contenders, in order."""
        return [contender.label for contender in self.scenario.contenders]

    def to_json(self) -> bytes:
        """Indented, the figures that follow from others included: nobody has to compute them again."""
        content = msgspec.to_builtins(self)
        for run, written in zip(self.runs, content["runs"], strict=True):
            written["derived"] = {
                name: getattr(run, name) for name in ("total", "geometric_mean", "least", "log_utility", "jain")
            }
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Results:
        """Read them back.

        Raises:
            CorruptData: these are no results.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise CorruptData(f"these are no results of a scenario: {error}") from None


def command_line() -> str:
    """What was typed, without the folder of the program."""
    return shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "goodspeed"), *sys.argv[1:]])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    folder = Path(goodspeed.__file__).parent
    if not (folder.parent / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
