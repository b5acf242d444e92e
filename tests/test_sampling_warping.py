import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from goodspeed.sampling import SamplingParams, position_keys, warping
from goodspeed.sampling.noise import gumbel
from goodspeed.sampling.warping import UNDECIDED, RowParams, draw, draw_whole, log_probs, sample


def logits_of(seed: int, rows: int, vocab: int, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def by_transformers(logits: Tensor, params: SamplingParams) -> Tensor:
    """The oracle: transformers' own processors in its own order, float32 [vocab]."""
    warpers = LogitsProcessorList()
    warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])  # type: ignore[arg-type]
    return scores[0].log_softmax(-1)


def keys_of(seeds: list[int], positions: list[int]) -> Tensor:
    return torch.from_numpy(position_keys(seeds, positions))


def by_definition(logits: Tensor, params: list[SamplingParams], keys: Tensor) -> Tensor:
    """`log p + G` over the whole vocabulary: what `sample` is the argmax of, float32 [rows, vocab]."""
    noise = gumbel(keys[:, None, :], torch.arange(logits.shape[-1], dtype=torch.int32))
    return log_probs(logits, RowParams.of(params)) + noise


def assert_drawn_by_definition(logits: Tensor, params: list[SamplingParams], keys: Tensor) -> None:
    drawn = sample(logits, RowParams.of(params), keys)
    perturbed = by_definition(logits, params, keys)
    best, winner = perturbed.max(-1)
    # The two sums round differently, so that only a lead above the rounding decides.
    tied = best - perturbed.gather(-1, drawn[:, None]).squeeze(-1) < 1e-5
    assert ((drawn == winner) | tied).all()
    assert (drawn == winner).float().mean() > 0.99


PARAMS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=0.8, top_p=0.95),
    SamplingParams(temperature=1.2, top_p=0.5),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_k=40),
    SamplingParams(temperature=1.0, top_k=300),
    SamplingParams(temperature=1.0, top_k=10**6),
    SamplingParams(temperature=1.0, top_k=2**63 - 1, top_p=0.9),
    SamplingParams(temperature=0.9, top_k=40, top_p=0.9),
    SamplingParams(temperature=1.5, top_k=200, top_p=0.97),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=1.5, min_p=1.0),
    SamplingParams(temperature=1.1, top_k=60, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=1.0, top_p=1e-12),
    SamplingParams(temperature=1.0, top_p=0.999),
]


@pytest.mark.parametrize("vocab", [3, 50, 128, 129, 2048])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_mixed_rows_are_warped_as_transformers_does(vocab: int, spread: float) -> None:
    logits = logits_of(vocab, len(PARAMS), vocab, spread)
    ours = log_probs(logits, RowParams.of(PARAMS))
    for row, params in enumerate(PARAMS):
        theirs = by_transformers(logits[row], params)
        assert torch.equal(ours[row].isneginf(), theirs.isneginf()), params
        torch.testing.assert_close(ours[row], theirs, rtol=1e-5, atol=1e-5)


def test_warping_leaves_the_logits_alone() -> None:
    logits = logits_of(0, len(PARAMS) + 1, 300)
    before = logits.clone()
    rows = RowParams.of([*PARAMS, SamplingParams()])
    log_probs(logits, rows)
    sample(logits, rows, keys_of([1] * len(logits), list(range(len(logits)))))
    assert torch.equal(logits, before)


