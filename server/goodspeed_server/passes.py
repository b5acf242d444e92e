"""What goes into the next pass: everybody's drafts, and as many prompt tokens as may ride along."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from goodspeed.rounds import share_out
from goodspeed_server.live import LiveStream
from goodspeed_server.verifier import Chunk, Pass, Turn

__all__ = ["PlannedPass", "plan_pass"]


@dataclass(frozen=True, slots=True)
class PlannedPass:
    """A pass, and whose it is."""

    work: Pass
    verified: Sequence[LiveStream]
    prefilled: Sequence[tuple[LiveStream, int]]
    """Streams with a prompt chunk in the pass, and how many tokens stand in the slab when it is over."""


def plan_pass(batch: Sequence[LiveStream], prefilling: Collection[LiveStream], prefill_chunk: int) -> PlannedPass:
    """Lay out a pass; it is at the rows of its streams from now on (`RowUse.in_pass`).

    Args:
        batch: the streams to verify.
        prefilling: the streams whose prompts are on their way, in order of admission.
        prefill_chunk: how many prompt tokens the pass may carry.
    """
    turns = []
    for live in batch:
        live.use.in_pass = True
        drafted, q = live.to_verify()
        stream = live.stream
        generated = stream.tokens[stream.prompt_tokens :] if stream.params.penalised else ()
        turns.append(
            Turn(live.row, stream.length, stream.tokens[-1], drafted, stream.params, q, generated, stream.logprobs)
        )
    chunks, prefilled = [], []
    waiting = list(prefilling)
    sizes = share_out([live.stream.length - 1 - live.stream.cached for live in waiting], prefill_chunk)
    for live, size in zip(waiting, sizes, strict=True):
        stream = live.stream
        if size <= 0:
            continue
        live.use.in_pass = True
        chunks.append(Chunk(live.row, stream.cached, stream.tokens[stream.cached : stream.cached + size]))
        prefilled.append((live, stream.cached + size))
    return PlannedPass(Pass(turns, chunks), batch, prefilled)
