"""A trained model as a folder of the package: weights, tokenizer, and its card for people and for machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel

from bench.recipe.acceptance import Acceptance
from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.repetition import NGRAM, WRITTEN_TOKENS
from bench.recipe.tokenizer import VOCAB_SIZE, for_transformers
from goodspeed.catalog import parameters_of

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
class Facts:
    """What was measured about a model."""

    name: str
    description: str
    python_version: str
    corpus_sha256: str
    tokens_seen: int
    held_out_loss: Mapping[str, Mapping[str, float]]
    acceptance: Mapping[str, Acceptance] | None
    repetition: Repetition | None
    training: Mapping[str, Any]


def export(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the bfloat16 weights, the configuration and the tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(folder)
    for_transformers(tokenizer, CONTEXT_LENGTH).save_pretrained(folder, save_jinja_files=False)


def write(facts: Facts, folder: Path) -> None:
    """Writes `card.json` and `README.md` beside the exported model in `folder`."""
    card = _card(facts, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _card(facts: Facts, folder: Path) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    against = None if facts.acceptance is None else {"target": TARGET}
    return {
        "name": facts.name,
        "role": "target" if facts.name == TARGET else "draft",
        "description": facts.description,
        "parameters": parameters_of(weights),
        "bytes": weights.stat().st_size,
        "vocab_size": VOCAB_SIZE,
        "context_length": CONTEXT_LENGTH,
        "data": {
            "sources": SOURCES.format(version=facts.python_version),
            "licence": LICENCE,
            "corpus_sha256": facts.corpus_sha256,
            "train_tokens_seen": facts.tokens_seen,
        },
        "held_out_loss": {
            domain: {unit: round(value, 4) for unit, value in losses.items()}
            for domain, losses in facts.held_out_loss.items()
        },
        "acceptance": against
        and facts.acceptance
        and against | {t: round(a.ratio, 3) for t, a in facts.acceptance.items()},
        "acceptance_coupled": against
        and facts.acceptance
        and against | {t: round(a.coupled, 3) for t, a in facts.acceptance.items()},
        "repetition": facts.repetition and {k: round(v, 3) for k, v in asdict(facts.repetition).items()},
        "training": dict(facts.training),
    }


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
    return [
        f"## Acceptance against {card['acceptance']['target']}",
        "",
        "Share of drafted tokens accepted, on text that the target wrote after held-out prompts.",
        "",
        "| temperature | ratio rule | coupled rule |",
        "|---|---|---|",
        *(f"| {t} | {card['acceptance'][t]:.3f} | {card['acceptance_coupled'][t]:.3f} |" for t in ("0", "0.7", "1")),
        "",
    ]
