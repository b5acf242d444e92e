from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from goodspeed import verification
from goodspeed.errors import InvalidRequest
from goodspeed.messages import Draft, encode
from goodspeed.sampling import Domain, SamplingParams, gumbel, position_keys, uniform
from goodspeed.sampling.warping import RowParams, sample
from goodspeed.verification import (
    RATIO_TOP_K,
    DraftDistribution,
    Judgement,
    draw_drafted,
    judge_coupled,
    judge_ratio,
    pack_q,
    quantise,
    unpack_q,
)

VOCAB = 12
Next = Callable[[Sequence[int]], Tensor]


def toy_model(seed: int, spread: float = 1.5) -> Next:
    """Logits that depend on the last two tokens: float32 [vocab]."""
    table = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    return lambda tokens: table[tokens[-2], tokens[-1]]


def draw(logits: Tensor, params: SamplingParams, position: int) -> int:
    keys = torch.from_numpy(position_keys([params.seed], [position]))
    return int(sample(logits[None], RowParams.of([params]), keys))


@settings(max_examples=25)
@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 9), min_size=12, max_size=12),
    st.sampled_from([(0.0, 1.0), (0.8, 0.95), (1.0, 1.0)]),
    st.floats(0, 1),
)
def test_coupled_text_is_what_plain_decoding_writes(
    seed: int, budgets: list[int], warping: tuple[float, float], likeness: float
) -> None:
    """Whatever is drafted, however much of it, by whomever."""
    params = SamplingParams(temperature=warping[0], top_p=warping[1], seed=seed)
    target, other = toy_model(1), toy_model(2)
    plain, text = [3, 4], [3, 4]
    while len(plain) < 14:
        plain.append(draw(target(plain), params, len(plain)))
    for budget in budgets:
        base = len(text)
        drafted: list[int] = []
        for position in range(base, base + budget):
            tokens = [*text, *drafted]
            mixed = likeness * target(tokens) + (1 - likeness) * other(tokens)
            drafted.append(draw(mixed, params, position))
        ahead = [*text, *drafted]
        drawn = [draw(target(ahead[: base + j]), params, base + j) for j in range(budget + 1)]
        judgement = judge_coupled(drafted, drawn)
        assert 0 <= judgement.accepted <= budget
        text += [*drafted[: judgement.accepted], judgement.token]
    assert text[:14] == plain


@pytest.mark.parametrize(
    ("drafted", "drawn", "expected"),
    [
        ([], [7], Judgement(0, 7)),
        ([1, 2, 3], [1, 2, 3, 9], Judgement(3, 9)),
        ([1, 2, 3], [1, 5, 3, 9], Judgement(1, 5)),
        ([1, 2, 3], [4, 2, 3, 9], Judgement(0, 4)),
    ],
)
def test_coupled_cases(drafted: list[int], drawn: list[int], expected: Judgement) -> None:
    assert judge_coupled(drafted, drawn) == expected


# The ratio rule, one round of two drafted tokens, over many seeds. The target's distribution is known, and so is that
# of every outcome: a first token accepted and a second behind it, or a first token recovered.

TARGET = torch.tensor([0.02, 0.30, 0.00, 0.25, 0.13, 0.30])
AFTER = torch.stack([TARGET.roll(shift) for shift in range(6)])  # [token before, 6]
DRAWS = 4_000
FIRST = 1  # the position of the first drafted token

Draftsman = Callable[[Tensor], DraftDistribution]


def honest(p: Tensor) -> DraftDistribution:
    """Near the target, over the whole vocabulary."""
    q = (p + 0.08) ** 1.5
    return quantise(np.arange(6), q.numpy())


def truncated(p: Tensor) -> DraftDistribution:
    """Only the three likeliest tokens of something that is not the target."""
    top = (p.roll(1) + 0.5 * p).topk(3)
    return quantise(top.indices.numpy(), top.values.numpy())


def certain(p: Tensor) -> DraftDistribution:
    """A point mass, as the suffix drafter sends it."""
    return quantise(np.array([1]), np.ones(1, dtype=np.float32))


def hopeless(p: Tensor) -> DraftDistribution:
    """Nothing that the target could ever write."""
    return quantise((p == 0).nonzero()[0].numpy(), np.ones(1, dtype=np.float32))