def test_a_greedy_row_is_a_point_mass() -> None:
    logits = logits_of(4, 3, 20)
    params = [SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(top_k=3, top_p=0.5)]
    p = log_probs(logits, RowParams.of(params)).exp()
    for row in (0, 2):
        assert p[row].tolist() == [float(token == int(logits[row].argmax())) for token in range(20)]
    drawn = sample(logits, RowParams.of(params), keys_of([1, 2, 3], [0, 0, 0]))
    assert drawn[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()
    assert sample(logits, RowParams.of([SamplingParams()] * 3), keys_of([1] * 3, [0] * 3)).tolist() == (
        logits.argmax(-1).tolist()
    )


@pytest.mark.parametrize("params", [*PARAMS, SamplingParams()], ids=str)
def test_every_kind_of_row_is_drawn_by_definition(params: SamplingParams) -> None:
    rows = 300
    for vocab, spread in ((1000, 0.2), (1000, 1.0), (1000, 4.0), (100, 2.0)):
        logits = logits_of(vocab, rows, vocab, spread)
        assert_drawn_by_definition(logits, [params] * rows, keys_of(list(range(rows)), list(range(rows))))


some_params = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(1e-3, 5),
    top_p=st.just(1.0) | st.floats(1e-6, 1),
    top_k=st.sampled_from([0, 1, 5, 127, 128, 129, 300, 10_000]),
    min_p=st.just(0.0) | st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=200)
@given(
    st.lists(some_params, min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.sampled_from([2, 100, 128, 129, 500, 1500]),
    st.floats(0.01, 10),
    st.integers(0, 2**31 - 1),
)
def test_any_mixture_of_rows_is_drawn_by_definition(
    params: list[SamplingParams], seed: int, vocab: int, spread: float, position: int
) -> None:
    logits = logits_of(seed, len(params), vocab, spread)
    keys = keys_of([row.seed for row in params], [position] * len(params))
    drawn = sample(logits, RowParams.of(params), keys)
    perturbed = by_definition(logits, params, keys)
    chosen = perturbed.gather(-1, drawn[:, None]).squeeze(-1)
    assert (perturbed.max(-1).values - chosen < 1e-4).all()


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_ties_are_broken_alike_by_both_views(params: SamplingParams) -> None:
    """Logits in steps of one half, as coarse as bf16's: the same tokens are kept, down to the last of the equals."""
    logits = (logits_of(9, 200, 600, 2.0) * 2).round() / 2
    support = log_probs(logits, RowParams.of([params] * 200)).isfinite()
    drawn = sample(logits, RowParams.of([params] * 200), keys_of(list(range(200)), [0] * 200))
    assert support.gather(-1, drawn[:, None]).all()
    assert_drawn_by_definition(logits, [params] * 200, keys_of(list(range(200)), [5] * 200))


def test_top_p_is_a_share_of_what_top_k_leaves_even_beyond_the_prefilter() -> None:
    """128 tokens hold 95% of the mass, the 200 of top-k 97%: a nucleus of 90% is 87.3% of the whole."""
    p = torch.full((1000,), 0.03 / 800)
    p[:128] = 0.95 / 128 * torch.linspace(1.001, 0.999, 128)
    p[128:200] = 0.02 / 72
    params = SamplingParams(temperature=1.0, top_k=200, top_p=0.9)
    rows = 4_000
    drawn = sample(p.log().expand(rows, -1), RowParams.of([params] * rows), keys_of([3] * rows, list(range(rows))))
    kept = int(by_transformers(p.log(), params).isfinite().sum())
    assert kept < 120
    assert int(drawn.max()) == kept - 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=12, min_p=0.02),
    ],
    ids=str,
)
def test_draws_over_many_positions_follow_the_distribution(params: SamplingParams) -> None:
    rows = 40_000
    logits = logits_of(21, 1, 40, 1.5)
    drawn = sample(logits.expand(rows, -1), RowParams.of([params] * rows), keys_of([5] * rows, list(range(rows))))
    counts = np.bincount(drawn.numpy(), minlength=40)
    p = log_probs(logits, RowParams.of([params]))[0].double().exp().numpy()
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], p[p > 0] / p.sum() * rows).pvalue > 1e-4


