"""What goes into the next pass: everybody's drafts, and as many prompt tokens as may ride along."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from goodspeed.errors import StreamFault
from goodspeed.rounds import share_out
from goodspeed.stream import ServedStream
from goodspeed_server.fitting import Settled
from goodspeed_server.live import LiveStream
from goodspeed_server.sharing import Beginning
from goodspeed_server.verifier import Chunk, Pass, Turn

__all__ = ["PlannedPass", "Unfit", "plan_pass"]


@dataclass(frozen=True, slots=True)
class PlannedPass:
    """A pass, and whose it is."""

    work: Pass
    verified: Sequence[LiveStream]
    prefilled: Sequence[tuple[LiveStream, int]]
    """Streams of whose prompts the pass runs or copies something, and how many tokens stand in the slab behind it."""

    def as_run(self, settled: Settled) -> tuple[PlannedPass, Unfit]:
        """The pass as it was run in the end, and the streams of which nothing was."""
        owners = {live.row: live for live in (*self.verified, *(live for live, _ in self.prefilled))}
        verified = [owners[turn.row] for turn in settled.work.turns]
        unfit = settled.faults.keys() | settled.lacking
        prefilled = [(live, cached) for live, cached in self.prefilled if live.row not in unfit]
        return (
            PlannedPass(settled.work, verified, prefilled),
            Unfit(
                [(owners[row], fault) for row, fault in settled.faults.items()],
                [owners[row] for row in sorted(settled.lacking)],
            ),
        )


class Unfit(NamedTuple):
    """Streams that were in a pass, and of which nothing has come."""

    faulty: Sequence[tuple[LiveStream, StreamFault]]
    """Those that cannot go on, and why."""
    lacking: Sequence[LiveStream]
    """Those that found no memory for one token."""


def plan_pass(
    batch: Sequence[LiveStream],
    prompts: Beginning,
    prefill_chunk: int,
    most: int | None = None,
    scarce: Container[LiveStream] = (),
) -> PlannedPass:
    """Lay out a pass; it is at the rows of its streams from now on (`RowUse.in_pass`).

    Args:
        batch: the streams to verify.
        prompts: those that it may carry, and what is copied for them, which counts as cached.
        prefill_chunk: how many prompt tokens the pass may carry.
        most: how many tokens the pass may carry in all; a prompt goes on by one in any case.
        scarce: streams that lacked the memory for one token: of their prompts one is tried.
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
    if most is not None:
        prefill_chunk = max(1, min(prefill_chunk, most - sum(turn.size for turn in turns)))
    chunks, prefilled = [], []
    wanted = [_left(live.stream, 1 if live in scarce else None) for live in prompts.going_on]
    for live, size in zip(prompts.going_on, share_out(wanted, prefill_chunk), strict=True):
        cached = live.stream.cached
        if size > 0:
            chunks.append(Chunk(live.row, cached, live.stream.tokens[cached : cached + size]))
        elif not live.stream.prefilled:
            continue
        live.use.in_pass = True
        prefilled.append((live, cached + size))
    return PlannedPass(Pass(turns, chunks, prompts.copies, prompts.reused), batch, prefilled)


def _left(stream: ServedStream, most: int | None) -> int:
    """How many tokens of a prompt are still to be run, or how many of them may be."""
    left = max(0, stream.length - 1 - stream.cached)
    return left if most is None else min(most, left)
