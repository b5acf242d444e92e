from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from goodspeed.rules import RULES
from goodspeed.sampling import SamplingParams, noise, position_keys
from goodspeed.sampling.warping import RowParams, log_probs, sample
from goodspeed.verification import Rule, draw_drafted, unpack_q
from goodspeed_agent.drafters.draws import likeliest, make_draw

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.7]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 10**6]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)


def logits(seed: int, vocab: int = 120) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


@given(PARAMS, st.integers(0, 10**6))
def test_the_likeliest_are_those_of_the_whole_warped_distribution(params: SamplingParams, seed: int) -> None:
    row = logits(seed)
    tokens, weights = likeliest(row.numpy(), params, 120)
    whole = log_probs(row[None], RowParams.of([params]))[0].exp().numpy()
    assert set(tokens.tolist()) == set(np.flatnonzero(whole).tolist())
    np.testing.assert_allclose(weights / weights.sum(), whole[tokens], rtol=1e-4)
    assert weights[0] == 1.0
    assert (np.diff(weights) <= 0).all()


@given(PARAMS, st.integers(0, 10**6), st.integers(1, 50))
def test_fewer_are_the_first_of_them(params: SamplingParams, seed: int, count: int) -> None:
    whole, weights = likeliest(logits(seed).numpy(), params, 120)
    tokens, some = likeliest(logits(seed).numpy(), params, count)
    assert tokens.tolist() == whole[:count].tolist()
    np.testing.assert_allclose(some, weights[:count], rtol=1e-6)


@given(PARAMS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_coupled_draw_is_the_targets_own(params: SamplingParams, seed: int, position: int) -> None:
    keys = torch.from_numpy(position_keys([params.seed], [position]))
    expected = int(sample(logits(seed)[None], RowParams.of([params]), keys))
    guess = make_draw(params, "coupled")(logits(seed).numpy(), position)
    assert (guess.token, guess.q) == (expected, b"")


@given(
    st.integers(0, 10**6),
    st.sampled_from([30, 2000, 5000]),
    st.sampled_from([1, 32, 1024]),
    st.sampled_from(["even", "peaked", "tied", "crowded"]),
)
def test_the_first_of_a_large_vocabulary_are_its_largest_logits(seed: int, vocab: int, count: int, shape: str) -> None:
    row = logits(seed, vocab)
    match shape:
        case "peaked":
            row[seed % vocab] += 30
        case "tied":
            row = row.round()
        case "crowded":  # All that a sample of every so many sees is large, and misleads.
            row[::16] += 100
    tokens, weights = likeliest(row.numpy(), SamplingParams(temperature=20.0), count)
    expected = row.topk(min(count, vocab)).values
    assert len(set(tokens.tolist())) == len(expected)
    np.testing.assert_array_equal(row.numpy()[tokens], expected.numpy())
    np.testing.assert_allclose(weights, ((expected - expected[0]) / 20.0).exp().numpy(), rtol=1e-5)


def noise_drawn(params: SamplingParams, row: torch.Tensor, position: int) -> list[int]:
    """The tokens whose noise a coupled draw evaluates."""
    hashed: list[int] = []
    hash_ = noise._hash

    def count(keys: NDArray[np.int32], tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        lanes = hash_(keys, tokens)
        hashed.extend(np.broadcast_to(tokens, lanes.shape).tolist())
        return lanes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "_hash", count)
        make_draw(params, "coupled")(row.numpy(), position)
    return hashed


@given(PARAMS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_coupled_noise_costs_an_agent_only_the_tokens_it_considers(
    params: SamplingParams, seed: int, position: int
) -> None:
    row = logits(seed)
    drawable = log_probs(row[None], RowParams.of([params]))[0].isfinite().nonzero()[:, 0].tolist()
    assert sorted(noise_drawn(params, row, position)) == ([] if params.greedy else drawable)


def test_of_a_large_vocabulary_the_noise_costs_an_agent_its_head_only() -> None:
    row = logits(3, vocab=150_000)
    assert len(noise_drawn(SamplingParams(temperature=1.0), row, 7)) == 1024
    assert len(noise_drawn(SamplingParams(temperature=1.0, top_k=40), row, 7)) == 40


@given(PARAMS, st.integers(0, 10**6), st.sampled_from(list(RULES)))
def test_confidence_is_the_likeliest_tokens_probability_whatever_is_drawn(
    params: SamplingParams, seed: int, rule: Rule
) -> None:
    row = logits(seed, vocab=30)
    likeliest_p = float(log_probs(row[None], RowParams.of([params]))[0].exp().max())
    if params.greedy:
        likeliest_p = float(row.softmax(-1).max())  # what the model thinks, where the draw knows no doubt
    guesses = [make_draw(params, rule)(row.numpy(), position) for position in range(8)]
    assert [guess.confidence for guess in guesses] == pytest.approx([likeliest_p] * 8, rel=1e-4)


@given(PARAMS, st.integers(0, 10**6))
def test_the_ratio_draw_comes_from_what_is_sent(params: SamplingParams, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goodspeed.rules.Ratio._unused", lambda self: seed)
        guess = make_draw(params, "ratio")(logits(seed).numpy(), 7)
    token, (q,) = guess.token, unpack_q(guess.q, [guess.token], 120)
    assert token == draw_drafted(q, seed, 7)
    assert len(q.tokens) <= 32
    tokens, weights = likeliest(logits(seed).numpy(), params, 32)
    order = [tokens.tolist().index(each) for each in q.tokens]
    np.testing.assert_allclose(q.p, (weights / weights.sum())[order], atol=1e-3)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_no_temperature_is_too_hot(top_p: float) -> None:
    """All tokens are alike then."""
    logits = np.linspace(-9.0, 9.0, 97, dtype=np.float32)
    ids, weights = likeliest(logits, SamplingParams(temperature=1e308, top_p=top_p), 5)
    assert ids.tolist() == [96, 95, 94, 93, 92]
    assert weights.tolist() == [1.0] * 5


def test_of_a_large_vocabulary_only_the_head_is_looked_at() -> None:
    row = logits(3, vocab=50_000)
    warm = SamplingParams(temperature=1.0)
    agreed = 0
    for position in range(200):
        keys = torch.from_numpy(position_keys([0], [position]))
        token = make_draw(warm, "coupled")(row.numpy(), position).token
        assert token in row.topk(1024).indices
        agreed += token == int(sample(row[None], RowParams.of([warm]), keys))
    head = float(row.softmax(-1).topk(1024).values.sum())
    assert agreed / 200 == pytest.approx(head, abs=0.1)