def test_rows_do_not_know_their_neighbours() -> None:
    """The same row alone, and anywhere in any batch, draws the same token: what makes text independent of load."""
    rows = len(PARAMS)
    logits = logits_of(2, rows, 700)
    keys = keys_of(list(range(rows)), list(range(100, 100 + rows)))
    together = sample(logits, RowParams.of(PARAMS), keys)
    for row, params in enumerate(PARAMS):
        alone = sample(logits[row : row + 1], RowParams.of([params]), keys[row : row + 1])
        assert alone.item() == together[row].item()
    turned = torch.arange(rows).flip(0)
    assert torch.equal(sample(logits[turned], RowParams.of(PARAMS[::-1]), keys[turned]), together[turned])


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1e6, 1e300])
@pytest.mark.parametrize("top_k", [0, 5])
def test_extreme_temperatures_stay_finite(temperature: float, top_k: int) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k)
    params.validate()
    logits = logits_of(8, 4, 200, 30.0)
    p = log_probs(logits, RowParams.of([params] * 4)).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(4))
    drawn = sample(logits, RowParams.of([params] * 4), keys_of([1, 2, 3, 4], [0] * 4))
    assert (p.gather(-1, drawn[:, None]) > 0).all()
    if temperature < 1:
        assert torch.equal(drawn, logits.argmax(-1))


def test_tokens_a_model_rules_out_are_never_drawn() -> None:
    logits = logits_of(8, 400, 300)
    logits[:, 10:] = -torch.inf
    for params in PARAMS:
        drawn = sample(logits, RowParams.of([params] * 400), keys_of([1] * 400, list(range(400))))
        assert int(drawn.max()) < 10


def test_a_row_without_numbers_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # A wide bound gives every row several candidates, so that their count says nothing about the rows.
    monkeypatch.setattr(warping, "_ROUNDING", 3.0)
    full = SamplingParams(temperature=1.0)
    for seed in range(200):
        logits, keys = logits_of(seed, 3, 40), keys_of([seed] * 3, [1, 2, 3])
        expected = sample(logits, RowParams.of([full] * 3), keys)
        logits[1] = torch.nan
        drawn = sample(logits, RowParams.of([full] * 3), keys)
        assert (drawn[0], drawn[2]) == (expected[0], expected[2])


@pytest.mark.parametrize("params", [*PARAMS, SamplingParams(), None], ids=str)
def test_a_device_draws_what_a_cpu_draws(monkeypatch: pytest.MonkeyPatch, params: SamplingParams | None) -> None:
    """By `params`, or by all of them in one batch."""
    for seed, (vocab, spread) in enumerate([(3, 1.0), (128, 2.0), (129, 0.1), (1000, 0.2), (1000, 4.0)]):
        every = [*PARAMS, SamplingParams()] * 8 if params is None else [params] * 100
        logits, keys = logits_of(seed, len(every), vocab, spread), keys_of([seed] * len(every), list(range(len(every))))
        with monkeypatch.context() as patch:
            patch.setattr(warping, "_on_cpu", lambda _logits: False)
            drawn = sample(logits, RowParams.of(every), keys)
        assert torch.equal(drawn, sample(logits, RowParams.of(every), keys))


@pytest.mark.parametrize("params", [[SamplingParams()], PARAMS, [*PARAMS, SamplingParams()], PARAMS[:2], PARAMS[2:]])
def test_drawing_on_a_device_reads_nothing_from_it(params: list[SamplingParams]) -> None:
    """There is nothing in what is on `meta`, so that whatever reads fails."""
    meta = torch.device("meta")
    logits, keys = logits_of(0, len(params), 500).to(meta), keys_of([1] * len(params), [0] * len(params)).to(meta)
    drawn = draw(logits, RowParams.of(params, meta), keys)
    assert (drawn.shape, drawn.dtype) == ((len(params),), torch.int64)


def test_who_has_to_be_drawn_whole_is_left_undecided_and_then_is() -> None:
    logits, keys = logits_of(0, 40, 1000, 0.1), keys_of([1] * 40, list(range(40)))
    rows = RowParams.of([SamplingParams(temperature=1.0, top_p=0.9)] * 20 + [SamplingParams(temperature=1.0)] * 20)
    drawn = draw(logits, rows, keys)
    assert (drawn[:20] == UNDECIDED).all()
    drawn[:20] = draw_whole(logits, rows, keys, torch.arange(20))
    assert torch.equal(drawn, sample(logits, rows, keys))
