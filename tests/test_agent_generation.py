"""The pure half of a stream's life at the agent: messages in, messages out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.messages import Verdict
from goodspeed.sampling import SamplingParams
from goodspeed_agent.drafters import Guess
from goodspeed_agent.generation import Generation, Request
from tests.test_agent_driver import PROMPT, REQUEST, Guesser, expected


def test_a_server_that_decoded_on_meanwhile_sends_the_missing_suffix() -> None:
    generation = Generation(1, REQUEST)
    generation.opening()
    generation.draft([Guess(9, 0.5), Guess(9, 0.5)])
    assert generation.commit(Verdict(1, 3, 0, [4, 5, 6], 4)) == [4, 5, 6]
    assert generation.draft_due(4)


def test_an_opening_after_a_loss_carries_the_transcript() -> None:
    generation = Generation(5, REQUEST)
    first = generation.opening()
    assert (first.tokens, first.prompt_tokens, first.max_draft) == ([1, 2, 3], 3, 8)
    generation.draft([Guess(4, 0.5), Guess(9, 0.5)])
    assert not generation.draft_due(4)
    generation.commit(Verdict(5, 3, 1, [5], 4, 2))
    assert generation.draft_due(4)
    again = generation.opening()
    assert (again.tokens, again.prompt_tokens, again.max_new_tokens) == ([1, 2, 3, 4, 5], 3, 20)
    assert generation.speculation.num_accepted_tokens == 1


def test_a_draft_lost_with_its_link_is_not_counted_and_due_again() -> None:
    generation = Generation(5, REQUEST)
    generation.opening()
    generation.draft([Guess(4, 0.5), Guess(5, 0.5)])
    generation.opening()
    assert generation.draft_due(4)
    with pytest.raises(ProtocolError):
        generation.commit(Verdict(5, 3, 2, [6], 4))
    assert generation.speculation.num_spec_steps == 0


def test_nothing_is_due_at_budget_zero_or_at_the_end() -> None:
    generation = Generation(5, REQUEST)
    assert not generation.draft_due(0)
    generation.commit(Verdict(5, 3, 0, [4], 4, finish="stop"))
    assert not generation.draft_due(4)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(()), "the prompt is empty"),
        (Request((1,), max_new_tokens=0), "max_new_tokens is 0"),
        (Request((1,), max_draft=65), "max_draft is 65"),
        (Request((1,), max_draft=-1), "max_draft is -1"),
        (Request((1,), SamplingParams(temperature=-1)), "temperature is -1"),
    ],
)
def test_values_out_of_range(request_: Request, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        request_.validate()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_any_mixture_of_answers_keeps_the_transcript_the_targets(moves: list[int]) -> None:
    """Answers, repetitions, missing suffixes and losses in any order: the agent's copy is the target's prefix."""
    truth = [*PROMPT, *expected(200)]
    generation, guesser = Generation(1, replace(REQUEST, max_new_tokens=200)), Guesser()
    committed = len(PROMPT)
    generation.opening()
    for move in moves:
        length = generation.transcript.length
        if generation.draft_due(3):
            generation.draft(list(islice(guesser.guesses(generation.transcript.tokens), 3)))
        drafted = generation._drafted
        if move == 0:
            hits = sum(1 for _ in _agreeing(drafted, truth[length:]))
            committed = max(committed, length + hits + 1)
            verdict = Verdict(1, length, hits, [truth[length + hits]], 3, len(drafted))
        elif move == 1:
            verdict = Verdict(1, len(PROMPT), 0, truth[len(PROMPT) : committed], 3)
        elif move == 2:
            committed = max(committed, length + 2)
            verdict = Verdict(1, length, 0, truth[length:committed], 3)
        else:
            assert generation.opening().tokens == truth[:length]
            continue
        generation.commit(verdict)
        assert generation.transcript.tokens == truth[: generation.transcript.length]


def _agreeing(drafted: Sequence[int], truth: Sequence[int]) -> list[int]:
    hits = []
    for ours, theirs in zip(drafted, truth, strict=False):
        if ours != theirs:
            break
        hits.append(ours)
    return hits
