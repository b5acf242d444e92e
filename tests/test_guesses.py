"""Guesses that the server overtakes: held against an agent and a server that talk past each other, and the ratio rule
over many seeds, where only what lies behind the overtaken guesses is verified."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scipy import stats

from goodspeed.guesses import Guesses, Overtaken
from goodspeed.verification import DraftDistribution, draw_drafted, judge_ratio, quantise
from tests.test_verification import AFTER, honest

PROMPT = 2


def truth(position: int) -> int:
    """What is committed there; neighbours differ."""
    return position % 3


def q_of(token: int) -> DraftDistribution:
    return quantise(np.array([token]), np.ones(1, dtype=np.float32))


@dataclass
class Told:
    """All that an agent said from one beginning on, and how much of it the server has."""

    base: int
    tokens: list[int] = field(default_factory=list)
    q: list[DraftDistribution] = field(default_factory=list)
    ended: bool = False
    here: int = 0
    end_here: bool = False
    judged: int = 0
    broken: bool = False


@dataclass
class Piece:
    of: Told
    offset: int
    tokens: list[int]
    q: list[DraftDistribution]
    ended: bool


class Talk(RuleBasedStateMachine):
    """Guesses and verdicts cross on their way; each way keeps its order."""

    def __init__(self) -> None:
        super().__init__()
        self.guesses = Guesses()
        self.text = [truth(position) for position in range(PROMPT)]
        self.held: Told | None = None  # what the server was told last, broken or not
        self.known = PROMPT  # to the agent
        self.told = Told(PROMPT)
        self.pieces: deque[Piece] = deque()
        self.verdicts: deque[int] = deque()
        self.counted = 0

    @rule(right=st.lists(st.sampled_from([True] * 5 + [False]), max_size=4), ended=st.booleans())
    def guess(self, right: list[bool], ended: bool) -> None:
        told = self.told
        if told.ended:
            right, ended = [], True  # it has nothing more to say, and may say so again
        ended = ended and len(told.tokens) + len(right) > 0
        if not right and not ended:
            return
        first, offset = told.base + len(told.tokens), len(told.tokens)
        tokens = [truth(first + number) if fine else 9 for number, fine in enumerate(right)]
        piece = Piece(told, offset, tokens, [q_of(token) for token in tokens], ended)
        told.tokens += piece.tokens
        told.q += piece.q
        told.ended = ended
        self.pieces.append(piece)

    @rule(count=st.integers(1, 4))
    def commit(self, count: int) -> None:
        self.text += [truth(len(self.text) + number) for number in range(count)]
        self.verdicts.append(len(self.text))
        self.follow()

    @precondition(lambda self: self.verdicts)
    @rule()
    def hear(self) -> None:
        self.known = self.verdicts.popleft()
        told = self.told
        overtaken = told.tokens[: self.known - told.base]
        stands = overtaken == self.text[told.base : self.known] and not told.ended
        if not stands:
            self.told = Told(self.known)

    @precondition(lambda self: self.pieces)
    @rule()
    def arrive(self) -> None:
        piece = self.pieces.popleft()
        told = piece.of
        stale = piece.offset > 0 and (told is not self.held or told.broken or told.end_here)
        assert self.guesses.continues(told.base, piece.offset) == (not stale)
        if stale:
            return
        self.guesses.take(told.base, piece.offset, piece.tokens, piece.q, ended=piece.ended)
        self.held = told
        told.here += len(piece.tokens)
        told.end_here = piece.ended
        self.follow()

    def follow(self) -> None:
        """Every guess is judged when the server is past it, and the first wrong one ends it; an end is judged as one.

        It counts where none was judged before: behind an end the agent begins anew, maybe where it had guessed already.
        """
        right, missed, told = 0, False, self.held
        while told and not told.broken and told.base + told.judged < len(self.text):
            if told.judged < told.here:
                told.broken = told.tokens[told.judged] != self.text[told.base + told.judged]
            elif told.end_here:
                told.broken = True
            else:
                break
            told.judged += 1
            if told.base + told.judged > self.counted:
                self.counted = told.base + told.judged
                right, missed = right + (not told.broken), told.broken
        assert self.guesses.follow(self.text) == Overtaken(right, missed)
        assert self.guesses.follow(self.text) == Overtaken(0, missed=False)

    @invariant()
    def a_draft_is_what_lies_behind_a_transcript_that_was_guessed(self) -> None:
        length, told = len(self.text), self.held
        expected: list[int] = []
        q: list[DraftDistribution] = []
        if told and told.tokens[: length - told.base] == self.text[told.base :]:
            behind = slice(length - told.base, told.here)
            expected, q = told.tokens[behind], told.q[behind]
        for most in (0, 1, 2, 64):
            tokens, drawn_from = self.guesses.beyond(length, most)
            assert tokens == expected[:most]
            assert list(map(id, drawn_from)) == list(map(id, q[:most]))
        if not told or told.broken:
            assert len(self.guesses) == 0
        else:
            assert len(self.guesses) == told.here + told.end_here


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=150, stateful_step_count=40)


def held(*tokens: int, base: int = 5) -> Guesses:
    guesses = Guesses()
    guesses.take(base, 0, tokens, [q_of(token) for token in tokens])
    return guesses


def test_the_tail_behind_right_guesses_is_a_draft() -> None:
    guesses = held(1, 2, 3, 4)
    assert guesses.follow([0] * 5 + [1, 2]) == Overtaken(2, missed=False)
    tokens, q = guesses.beyond(7, 9)
    assert tokens == [3, 4]
    assert [one.tokens.tolist() for one in q] == [[3], [4]]


def test_the_first_wrong_guess_takes_all_that_follow_with_it() -> None:
    guesses = held(1, 2, 3, 4)
    assert guesses.follow([0] * 5 + [1, 7, 3]) == Overtaken(1, missed=True)
    assert guesses.beyond(8, 9) == ([], [])
    assert not guesses.continues(5, 4)
    assert guesses.continues(8, 0)


def test_a_piece_upon_another_length_is_stale_though_it_would_fit_by_its_offset() -> None:
    guesses = held(1, base=8)
    assert guesses.continues(8, 1)
    assert not guesses.continues(5, 1)


def test_guesses_that_come_behind_the_transcript_are_held_against_it_as_well() -> None:
    guesses = held(1)
    text = [0] * 5 + [1, 2, 3]
    assert guesses.follow(text) == Overtaken(1, missed=False)
    guesses.take(5, 1, [2, 3, 4])
    assert guesses.follow(text) == Overtaken(2, missed=False)
    assert guesses.beyond(8, 9)[0] == [4]


def test_where_the_drafter_had_nothing_to_say_a_miss_is_counted_once() -> None:
    guesses = held(1)
    guesses.take(5, 1, [], ended=True)
    assert guesses.beyond(5, 9)[0] == [1], "the end is no token"
    assert guesses.follow([0] * 5 + [1]) == Overtaken(1, missed=False)
    assert guesses.beyond(6, 9) == ([], [])
    assert guesses.follow([0] * 5 + [1, 2]) == Overtaken(0, missed=True)
    assert guesses.follow([0] * 5 + [1, 2]) == Overtaken(0, missed=False)


def test_what_follows_an_end_is_stale_until_the_agent_begins_anew() -> None:
    guesses = held(1)
    guesses.take(5, 1, [], ended=True)
    assert not guesses.continues(5, 1)
    guesses.take(6, 0, [2])
    assert guesses.follow([0] * 5 + [1]) == Overtaken(0, missed=False)
    assert guesses.beyond(6, 9)[0] == [2]


def test_what_is_said_again_counts_no_more() -> None:
    guesses, text = held(1, 2, 3), [0] * 5 + [1, 2, 3]
    assert guesses.follow(text) == Overtaken(3, missed=False)
    guesses.take(5, 0, [1, 2, 3, 4])
    assert guesses.follow(text) == Overtaken(0, missed=False)
    assert guesses.beyond(8, 9)[0] == [4], "though it is a draft as any other"
    assert guesses.follow([*text, 4]) == Overtaken(1, missed=False)


def test_what_is_wrong_where_something_was_counted_is_dropped_and_counts_no_more() -> None:
    guesses, text = held(1, 2, 3), [0] * 5 + [1, 2, 3]
    guesses.follow(text)
    guesses.take(6, 0, [9, 3, 4])
    assert guesses.follow(text) == Overtaken(0, missed=False)
    assert len(guesses) == 0


DRAFT = [honest(p) for p in AFTER]
DRAWS = 4_000


def p_value(*, wrong_tail: bool = False) -> float:
    """Of the first two tokens of many texts, under the target's distribution; 0 if something impossible came.

    The agent guesses both; the server decodes the first by itself, and the second guess is what remains.

    Args:
        wrong_tail: take the second guess for one upon what was committed, though it was drawn upon the first guess.
    """
    counts = np.zeros((6, 6))
    tails = 0
    for seed in range(DRAWS):
        first = draw_drafted(DRAFT[0], seed, 1)
        second = draw_drafted(DRAFT[first], seed, 2)
        guesses, text = Guesses(), [0]
        guesses.take(1, 0, [first], [DRAFT[0]])
        guesses.take(1, 1, [second], [DRAFT[first]])
        text.append(judge_ratio(AFTER[:1].log(), [], [], seed, 1).token)
        guesses.follow(text)
        tail, q = guesses.beyond(2, 1)
        if wrong_tail:
            tail, q = [second], [DRAFT[text[1]]]
        tails += len(tail)
        judgement = judge_ratio(AFTER[[text[1], *tail]].log(), tail, q, seed, 2)
        text += [*tail[: judgement.accepted], judgement.token]
        counts[text[1], text[2]] += 1
    assert tails > DRAWS / 8, "tails have to be verified for this to show anything"
    expected = (AFTER[0][:, None] * AFTER).double().numpy()
    possible = expected > 0
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible], expected[possible] / expected.sum() * DRAWS).pvalue)


def test_verifying_only_the_tail_of_right_guesses_is_lossless_under_the_ratio_rule() -> None:
    assert p_value() > 1e-4


def test_a_tail_that_was_drawn_upon_another_token_is_found() -> None:
    assert p_value(wrong_tail=True) < 1e-9
