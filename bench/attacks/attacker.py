"""One attacker as a process of its own, so that what it computes is not charged to the server or to who is honest.

It attacks until its standard input ends, and then prints what it got as JSON.
`python -m bench.attacks.attacker NAME HOST PORT SOURCE`, with the token in `GOODSPEED_TOKEN`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import statistics
import sys
from collections.abc import AsyncIterator
from typing import Any

import typer
import uvloop

from bench.attacks import holders, strangers
from bench.attacks.floods import FLOODS, TWINS
from bench.attacks.sockets import Tally, Target
from bench.processes import ENVIRONMENT
from goodspeed.errors import GoodSpeedError

__all__ = ["attacking", "main"]

REGISTERED = (strangers, holders)
_TOKEN = "GOODSPEED_TOKEN"


@contextlib.asynccontextmanager
async def attacking(name: str, target: Target) -> AsyncIterator[dict[str, Any]]:
    """Have somebody of the registry at it meanwhile; what it got is in the dictionary in the end.

    Raises:
        GoodSpeedError: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.attacks.attacker", name, target.host, str(target.port), target.source,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT | {_TOKEN: target.token},
    )  # fmt: skip
    got: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield got
    finally:
        out, _ = await process.communicate(b"")  # which ends its standard input
    if process.returncode:
        raise GoodSpeedError(f"the attacker {name!r} failed; its message is above")
    got.update(json.loads(out))


async def _attack(name: str, target: Target) -> Tally:
    run, tally = (FLOODS[name].run if name in FLOODS else TWINS[name]), Tally()
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    running = asyncio.create_task(run(target, tally))
    print("begun", flush=True)
    await asyncio.wait([ended, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
    await asyncio.wait([running])
    return tally


def main(name: str, host: str, port: int, source: str) -> None:
    """Attack."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    tally = uvloop.run(_attack(name, Target(host, port, os.environ[_TOKEN], source)))
    stood = sorted(tally.stood_s)
    print(
        json.dumps(
            {
                "counts": dict(tally.counts.most_common()),
                "most_there": tally.most_there,
                "closed_by_server": len(stood),
                "stood_s": {"median": statistics.median(stood), "most": stood[-1]} if stood else None,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
