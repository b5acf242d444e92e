"""A trained model as a folder of the package: weights, tokenizer, and its card for people and for machines.

A card is begun with what is known of the training when the weights are exported, and completed with what is measured
on them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel

from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.repetition import NGRAM, WRITTEN_TOKENS
from bench.recipe.tokenizer import VOCAB_SIZE, for_transformers
from goodspeed.catalog import parameters_of
from goodspeed.tuning.cards import BUDGET
from goodspeed.tuning.measuring import TEMPERATURES, Figures

TARGET = "pico-target"
SOURCES = "the Python {version} standard library: .py files, their docstrings, the pydoc help topics"
LICENCE = "PSF-2.0, and the notices inside the files"


@dataclass(frozen=True)
class Repetition:
    """Shares of tokens that stand in an n-gram which was there before, in as long a text."""

    greedy: float
    """In what the model writes at temperature 0."""
    held_out: float
    """In the corpus itself."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    name: str
    description: str
    python_version: str
    corpus_sha256: str
    tokens_seen: int
    training: Mapping[str, Any]
    tuning: Mapping[str, Any] | None = None
    """What `goodspeed tune` measured by client, before and after."""


@dataclass(frozen=True)
class Measured:
    """What was measured on the weights that are shipped."""

    held_out_loss: Mapping[str, Mapping[str, float]]
    acceptance: Mapping[float, Figures] | None
    """A draft's, by temperature."""
    repetition: Repetition | None
    """The target's."""