def dense(q: DraftDistribution) -> NDArray[np.float64]:
    """The distribution over the whole vocabulary, [6]."""
    p = np.zeros(6)
    p[q.tokens] = q.weights / q.weights.sum()
    return p


def drafts(q: DraftDistribution, position: int, draws: int) -> NDArray[np.int64]:
    """What `draw_drafted` gives for the seeds 0 to `draws`, [draws]."""
    keys = position_keys(range(draws), [position] * draws, Domain.DRAFT)[:, None, :]
    noisy = np.log(q.p) + gumbel(keys, q.tokens.astype(np.int32))
    return np.asarray(q.tokens[noisy.argmax(-1)])


def outcomes(draftsman: Draftsman, draws: int) -> NDArray[np.float64]:
    """How often each came out, [6, 7]: (first, second) tokens; in the last column, first tokens recovered."""
    q = [draftsman(p) for p in AFTER]
    first = drafts(q[0], FIRST, draws).tolist()
    second = [drafts(one, FIRST + 1, draws).tolist() for one in q]
    counts = np.zeros((6, 7))
    for seed, token in enumerate(first):
        drafted = [token, second[token][seed]]
        log_p = AFTER[[0, *drafted]].log()
        judgement = judge_ratio(log_p, drafted, [q[0], q[token]], seed, FIRST)
        told = [*drafted[: judgement.accepted], judgement.token]
        counts[told[0], told[1] if len(told) > 1 else 6] += 1
    return counts


def likelihood(draftsman: Draftsman, draws: int = DRAWS) -> float:
    """The p-value of what came out under the target's distribution; 0 if something impossible came."""
    p = AFTER.double().numpy()
    stands = np.minimum(p[0], dense(draftsman(AFTER[0])))
    expected = np.column_stack([stands[:, None] * p, p[0] - stands])
    counts = outcomes(draftsman, draws)
    possible = expected > 1e-6
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible], expected[possible] / expected[possible].sum() * draws).pvalue)


@pytest.mark.parametrize("draftsman", [honest, truncated, certain, hopeless])
def test_the_ratio_rule_writes_the_targets_distribution(draftsman: Draftsman) -> None:
    assert likelihood(draftsman) > 1e-4


def test_so_does_plain_decoding_under_it() -> None:
    drawn = [judge_ratio(TARGET[None].log(), [], [], seed, FIRST).token for seed in range(2000)]
    counts = np.bincount(drawn, minlength=6)
    assert counts[2] == 0
    p = TARGET.double().numpy()[[0, 1, 3, 4, 5]]
    assert stats.chisquare(counts[[0, 1, 3, 4, 5]], p / p.sum() * 2000).pvalue > 1e-4


def test_so_do_several_rounds() -> None:
    """Positions whose drafts were thrown away are drawn again, with the same noise, behind another prefix."""
    counts = np.zeros((6, 6))
    draws = 1500
    q = [truncated(p) for p in AFTER]
    for seed in range(draws):
        text = [0]
        while len(text) < 3:
            drafted: list[int] = []
            for position in (len(text), len(text) + 1):
                drafted.append(draw_drafted(q[[*text, *drafted][-1]], seed, position))
            before = [text[-1], *drafted]
            judgement = judge_ratio(AFTER[before].log(), drafted, [q[token] for token in before[:2]], seed, len(text))
            text += [*drafted[: judgement.accepted], judgement.token]
        counts[text[1], text[2]] += 1
    expected = (AFTER[0][:, None] * AFTER).double().numpy()
    possible = expected > 0
    assert not counts[~possible].any()
    assert stats.chisquare(counts[possible], expected[possible] / expected.sum() * draws).pvalue > 1e-4


