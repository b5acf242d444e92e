"""Windows that cover every known position once, batches that hold what the passages do, and merged outcomes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goodspeed.tuning.lessons import Row, accepted, coarse, coarse_log_p, coarse_log_q, collate, cut
from goodspeed.tuning.objectives import LOG_FLOOR, acceptance, forward_kl
from goodspeed.tuning.passages import Passage

VOCAB = 11


def passage(length: int, start: int, known: int, *, width: int = 4, seed: int = 0, client: str = "") -> Passage:
    """Random, and consistent: the support of each position is the likeliest tokens of one distribution."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(VOCAB, 0.7), known)
    support = np.argsort(-p, axis=-1)[:, :width]
    with np.errstate(divide="ignore"):
        log_p = np.maximum(np.log(np.take_along_axis(p, support, -1)), LOG_FLOOR)
    tokens = rng.integers(VOCAB, size=length)
    return Passage(tokens.astype(np.int32), start, support.astype(np.int32), log_p.astype(np.float16), client=client)


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    length = draw(st.integers(2, 40))
    start = draw(st.integers(1, length - 1))
    known = draw(st.integers(1, length - start))
    return passage(length, start, known, width=draw(st.integers(1, 5)), seed=draw(st.integers(0, 999)))


@settings(max_examples=50)
@given(st.lists(passages(), min_size=1, max_size=3), st.integers(2, 17))
def test_windows_cover_every_known_position_once(texts: list[Passage], length: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    for row in cut(texts, length):
        assert 0 <= row.begin < row.first < row.end <= len(row.passage.tokens)
        assert row.end - row.begin <= length
        # As much context as there is room for.
        assert row.begin == max(0, row.end - length)
        place = next(place for place, text in enumerate(texts) if text is row.passage)
        seen.update((place, position) for position in range(row.first, row.end))
    expected = {
        (i, position) for i, text in enumerate(texts) for position in range(text.start, text.start + text.known)
    }
    assert seen == Counter(expected)


@settings(max_examples=50)
@given(st.lists(passages(), min_size=1, max_size=3), st.integers(2, 17))
def test_a_batch_holds_what_its_rows_do(texts: list[Passage], length: int) -> None:
    rows = cut(texts, length)
    lesson = collate(rows)
    assert lesson.tokens.shape[1] == max(row.end - row.begin for row in rows)
    assert int(lesson.known.sum()) == sum(text.known for text in texts)
    for place, row in enumerate(rows):
        for at in range(lesson.known.shape[1]):
            position = row.begin + at + 1  # of the token that `at` is about
            known = row.first <= position < row.end
            assert bool(lesson.known[place, at]) == known
            if not known:
                continue
            text, source = row.passage, position - row.passage.start
            width = text.support.shape[1]
            assert int(lesson.tokens[place, at + 1]) == text.tokens[position]
            assert int(lesson.tokens[place, at]) == text.tokens[position - 1]
            assert lesson.support[place, at, :width].tolist() == text.support[source].tolist()
            assert lesson.log_p[place, at, :width].tolist() == text.log_p[source].astype(np.float32).tolist()
            assert (lesson.support[place, at, width:] < 0).all()
            assert (lesson.log_p[place, at, width:] == LOG_FLOOR).all()


def test_clients_stay_with_their_rows() -> None:
    texts = [passage(9, 1, 8, client="a"), passage(5, 2, 3, client="b")]
    lesson = collate(cut(texts, 6))
    assert lesson.clients == ("a", "a", "b")
    assert lesson.to(torch.device("cpu")).clients == lesson.clients


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, VOCAB))
def test_the_rest_is_one_outcome_for_both(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(VOCAB), 2)
    support = np.argsort(-p)[:width].copy()
    log_p = coarse_log_p(torch.from_numpy(np.log(p[support])))
    log_q = coarse_log_q(torch.from_numpy(np.log(q) + 5.0), torch.from_numpy(support))  # logits, not normalised
    for log, exact in ((log_p, p), (log_q, q)):
        expected = [*exact[support], 1 - exact[support].sum()]
        np.testing.assert_allclose(log.exp().numpy(), expected, atol=2e-9)
    exact_p, exact_q = torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))
    assert acceptance(log_p, log_q) >= acceptance(exact_p, exact_q) - 1e-8
    assert forward_kl(log_p, log_q) <= forward_kl(exact_p, exact_q) + 1e-6
    if width == VOCAB:
        assert abs(float(acceptance(log_p, log_q) - acceptance(exact_p, exact_q))) < 1e-8


def test_probabilities_of_nothing_are_floored() -> None:
    log_p = coarse_log_p(torch.tensor([0.0, -torch.inf]))
    log_q = coarse_log_q(torch.tensor([0.0, -100.0, 80.0]), torch.tensor([0, 1]))
    assert log_p.isfinite().all()
    assert log_q.tolist()[1] == LOG_FLOOR
    assert log_q.exp().sum() < 1 + 1e-6


def test_a_half_precision_draft_is_read_in_single() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16()
    support = torch.tensor([[0, 5]] * 3)
    found = coarse_log_q(logits, support)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, coarse_log_q(logits.float(), support))


def test_a_narrower_passage_in_a_batch_is_what_it_is_alone() -> None:
    """A place that holds no token is none of the draft's, either."""
    texts = [passage(8, 2, 6, width=5, seed=1), passage(8, 2, 6, width=2, seed=2)]
    logits = torch.randn(2, 7, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    rows = cut(texts, 8)
    together = collate(rows)
    rates = accepted(together, *coarse(together, logits))
    assert (rates[~together.known] == 0).all()
    for place, row in enumerate(rows):
        alone = collate([row])
        log_p, log_q = coarse(alone, logits[place : place + 1])
        torch.testing.assert_close(rates[place : place + 1], accepted(alone, log_p, log_q), atol=1e-5, rtol=0)
        wide_p, wide_q = coarse(together, logits)
        own = together.known.nonzero()[:, 0] == place
        torch.testing.assert_close(forward_kl(wide_p, wide_q)[own], forward_kl(log_p, log_q), atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_to_what_comes_right_before() -> None:
    text = passage(30, 20, 10)
    assert [(row.begin, row.first, row.end) for row in cut([text], 8)] == [(16, 20, 24), (20, 24, 28), (22, 28, 30)]
    assert cut([text], 30) == [Row(text, 0, 20, 30)]
