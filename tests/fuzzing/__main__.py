"""`make fuzz`: the decoders, then a server's links and an agent's, each until so many frames were read.

`python -m tests.fuzzing [--frames 1000000] [--server-frames 100000] [--agent-frames 50000] [--seed 0] [--json FILE]`
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from tests.fuzzing.decoding import Direction, decode_many, outcomes_of
from tests.fuzzing.drafting import AgentStorm, fuzz_agent
from tests.fuzzing.serving import ServerStorm, fuzz_server
from tests.fuzzing.watching import Footprint
from tests.serving import tiny_settings

__all__ = ["main"]

MOST_GROWTH_BYTES = 16 * 2**20
"""From the first fifth of a storm to its end: an allocator's own, and no more however many frames come."""
_TO_MEET_ALL = 100_000
"""Frames more, at most, for answers that were not met: who meets which depends on who comes when."""
_CROWDED = {"max_waiting": 8}
"""So that somebody is refused."""
SERVERS: dict[str, dict[str, Any]] = {
    "barrier, coupled": {"rounds": {"round_timeout_s": 0.01} | _CROWDED},
    "rolling, coupled": {"scheduler": "seconds", "rounds": {"rounds": "rolling"} | _CROWDED},
    "rolling, ratio": {"scheduler": "seconds", "rule": "ratio", "rounds": {"rounds": "rolling"} | _CROWDED},
}


def _decoder(direction: Direction, frames: int, seed: int) -> dict[str, Any]:
    began_s, process = time.monotonic(), psutil.Process()
    became = decode_many(direction, frames // 5, seed)
    before = process.memory_info().rss
    became += decode_many(direction, frames - frames // 5, seed + 1)
    grown = process.memory_info().rss - before
    return _said(f"decode_{direction}", {
        "frames": became.total(), "became": dict(became.most_common()),
        "unmet": sorted(outcomes_of(direction) - became.keys()), "grown_bytes": grown,
        "seconds": time.monotonic() - began_s,
    })  # fmt: skip


def _storm(name: str, storm: ServerStorm | AgentStorm, seconds: float) -> dict[str, Any]:
    assert storm.warm is not None
    assert storm.after is not None
    counted: dict[str, Any] = {"frames": storm.frames, "links": storm.links}
    if isinstance(storm, ServerStorm):
        counted |= {"honest_texts": storm.honest_texts, "answers": dict(storm.answers.most_common())}
    else:
        counted |= {"outcomes": dict(storm.outcomes.most_common())}
    return _said(name, counted | {
        "unmet": storm.unmet, "complaints": storm.complaints, "seconds": seconds, **_growth(storm.warm, storm.after),
    })  # fmt: skip


def _growth(warm: Footprint, after: Footprint) -> dict[str, int]:
    return {
        "grown_bytes": after.rss_bytes - warm.rss_bytes,
        "grown_objects": after.objects - warm.objects,
        "grown_tasks": after.tasks - warm.tasks,
        "grown_threads": after.threads - warm.threads,
    }


def _said(name: str, result: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in result.items() if key not in ("complaints", "seconds")}
    typer.echo(f"{name}: {result['frames']:,} frames in {result['seconds']:.0f} s: {shown}")
    return result


def main(
    frames: Annotated[int, typer.Option(help="For the decoders, both together.", min=10)] = 1_000_000,
    server_frames: Annotated[int, typer.Option(help="For a server's links, over all servers.", min=15)] = 100_000,
    agent_frames: Annotated[int, typer.Option(help="For an agent's link.", min=5)] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same frames.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Fuzz, print what came of it, and exit with 1 if anything went wrong."""
    torch.set_num_threads(1)
    logging.getLogger().addHandler(logging.NullHandler())
    results: dict[str, dict[str, Any]] = {}
    for direction in ("agent", "server"):
        results[f"decode_{direction}"] = _decoder(direction, frames // 2, seed)
    for name, changes in SERVERS.items():
        began_s = time.monotonic()
        least = -(-server_frames // len(SERVERS))
        storm = asyncio.run(fuzz_server(tiny_settings(**changes), least, seed, most=least + _TO_MEET_ALL))
        results[name] = _storm(f"server ({name})", storm, time.monotonic() - began_s)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        agents = asyncio.run(fuzz_agent(agent_frames, seed, Path(folder)))
    results["agent"] = _storm("agent", agents, time.monotonic() - began_s)
    total = Counter({name: result["frames"] for name, result in results.items()}).total()
    wrong = [
        name for name, result in results.items()
        if result["unmet"] or result.get("complaints")
        or result["grown_bytes"] > MOST_GROWTH_BYTES or result.get("grown_tasks", 0) > 0
    ]  # fmt: skip
    for name in wrong:
        never_met = [f"never met: {what}" for what in results[name]["unmet"]]
        typer.echo("\n".join([f"{name}:", *never_met, *results[name].get("complaints", [])[:3]]), err=True)
    if json_file is not None:
        json_file.write_text(json.dumps({"seed": seed, "frames": total, **results}, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{total:,} frames, {'nothing' if not wrong else ', '.join(wrong)} wrong")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
