"""A server whose memory does not suffice for what its streams ask of a pass, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed.messages import Failure, Open, Opened, Verdict
from goodspeed.stream import Transcript
from goodspeed_server.observer import RoundRecord
from goodspeed_server.shortage import Shortage
from tests.serving import GREEDY, linked, serving, tiny_settings
from tests.test_server import PROMPT, target_text
from tests.test_server_metrics import get, samples

STREAMS = 4


@contextlib.contextmanager
def memory_for(most: int, *, without: int | None = None) -> Iterator[list[int]]:
    """No pass of more tokens fits from here on, nor any of one row; yields the sizes of those that did."""
    run_batch, sizes = Engine._run_batch, list[int]()

    def tight(self: Engine, segments: Sequence[Segment]) -> Tensor:
        size = sum(segment.new for segment in segments)
        if size > most or without in [segment.row for segment in segments]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        sizes.append(size)
        return run_batch(self, segments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_run_batch", tight)
        yield sizes


@pytest.mark.parametrize(("kind", "layout"), [("barrier", "packed"), ("rolling", "packed"), ("rolling", "padded")])
async def test_where_memory_is_short_texts_are_what_they_would_have_been(
    kind: str, layout: str, records: list[RoundRecord]
) -> None:
    text, prompts = target_text(PROMPT, 40), [PROMPT, [*PROMPT, *target_text(PROMPT, 9)]]
    wanted = [text, text[9:]]
    settings = tiny_settings(layout=layout, rounds={"rounds": kind, "round_timeout_s": 0.05})
    async with serving(settings) as (_, address), contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(linked(address)) for _ in range(STREAMS)]
        with memory_for(5) as sizes:
            texts = await asyncio.gather(
                *(
                    peer.generate(0, prompts[n % 2], wanted[n % 2], max_new_tokens=31, max_draft=8 * (n // 2))
                    for n, peer in enumerate(peers)
                )
            )
        assert texts == [wanted[n % 2][:31] for n in range(STREAMS)]
        assert max(sizes) <= 5
        counted = samples((await asyncio.to_thread(get, address))[1])["goodspeed_out_of_memory_total"]
    assert counted == sum(record.out_of_memory for record in records) > 0
    assert sum(record.out_of_memory for record in records[8:]) <= 4, "it is planned for"


@pytest.mark.parametrize("kind", ["barrier", "rolling"])
@pytest.mark.parametrize("max_draft", [0, 4])
async def test_who_has_no_memory_for_one_token_waits_for_it_and_everybody_else_goes_on(
    kind: str, max_draft: int
) -> None:
    settings = tiny_settings(max_streams=3, rounds={"rounds": kind, "round_timeout_s": 0.05})
    prompt, text = [*PROMPT, *target_text(PROMPT, 9)], target_text(PROMPT, 49)
    async with serving(settings) as (server, address), contextlib.AsyncExitStack() as stack:
        others = [await stack.enter_async_context(linked(address)) for _ in range(2)]
        early, late = [await stack.enter_async_context(linked(address)) for _ in range(2)]
        opened = await others[0].open(0, PROMPT, max_new_tokens=40, max_draft=0)
        begun = await early.open(0, PROMPT, max_new_tokens=40, max_draft=max_draft)
        with memory_for(1000, without=1):  # a text
            going_on = asyncio.create_task(early.go_on(begun, PROMPT, text))
            assert await others[0].go_on(opened, PROMPT) == text[:40]
        assert await going_on == text[:40]
        opened = await others[1].open(0, PROMPT, max_new_tokens=40, max_draft=0)
        with memory_for(1000, without=1):  # and a prompt
            begun = await late.open(0, prompt, max_new_tokens=40, max_draft=max_draft)
            going_on = asyncio.create_task(late.go_on(begun, prompt, text[9:]))
            assert await others[1].go_on(opened, PROMPT) == text[:40]
            assert not going_on.done()
        assert await going_on == text[9:]
        assert server.snapshot().streams == 0


@pytest.mark.parametrize("kind", ["barrier", "rolling"])
async def test_who_lacks_memory_for_too_long_comes_back_with_its_text(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodspeed_server.round_loop.Shortage", partial(Shortage, 0.2))
    settings = tiny_settings(max_streams=1, rounds={"rounds": kind, "round_timeout_s": 0.05})
    async with serving(settings) as (server, address), linked(address) as peer:
        opened = await peer.open(0, PROMPT, max_draft=0)
        with memory_for(0):
            text = Transcript(PROMPT)
            while isinstance(message := await peer.receive(), Verdict):  # what was computed before
                text.apply(message, [])
            assert isinstance(message, Failure)
            assert (message.code, message.stream, message.retry_after_s) == ("overloaded", opened.stream, 5.0)
            assert "memory" in message.message
            assert server.snapshot().streams == 0
        # The row is there, and what was written.
        await peer.send(Open(0, text.tokens, len(PROMPT), GREEDY, 8, 0, True))
        assert await peer.go_on(await peer.expect(Opened), text.tokens) == target_text(PROMPT, 8)[len(text.generated) :]


async def test_who_goes_while_it_lacks_memory_leaves_its_row() -> None:
    async with serving(tiny_settings(max_streams=1)) as (_, address), linked(address) as peer:
        with memory_for(0):
            await peer.open(0, PROMPT, max_draft=0)
            await peer.close(0)
            await peer.open(1, PROMPT, max_draft=0)
            await peer.close(1)
        assert await peer.generate(2, PROMPT, max_draft=0) == target_text(PROMPT, 8)
