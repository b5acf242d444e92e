"""`make bench-overload`: ten times the load that a server admits, and what becomes of those that it does admit.

*At capacity* there are as many streams as the server has rows, each followed by another as soon as it ends.
*Overloaded*, texts are asked for at random times at ten times the rate at which they ended before, whatever becomes of
those before; who is refused is gone. Nobody drafts: what is measured is admission. The two take turns; a ratio is of
one turn's two runs. A refusal's time is from asking to hearing of it. The shorter the texts, the more are asked for,
and the more of the server's time goes into refusing them.
Turns are many and short, since a shared machine is slower for seconds at a time. What that machine has no part in is
told beside it: how much of the server's processor time is left to passes.
`python -m bench.overload [--new-tokens 128 --new-tokens 24] [--turns 9] [--seconds 5] [--json FILE]`
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

from bench.attacks.readings import read
from bench.bare import BareLink, linked
from bench.processes import serving
from goodspeed.messages import Failure, Open, Opened, Verdict
from goodspeed.sampling import SamplingParams

__all__ = ["Load", "Turn", "main", "measure"]

TIMES = 10
ROWS, WAITING = 8, 8
LINKS = 16
AIM_RATIO = 0.9
_PROMPT_TOKENS = 16
_NEW_TOKENS = (128, 24)
"""Of a text: what an agent asks for unless told otherwise, and hardly any."""
_SETTLE_S = 2.0
"""At the beginning of each run, which does not count."""


@dataclass
class Load:
    """What came of the texts that were asked for while it counted."""

    seconds: float = 0.0
    asked: int = 0
    admitted: int = 0
    ended: int = 0
    tokens: int = 0
    """Committed to those that were admitted."""
    refused_s: list[float] = field(default_factory=list)
    """From asking to hearing of the refusal."""
    codes: Counter[str] = field(default_factory=Counter)
    left: float = 0.0
    """To passes, of the server's processor time."""

    @property
    def goodput(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Turn:
    """The two loads of one turn."""

    at_capacity: Load
    overloaded: Load

    @property
    def ratio(self) -> float:
        """Of their goodputs."""
        return self.overloaded.goodput / self.at_capacity.goodput

    @property
    def left(self) -> float:
        """To passes, of the processor time that they have at capacity."""
        return self.overloaded.left / self.at_capacity.left


class _Asker:
    """Asks a server for texts over a few links, and listens."""

    def __init__(self, address: str, links: Sequence[BareLink], noise: random.Random, new_tokens: int) -> None:
        self._address = address
        self._new_tokens = new_tokens
        self._links = links
        self._noise = noise
        self._asked_s: dict[int, float] = {}
        self._names = 0
        self.load: Load | None = None
        """What counts now; None while nothing does."""
        self.tasks: list[asyncio.Task[None]] = []
        """Who asks, and who listens; none of them ends by itself."""
        self.on_end = asyncio.Semaphore(0)
        """Released whenever a text ends, or is refused."""

    async def ask(self) -> None:
        """Ask for one more text."""
        self._names += 1
        link = self._links[self._names % len(self._links)]
        prompt = [self._noise.randrange(256) for _ in range(_PROMPT_TOKENS)]
        params = SamplingParams(0.8, seed=self._names)
        self._asked_s[self._names] = time.monotonic()
        if self.load is not None:
            self.load.asked += 1
        await link.send(Open(self._names, prompt, len(prompt), params, self._new_tokens, 0, True))

    async def listen(self, link: BareLink) -> None:
        """Hear what a link brings, for ever."""
        while True:
            message = await link.receive()
            load = self.load or Load()
            match message:
                case Opened():
                    load.admitted += 1
                    self._asked_s.pop(message.stream, None)
                case Verdict():
                    load.tokens += message.accepted + len(message.tokens)
                    if message.finish is not None:
                        load.ended += 1
                        self.on_end.release()
                case Failure(stream=int(stream)):
                    load.codes[message.code] += 1
                    load.refused_s.append(time.monotonic() - self._asked_s.pop(stream))
                    self.on_end.release()

    async def counted(self, seconds: float, enough: Callable[[Load], bool]) -> Load:
        """Let things settle, and count for so long; longer, if that is not enough.

        Raises:
            Exception: whatever ended who asks or who listens.
        """
        await asyncio.sleep(_SETTLE_S)
        before = await asyncio.to_thread(read, self._address)
        self.load, began_s = Load(), time.monotonic()
        while time.monotonic() - began_s < seconds or not enough(self.load):
            await asyncio.sleep(0.05)
            for task in self.tasks:
                if task.done():
                    task.result()
        load, self.load = self.load, None
        load.seconds = time.monotonic() - began_s
        after = await asyncio.to_thread(read, self._address)
        load.left = (after.busy_s - before.busy_s) / (after.cpu_s - before.cpu_s)
        return load


@contextlib.asynccontextmanager
async def _asking(address: str, noise: random.Random, new_tokens: int) -> AsyncIterator[_Asker]:
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(linked(address, f"asker-{number}")) for number in range(LINKS)]
        asker = _Asker(address, links, noise, new_tokens)
        asker.tasks += [asyncio.create_task(asker.listen(link)) for link in links]
        try:
            yield asker
        finally:
            for task in asker.tasks:
                task.cancel()
            await asyncio.wait(asker.tasks)


