"""The card of a tuned draft: what it was made of, and what the tuning has brought to each client."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goodspeed.tuning.clients import Client
from goodspeed.tuning.measuring import TEMPERATURES, Figures
from goodspeed.utility import AlphaFair

__all__ = ["BUDGET", "Card", "write"]

BUDGET = 4
"""The budget at which every card tells the mean acceptance length, whatever the clients'."""

ByClient = Mapping[str, Mapping[float, Figures]]
"""Figures by client and temperature."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a tuned draft."""

    name: str
    draft: str
    """What it was tuned from."""
    target: str
    loss: str
    method: str
    steps: int
    seed: int
    fairness: float
    sources: Sequence[str]
    parameters: int
    bytes: int
    clients: Sequence[Client]
    before: ByClient
    after: ByClient

    def utility(self, figures: ByClient, temperature: float) -> float:
        """`sum omega U(x)` over the measured clients, `x` in tokens per second at their budgets."""
        measured = [client for client in self.clients if client.name in figures]
        lengths = [figures[client.name][temperature].length[client.budget] for client in measured]
        goodput = np.array(lengths) * np.array([client.rounds_per_s for client in measured])
        weights = np.array([client.weight for client in measured])
        return float(AlphaFair(self.fairness).value(goodput, weights).sum())

    def acceptance(self, figures: ByClient, temperature: float) -> float:
        """The ratio rule's acceptance, the mean over the measured clients."""
        return math.fsum(by[temperature].acceptance for by in figures.values()) / len(figures)


def write(card: Card, folder: Path) -> None:
    """Write `card.json` and `README.md` into a model folder."""
    (folder / "card.json").write_text(json.dumps(_as_json(card), indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _as_json(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "role": "draft",
        "description": f"{card.draft}, tuned to {card.target} by {card.loss}.",
        "parameters": card.parameters,
        "bytes": card.bytes,
        "acceptance": {"target": card.target}
        | {f"{t:g}": round(card.acceptance(card.after, t), 4) for t in TEMPERATURES},
        "training": {
            "started_from": card.draft,
            "loss": card.loss,
            "method": card.method,
            "steps": card.steps,
            "seed": card.seed,
            "data": list(card.sources),
        },
        "fairness": card.fairness,
        "clients": [asdict(client) for client in card.clients],
        "utility": {
            when: {f"{t:g}": round(card.utility(figures, t), 4) for t in TEMPERATURES}
            for when, figures in (("before", card.before), ("after", card.after))
        },
        "before": _figures(card.before),
        "after": _figures(card.after),
    }


def _figures(figures: ByClient) -> dict[str, Any]:
    return {
        name: {
            f"{temperature:g}": {
                "acceptance": round(found.acceptance, 4),
                "coupled": round(found.coupled, 4),
                "length": {str(budget): round(length, 4) for budget, length in found.length.items()},
            }
            for temperature, found in by_temperature.items()
        }
        for name, by_temperature in figures.items()
    }


def _readme(card: Card) -> str:
    utility = "sum log x" if card.fairness == 1 else f"utility (fairness {card.fairness:g})"
    lines = [
        f"# {card.name}",
        "",
        f"{card.draft}, tuned to {card.target} by {card.loss} ({card.method}, {card.steps} steps, seed {card.seed}).",
        "",
        f"Data: {'; '.join(card.sources)}.",
        "",
        "Measured on text that the target wrote after held-out beginnings, before and after the tuning. The mean",
        "acceptance length is what a round commits, the recovered or bonus token included.",
        "",
        f"| client | budget | T | acceptance | coupled | length at S = {BUDGET} | length at its budget |",
        "|---|---|---|---|---|---|---|",
    ]
    budgets = {client.name: client.budget for client in card.clients}
    for name, by_temperature in card.after.items():
        for temperature, after in by_temperature.items():
            before, budget = card.before[name][temperature], budgets[name]
            lines.append(
                f"| {name or '(all)'} | {budget} | {temperature:g} "
                f"| {before.acceptance:.3f} -> {after.acceptance:.3f} | {before.coupled:.3f} -> {after.coupled:.3f} "
                f"| {before.length[BUDGET]:.3f} -> {after.length[BUDGET]:.3f} "
                f"| {before.length[budget]:.3f} -> {after.length[budget]:.3f} |"
            )
    lines += ["", f"| T | {utility} before | after |", "|---|---|---|"]
    lines += [
        f"| {t:g} | {card.utility(card.before, t):.3f} | {card.utility(card.after, t):.3f} |" for t in TEMPERATURES
    ]
    return "\n".join(lines) + "\n"
