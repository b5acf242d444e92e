"""What prompts have in common is run once, for those who may share; and every text is what it would have been."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from goodspeed.engine import Engine, Layout, Segment
from goodspeed.timing import PassSample
from goodspeed_server.live import LiveStream
from goodspeed_server.observer import RoundRecord
from goodspeed_server.settings import PrefixSharing
from goodspeed_server.sharing import SHORTEST_SHARED, Sharing
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_server import target_text
from tests.test_server_isolation import POISON, alone, engine, every_layout, plant, serving_poisoned, some
from tests.tiny_models import CONTEXT

SYSTEM = some(random.Random(0), 40)
QUESTIONS = [[number, *some(random.Random(number), 5)] for number in range(4)]
PROMPTS = [SYSTEM + question for question in QUESTIONS]
LENGTH = len(PROMPTS[0])


def run_and_reused(records: Sequence[RoundRecord]) -> tuple[int, int]:
    return sum(record.prefilled for record in records), sum(record.reused for record in records)


async def written(peer: Peer, number: int, prompt: Sequence[int]) -> list[int]:
    return await peer.generate(number, prompt, max_draft=0, max_new_tokens=12)


def expected(prompt: Sequence[int]) -> list[int]:
    return target_text(list(prompt), 12)


@every_layout
async def test_one_prompt_after_another(layout: Layout, records: list[RoundRecord]) -> None:
    """What the text before has left in its row is as good as what a text has in it that goes on."""
    async with serving(tiny_settings(layout=layout)) as (_, address), linked(address) as peer:
        for number, prompt in enumerate(PROMPTS):
            assert await written(peer, number, prompt) == expected(prompt)
    whole, rest = LENGTH - 1, LENGTH - 1 - len(SYSTEM)
    assert run_and_reused(records) == (whole + 3 * rest, 3 * len(SYSTEM))


@every_layout
async def test_prompts_that_come_together(layout: Layout, records: list[RoundRecord]) -> None:
    """The first is run, in chunks, and the others wait for it."""
    settings = tiny_settings(layout=layout, rounds={"prefill_chunk": 8})
    async with (
        serving(settings) as (_, address),
        linked(address) as a,
        linked(address) as b,
        linked(address) as c,
        linked(address) as d,
    ):
        texts = await asyncio.gather(
            *(written(peer, 0, prompt) for peer, prompt in zip((a, b, c, d), PROMPTS, strict=True))
        )
    assert texts == [expected(prompt) for prompt in PROMPTS]
    run, reused = run_and_reused(records)
    assert run + reused == 4 * (LENGTH - 1)
    assert reused >= 3 * len(SYSTEM) - 3 * 8, "all but what a newcomer had run before the first was known"


@pytest.mark.parametrize(("among", "shares"), [("off", 0), ("holder", 0), ("all", 1)])
async def test_with_whom_prompts_are_shared(among: PrefixSharing, shares: int, records: list[RoundRecord]) -> None:
    settings = tiny_settings(rounds={"prefix_sharing": among})
    async with (
        serving(settings) as (_, address),
        linked(address, greet=False) as one,
        linked(address, greet=False) as another,
    ):
        await one.greet(name="one")
        await another.greet(name="another")
        assert await written(one, 0, PROMPTS[0]) == expected(PROMPTS[0])
        assert await written(another, 0, PROMPTS[1]) == expected(PROMPTS[1])
    assert run_and_reused(records)[1] == shares * len(SYSTEM)


class Prompt:
    """Of a stream, as far as sharing looks at it; none is like another."""

    def __init__(self, row: int) -> None:
        self.row = row
        self.stream = SimpleNamespace(tokens=[*SYSTEM, 100 + row, 0], cached=0)
        self.account = SimpleNamespace(holder="one")


def test_who_rests_and_comes_back_waits_for_nobody_that_waits_for_it() -> None:
    """It finds no memory for a moment; those behind it go on, one of them without a token of the pass."""
    leader, second, third = (Prompt(row) for row in range(3))
    sharing = Sharing("holder", list)

    def going_on(*prompts: Prompt) -> Sequence[object]:
        return sharing.begin([], cast(list[LiveStream], prompts)).going_on

    assert going_on(leader, second, third) == [leader]
    assert going_on(second, third)
    assert going_on(leader, third)


async def test_a_prompt_that_is_all_there_is_not_run_at_all(records: list[RoundRecord]) -> None:
    async with serving() as (_, address), linked(address) as peer:
        for number in range(2):
            assert await written(peer, number, PROMPTS[0]) == expected(PROMPTS[0])
    assert run_and_reused(records) == (LENGTH - 1, LENGTH - 1)


async def test_how_long_a_pass_takes_that_only_copies_is_not_learned_from(
    records: list[RoundRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first text is kept in another row when the second takes its own, and copied back for the third."""
    samples: list[PassSample] = []
    async with serving() as (server, address), linked(address) as peer:
        monkeypatch.setattr(server._rounds.planner.meter, "observe", samples.append)
        for number, prompt in enumerate([PROMPTS[0], QUESTIONS[1] + SYSTEM, PROMPTS[0]]):
            assert await written(peer, number, prompt) == expected(prompt)
    (only_copied,) = (record for record in records if not (record.streams or record.prompts))
    assert only_copied.reused == LENGTH - 1
    assert len(samples) == len(records) - 1
    assert all(sample.rows and sample.tokens for sample in samples)


