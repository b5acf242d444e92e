"""`make soak`: half an hour of arrivals and departures against one server, and whether anything it holds grows.

The server is a process of its own, as an operator starts it. Visitors come at random, with a link of their own each:
they ask for a text or a few, and go in order, in the middle of a text, or without a word. What the server holds is read
off its `/metrics`.

What it holds for those who are there says nothing of a leak: a machine that is slower serves more of them at a time.
So once a minute nobody is let in until all have gone, and what is held then is what is judged. A slope is Theil and
Sen's over these quiet moments, with its 95% interval; what is held counts as flat where the interval includes no
growth, or what the slope amounts to over the whole run is less than 1% of what was held.

The allocator keeps what the largest pass so far took for its activations, and the largest of random passes comes late:
memory would grow by ever rarer steps, to that bound. So the server is filled to its last row at the beginning.
`python -m bench.soak [--minutes 30] [--seed 0] [--json FILE] [--plot FILE]`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import theilslopes

from bench.bare import linked
from bench.processes import serving
from goodspeed.errors import GoodSpeedError
from goodspeed.messages import Failure, Open, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache

__all__ = ["HELD", "Soaked", "Visits", "fill", "held_at_rest", "main", "slope_of", "soak"]

HELD = {
    "rss_bytes": "process_resident_memory_bytes",
    "tasks": "goodspeed_server_tasks",
    "open_fds": "process_open_fds",
    "threads": "goodspeed_server_threads",
}
"""What is watched, by its metric."""
_LOAD = {
    "streams": "goodspeed_num_requests_running",
    "waiting": "goodspeed_num_requests_waiting",
    "agents": "goodspeed_agents",
}
_ARRIVALS_PER_S = 2.0
_MOST_VISITORS = 24
"""At once; with so many there, who comes goes away again, so that a slow machine is loaded and no more."""
_SAMPLE_S = 2.0
_BUSY_S = 60.0
"""From one quiet moment to the next, and as long as those who are there need to end."""
_LEAVE_S = 60.0
"""Within which a server has nobody any more, once everybody has gone."""
_TASKS_COUNTED_S = 1.0
"""Within which a server has counted its tasks anew."""
_WARM = 0.1
"""So much of the run at its beginning says nothing: caches fill."""
_LEAST = 0.01
_ROWS = 16
_LENGTH = 512


@dataclass
class Visits:
    """Who came, and what became of their texts."""

    came: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    """By how they ended: complete, left, or the name of an error."""


@dataclass
class Soaked:
    """What came of it; all samples hold seconds since the beginning, all of `HELD`, and the load."""

    visits: Visits = field(default_factory=Visits)
    busy: list[dict[str, float]] = field(default_factory=list)
    quiet: list[dict[str, float]] = field(default_factory=list)
    """What is held when nobody is there."""


async def soak(
    address: str,
    seconds: float,
    seed: int,
    folder: Path,
    *,
    arrivals_per_s: float = _ARRIVALS_PER_S,
    sample_s: float = _SAMPLE_S,
    busy_s: float = _BUSY_S,
) -> Soaked:
    """Have visitors come and go for so long.

    Args:
        address: of the server.
        seconds: how long; what has begun then ends.
        seed: of who comes when, and what they want.
        folder: for their cache.
        arrivals_per_s: how many come.
        sample_s: how often the server is asked what it holds.
        busy_s: how long they come, before nobody does until all have gone.

    Raises:
        GoodSpeedError: the server still has somebody when everybody has gone.
    """
    soaked, noise, began_s = Soaked(), random.Random(seed), time.monotonic()

    def now_s() -> float:
        return time.monotonic() - began_s

    async def watch(until_s: float, there: set[asyncio.Task[None]]) -> None:
        while now_s() < until_s or there:
            soaked.busy.append({"at_s": now_s(), **await asyncio.to_thread(_held_by, address)})
            await asyncio.sleep(sample_s)

    async def have_visitors(until_s: float) -> None:
        there: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(until_s, there))
            while now_s() < until_s:
                if len(there) < _MOST_VISITORS:
                    task = group.create_task(_visit(address, random.Random(noise.random()), folder, soaked.visits))
                    there.add(task)
                    task.add_done_callback(there.discard)
                await asyncio.sleep(noise.expovariate(arrivals_per_s))

    while now_s() < seconds:
        await have_visitors(now_s() + busy_s)
        held = await held_at_rest(address)
        soaked.quiet.append({"at_s": now_s(), **held})
    return soaked


async def _visit(address: str, noise: random.Random, folder: Path, visits: Visits) -> None:
    """One agent's stay."""
    visits.came += 1
    manner = noise.choice(("in order", "in order", "in the middle", "without a word"))
    if manner == "without a word":
        await _leave_without_a_word(address, noise, visits)
        return
    drafter: Drafter = noise.choice((SuffixDrafter(), NoDrafter()))
    agent = Agent(
        address,
        drafter,
        name="visitor",
        cache=TokenizerCache(folder),
        backoff=Backoff(first_s=0.1, give_up_after_s=20.0),
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if manner == "in order" else noise.uniform(0.1, 1.5)):
            try:
                async with agent:
                    await asyncio.gather(*(_text(agent, noise, visits) for _ in range(noise.choice((1, 1, 2, 4)))))
            except GoodSpeedError as error:
                visits.texts[f"no link: {error.code}"] += 1


