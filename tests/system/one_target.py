"""One process that serves the bundled target, in float32, under one policy after another.

`python -m tests.system.one_target` reads policies, a line of JSON each; it closes the server it has, starts the next,
and answers with its address. Torch and the target are loaded once for all of them.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable

import msgspec
import torch
import uvloop

from goodspeed.catalog import DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.engine import Engine
from goodspeed_bench.target import EmulatedEngine, PassTime
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import LayoutName, RoundSettings, RoundsName, ServerSettings
from tests.measured import measured_once

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True):
    """What differs from server to server."""

    scheduler: str
    rounds: RoundsName = "auto"
    layout: LayoutName = "auto"
    rule: str = "auto"
    capacity: int | None = None
    streams: int = 1
    pass_time: PassTime | None = None
    """Of a larger target, to be emulated; None: the bundled one is as quick as it is."""

    def settings(self) -> ServerSettings:
        return ServerSettings(
            port=0,
            scheduler=self.scheduler,
            layout=self.layout,
            rule=self.rule,
            max_streams=self.streams,
            rounds=RoundSettings(rounds=self.rounds, capacity=self.capacity),
        )


class _Time:
    """The emulated target's: what is slept before there are streams, in calibration, only puts the clock forward."""

    def __init__(self) -> None:
        self.calibrated = False
        self._forward_s = 0.0

    def clock(self) -> float:
        return time.perf_counter() + self._forward_s

    def sleep(self, seconds: float) -> None:
        if self.calibrated:
            time.sleep(seconds)
        else:
            self._forward_s += seconds


async def _main() -> None:
    torch.set_num_threads(1)
    target, files = load_model(DEFAULT_TARGET, device="cpu", dtype="float32"), tokenizer_files(DEFAULT_TARGET)
    line = await asyncio.to_thread(sys.stdin.readline)
    while line:
        policy, emulated = msgspec.json.decode(line, type=Policy), _Time()
        make_engine: Callable[..., Engine] = Engine
        if policy.pass_time is not None:
            make_engine = functools.partial(
                EmulatedEngine, pass_time=policy.pass_time, clock=emulated.clock, sleep=emulated.sleep
            )
        with measured_once():
            server = VerificationServer(policy.settings(), target, files, make_engine=make_engine)
        emulated.calibrated = True
        async with server.listen() as address:
            print(address, flush=True)
            line = await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(_main())
