"""A server whose memory does not suffice for what its streams ask of a pass, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed_server.observer import RoundRecord
from tests.serving import linked, serving, tiny_settings
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
async def test_who_has_no_memory_for_one_token_ends_and_everybody_else_goes_on(kind: str) -> None:
    settings = tiny_settings(max_streams=3, rounds={"rounds": kind, "round_timeout_s": 0.05})
    async with serving(settings) as (server, address), linked(address) as peer, linked(address) as other:
        opened = await other.open(0, PROMPT, max_new_tokens=40, max_draft=0)
        with memory_for(1000, without=1):
            await peer.open(0, PROMPT, max_draft=0)
            failure = await peer.failure()
            assert (failure.code, failure.stream) == ("out_of_memory", 0)
            assert "memory" in failure.message
            assert await other.go_on(opened, PROMPT) == target_text(PROMPT, 40)
        assert server.snapshot().streams == 0
        # The row is there for whoever comes next.
        assert await peer.generate(1, PROMPT, max_draft=0) == target_text(PROMPT, 8)
