"""Guesses beyond the committed tokens: what is kept, what is dropped, and where a draft stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from goodspeed.messages import DraftEnd
from goodspeed.sampling import SamplingParams
from goodspeed.verification import (
    DraftDistribution,
    Rule,
    draw_drafted,
    judge_coupled,
    judge_ratio,
    pack_q,
    quantise,
    unpack_q,
)
from goodspeed_agent.ahead import Ahead, AheadMode
from goodspeed_agent.drafters import DraftSession, Guess, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.lookahead import Calibration, Lookahead, Wanted
from goodspeed_agent.steps import alone
from tests.tiny_models import VOCAB, tiny_llama

MODEL = tiny_llama()
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)


class Counter:
    """Goes on counting; says how sure it is of every number, and which it was asked for."""

    def __init__(self, confidence: Sequence[float] = (), limit: int = 10**6) -> None:
        self.confidence = confidence
        self.limit = limit
        self.computed: list[int] = []

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        for token in range(tokens[-1] + 1, tokens[-1] + 1 + self.limit):
            self.computed.append(token)
            yield Guess(token, self.confidence[token] if token < len(self.confidence) else 0.95)


def lookahead(
    session: DraftSession, policy: Ahead | None = None, calibration: Calibration | None = None, rule: Rule = "coupled"
) -> Lookahead:
    return Lookahead(session, rule, calibration or Calibration(), policy or Ahead())


def draft(looking: Lookahead, tokens: Sequence[int], budget: int, price: float = 0.0) -> list[int]:
    return [guess.token for guess in alone(looking.draft(tokens, budget, price))[0]]


def test_what_was_guessed_ahead_is_not_computed_again() -> None:
    session = Counter()
    looking = lookahead(session)
    assert draft(looking, [0], 3) == [1, 2, 3]
    assert [alone(looking.extend()) for _ in range(3)] == [True] * 3
    session.computed.clear()
    assert draft(looking, [0, 1, 2, 3, 4], 4) == [5, 6, 7, 8]
    assert session.computed == [7, 8]


@pytest.mark.parametrize("committed", [[1, 2, 9], [9], [1, 2, 3, 9], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_any_other_outcome_starts_anew(committed: list[int]) -> None:
    session = Counter()
    looking = lookahead(session)
    draft(looking, [0], 3)
    alone(looking.extend())
    alone(looking.extend())
    session.computed.clear()
    last = committed[-1]
    assert draft(looking, [0, *committed], 2) == [last + 1, last + 2]
    assert session.computed == [last + 1, last + 2]


def test_a_drafter_that_came_to_an_end_is_asked_again() -> None:
    looking = lookahead(Counter(limit=3))
    assert draft(looking, [0], 9) == [1, 2, 3]
    assert not alone(looking.extend())
    assert draft(looking, [0, 1, 2], 9) == [3, 4, 5]


@settings(max_examples=30)
@given(
    st.sampled_from(["coupled", "ratio"]),
    st.sampled_from([SamplingParams(), WARM]),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=6),
)
def test_a_models_draft_is_the_same_whether_it_was_guessed_early_or_late(
    rule: Rule, params: SamplingParams, steps: list[tuple[int, int, int]]
) -> None:
    """Its noise aside, which the ratio rule has anew for each guess. What is kept is kept for the tokens before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goodspeed.rules.Ratio._unused", lambda self: params.seed)
        _draft_early_and_late(rule, params, steps)


def _draft_early_and_late(rule: Rule, params: SamplingParams, steps: list[tuple[int, int, int]]) -> None:
    drafter = ModelDrafter(MODEL, "tiny", None)
    looking = lookahead(drafter.open(params, rule=rule, vocab_size=VOCAB), rule=rule)
    text = [3, 1, 4, 1, 5, 3, 1]
    for budget, further, kept in steps:
        fresh = drafter.open(params, rule=rule, vocab_size=VOCAB)
        known = [guess.token for guess in islice(fresh.guesses(text), budget + 1)]
        assert draft(looking, text, budget) == known[:budget]
        for _ in range(further):
            alone(looking.extend())
        # `kept` at its largest is a verdict that accepts everything, bonus token included.
        text += known if kept == 5 else [*known[: min(kept, budget)], 7]