async def _leave_without_a_word(address: str, noise: random.Random, visits: Visits) -> None:
    """Ask for a few texts, and reset the connection."""
    async with linked(address, "visitor") as link:
        for stream in range(noise.choice((1, 2, 4))):
            await link.send(Open(stream, [noise.randrange(256) for _ in range(16)], 16, SamplingParams(), 200, 4, True))
            visits.texts["left without a word"] += 1
        await asyncio.sleep(noise.uniform(0.0, 1.0))
        link.connection.transport.abort()


async def _text(agent: Agent, noise: random.Random, visits: Visits) -> None:
    request = TextRequest(
        noise.choice(bundled_prompts()).text, SamplingParams(noise.choice((0.0, 0.8)), seed=noise.randrange(2**31)),
        max_new_tokens=noise.randrange(8, 64),
    )  # fmt: skip
    outcome = "left"
    try:
        await agent.complete(request)
        outcome = "complete"
    except GoodSpeedError as error:
        outcome = error.code
    finally:
        visits.texts[outcome] += 1


async def fill(address: str, rows: int, length: int) -> None:
    """Have the largest passes there are: prompts as long as a row, in every row at once.

    Raises:
        GoodSpeedError: the server refuses one of them.
    """
    prompt = [token % 256 for token in range(length - 8)]
    async with linked(address, "filler") as link:
        for stream in range(rows):
            await link.send(Open(stream, prompt, len(prompt), SamplingParams(), 8, 0, True))
        written = 0
        while written < rows:
            match await link.receive():
                case Failure() as failure:
                    raise GoodSpeedError(f"a prompt of {len(prompt)} tokens was refused: {failure.message}")
                case Verdict(finish=finish):
                    written += finish is not None


async def held_at_rest(address: str) -> dict[str, float]:
    """What a server holds, and its load, by our own names, once everybody has gone.

    Raises:
        GoodSpeedError: it still has somebody.
    """
    until_s = time.monotonic() + _LEAVE_S
    while left := {name: count for name in _LOAD if (count := (await asyncio.to_thread(_held_by, address))[name])}:
        if time.monotonic() > until_s:
            raise GoodSpeedError(f"everybody has gone, and the server still has {left}")
        await asyncio.sleep(0.1)
    await asyncio.sleep(_TASKS_COUNTED_S)
    return await asyncio.to_thread(_held_by, address)


