"""Next-token training on the corpus: the target, and the drafts before they are tuned.

The target also unlearns, in the last part of its training, the loops of its own greedy text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from bench.recipe.architecture import CONTEXT_LENGTH
from bench.recipe.batches import WindowSampler, evaluation_windows
from bench.recipe.corpus import Domain
from bench.recipe.repetition import Continuations, continue_greedily, repeated_share, unlikelihood_loss
from bench.recipe.tokenizer import Tokens
from bench.recipe.training import Budget, Objective, Progress
from bench.recipe.workers import Workers
from goodspeed.tuning.sources import PROMPT_TOKENS

SHORT_SEQUENCE = 256
LONG_FROM = 0.8
UNLIKELIHOOD_FROM = 0.7
UNLIKELIHOOD_WEIGHT = 0.3


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


@dataclass(frozen=True)
class Part:
    """A micro-batch: windows of the corpus, and what the model wrote itself, where it is to unlearn that."""

    windows: torch.Tensor  # int64 [rows, length]
    written: torch.Tensor | None = None  # int64 [rows, prompt + written]


def part_loss(model: PreTrainedModel, part: Part) -> torch.Tensor:
    """Next-token loss on the corpus, and the unlikelihood of loops in what the model wrote."""
    loss = next_token_loss(model, part.windows)
    return loss if part.written is None else loss + UNLIKELIHOOD_WEIGHT * unlikelihood_loss(model, part.written)


def objective(
    model: PreTrainedModel,
    train: Mapping[Domain, Tokens],
    held_out: Mapping[Domain, Tokens],
    budget: Budget,
    seed: int,
    windows_a_batch: int,
    workers: Workers,
    unlearn_loops: bool,
) -> Objective:
    """Cross-entropy on windows of the corpus: short sequences first, the full context towards the end.

    With `unlearn_loops`, the last part of the training adds the unlikelihood of the model's own loops.
    """
    sampler = WindowSampler(train, seed, windows_a_batch)
    continuations = Continuations(model, train, seed + 1, workers, rows_a_batch=windows_a_batch)
    loops_held_out = held_out_prompts(held_out)

    def backward(progress: Progress) -> tuple[float, int]:
        elapsed = budget.elapsed(progress)
        length = SHORT_SEQUENCE if elapsed < LONG_FROM else CONTEXT_LENGTH
        tokens = sampler.batch(progress.steps, length)
        windows = torch.split(tokens, CONTEXT_LENGTH // length)
        if unlearn_loops and elapsed >= UNLIKELIHOOD_FROM:
            written = torch.split(continuations.batch(progress.steps), 1)
            parts = [Part(*pair) for pair in zip(windows, written, strict=True)]
        else:
            parts = [Part(rows) for rows in windows]
        return workers.backward(model, partial(part_loss, model), parts), tokens.numel()

    def evaluate() -> dict[str, float]:
        looping = repeated_share(continue_greedily(model, loops_held_out, workers))
        return held_out_losses(model, held_out) | {"looping": looping}

    return Objective(backward=backward, evaluate=evaluate)


def held_out_prompts(held_out: Mapping[Domain, Tokens], a_domain: int = 16) -> torch.Tensor:
    """Prompts int64 [rows, PROMPT_TOKENS] spread evenly over every domain."""
    return torch.cat([evaluation_windows(tokens, PROMPT_TOKENS, a_domain) for tokens in held_out.values()])