def test_a_search_that_has_come_to_its_end_is_made_again_from_further_on() -> None:
    # The first match is short, so not much is said behind it; what was said makes the next match longer.
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    looking = lookahead(SuffixDrafter().open(SamplingParams(), rule="coupled", vocab_size=VOCAB))
    assert draft(looking, text, 2) == [3, 4]
    assert [alone(looking.extend()) for _ in range(2)] == [True, True]
    assert draft(looking, [*text, 3, 4, 5], 4) == [6, 7, 8, 9]


def test_a_draft_ends_before_the_first_token_that_is_not_worth_its_price() -> None:
    confidence = [0.0, 0.95, 0.85, 0.95, 0.15, 0.95]
    at = [(index + 0.5) / 10 for index in (9, 8, 9, 1)]  # what a fresh calibration makes of them
    chances = np.cumprod(at)
    for price, expected in [(0.0, [1, 2, 3, 4, 5]), (chances[3] * 0.99, [1, 2, 3, 4]), (0.5, [1, 2, 3]), (0.96, [])]:
        assert draft(lookahead(Counter(confidence)), [0], 5, price) == expected


def test_what_was_not_worth_sending_still_counts_as_guessed() -> None:
    session = Counter([0.0, 0.95, 0.15])
    looking = lookahead(session)
    assert draft(looking, [0], 4, price=0.5) == [1]
    assert draft(looking, [0, 1, 2], 1) == [3]
    assert session.computed == [1, 2, 3]


def test_under_the_ratio_rule_only_what_was_sent_is_a_witness() -> None:
    """A guess that was not sent comes true by chance alone there: the target draws with coins of its own."""
    calibration = Calibration()
    looking = lookahead(Counter([0.0, 0.35, 0.35]), calibration=calibration, rule="ratio")
    guesses, end = alone(looking.draft([0], 4, price=0.3))
    assert ([guess.token for guess in guesses], end) == ([1], DraftEnd.PRICED_OUT), "the first is sent at any price"
    for _ in range(50):
        alone(looking.draft([0, 1, 7], 1, price=0.3))
        alone(looking.draft([0], 4, price=0.3))
    assert calibration.chance(0.35) > 0.35


def test_confidence_is_corrected_by_what_comes_true() -> None:
    calibration = Calibration()
    looking = lookahead(Counter([0.0] + [0.95] * 400), calibration=calibration)
    text = [0]
    for _ in range(100):
        (guess,) = draft(looking, text, 1)
        text.append(guess + 1)  # never what was guessed
    assert calibration.chance(0.95) < 0.05
    assert calibration.chance(0.45) == pytest.approx(0.45)


def test_calibration_counts_shares() -> None:
    calibration = Calibration(prior_weight=2.0, memory=1e9)
    for right in [True, False, False, True, True, True]:
        calibration.observe(0.31, right)
    calibration.observe(1.0, True)
    assert calibration.chance(0.39) == pytest.approx((2 * 0.35 + 4) / 8)
    assert calibration.chance(0.99) == pytest.approx((2 * 0.95 + 1) / 3)
    assert calibration.chance(0.0) == pytest.approx(0.05)


def test_the_hit_rate_counts_verdicts_that_confirmed_what_was_guessed_beyond_the_draft() -> None:
    policy = Ahead()
    looking = lookahead(Counter(), policy)
    draft(looking, [0], 2)
    draft(looking, [0, 1, 2, 3], 2)
    assert policy.hit_rate == 0.5, "nothing had been guessed beyond the draft"
    alone(looking.extend())
    draft(looking, [0, 1, 2, 3, 4, 5, 6], 2)
    assert policy.hit_rate > 0.5
    before = policy.hit_rate
    alone(looking.extend())
    draft(looking, [0, 1, 2, 3, 4, 5, 6, 9], 2)
    assert policy.hit_rate < before


def test_what_a_stream_left_behind_while_it_was_decoded_alone_is_no_evidence() -> None:
    policy = Ahead()
    looking = lookahead(Counter(), policy)
    draft(looking, [0], 2)
    alone(looking.extend())
    draft(looking, [0, *range(1, 40)], 2)
    assert policy.hit_rate == 0.5


