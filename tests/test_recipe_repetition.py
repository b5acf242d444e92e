"""Unlearning loops: which tokens count as repeated, the loss on them, and the texts that it reads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.recipe import architecture
from bench.recipe.batches import WINDOW
from bench.recipe.corpus import Domain
from bench.recipe.repetition import (
    BATCHES_A_POOL,
    WRITTEN_TOKENS,
    Continuations,
    in_repeated_ngram,
    repeated_share,
    unlikelihood_loss,
)
from bench.recipe.tokenizer import Tokens
from bench.recipe.workers import Workers
from goodspeed.tuning.sources import PROMPT_TOKENS

TINY = architecture.Shape(width=16, layers=1, heads=2, kv_heads=1, mlp_width=32)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5))
def test_a_token_is_repeated_if_an_ngram_that_holds_it_stood_there_before(tokens: list[int], size: int) -> None:
    ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
    expected = [
        any(ngrams[i] in ngrams[:i] for i in range(max(0, place - size + 1), min(place, len(ngrams) - 1) + 1))
        for place in range(len(tokens))
    ]
    assert in_repeated_ngram(tokens, size) == expected


def test_the_loss_is_that_of_the_repeated_tokens_alone() -> None:
    model = architecture.build(TINY, 0, end_of_text=0)
    prompt = torch.arange(PROMPT_TOKENS)
    loop = torch.tensor([5, 6, 7, 8, 9, 10]).repeat(3)
    texts = torch.stack([torch.cat([prompt, loop]), torch.cat([prompt, torch.arange(100, 118)])])
    with torch.no_grad():
        p = model(input_ids=texts).logits.softmax(-1)
        of_loop = [-torch.log1p(-p[0, PROMPT_TOKENS - 1 + i, token]) for i, token in enumerate(loop.tolist()) if i >= 6]
        assert unlikelihood_loss(model, texts).item() == pytest.approx(torch.stack(of_loop).sum().item() / 36, rel=1e-4)
        assert unlikelihood_loss(model, texts[1:]).item() == 0.0
    assert repeated_share(texts) == pytest.approx(12 / 36)


def test_unlikelihood_makes_a_loop_less_likely() -> None:
    model = architecture.build(TINY, 0, end_of_text=0)
    texts = torch.cat([torch.arange(PROMPT_TOKENS), torch.tensor([5, 6, 7, 8, 9, 10]).repeat(4)]).unsqueeze(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(5):
        loss = unlikelihood_loss(model, texts)
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


def test_continuations_are_what_the_model_writes_and_depend_on_the_step_alone() -> None:
    model = architecture.build(TINY, 0, end_of_text=2047)
    domains: dict[Domain, Tokens] = {"code": (np.arange(40 * WINDOW) % 2000).astype(np.uint16)}
    continuations = Continuations(model, domains, 0, Workers(2), rows_a_batch=2)
    batches = [continuations.batch(step) for step in range(BATCHES_A_POOL + 1)]
    assert all(batch.shape == (2, PROMPT_TOKENS + WRITTEN_TOKENS) for batch in batches)
    again = Continuations(model, domains, 0, Workers(2), rows_a_batch=2)
    for step in (BATCHES_A_POOL, 3):
        assert torch.equal(again.batch(step), batches[step])
    written = model.generate(
        batches[3][:, :PROMPT_TOKENS], max_new_tokens=WRITTEN_TOKENS, do_sample=False, eos_token_id=None
    )
    assert torch.equal(written, batches[3])
