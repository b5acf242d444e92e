"""The server of `bench.links`: the real one around an engine that waits, in a process that tells how it is."""

from __future__ import annotations

import asyncio
import cProfile
import functools
import time
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
import uvloop
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from bench.links.children import Answer, obey
from bench.links.engine import SyntheticEngine
from bench.links.lag import Lag
from bench.links.text import VOCAB
from goodspeed_server.collector import sparing_collector
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["main"]

MAX_LENGTH = 1024
PREFILL_CHUNK = 2048
"""A pass of a GPU has room for more than the default, and so many texts begin all the time."""


class _Watched:
    """A server that listens, and what is measured of it."""

    def __init__(self, server: VerificationServer, address: str) -> None:
        self._server = server
        self._address = address
        self._process = psutil.Process()
        self._profile: cProfile.Profile | None = None

    async def where(self) -> Answer:
        """Where it listens."""
        return {"address": self._address}

    async def held(self) -> Answer:
        """What the process holds."""
        snapshot = self._server.snapshot()
        return {
            "memory_bytes": self._process.memory_info().rss,
            "descriptors": self._process.num_fds(),
            "tasks": len(asyncio.all_tasks()),
            "links": len(snapshot.agents),
            "streams": snapshot.streams,
            "prefilling": sum(agent.prefilling for agent in snapshot.agents),
        }

    async def measured(self, seconds: float, profile: str | None) -> Answer:
        """How it does for so long; a profile of the loop's thread makes that slower.

        Args:
            seconds: how long.
            profile: where to write what the loop's thread does, for `python -m pstats`; None for nowhere.
        """
        before, lag = self._server.snapshot(), Lag()
        profiler = cProfile.Profile()
        if profile is not None:
            profiler.enable()
        began_s, loop_s, process_s = time.monotonic(), time.thread_time(), time.process_time()
        await asyncio.sleep(seconds)
        late_ms = 1e3 * np.array(lag.stop())
        wall_s = time.monotonic() - began_s
        loop_s, process_s = time.thread_time() - loop_s, time.process_time() - process_s
        if profile is not None:
            profiler.disable()
            profiler.dump_stats(profile)
        after = self._server.snapshot()
        rounds = after.rounds - before.rounds
        committed, drafted = after.committed - before.committed, after.drafted - before.drafted
        return {
            "seconds": wall_s,
            "streams": after.streams,
            "waiting": after.waiting,
            "lag_ms": {
                "p50": float(np.median(late_ms)),
                "p99": float(np.quantile(late_ms, 0.99)),
                "max": float(late_ms.max()),
            },
            "loop_cores": loop_s / wall_s,
            "process_cores": process_s / wall_s,
            "rounds_per_s": rounds / wall_s,
            "tokens_per_s": committed / wall_s,
            "drafted_per_s": drafted / wall_s,
            "accepted": (after.accepted - before.accepted) / max(1, drafted),
        }


def main(
    rows: Annotated[int, typer.Option()],
    waiting: Annotated[int, typer.Option()],
    pass_ms: Annotated[float, typer.Option()],
    token_us: Annotated[float, typer.Option()],
    scheduler: Annotated[str, typer.Option()],
) -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    settings = ServerSettings(
        model="synthetic", port=0, max_streams=rows, max_length=MAX_LENGTH, scheduler=scheduler,
        rounds=RoundSettings(max_waiting=waiting, prefill_chunk=PREFILL_CHUNK),
    )  # fmt: skip
    engine = functools.partial(SyntheticEngine, pass_s=pass_ms / 1e3, token_s=token_us / 1e6)
    server = VerificationServer(settings, _model(), _tokenizer(), make_engine=engine)
    uvloop.run(_serve(server))


async def _serve(server: VerificationServer) -> None:
    async with sparing_collector(), server.listen() as address:
        watched = _Watched(server, address)
        await obey({"where": watched.where, "held": watched.held, "measured": watched.measured})


def _model() -> LlamaForCausalLM:
    """What a server wants to know of its target, with next to no weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, max_position_embeddings=MAX_LENGTH, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def _tokenizer() -> dict[str, bytes]:
    tokenizer = HubTokenizer(WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": b"{}"}


if __name__ == "__main__":
    typer.run(main)
