"""Next-token training on the corpus: the target, and the drafts before they are tuned."""

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.batches import WindowSampler, evaluation_windows
from bench.recipe.corpus import Domain
from bench.recipe.tokenizer import Tokens
from bench.recipe.training import Budget, Objective, Progress
from bench.recipe.workers import Workers

SHORT_SEQUENCE = 256
LONG_FROM = 0.8


def next_token_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each next token; tokens int64 [rows, length]."""
    logits = model(input_ids=tokens, use_cache=False).logits  # [rows, length, vocab]
    # The targets are padded rather than the logits cut: a cut would copy the largest tensor of the step.
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def held_out_losses(
    model: PreTrainedModel, domains: Mapping[Domain, Tokens], length: int = 512, at_most: int = 12
) -> dict[str, float]:
    """Nats per token for each domain, over windows of `length` tokens spread evenly."""
    losses: dict[str, float] = {}
    for domain, tokens in domains.items():
        windows = evaluation_windows(tokens, length, at_most)
        parts = [next_token_loss(model, rows).item() * len(rows) for rows in torch.split(windows, 8)]
        losses[domain] = sum(parts) / len(windows)
    return losses


def objective(
    model: PreTrainedModel,
    train: Mapping[Domain, Tokens],
    held_out: Mapping[Domain, Tokens],
    budget: Budget,
    seed: int,
    windows_a_batch: int,
    workers: Workers,
    compiled: bool,
) -> Objective:
    """Cross-entropy on windows of the corpus: short sequences first, the full context towards the end."""
    sampler = WindowSampler(train, seed, windows_a_batch)
    loss_of = torch.compile(next_token_loss, dynamic=False) if compiled else next_token_loss

    def backward(progress: Progress) -> tuple[float, int]:
        length = SHORT_SEQUENCE if budget.elapsed(progress) < LONG_FROM else CONTEXT_LENGTH
        tokens = sampler.batch(progress.steps, length)
        parts = torch.split(tokens, CONTEXT_LENGTH // length)
        return workers.backward(model, partial(loss_of, model), parts), tokens.numel()

    return Objective(backward=backward, evaluate=lambda: held_out_losses(model, held_out))
