"""Where memory does not suffice: what is run in pieces is what would have been, and nobody but the one is lost."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed.errors import RuleFault, StreamFault
from goodspeed.sampling import SamplingParams
from goodspeed_server.fitting import Fitting, PassLimit, cut_up, halved, is_out_of_memory
from goodspeed_server.verifier import Chunk, Pass, Turn, Verifier
from tests.planted import PlantedEngine
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

ROWS = 5


def no_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class TightEngine(Engine):
    """Has memory for so many tokens in a pass, and none for some rows."""

    most = CONTEXT * ROWS
    never: frozenset[int] = frozenset()

    def _run(self, segments: Sequence[Segment]) -> Tensor:
        rows = {segment.row for segment in segments}
        if sum(segment.new for segment in segments) > self.most or rows & self.never:
            raise no_memory()
        return super()._run(segments)


@cache
def tight_engine() -> TightEngine:
    return TightEngine(tiny_llama(), rows=ROWS, max_length=CONTEXT, layout="packed", device="cpu", dtype=torch.float32)


def fitting(most: int = CONTEXT * ROWS, never: frozenset[int] = frozenset(), *, there: int | None = None) -> Fitting:
    engine = tight_engine()
    engine.most, engine.never = most, never
    return Fitting(Verifier(engine, "coupled", keep_logits=True), engine, there)


def prepared(seed: int) -> Pass:
    """A pass of a turn or a chunk in some rows of the engine, what stands before it cached."""
    rng = random.Random(seed)
    whole = fitting()
    turns, chunks = list[Turn](), list[Chunk]()
    for row in rng.sample(range(ROWS), rng.randint(1, ROWS)):
        text = [rng.randrange(VOCAB) for _ in range(rng.randint(2, 20))]
        whole.run(Pass([], [Chunk(row, 0, text[:-1])]))
        if rng.random() < 0.3:
            chunks.append(Chunk(row, len(text) - 1, [text[-1], *(rng.randrange(VOCAB) for _ in range(12))]))
            continue
        params = SamplingParams(temperature=rng.choice([0.0, 0.8]), seed=rng.randrange(99))
        alone = whole.run(Pass([Turn(row, len(text), text[-1], [], params)], []))
        drafted = [alone.judgements[0].token, *(rng.randrange(VOCAB) for _ in range(rng.randint(0, 5)))]
        turns.append(Turn(row, len(text), text[-1], drafted[rng.randint(0, 1) :], params, logprobs=rng.randint(-1, 2)))
    return Pass(turns, chunks)


def committed(work: Pass, judgements: Sequence[Any]) -> dict[int, list[int]]:
    return {
        turn.row: [*turn.drafted[: judgement.accepted], judgement.token]
        for turn, judgement in zip(work.turns, judgements, strict=True)
    }


def turn(row: int, *drafted: int) -> Turn:
    return Turn(row, 2, 1, drafted, SamplingParams())


passes = st.integers(0, 2**32 - 1).map(prepared)
sketches = st.builds(
    lambda rows, sizes, turns: Pass(
        [turn(row, *range(sizes[row] - 1)) for row in rows if row in turns],
        [Chunk(row, 3, range(sizes[row])) for row in rows if row not in turns],
    ),
    st.permutations(range(ROWS)).flatmap(lambda rows: st.integers(1, ROWS).map(lambda count: rows[:count])),
    st.lists(st.integers(1, 20), min_size=ROWS, max_size=ROWS),
    st.sets(st.integers(0, ROWS - 1)),
)
"""Passes that nothing runs."""


def tokens_of(pieces: Sequence[Pass]) -> dict[int, list[int]]:
    """What each row runs, in order; at most once in a piece."""
    ran: dict[int, list[int]] = {}
    for piece in pieces:
        assert len(set(piece.rows)) == len(piece.rows)
        for chunk in piece.chunks:
            ran.setdefault(chunk.row, []).extend(chunk.tokens)
        for turn in piece.turns:
            ran.setdefault(turn.row, []).extend([turn.last_token, *turn.drafted])
    return ran


@given(sketches, st.integers(1, 40))
def test_a_pass_is_cut_into_pieces_that_fit_and_are_the_whole(work: Pass, most: int) -> None:
    pieces = cut_up(work, most)
    assert tokens_of(pieces) == tokens_of([work])
    assert all(piece.tokens <= most or len(piece.turns) == 1 - len(piece.chunks) for piece in pieces)
    assert cut_up(work, None) == cut_up(work, work.tokens) == [work]


@given(sketches)
def test_what_does_not_fit_is_halved_until_it_is_one_token(work: Pass) -> None:
    pieces, smallest = [work], list[Pass]()
    while pieces:
        piece = pieces.pop(0)
        smaller = halved(piece)
        assert all(0 < part.tokens < piece.tokens for part in smaller)
        if len(piece.rows) > 1 or piece.chunks:
            assert not smaller or tokens_of(smaller) == tokens_of([piece])
        pieces = smaller + pieces
        smallest += [piece] * (not smaller)
    assert [piece.tokens for piece in smallest] == [1] * (len(work.turns) + sum(chunk.size for chunk in work.chunks))
    assert {piece.rows[0] for piece in smallest} == set(work.rows)


@settings(deadline=None, max_examples=20)
@given(passes, st.integers(1, 40))
def test_what_is_run_in_pieces_is_what_would_have_been(work: Pass, most: int) -> None:
    whole = fitting().run(work)
    assert whole.out_of_memory == 0
    assert not whole.cut
    assert not whole.faults
    tight = fitting(most)
    settled = tight.run(work)
    assert not settled.faults
    assert (settled.out_of_memory > 0) == (work.tokens > most)
    wanted, got = committed(whole.work, whole.judgements), committed(settled.work, settled.judgements)
    assert got.keys() == wanted.keys()
    for turn in work.turns:
        # A draft that was cut short commits less, and nothing else.
        assert got[turn.row] == wanted[turn.row][: len(got[turn.row])]
        assert turn.row in settled.cut or got[turn.row] == wanted[turn.row]
        assert turn.row not in settled.cut or turn.size > most
    assert tokens_of([Pass([], settled.work.chunks[i : i + 1]) for i in range(len(settled.work.chunks))]) == tokens_of(
        [Pass([], work.chunks)]
    )
    assert settled.logits is not None
    assert len(settled.logits) == sum(turn.size for turn in settled.work.turns)
    behind = Pass([Turn(c.row, c.start + c.size, c.tokens[-1], [], SamplingParams()) for c in work.chunks], [])
    cached = fitting().run(behind).judgements
    fitting().run(Pass([], work.chunks))
    assert fitting().run(behind).judgements == cached, "what stands in the slab is the same"


@settings(deadline=None, max_examples=15)
@given(passes, st.sets(st.integers(0, ROWS - 1), max_size=2))
def test_who_never_fits_is_left_out_and_nobody_else(work: Pass, never: set[int]) -> None:
    wanted = committed(work, fitting().run(work).judgements)
    settled = fitting(never=frozenset(never)).run(work)
    assert settled.lacking == never & set(work.rows)
    assert not settled.faults
    assert committed(settled.work, settled.judgements) == {row: wanted[row] for row in wanted.keys() - never}
    assert {chunk.row for chunk in settled.work.chunks} == {chunk.row for chunk in work.chunks} - never


def test_a_pass_that_fitted_nowhere_is_planned_smaller_the_next_time() -> None:
    tight = fitting(8)
    work = Pass([Turn(row, 1, 5, [1, 2, 3], SamplingParams()) for row in range(ROWS)], [])
    assert tight.run(work).out_of_memory == 2  # 20 tokens, then 12 of them
    assert tight.limit.tokens == 8
    assert tight.run(work).out_of_memory == 0


def test_what_is_known_from_the_start_is_not_learned_by_failing() -> None:
    tight, work = fitting(8, there=8), Pass([Turn(row, 1, 5, [1, 2, 3], SamplingParams()) for row in range(ROWS)], [])
    assert tight.most == 8
    settled = tight.run(work)
    assert (settled.out_of_memory, settled.cut) == (0, frozenset())
    assert committed(settled.work, settled.judgements) == committed(work, fitting().run(work).judgements)
    assert (tight.most, tight.limit.tokens) == (8, None)


def test_a_pass_is_no_larger_than_what_is_known_nor_than_what_was_learned() -> None:
    assert fitting().most is None
    tight = fitting(there=8)
    tight.limit.too_large(40)
    assert (tight.limit.tokens, tight.most) == (20, 8)
    tight.limit.too_large(8)
    assert (tight.limit.tokens, tight.most) == (4, 4)
    for _ in range(2000):
        tight.limit.fitted(tight.limit.tokens or 0)
    assert (tight.limit.tokens or 0) > 8
    assert tight.most == 8, "whatever fits for once"


def test_who_never_fits_takes_no_others_room_when_it_is_tried_again() -> None:
    tight = fitting(never=frozenset({1}))
    work = Pass([Turn(row, 1, 5, [1, 2, 3], SamplingParams()) for row in (0, 1, 2)], [])
    assert tight.run(work).lacking == {1}
    limit = tight.limit.tokens
    again = replace(work, turns=[work.turns[0], replace(work.turns[1], drafted=[]), work.turns[2]])
    for _ in range(20):
        assert tight.run(again).out_of_memory == 1
        assert (tight.limit.tokens or 99) >= (limit or 99)


@pytest.mark.parametrize("most", [1, 7, 100, 5000])
@pytest.mark.parametrize("passes", [200, 20_000])
def test_passes_hardly_ever_fail_twice_and_grow_again(most: int, passes: int) -> None:
    rng, limit, failed = random.Random(most), PassLimit(), 0
    for _ in range(passes):
        to_run = [min(rng.randint(1, 2 * most), limit.tokens or 2 * most)]
        while to_run:
            tokens = to_run.pop()
            if tokens > most:
                failed += 1
                limit.too_large(tokens)
                to_run += [tokens // 2, tokens - tokens // 2]
            else:
                limit.fitted(tokens)
        assert limit.tokens is None or limit.tokens >= 1
    assert 1 <= failed <= 3 + 2 * (passes // 64) ** 0.5
    for _ in range(passes):
        limit.fitted(limit.tokens or 1)
    assert limit.tokens is not None
    assert limit.tokens > most if passes > 1000 else limit.tokens >= most // 2, "memory has come back"


def test_a_limit_that_has_become_too_high_falls() -> None:
    limit = PassLimit()
    limit.fitted(1000)
    assert limit.tokens is None
    for tokens, most in ((1000, 500), (400, 200), (150, 75), (1, 1)):
        limit.too_large(tokens)
        assert limit.tokens == most


@pytest.mark.parametrize("had", [100, 512, 5000])
def test_after_memory_was_gone_for_a_while_passes_are_soon_as_large_as_before(had: int) -> None:
    limit = PassLimit()
    limit.fitted(had)
    for _ in range(200):  # passes, of which not one token fits
        tokens = min(had, limit.tokens or had)
        while tokens:
            limit.too_large(tokens)
            tokens //= 2
    assert limit.tokens == 1
    passes = 0
    while (most := limit.tokens or had) < had / 2:
        limit.fitted(most)
        passes += 1
    assert passes <= 64 * had.bit_length()


def test_memory_that_does_not_come_back_is_hardly_asked_for_again() -> None:
    limit, failed = PassLimit(), 0
    limit.fitted(1000)
    for _ in range(20_000):
        tokens = min(1000, limit.tokens or 1000)
        while tokens > 300:
            failed += 1
            limit.too_large(tokens)
            tokens //= 2
        limit.fitted(tokens)
    assert failed <= 12
    assert limit.tokens is not None
    assert limit.tokens >= 250


def raised_from(cause: Exception) -> Exception:
    error = RuleFault("the rule mine raised")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (no_memory(), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (raised_from(no_memory()), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (raised_from(ValueError("not enough memory")), False),
    ],
)
def test_what_says_that_memory_is_short(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_this_machine_says_so_too() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_whatever_else_fails_is_not_tried_again() -> None:
    def fail(_rows: int, _tokens: int) -> float:
        raise RuntimeError("the device is gone")

    engine = PlantedEngine(rows=2, cost=fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        Fitting(Verifier(engine, "coupled"), engine).run(Pass([], [Chunk(0, 0, [1, 2]), Chunk(1, 0, [1, 2])]))


def test_what_a_failed_pass_has_made_is_gone_before_the_next_is_tried() -> None:
    class Made:
        pass

    made: list[weakref.ref[Made]] = []

    def passes_of_one(_rows: int, tokens: int) -> float:
        assert all(ref() is None for ref in made), "the memory that the halves need"
        activations = Made()
        made.append(weakref.ref(activations))
        if tokens > 1:
            raise no_memory()
        return 0.01

    engine = PlantedEngine(rows=2, cost=passes_of_one)
    settled = Fitting(Verifier(engine, "coupled"), engine).run(Pass([], [Chunk(0, 0, [1, 2, 3, 4])]))
    assert (settled.out_of_memory, len(settled.work.chunks), len(made)) == (3, 4, 7)


def numbers_where(sound: Callable[[Segment], bool]) -> type[PlantedEngine]:
    class Sick(PlantedEngine):
        cleared: list[tuple[int, int]]

        def _run(self, segments: Sequence[Segment]) -> Tensor:
            logits = super()._run(segments)
            first = 0
            for segment in segments:
                if not sound(segment):
                    logits[first] = float("nan")
                first += segment.logits
            return logits

    return Sick


def test_a_draft_that_the_target_has_no_numbers_for_is_none() -> None:
    engine = numbers_where(lambda segment: 7 not in segment.tokens)(rows=3)
    settled = Fitting(Verifier(engine, "coupled"), engine).run(Pass([turn(0, 0, 0), turn(1, 7, 0), turn(2)], []))
    accepted = {
        turn.row: judgement.accepted for turn, judgement in zip(settled.work.turns, settled.judgements, strict=True)
    }
    assert accepted == {0: 2, 2: 0, 1: 0}
    assert settled.cut == {1}
    assert not settled.faults


@pytest.mark.parametrize("drafted", [(), (0, 0)])
def test_a_text_that_the_target_has_no_numbers_for_ends_and_no_other(drafted: tuple[int, ...]) -> None:
    engine = numbers_where(lambda segment: segment.row != 1)(rows=3)
    settled = Fitting(Verifier(engine, "coupled"), engine).run(Pass([turn(0, 0), turn(1, *drafted), turn(2)], []))
    assert [turn.row for turn in settled.work.turns] == [0, 2]
    (fault,) = settled.faults.items()
    assert fault[0] == 1
    assert isinstance(fault[1], StreamFault)
    assert fault[1].code == "not_finite"
