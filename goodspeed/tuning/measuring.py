"""What a draft is worth to its clients: acceptance and mean acceptance length on text that the target wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from goodspeed.tuning.objectives import LOG_FLOOR, acceptance, block_goodput, passing

__all__ = ["TEMPERATURES", "Figures", "Sample", "measure"]

TEMPERATURES = (0.0, 0.7, 1.0)
"""The served ones that every card tells of."""

_READ_TOKENS = 2**12


@dataclass(frozen=True, slots=True)
class Sample:
    """Text that the target wrote at one temperature."""

    texts: Tensor
    """int64 [rows, length], prompts included."""
    prompt_tokens: int
    """How many tokens of each row are a prompt."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one sample."""

    acceptance: float
    """Share of drafted tokens that the ratio rule accepts; at temperature 0 the greedy agreement."""
    coupled: float
    """Share of positions where both models draw the same token from the same Gumbel noise."""
    length: Mapping[int, float]
    """Tokens that a round commits, the recovered or bonus one included, by budget."""


@torch.inference_mode()
def measure(
    target: PreTrainedModel, draft: PreTrainedModel, sample: Sample, budgets: Sequence[int], seed: int = 0
) -> Figures:
    """Measure a draft by whole distributions, not by what a shard keeps of them.

    Args:
        target: who wrote the text.
        draft: whose tokens it is to accept, of the same vocabulary.
        sample: the text.
        budgets: for which the mean acceptance length is told.
        seed: of the Gumbel noise.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        _piece(target, draft, rows, sample, generator)
        for rows in torch.split(sample.texts, max(1, _READ_TOKENS // sample.texts.shape[1]))
    ]
    accepted, passed, coupled = (torch.cat(parts) for parts in zip(*pieces, strict=True))  # each [rows, positions]
    known = torch.ones_like(accepted, dtype=torch.bool)
    lengths = {}
    for budget in budgets:
        length = block_goodput(accepted, known, budget, passed)
        assert length is not None
        lengths[budget] = float(length)
    return Figures(float(accepted.mean()), float(coupled.mean()), lengths)


def _piece(
    target: PreTrainedModel, draft: PreTrainedModel, rows: Tensor, sample: Sample, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Acceptance, passing and coupled agreement at every written position of some rows: each [rows, positions]."""
    begin = sample.prompt_tokens - 1
    p, q = (
        model(input_ids=rows.to(model.device), use_cache=False).logits[:, begin:-1].float().cpu()
        for model in (target, draft)
    )
    if sample.temperature == 0:
        agreed = (p.argmax(-1) == q.argmax(-1)).float()
        return agreed, agreed, agreed
    log_p = (p / sample.temperature).log_softmax(-1).clamp_min(LOG_FLOOR)
    log_q = (q / sample.temperature).log_softmax(-1).clamp_min(LOG_FLOOR)
    written = rows[:, sample.prompt_tokens :, None]
    passed = passing(log_p.gather(-1, written), log_q.gather(-1, written)).squeeze(-1)
    gumbel = -torch.empty_like(log_p).exponential_(generator=generator).log()
    coupled = ((log_p + gumbel).argmax(-1) == (log_q + gumbel).argmax(-1)).float()
    return acceptance(log_p, log_q), passed, coupled