def test_auto_stops_where_it_does_not_pay_and_looks_again() -> None:
    policy = Ahead("auto")
    assert policy.tokens(4, 100) == 5
    for _ in range(60):
        policy.observe(stood=False)
    asked = [policy.tokens(4, 100) for _ in range(64)]
    assert sum(asked) == 4
    assert set(asked) == {0, 1}
    for _ in range(60):
        policy.observe(stood=True)
    assert policy.tokens(4, 100) == 5


def test_nothing_is_guessed_behind_the_end_of_the_text() -> None:
    assert [Ahead("on").tokens(4, room) for room in (9, 5, 2, 0)] == [5, 5, 2, 0]


@pytest.mark.parametrize(("mode", "expected"), [("on", 5), ("off", 0)])
def test_on_and_off_are_the_users_word(mode: AheadMode, expected: int) -> None:
    policy = Ahead(mode)
    for _ in range(60):
        policy.observe(stood=False)
    assert policy.tokens(4, 100) == expected


def test_a_token_that_would_be_in_the_verdicts_way_is_not_started() -> None:
    policy = Ahead()
    policy.observe(stood=False)
    assert policy.starts(0.0), "nothing is known yet"
    policy.waited(0.1)
    policy.took(0.04)
    assert policy.starts(0.05)
    assert not policy.starts(0.07)
    for _ in range(10):
        policy.observe(stood=True)
    assert policy.starts(0.07), "what is likely to be of use is begun all the same"
    assert Ahead("on").starts(9.0)


@given(st.data())
def test_any_stop_is_lossless_under_the_coupled_rule(data: st.DataObject) -> None:
    """However a draft is cut, by its own tokens even, what is committed is the target's own text."""
    truth = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12))
    text: list[int] = []
    while len(text) < len(truth) - 1:
        rest = truth[len(text) :]
        guessed = data.draw(st.lists(st.integers(0, 3), max_size=len(rest) - 1))
        judgement = judge_coupled(guessed, rest[: len(guessed) + 1])
        text += [*guessed[: judgement.accepted], judgement.token]
        assert text == truth[: len(text)]


# The ratio rule over many seeds: a drafter near the target, whose draft stops where the next token is not worth its
# price, and which guesses on beyond it. The text must be the target's, token by token in distribution.

TARGET = torch.tensor([0.02, 0.30, 0.00, 0.25, 0.13, 0.30])
AFTER = torch.stack([TARGET.roll(shift) for shift in range(6)])  # [token before, 6]
DRAFT = [quantise(np.arange(6), ((p + 0.1) ** 1.3 * torch.linspace(0.6, 1.4, 6)).numpy()) for p in AFTER]


class Sketch:
    """Drafts from `DRAFT`, surer of itself behind some tokens than behind others."""

    def __init__(self, seed: int, confidence: Callable[[DraftDistribution, int], float]) -> None:
        self.seed = seed
        self.confidence = confidence

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        last = tokens[-1]
        for position in range(len(tokens), 10**6):
            q = DRAFT[last]
            last = draw_drafted(q, self.seed, position)
            yield Guess(last, self.confidence(q, last), pack_q([q]))


def p_value(confidence: Callable[[DraftDistribution, int], float], price: float, draws: int = 2500) -> float:
    """Of the first two tokens of many texts, under the target's distribution; price and drafting ahead are on."""
    counts = np.zeros((6, 6))
    stopped = 0
    for seed in range(draws):
        text, looking = [0], lookahead(Sketch(seed, confidence), rule="ratio")
        while len(text) < 3:
            guesses, end = alone(looking.draft(text, 3, price))
            stopped += end is DraftEnd.PRICED_OUT
            alone(looking.extend())
            tokens = [guess.token for guess in guesses]
            q = unpack_q(b"".join(guess.q for guess in guesses), tokens, 6)
            judgement = judge_ratio(AFTER[[text[-1], *tokens]].log(), tokens, q, seed, len(text))
            text += [*tokens[: judgement.accepted], judgement.token]
        counts[text[1], text[2]] += 1
    assert draws / 4 < stopped, "the price has to bite for this to show anything"
    expected = (AFTER[0][:, None] * AFTER).double().numpy()
    possible = expected > 0
    assert not counts[~possible].any()
    return float(stats.chisquare(counts[possible], expected[possible] / expected.sum() * draws).pvalue)