@pytest.mark.parametrize("draftsman", [honest, truncated, certain])
def test_a_broken_residual_is_found(draftsman: Draftsman, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovering from the target itself instead of `norm(max(p - q, 0))`: the classic mistake."""
    monkeypatch.setattr(verification, "_residual", lambda p, rejected: p)
    assert likelihood(draftsman, 2500) < 1e-9


def test_a_coin_that_leans_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "uniform", lambda keys, tokens: uniform(keys, tokens) * np.float32(0.5))
    assert likelihood(honest, 2500) < 1e-9


def test_every_drafted_position_is_compared_with_the_target() -> None:
    """Held against the distributions written out over the whole vocabulary."""
    q = [quantise(np.array([1, 3]), np.array([0.5, 0.5], dtype=np.float32)), honest(AFTER[3]), honest(AFTER[2])]
    drafted = [3, 2, 5]
    judgement = judge_ratio(AFTER[[0, 3, 2, 5]].log(), drafted, q, 0, 1)
    p = AFTER[[0, 3, 2]].double().numpy()
    assert judgement.ratios == pytest.approx([np.minimum(p[j], dense(q[j])).sum() for j in range(3)], abs=1e-6)
    assert judgement.odds == pytest.approx(
        [p[j, token] / dense(q[j])[token] for j, token in enumerate(drafted)], abs=1e-6
    )


@given(st.integers(0, 5), st.integers(0, 1000))
def test_what_a_draft_is_credited_for_depends_on_no_token_of_it(token: int, seed: int) -> None:
    """So nobody is credited for more by sending what was not drawn."""
    q = [honest(AFTER[0]), honest(AFTER[token])]
    judged = [judge_ratio(AFTER[[0, token, 0]].log(), [token, other], q, seed, 1) for other in q[1].tokens.tolist()]
    assert len({one.ratios for one in judged}) == 1


def test_the_ratio_is_one_minus_the_total_variation_and_the_mean_over_what_is_drawn() -> None:
    p = AFTER[0]
    q = honest(p)
    judged = [judge_ratio(p.expand(2, -1).log(), [draw_drafted(q, seed, 1)], [q], seed, 1) for seed in range(2000)]
    total_variation = 0.5 * np.abs(p.numpy() - dense(q)).sum()
    assert judged[0].ratios == pytest.approx([1 - total_variation], abs=1e-6)
    assert np.mean([min(1.0, (one.odds or (9.0,))[0]) for one in judged]) == pytest.approx(
        1 - total_variation, abs=0.01
    )


def test_a_target_that_came_to_nothing_accepts_nothing() -> None:
    log_p = torch.full((3, 6), float("nan"))
    judgement = judge_ratio(log_p, [1, 3], [honest(AFTER[0]), honest(AFTER[1])], 0, 1)
    assert (judgement.accepted, judgement.ratios, judgement.odds) == (0, (0.0, 0.0), (0.0, 0.0))


def test_a_draft_equal_to_the_target_is_never_rejected() -> None:
    q = quantise(np.arange(4), np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    p = torch.zeros(6)
    p[:4] = torch.from_numpy(q.p)
    for seed in range(500):
        drafted = [draw_drafted(q, seed, position) for position in (5, 6, 7)]
        assert judge_ratio(p.expand(4, -1).log(), drafted, [q] * 3, seed, 5).accepted == 3


def test_judging_leaves_the_distribution_alone() -> None:
    log_p = AFTER[[0, 1]].log()
    before = log_p.clone()
    judge_ratio(log_p, [1], [certain(TARGET)], 0, 1)
    assert torch.equal(log_p, before)


probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).filter(lambda p: max(p) > 0)


@given(probabilities, st.integers(0, 2**40))
def test_quantised_distributions_keep_the_likeliest(p: list[float], seed: int) -> None:
    tokens = np.arange(len(p)) * 3 + 1
    q = quantise(tokens, np.asarray(p, dtype=np.float32))
    assert 1 <= len(q.tokens) <= RATIO_TOP_K
    assert q.weights.min() >= 1
    assert q.weights.max() == 65535
    assert q.p.sum() == pytest.approx(1.0, abs=1e-5)
    given_p = dict(zip(tokens.tolist(), p, strict=True))
    left_out = [value for token, value in given_p.items() if token not in q.tokens]
    assert max(left_out, default=0.0) <= min(given_p[token] for token in q.tokens.tolist())
    assert draw_drafted(q, seed, 9) in q.tokens
    assert sum(q.probability(token) for token in q.tokens.tolist()) == pytest.approx(1.0)
    assert q.probability(0) == 0.0


def test_drafts_are_what_draw_drafted_draws() -> None:
    q = honest(TARGET)
    assert drafts(q, 7, 50).tolist() == [draw_drafted(q, seed, 7) for seed in range(50)]


def test_a_drafted_token_comes_from_the_distribution_that_is_sent() -> None:
    q = quantise(np.array([2, 9, 4, 7]), np.array([0.45, 0.3, 0.2, 0.05], dtype=np.float32))
    drawn = np.array([draw_drafted(q, 1, position) for position in range(4_000)])
    counts = [int((drawn == token).sum()) for token in q.tokens]
    assert stats.chisquare(counts, q.weights / q.weights.sum() * 4_000).pvalue > 1e-4


distributions = probabilities.map(lambda p: quantise(np.arange(len(p)) * 7, np.asarray(p, dtype=np.float32)))


@given(st.lists(distributions, max_size=5), st.data())
def test_what_is_packed_is_unpacked(q: list[DraftDistribution], data: st.DataObject) -> None:
    drafted = [data.draw(st.sampled_from(one.tokens.tolist())) for one in q]
    unpacked = unpack_q(pack_q(q), drafted, 7 * 60)
    for ours, theirs in zip(q, unpacked, strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.weights, theirs.weights)
        assert np.array_equal(ours.p, theirs.p)


@given(st.binary(max_size=60), st.lists(st.integers(0, 20), max_size=3))
def test_whatever_is_claimed_is_valid_or_refused(packed: bytes, drafted: list[int]) -> None:
    try:
        q = unpack_q(packed, drafted, 21)
    except InvalidRequest:
        return
    assert len(q) == len(drafted)
    assert all(one.probability(token) > 0 for one, token in zip(q, drafted, strict=True))
    assert all(one.tokens.max() < 21 for one in q)


def raw(*entries: tuple[int, int]) -> bytes:
    tokens: NDArray[np.int64] = np.array([token for token, _ in entries], dtype=np.int64)
    return pack_q([DraftDistribution(tokens, np.array([weight for _, weight in entries], dtype=np.int64))])


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (b"", "0 distributions for 1"),
        (b"\x00", "support of 0"),
        (bytes([RATIO_TOP_K + 1]) + bytes(6 * (RATIO_TOP_K + 1)), "support of 33"),
        (raw((5, 10))[:-1], "cut short"),
        (raw((5, 10)) + b"\x01", "bytes too many"),
        (raw((5, 10)) * 2, "bytes too many"),
        (raw((5, 0)), "weight of zero"),
        (raw((5, 10), (6, 0)), "weight of zero"),
        (raw((5, 10), (5, 10)), "listed twice"),
        (raw((5, 10), (100, 10)), "outside the vocabulary"),
        (raw((5, 10), (2**32 - 1, 10)), "outside the vocabulary"),
        (raw((6, 10)), "outside its own distribution"),
    ],
)
def test_an_invalid_claim_is_refused_with_its_reason(packed: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        unpack_q(packed, [5], 100)
    assert caught.value.code == "invalid_q"


def test_bytes_per_drafted_token_under_the_ratio_rule() -> None:
    vocab = 151_936
    p = np.linspace(1.0, 0.5, 100, dtype=np.float32)
    q = quantise(np.arange(vocab - 100, vocab), p)
    assert len(q.tokens) == RATIO_TOP_K
    for size in (1, 4, 8):
        drafted = [int(q.tokens[0])] * size
        frame = encode(Draft(2**20, 100_000, drafted, q=pack_q([q] * size)))
        websocket_header = 4 + 4
        assert (len(frame) + websocket_header) / size <= 256


def test_exhaustive_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance is `u <= p/q`, coin by coin, and stops at the first rejection."""
    q = certain(TARGET)
    p = AFTER[[0, 1, 1]]
    ratios = [float(p[0, 1]), float(p[1, 1])]
    for coins in product((0.01, 0.29, 0.31, 0.99), repeat=2):
        monkeypatch.setattr(verification, "uniform", lambda keys, tokens, coins=coins: np.array(coins))
        first, second = (coin <= ratio for coin, ratio in zip(coins, ratios, strict=True))
        assert judge_ratio(p.log(), [1, 1], [q, q], 0, 1).accepted == (0 if not first else 1 + second)
