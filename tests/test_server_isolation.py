"""A stream has no part in another's trouble: not in what shares its batch, nor in what had its row before."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from goodspeed.engine import Engine, Layout, Segment
from goodspeed.messages import Draft, Verdict
from goodspeed.stream import Transcript
from goodspeed_server.fitting import Fitting
from goodspeed_server.server import VerificationServer
from goodspeed_server.verifier import Chunk, Pass, Turn, Verifier
from tests.serving import GREEDY, Peer, linked, tiny_settings, tiny_tokenizer
from tests.test_server import PROMPT, target_text
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

POISON = 96
"""A token of which the target's embedding is no number."""
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
no_numbers = pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])


def poisoned() -> Any:
    model: Any = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
    return model


def engine(layout: Layout, model: Any = None, rows: int = 3) -> Engine:
    return Engine(
        tiny_llama() if model is None else model,
        rows=rows, max_length=CONTEXT, layout=layout, device="cpu", dtype=torch.float32,
    )  # fmt: skip


def some(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB - 1) for _ in range(count)]


def plant(served: Engine, row: int, start: int, value: float) -> None:
    """Write into all slots of a row from one on, as a pass that went wrong would have."""
    served._written[row] = CONTEXT
    with torch.inference_mode():
        for keys, values in served._slab._layers.values():
            keys[row, :, start:] = value
            values[row, :, start:] = value


def alone(layout: Layout, text: Sequence[int], wanted: int) -> Tensor:
    return engine(layout).forward([Segment(0, 0, text, wanted)])


@every_layout
@no_numbers
def test_what_the_owner_before_left_in_a_row_is_not_seen(layout: Layout, value: float) -> None:
    served, rng = engine(layout), random.Random(1)
    rows = [served.allocate() for _ in range(2)]
    for row in rows:
        served.forward([Segment(row, 0, some(rng, 50), 1)])
        plant(served, row, 0, value)
        served.release(row)
    assert [served.allocate() for _ in range(2)] == rows
    short, long = some(rng, 9), some(rng, 40)
    served.forward([Segment(0, 0, short[:4], 0), Segment(1, 0, long[:30], 0)])
    logits = served.forward([Segment(0, 4, short[4:], 3), Segment(1, 30, long[30:], 2)])
    expected = torch.cat([alone(layout, short, 3), alone(layout, long, 2)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@every_layout
@no_numbers
def test_what_is_cleared_is_not_seen_and_what_stands_before_it_stays(layout: Layout, value: float) -> None:
    served, rng = engine(layout), random.Random(2)
    short, long = some(rng, 9), some(rng, 40)
    served.forward([Segment(0, 0, short[:8], 0), Segment(1, 0, long[:39], 0)])
    plant(served, 0, 8, value)
    served.clear(0, 8)
    logits = served.forward([Segment(0, 8, short[8:], 1), Segment(1, 39, long[39:], 1)])
    expected = torch.cat([alone(layout, short, 1), alone(layout, long, 1)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@every_layout
def test_logits_and_cache_do_not_depend_on_the_company(layout: Layout) -> None:
    rng = random.Random(3)
    text = some(rng, 30)
    expected = alone(layout, text, 6)
    for company in (some(rng, 60), [POISON] * 60, [*some(rng, 50), POISON, *some(rng, 9)]):
        served = engine(layout, poisoned())
        served.forward([Segment(0, 0, company[:40], 0), Segment(1, 0, text[:20], 0), Segment(2, 0, company[:2], 1)])
        logits = served.forward([Segment(0, 40, company[40:], 20), Segment(1, 20, text[20:], 6)])[20:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        untouched = engine(layout)
        untouched.forward([Segment(1, 0, text, 0)])
        for layer, kept in served._slab._layers.items():
            for cached, own in zip(kept, untouched._slab._layers[layer], strict=True):
                torch.testing.assert_close(cached[1, :, :30], own[1, :, :30], atol=1e-4, rtol=0)


@every_layout
def test_a_draft_without_numbers_is_run_again_once_and_not_in_every_pass_behind_it(layout: Layout) -> None:
    served, rng = engine(layout, poisoned()), random.Random(4)
    fitting, short, long = Fitting(Verifier(served, "coupled"), served), some(rng, 9), some(rng, 60)
    fitting.run(Pass([], [Chunk(0, 0, short[:-1]), Chunk(1, 0, long[:-1])]))
    other = Turn(1, len(long), long[-1], (), GREEDY)
    first = fitting.run(Pass([Turn(0, len(short), short[-1], (1, POISON, 2, 3, 4), GREEDY), other], []))
    assert first.cut == {0}
    behind = fitting.run(Pass([Turn(0, len(short), short[-1], (1, 2), GREEDY), other], []))
    assert not behind.cut
    assert not behind.faults


@contextlib.asynccontextmanager
async def serving_poisoned(**changes: Any) -> AsyncIterator[tuple[VerificationServer, str]]:
    server = VerificationServer(tiny_settings(**changes), poisoned(), tiny_tokenizer())
    async with server.listen() as address:
        yield server, address


@pytest.mark.parametrize(("layout", "rule"), [("packed", "coupled"), ("padded", "coupled"), ("packed", "ratio")])
async def test_a_text_without_numbers_ends_with_a_reason_and_no_other_does(layout: Layout, rule: str) -> None:
    text = target_text(PROMPT, 40)
    async with (
        serving_poisoned(layout=layout, rule=rule) as (server, address),
        linked(address) as sick,
        linked(address) as well,
    ):
        opened = await well.open(0, PROMPT, max_new_tokens=40, max_draft=0)
        for number in range(3):  # again and again, in the same row
            await sick.open(number, [*PROMPT, POISON], max_draft=0)
            failure = await sick.failure()
            assert (failure.code, failure.stream) == ("not_finite", number)
            assert "no number" in failure.message
        assert await well.go_on(opened, PROMPT) == text
        assert await sick.generate(9, PROMPT, max_draft=0) == text[:8]
        assert server.snapshot().streams == 0


@every_layout
async def test_a_draft_without_numbers_costs_its_text_nothing(layout: Layout) -> None:
    text = target_text(PROMPT, 24)
    async with serving_poisoned(layout=layout) as (_, address), linked(address) as bad, linked(address) as good:
        # The longer text is what the padded layout reads the other's row up to.
        long = asyncio.create_task(good.generate(0, [*PROMPT * 3], max_new_tokens=24, max_draft=0))
        assert await written(bad, [POISON] * 24) == text
        await long


async def written(peer: Peer, guess: Sequence[int]) -> list[int]:
    """The text of a stream whose agent drafts these tokens whatever it is told."""
    opened = await peer.open(0, PROMPT, max_new_tokens=24, params=GREEDY)
    transcript, budget = Transcript(PROMPT), opened.budget
    assert budget > 0
    while transcript.finish is None:
        drafted = list(guess[:budget])
        if budget:
            await peer.send(Draft(0, transcript.length, drafted))
        verdict = await peer.expect(Verdict)
        transcript.apply(verdict, drafted)
        budget = verdict.budget
    return transcript.generated