async def test_a_conversation_goes_on_behind_the_text_that_was_written(records: list[RoundRecord]) -> None:
    async with serving() as (_, address), linked(address) as peer:
        text = await written(peer, 0, PROMPTS[0])
        longer = [*PROMPTS[0], *text, *QUESTIONS[1]]
        assert await written(peer, 1, longer) == expected(longer)
    # The last token that was written went through no pass.
    assert run_and_reused(records)[1] == LENGTH + len(text) - 1


@pytest.mark.parametrize(("back", "reused"), [(1, LENGTH - 1), (0, 0)])
async def test_a_conversation_that_pauses_finds_its_beginning(
    back: int, reused: int, records: list[RoundRecord]
) -> None:
    """Of three that took the lower of two rows one after another, what was of use last is still in the other."""
    apart = [question + SYSTEM for question in QUESTIONS]
    async with serving(tiny_settings(max_streams=2)) as (_, address), linked(address) as peer:
        for number, prompt in enumerate([*apart[:3], apart[back]]):
            assert await written(peer, number, prompt) == expected(prompt)
    assert run_and_reused(records)[1] == reused


@pytest.mark.parametrize(("shared", "reused"), [(SHORTEST_SHARED - 1, 0), (SHORTEST_SHARED, SHORTEST_SHARED)])
async def test_less_than_is_worth_it_is_run_again(shared: int, reused: int, records: list[RoundRecord]) -> None:
    async with serving() as (_, address), linked(address) as peer:
        for number, question in enumerate(QUESTIONS[:2]):
            prompt = SYSTEM[:shared] + question
            assert await written(peer, number, prompt) == expected(prompt)
    assert run_and_reused(records)[1] == reused


async def test_what_a_text_without_numbers_has_begun_with_is_run_again(records: list[RoundRecord]) -> None:
    """For whatever became of it in this row may be in another's copy."""
    async with serving_poisoned() as (_, address), linked(address) as peer:
        assert await written(peer, 0, PROMPTS[0]) == expected(PROMPTS[0])
        await peer.open(1, [*SYSTEM, POISON, 1], max_draft=0)
        assert (await peer.failure()).code == "not_finite"
        assert run_and_reused(records)[1] == len(SYSTEM)
        assert await written(peer, 2, PROMPTS[0]) == expected(PROMPTS[0])
    assert run_and_reused(records)[1] == len(SYSTEM)


@every_layout
def test_what_is_copied_is_what_is_there_and_nothing_else_changes(layout: Layout) -> None:
    served, rng = engine(layout), random.Random(7)
    text, other, rest = some(rng, 40), some(rng, 30), some(rng, 9)
    served.forward([Segment(0, 0, text, 0), Segment(1, 0, other, 0)])
    plant(served, 2, 0, 7.0)
    before = {layer: [cached.clone() for cached in kept] for layer, kept in served._slab._layers.items()}
    served.copy(0, 2, 33)
    for layer, kept in served._slab._layers.items():
        for cached, old in zip(kept, before[layer], strict=True):
            assert torch.equal(cached[2, :, :33], old[0, :, :33])
            assert torch.equal(cached[2, :, 33:], old[2, :, 33:])
            assert torch.equal(cached[:2], old[:2])
    logits = served.forward([Segment(2, 33, rest, 9)])
    torch.testing.assert_close(logits, alone(layout, [*text[:33], *rest], 9), atol=1e-4, rtol=0)


@every_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_behind_what_is_copied_the_owner_before_is_not_seen(layout: Layout, value: float) -> None:
    served, rng = engine(layout), random.Random(8)
    text, rest = some(rng, 60), some(rng, 5)
    rows = [served.allocate() for _ in range(2)]
    served.forward([Segment(row, 0, text, 0) for row in rows])
    plant(served, 1, 0, value)
    served.release(1)
    assert served.allocate() == 1
    served.copy(0, 1, 20)
    # The longer text is what the padded layout reads the other's row up to.
    logits = served.forward([Segment(0, 60, rest, 1), Segment(1, 20, rest, 5)])[1:]
    torch.testing.assert_close(logits, alone(layout, [*text[:20], *rest], 5), atol=1e-4, rtol=0)


def test_a_row_holds_no_more_than_it_was_given() -> None:
    served: Engine = engine("packed")
    served.forward([Segment(0, 0, [1, 2, 3], 0)])
    with pytest.raises(AssertionError):
        served.copy(0, 1, 4)
    assert served.max_length == CONTEXT