def _held_by(address: str) -> dict[str, float]:
    with urllib.request.urlopen(address.replace("ws://", "http://") + "/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    values = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
    return {name: values[metric] for name, metric in (HELD | _LOAD).items()}


def slope_of(at_s: Sequence[float], held: Sequence[float]) -> dict[str, Any]:
    """Whether what is held grows.

    Args:
        at_s: when it was looked at, seconds, ascending; twice or more.
        held: how much there was.

    Returns:
        The median, the slope an hour with its 95% interval, and whether that is flat.
    """
    slope, _, low, high = theilslopes(held, at_s, alpha=0.95)
    median, over_the_run = statistics.median(held), slope * (at_s[-1] - at_s[0])
    flat = low <= 0.0 or over_the_run <= _LEAST * median
    return {
        "median": median, "slope_per_hour": 3600 * slope, "interval_per_hour": [3600 * low, 3600 * high],
        "over_the_run": over_the_run, "flat": bool(flat),
    }  # fmt: skip


def _judged(soaked: Soaked, seconds: float) -> dict[str, dict[str, Any]]:
    """Of everything that is held, its slope over the quiet moments."""
    warm = [sample for sample in soaked.quiet if sample["at_s"] >= _WARM * seconds]
    return {name: slope_of([s["at_s"] for s in warm], [s[name] for s in warm]) for name in HELD}


def _plot(soaked: Soaked, slopes: dict[str, dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(HELD) + 1, 1, sharex=True, figsize=(8, 9), layout="constrained")
    minutes, quiet_minutes = ([sample["at_s"] / 60 for sample in samples] for samples in (soaked.busy, soaked.quiet))
    for axis, name in zip(axes, HELD, strict=False):
        scale = 2**20 if name == "rss_bytes" else 1
        axis.plot(minutes, [sample[name] / scale for sample in soaked.busy], linewidth=0.8, color="silver")
        axis.plot(quiet_minutes, [sample[name] / scale for sample in soaked.quiet], ".", label="nobody there")
        axis.set_ylabel("RSS, MiB" if name == "rss_bytes" else name)
        axis.set_title("flat" if slopes[name]["flat"] else "grows", fontsize=8, loc="right")
    axes[0].legend(fontsize=8)
    axes[-1].plot(minutes, [sample["streams"] for sample in soaked.busy], linewidth=0.8, color="silver")
    axes[-1].set_ylabel("streams")
    axes[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


async def _soaked(seconds: float, seed: int) -> Soaked:
    options = ("--dtype", "float32", "--max-streams", str(_ROWS), "--max-length", str(_LENGTH), "--max-waiting", "32")
    with tempfile.TemporaryDirectory() as folder:
        async with serving(*options) as address:
            await fill(address, _ROWS, _LENGTH)
            return await soak(address, seconds, seed, Path(folder))


def main(
    minutes: Annotated[float, typer.Option(help="How long; below 10 a slope says little.", min=5.0)] = 30.0,
    seed: Annotated[int, typer.Option(help="Of who comes when.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them here.")] = None,
) -> None:
    """Soak, and exit with 1 if anything grows."""
    soaked = asyncio.run(_soaked(60 * minutes, seed))
    visits, slopes = soaked.visits, _judged(soaked, 60 * minutes)
    texts = dict(visits.texts.most_common())
    typer.echo(f"{minutes:g} min, {visits.came} visitors, {visits.texts.total()} texts: {texts}")
    for name, slope in slopes.items():
        (low, high), hourly = slope["interval_per_hour"], slope["slope_per_hour"]
        typer.echo(
            f"{name}: {'flat' if slope['flat'] else 'GROWS'}, median {slope['median']:,.0f}, slope {hourly:,.1f} "
            f"an hour (95%: {low:,.1f} to {high:,.1f}), {slope['over_the_run']:,.1f} over the run"
        )
    if json_file is not None:
        figures = {"minutes": minutes, "seed": seed, "visitors": visits.came, "texts": texts, "slopes": slopes}
        samples = {"busy": soaked.busy, "quiet": soaked.quiet}
        json_file.write_text(json.dumps(figures | samples, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        _plot(soaked, slopes, plot)
    raise typer.Exit(0 if all(slope["flat"] for slope in slopes.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
