from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.sampling import SamplingParams, gumbel, position_keys
from goodspeed.verification import Rule, unpack_q
from goodspeed_agent.drafters.suffix import SuffixDrafter, SuffixSession

WARM = SamplingParams(temperature=1.0, seed=3)


def session(params: SamplingParams | None = None, rule: Rule = "coupled") -> SuffixSession:
    opened = SuffixDrafter().open(params or SamplingParams(), rule=rule, vocab_size=1000)
    assert isinstance(opened, SuffixSession)
    return opened


def drafted(tokens: Sequence[int], budget: int, params: SamplingParams | None = None) -> list[int]:
    return guessed(session(params), tokens, budget)


def guessed(session: SuffixSession, tokens: Sequence[int], count: int) -> list[int]:
    return [guess.token for guess in islice(session.guesses(tokens), count)]


def test_text_goes_on_as_it_went_on_before() -> None:
    assert drafted([1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 3) == [4, 5, 6]


def test_without_a_match_there_is_nothing_to_say() -> None:
    assert drafted([1], 4) == []
    assert drafted([1, 2], 4) == []
    assert drafted([1, 2, 3, 4], 4) == []
    assert drafted([2, 7, 5, 7], 4) == []


def test_the_longest_match_decides() -> None:
    assert drafted([0, 1, 2, 50, 9, 1, 2, 60, 0, 1, 2], 1) == [50]


def test_among_equal_matches_the_most_frequent_and_then_the_latest_decides() -> None:
    assert drafted([1, 2, 50, 1, 2, 60, 1, 2, 50, 9, 1, 2], 1) == [50]
    assert drafted([8, 1, 2, 50, 7, 1, 2, 60, 6, 1, 2], 1) == [60]


def test_a_short_match_is_not_trusted_far() -> None:
    tokens = [1, 2, *range(10, 40), 99, 1, 2]
    assert drafted(tokens, 20) == [10, 11, 12, 13]
    tokens = [*range(10), *range(10, 40), 99, *range(10)]
    assert drafted(tokens, 20) == list(range(10, 30))


def test_a_loop_goes_on_as_a_loop() -> None:
    assert drafted([1, 2, 3] * 4, 7) == [1, 2, 3, 1, 2, 3, 1]
    assert drafted([5] * 6, 5) == [5] * 5


def test_with_a_temperature_the_counts_are_drawn_from_with_the_shared_noise() -> None:
    tokens = [1, 2, 50, 9, 1, 2, 60, 8, 1, 2, 50, 7, 1, 2]
    outcomes = set()
    for seed in range(40):
        (token,) = drafted(tokens, 1, SamplingParams(temperature=0.8, seed=seed))
        noise = gumbel(position_keys([seed], [len(tokens)]), np.array([50, 60], dtype=np.int32))
        assert token == (50 if np.log(2) + noise[0] > noise[1] else 60)
        outcomes.add(token)
    assert outcomes == {50, 60}


def test_for_the_ratio_rule_every_token_is_its_own_distribution() -> None:
    draft = list(islice(session(WARM, "ratio").guesses([1, 2, 3, 4, 5, 1, 2, 3]), 2))
    assert [guess.token for guess in draft] == [4, 5]
    for guess in draft:
        (q,) = unpack_q(guess.q, [guess.token], 1000)
        assert q.probability(guess.token) == 1.0


def test_a_longer_match_and_an_undisputed_token_are_surer() -> None:
    def confidence(*tokens: int) -> float:
        return next(session().guesses(tokens)).confidence

    short, long = confidence(1, 2, 50, 9, 1, 2), confidence(0, 1, 2, 50, 9, 0, 1, 2)
    disputed = confidence(1, 2, 50, 9, 1, 2, 60, 8, 1, 2, 50, 7, 1, 2)
    assert 0 < disputed < short < long < 1


def brute_force(tokens: Sequence[int], budget: int) -> set[int]:
    """The tokens that a greedy first choice may be: the most frequent behind the longest suffix seen before."""
    for length in range(16, 1, -1):
        places = [end for end in range(length, len(tokens)) if tokens[end - length : end] == tokens[-length:]]
        if places:
            counts = Counter(tokens[place] for place in places)
            return {token for token, count in counts.items() if count == max(counts.values())}
    return set()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=16), st.integers(1, 6))
def test_the_first_token_is_what_brute_force_finds(tokens: list[int], budget: int) -> None:
    guess = drafted(tokens, budget)
    allowed = brute_force(tokens, budget)
    assert len(guess) <= budget
    assert (guess[0] in allowed) if allowed else (guess == [])


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.lists(st.integers(1, 5), max_size=20))
@pytest.mark.parametrize("params", [SamplingParams(), WARM])
def test_growing_step_by_step_is_the_same_as_starting_afresh(
    params: SamplingParams, tokens: list[int], steps: list[int]
) -> None:
    growing = session(params)
    length = 1
    for step in steps:
        length = min(length + step, len(tokens))
        assert guessed(growing, tokens[:length], 4) == guessed(session(params), tokens[:length], 4)


def test_another_transcript_starts_the_index_afresh() -> None:
    used = session()
    guessed(used, [1, 2, 3, 1, 2], 4)
    other = [1, 2, 9, 1, 2]
    assert guessed(used, other, 4) == guessed(session(), other, 4)
    assert guessed(used, other[:2], 4) == []