def export(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the bfloat16 weights, the configuration and the tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(folder)
    for_transformers(tokenizer, CONTEXT_LENGTH).save_pretrained(folder, save_jinja_files=False)


def copy_weights(source: Path, folder: Path, like: Path) -> None:
    """Puts the weights that a tuning left in `source` into `folder`, everything else from `like`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in like.iterdir():
        if file.name not in ("model.safetensors", "card.json", "README.md"):
            shutil.copyfile(file, folder / file.name)
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")


def begin(origin: Origin, folder: Path) -> None:
    """Writes the card of the exported model in `folder`, without what is to be measured."""
    weights = folder / "model.safetensors"
    card = {
        "name": origin.name,
        "role": "target" if origin.name == TARGET else "draft",
        "description": origin.description,
        "parameters": parameters_of(weights),
        "bytes": weights.stat().st_size,
        "vocab_size": VOCAB_SIZE,
        "context_length": CONTEXT_LENGTH,
        "data": {
            "sources": SOURCES.format(version=origin.python_version),
            "licence": LICENCE,
            "corpus_sha256": origin.corpus_sha256,
            "train_tokens_seen": origin.tokens_seen,
        },
        "held_out_loss": {},
        "acceptance": None,
        "acceptance_coupled": None,
        "acceptance_length": None,
        "repetition": None,
        "training": dict(origin.training),
        "tuning": origin.tuning,
    }
    _write(card, folder)


def complete(measured: Measured, folder: Path) -> None:
    """Puts into the card in `folder` what was measured, and writes the page for people."""
    card = {"tuning": None} | json.loads((folder / "card.json").read_bytes())
    card["held_out_loss"] = {
        domain: {unit: round(value, 4) for unit, value in losses.items()}
        for domain, losses in measured.held_out_loss.items()
    }
    if measured.acceptance is not None:
        by_temperature = {f"{temperature:g}": found for temperature, found in measured.acceptance.items()}
        card["acceptance"] = {"target": TARGET} | {t: round(f.acceptance, 3) for t, f in by_temperature.items()}
        card["acceptance_coupled"] = {"target": TARGET} | {t: round(f.coupled, 3) for t, f in by_temperature.items()}
        card["acceptance_length"] = {"target": TARGET, "budget": BUDGET} | {
            t: round(f.length[BUDGET], 3) for t, f in by_temperature.items()
        }
    if measured.repetition is not None:
        card["repetition"] = {what: round(share, 3) for what, share in asdict(measured.repetition).items()}
    _write(card, folder)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _write(card: Mapping[str, Any], folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _readme(card: Mapping[str, Any]) -> str:
    lines = [
        f"# {card['name']}",
        "",
        card["description"],
        "",
        "It writes Python-like text, for trying GoodSpeed; it knows nothing and follows no instructions. The chat",
        "template only marks whose turn it is, so that chat endpoints work.",
        "",
        "| | |",
        "|---|---|",
        f"| role | {card['role']} |",
        f"| parameters | {card['parameters']:,} |",
        f"| weights | {card['bytes']:,} bytes, bfloat16 |",
        f"| vocabulary | {card['vocab_size']:,}, byte-level BPE |",
        f"| context | {card['context_length']:,} tokens |",
        "",
        "## Held-out loss",
        "",
        "Over files that the training never saw; files that share many lines with those are kept apart too.",
        "",
        "| domain | nats per token | nats per byte |",
        "|---|---|---|",
        *(
            f"| {domain} | {losses['nats_per_token']:.3f} | {losses['nats_per_byte']:.3f} |"
            for domain, losses in card["held_out_loss"].items()
        ),
        "",
        *_repetition_lines(card),
        *_acceptance_lines(card),
        *_tuning_lines(card),
        "## Training",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in card["training"].items()),
        f"- tokens seen: {card['data']['train_tokens_seen']:,}",
        f"- data: {card['data']['sources']}",
        f"- licence of the data: {card['data']['licence']}",
        f"- corpus SHA-256: `{card['data']['corpus_sha256']}`",
        "",
        "Made by `python -m bench.recipe all`.",
    ]
    return "\n".join(lines) + "\n"


def _repetition_lines(card: Mapping[str, Any]) -> list[str]:
    if card["repetition"] is None:
        return []
    shares = card["repetition"]
    return [
        "## Repetition",
        "",
        f"Of {WRITTEN_TOKENS} tokens written at temperature 0 after held-out prompts, {shares['greedy']:.0%} stand in",
        f"{NGRAM} tokens that were there before in this order; in the held-out text itself, {shares['held_out']:.0%}.",
        "",
    ]


def _acceptance_lines(card: Mapping[str, Any]) -> list[str]:
    if card["acceptance"] is None:
        return []
    ratio, coupled, length = (card[key] for key in ("acceptance", "acceptance_coupled", "acceptance_length"))
    return [
        f"## Acceptance against {ratio['target']}",
        "",
        "Share of drafted tokens accepted, on text that the target wrote after held-out prompts, and the tokens that a",
        f"round of {length['budget']} drafted ones commits, the recovered or bonus one included.",
        "",
        f"| temperature | ratio rule | coupled rule | tokens a round, S = {length['budget']} |",
        "|---|---|---|---|",
        *(
            f"| {t} | {ratio[t]:.3f} | {coupled[t]:.3f} | {length[t]:.2f} |"
            for t in (f"{temperature:g}" for temperature in TEMPERATURES)
        ),
        "",
    ]


def _tuning_lines(card: Mapping[str, Any]) -> list[str]:
    if card["tuning"] is None:
        return []
    before, after = card["tuning"]["before"], card["tuning"]["after"]
    return [
        "## What the tuning brought",
        "",
        "As `goodspeed tune` measured it, after beginnings of passages that it held out.",
        "",
        f"| domain | temperature | acceptance | tokens a round, S = {BUDGET} |",
        "|---|---|---|---|",
        *(
            f"| {name} | {t} | {before[name][t]['acceptance']:.3f} -> {found['acceptance']:.3f} "
            f"| {before[name][t]['length'][str(BUDGET)]:.2f} -> {found['length'][str(BUDGET)]:.2f} |"
            for name, by_temperature in after.items()
            for t, found in by_temperature.items()
        ),
        "",
    ]