def test_a_stop_decided_before_the_draw_is_lossless_under_the_ratio_rule() -> None:
    assert p_value(lambda q, token: float(q.p.max()) + 0.4 * (int(q.tokens[0]) % 2), price=0.3) > 1e-4


def test_a_stop_that_looks_at_the_drawn_token_is_not() -> None:
    assert p_value(lambda q, token: q.probability(token), price=0.06) < 1e-9


def handed(looking: Lookahead, wanted: Wanted) -> tuple[list[int], DraftEnd]:
    tokens = []
    while isinstance(guess := alone(looking.further(wanted)), Guess):
        tokens.append(guess.token)
    return tokens, guess


@pytest.mark.parametrize(
    ("overtaken", "expected"),
    [
        (0, ([], DraftEnd.PRICED_OUT)),
        (1, ([1, 2, 3], DraftEnd.PRICED_OUT)),  # the doubtful first one is not verified, and has no price
        (2, ([1, 2, 3], DraftEnd.PRICED_OUT)),
        (4, ([1, 2, 3, 4, 5, 6], DraftEnd.FAR_ENOUGH)),
    ],
)
def test_the_price_is_asked_of_what_will_be_verified_alone(
    overtaken: int, expected: tuple[list[int], DraftEnd]
) -> None:
    looking = lookahead(Counter([0.0, 0.15, 0.95, 0.95, 0.15]))
    looking.follow([0], 6)
    assert handed(looking, Wanted(6, price=0.5, overtaken=overtaken)) == expected


@pytest.mark.parametrize(("rule", "overtaken", "expected"), [("coupled", 2, [1, 2]), ("ratio", 2, [1, 2, 3])])
def test_under_the_ratio_rule_the_first_that_is_verified_is_sent_at_any_price(
    rule: Rule, overtaken: int, expected: list[int]
) -> None:
    looking = lookahead(Counter([0.0, 0.95, 0.95, 0.15, 0.15]), rule=rule)
    looking.follow([0], 6)
    assert handed(looking, Wanted(6, price=0.5, overtaken=overtaken)) == (expected, DraftEnd.PRICED_OUT)


@pytest.mark.parametrize(
    ("rule", "overtaken", "learns"), [("coupled", 1, True), ("ratio", 1, False), ("ratio", 0, True)]
)
@pytest.mark.parametrize("right", [True, False])
def test_whoever_guesses_along_learns_from_what_was_verified(
    rule: Rule, overtaken: int, learns: bool, right: bool
) -> None:
    """Under the ratio rule one that was overtaken comes true by chance alone; where the noise is shared all teach."""
    calibration = Calibration()
    looking = lookahead(Counter([0.0, 0.35]), calibration=calibration, rule=rule)
    before = calibration.chance(0.35)
    looking.follow([0], 1)
    assert handed(looking, Wanted(1, overtaken=overtaken)) == ([1], DraftEnd.FAR_ENOUGH)
    looking.follow([0, 1 if right else 9], 1)
    assert (calibration.chance(0.35) > before) == (learns and right)
    assert (calibration.chance(0.35) < before) == (learns and not right)


def test_what_the_server_holds_nothing_of_is_handed_out_again() -> None:
    session = Counter()
    looking = lookahead(session)
    chain = looking.follow([0], 3)
    assert handed(looking, Wanted(3))[0] == [1, 2, 3]
    assert looking.follow([0, 1], 3) == chain
    assert handed(looking, Wanted(3))[0] == [4]
    assert looking.follow([0, 1], 3, anew=True) == chain
    assert handed(looking, Wanted(3))[0] == [2, 3, 4]
    assert session.computed == [1, 2, 3, 4]


def test_a_new_chain_begins_behind_what_the_server_decoded_itself() -> None:
    looking = lookahead(Counter())
    chain = looking.follow([0], 3)
    assert handed(looking, Wanted(3))[0] == [1, 2, 3]
    looking.follow([0], 3, anew=True)
    assert handed(looking, Wanted(1))[0] == [1]
    later = looking.follow([0, 1, 2], 3)
    assert later != chain, "it has seen the first alone, and cannot be told what follows the second"
    assert handed(looking, Wanted(2))[0] == [3, 4]
