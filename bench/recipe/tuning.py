"""Tuning a draft to its target: forward KL from the target, on the corpus and on text that the target wrote.

What the target thinks of the training text is kept as its final hidden states (bfloat16, `hidden` a token), which
are eight times smaller than its logits; applying its output head again is cheap.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from bench.recipe.acceptance import PROMPT_TOKENS, TEMPERATURES, write
from bench.recipe.batches import WindowSampler
from bench.recipe.training import Objective, Progress
from bench.recipe.workers import Workers

ROW_TOKENS = 256
ROWS_A_BATCH = 16
ROWS_A_PART = 4
WRITE_ROWS = 64


@dataclass(frozen=True)
class Lesson:
    """Texts and what the target makes of them."""

    tokens: torch.Tensor  # int64 [rows, ROW_TOKENS]
    hidden: torch.Tensor  # bfloat16 [rows, ROW_TOKENS, hidden], before the output head
    head: torch.Tensor  # float32 [vocab, hidden]

    def log_probs(self, rows: torch.Tensor) -> torch.Tensor:
        """The target's next-token log-probabilities for some rows, float32 [rows, ROW_TOKENS, vocab]."""
        return F.linear(self.hidden[rows].float(), self.head).log_softmax(-1)


@torch.no_grad()
def prepare(
    target: PreTrainedModel,
    sampler: WindowSampler,
    corpus_rows: int,
    written_rows: int,
    seed: int,
    workers: Workers,
) -> Lesson:
    """Collects `corpus_rows` of the corpus and `written_rows` that the target writes, at each temperature in turn."""
    corpus = _corpus_rows(sampler, 0, corpus_rows)
    prompts = _corpus_rows(sampler, len(corpus), written_rows)[:, :PROMPT_TOKENS]

    def written(number: int) -> torch.Tensor:
        rows = prompts[number * WRITE_ROWS : (number + 1) * WRITE_ROWS]
        temperature = TEMPERATURES[number % len(TEMPERATURES)]
        return write(target, rows, ROW_TOKENS - PROMPT_TOKENS, temperature, seed=seed + number)

    @torch.no_grad()  # an outer no_grad does not reach the workers' threads
    def hidden_of(rows: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = target.base_model(input_ids=rows, use_cache=False).last_hidden_state
        return hidden.bfloat16()

    tokens = torch.cat([corpus, *workers.map(written, range(-(-written_rows // WRITE_ROWS)))])
    hidden = workers.map(hidden_of, torch.split(tokens, ROWS_A_PART))
    head = target.get_output_embeddings().weight.detach().float()  # type: ignore[no-untyped-call]
    return Lesson(tokens=tokens, hidden=torch.cat(hidden), head=head)


def _corpus_rows(sampler: WindowSampler, skip: int, count: int) -> torch.Tensor:
    rows_a_batch = len(sampler.batch(0, ROW_TOKENS))
    first = -(-skip // rows_a_batch)
    batches = -(-count // rows_a_batch)
    rows = [sampler.batch(number, ROW_TOKENS) for number in range(first, first + batches)]
    return torch.cat(rows)[:count]


def save(lesson: Lesson, path: Path) -> None:
    """Writes a lesson to one file."""
    torch.save({"tokens": lesson.tokens, "hidden": lesson.hidden, "head": lesson.head}, path)


def load(path: Path) -> Lesson:
    """Reads what `save` wrote."""
    return Lesson(**torch.load(path, weights_only=True))


def forward_kl(draft: PreTrainedModel, lesson: Lesson, rows: torch.Tensor) -> torch.Tensor:
    """Mean KL(p || q) in nats over all positions of some rows."""
    log_q = draft(input_ids=lesson.tokens[rows], use_cache=False).logits.log_softmax(-1)
    return F.kl_div(log_q.flatten(0, 1), lesson.log_probs(rows).flatten(0, 1), log_target=True, reduction="batchmean")


@torch.no_grad()
def mean_acceptance(draft: PreTrainedModel, lesson: Lesson) -> float:
    """Mean of sum_v min(p, q) at temperature 1 over a lesson."""
    total = 0.0
    for rows in torch.split(torch.arange(len(lesson.tokens)), ROWS_A_BATCH):
        log_q = draft(input_ids=lesson.tokens[rows], use_cache=False).logits.log_softmax(-1)
        total += torch.minimum(log_q, lesson.log_probs(rows)).exp().sum(-1).mean(-1).sum().item()
    return total / len(lesson.tokens)


def objective(draft: PreTrainedModel, lesson: Lesson, held_out: Lesson, seed: int, workers: Workers) -> Objective:
    """Forward KL on random batches of a lesson, every row once an epoch; reports the held-out rejection rate."""
    batches_an_epoch = len(lesson.tokens) // ROWS_A_BATCH

    def backward(progress: Progress) -> tuple[float, int]:
        epoch, place = divmod(progress.steps, batches_an_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(lesson.tokens))
        rows = torch.from_numpy(order[place * ROWS_A_BATCH : (place + 1) * ROWS_A_BATCH])
        loss = workers.backward(draft, partial(forward_kl, draft, lesson), torch.split(rows, ROWS_A_PART))
        return loss, ROWS_A_BATCH * ROW_TOKENS

    return Objective(backward=backward, evaluate=lambda: {"rejected": 1.0 - mean_acceptance(draft, held_out)})