async def _at_capacity(address: str, noise: random.Random, new_tokens: int, seconds: float) -> Load:
    async with _asking(address, noise, new_tokens) as asker:

        async def follow() -> None:
            for _ in range(ROWS):
                await asker.ask()
            while True:
                await asker.on_end.acquire()
                await asker.ask()

        asker.tasks.append(asyncio.create_task(follow()))
        return await asker.counted(seconds, lambda load: load.ended >= ROWS)


async def _overloaded(address: str, noise: random.Random, new_tokens: int, seconds: float, per_s: float) -> Load:
    async with _asking(address, noise, new_tokens) as asker:

        async def pour() -> None:
            due_s = time.monotonic()
            while True:
                due_s += noise.expovariate(per_s)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await asker.ask()

        asker.tasks.append(asyncio.create_task(pour()))
        return await asker.counted(seconds, lambda load: load.ended >= ROWS and len(load.refused_s) >= ROWS)


async def measure(
    address: str, new_tokens: Sequence[int], turns: int, seconds: float, seed: int
) -> dict[int, list[Turn]]:
    """Have both loads take turns, with texts of each length.

    Args:
        address: of a server with `ROWS` rows and a queue of `WAITING`.
        new_tokens: of the texts.
        turns: how many.
        seconds: how long each load counts.
        seed: of the prompts and of who asks when.
    """
    noise, measured = random.Random(seed), {length: list[Turn]() for length in new_tokens}
    for _, length in itertools.product(range(turns), new_tokens):
        at_capacity = await _at_capacity(address, noise, length, seconds)
        per_s = TIMES * max(at_capacity.ended, at_capacity.tokens / length) / at_capacity.seconds
        measured[length].append(Turn(at_capacity, await _overloaded(address, noise, length, seconds, per_s)))
    return measured


async def _measured(new_tokens: Sequence[int], turns: int, seconds: float, seed: int) -> dict[int, list[Turn]]:
    options = ("--scheduler", "plain", "--max-streams", str(ROWS), "--max-waiting", str(WAITING))
    async with serving(*options) as address:
        return await measure(address, new_tokens, turns, seconds, seed)


def _figures(turns: Sequence[Turn]) -> dict[str, Any]:
    refused_ms = 1e3 * np.array([seconds for turn in turns for seconds in turn.overloaded.refused_s])
    return {
        "ratios": [turn.ratio for turn in turns],
        "ratio_median": statistics.median(turn.ratio for turn in turns),
        "left": [turn.left for turn in turns],
        "left_median": statistics.median(turn.left for turn in turns),
        "goodput_at_capacity": [turn.at_capacity.goodput for turn in turns],
        "goodput_overloaded": [turn.overloaded.goodput for turn in turns],
        "asked_per_s": [turn.overloaded.asked / turn.overloaded.seconds for turn in turns],
        "admitted": sum(turn.overloaded.admitted for turn in turns),
        "refused": len(refused_ms),
        "refused_by_code": dict(sum((turn.overloaded.codes for turn in turns), Counter[str]())),
        "refusal_ms": {"median": float(np.median(refused_ms)), "p99": float(np.quantile(refused_ms, 0.99))},
    }


def _report(new_tokens: int, figures: dict[str, Any]) -> None:
    columns = ("goodput_at_capacity", "goodput_overloaded", "asked_per_s", "ratios", "left")
    for before, overloaded, asked, ratio, left in zip(*(figures[name] for name in columns), strict=True):
        typer.echo(
            f"at capacity {before:.0f} tokens/s; {asked:.0f} texts/s asked for: {overloaded:.0f}, {ratio:.3f}; "
            f"of the processor time that passes have, {left:.3f} is left"
        )
    refusal = figures["refusal_ms"]
    typer.echo(
        f"texts of {new_tokens} tokens: median ratio {figures['ratio_median']:.3f} (aim {AIM_RATIO}), of the passes' "
        f"processor time {figures['left_median']:.3f}; {figures['refused']} refused, {figures['admitted']} admitted; "
        f"a refusal takes {refusal['median']:.1f} ms, p99 {refusal['p99']:.1f} ms"
    )


def main(
    new_tokens: Annotated[list[int] | None, typer.Option(help="Of a text; each in every turn.", min=1)] = None,
    turns: Annotated[int, typer.Option(min=1)] = 9,
    seconds: Annotated[float, typer.Option(help="How long each load counts.", min=1.0)] = 5.0,
    seed: Annotated[int, typer.Option()] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure, and print what came of it."""
    measured = uvloop.run(_measured(new_tokens or _NEW_TOKENS, turns, seconds, seed))
    figures = {length: _figures(of_length) for length, of_length in measured.items()}
    for length, of_length in figures.items():
        _report(length, of_length)
    if json_file is not None:
        about = {"times": TIMES, "rows": ROWS, "waiting": WAITING, "aim_ratio": AIM_RATIO, "new_tokens": figures}
        json_file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
