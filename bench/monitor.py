"""What watching costs: the processor time of `goodspeed-server top` beside a server with many agents.

The command runs as a user runs it, in a process of its own on a terminal of its own. The server that it watches is
played: it sends as many snapshots a second as a real one does, in which every figure of every agent has changed. What
is counted is processor time, user's and system's, of the process alone, from its first picture on; a machine with other
work to do changes it little.
`python -m bench.monitor [--json FILE]`
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import random
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import psutil
import typer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from goodspeed.errors import GoodSpeedError
from goodspeed.messages import Snapshot, encode
from goodspeed.snapshot import AgentRow, PhaseTimes, RoundRow, ServerSnapshot
from goodspeed_server.showing import SNAPSHOT_INTERVAL_S

__all__ = ["main", "snapshot_at"]

SIZES = ((60, 24), (100, 40), (160, 80))
"""Widths and heights; on the last, all agents are seen at once."""
ROUNDS_PER_S = 20
_PICTURE_BEGINS = b"\x1b[?2026h"
AIM = 0.02
"""Of a core."""


def snapshot_at(now: float, agents: int, seed: int = 0) -> ServerSnapshot:
    """A busy server at some time; the same time gives the same figures."""
    second = int(now)
    rows = tuple(_agent(number, now, seed) for number in range(agents))
    done = int(now * ROUNDS_PER_S)
    return ServerSnapshot(
        model="Qwen/Qwen3-14B",
        scheduler="seconds",
        rule="coupled",
        layout="packed",
        capacity=None,
        uptime_s=now,
        rounds=done,
        rounds_per_s=ROUNDS_PER_S,
        phases=PhaseTimes(gather_ms=12.0, plan_ms=0.5, verify_ms=35.0, commit_ms=1.5),
        agents=rows,
        streams=2 * agents,
        waiting=3,
        rows=2 * agents + 8,
        free_rows=8,
        kv_used_tokens=100_000 + done,
        kv_tokens=500_000,
        fairness=1.0,
        utility=4.0 * agents,
        plain_utility=3.5 * agents,
        goodput=sum(row.goodput for row in rows),
        goodput_history=tuple(
            random.Random(f"{seed}/{tick}").randint(900, 1100) for tick in range(second - 60, second)
        ),
        committed=40 * done,
        drafted=50 * done,
        accepted=30 * done,
        busy_s=0.8 * now,
        judge_s=0.05 * now,
        plain_busy_s=1.4 * now,
        jain=0.93,
        recent=tuple(_round(number, agents, seed) for number in range(done - 16, done)),
    )


def _agent(number: int, now: float, seed: int) -> AgentRow:
    noise = random.Random(f"{seed}/{number}/{now}")
    second = int(now)
    history = (float(10 + (number * 7 + tick * tick) % 23) for tick in range(second - 60, second))
    drafted = int(now * (20 + number))
    return AgentRow(
        name=f"edge-{number:02}",
        drafter="Qwen/Qwen3-0.6B",
        streams=2,
        prefilling=0,
        budget=noise.uniform(1, 8),
        alpha=noise.uniform(0.4, 0.95),
        goodput=noise.uniform(10, 30),
        tokens_per_round=noise.uniform(1, 4),
        history=tuple(history),
        drafted=drafted,
        accepted=drafted * 6 // 10,
        committed=drafted,
        draft_ms=round(noise.uniform(5, 20), 2),
        network_ms=round(noise.uniform(10, 40), 2),
        wait_ms=round(noise.uniform(0, 20), 2),
    )


def _round(number: int, agents: int, seed: int) -> RoundRow:
    noise = random.Random(f"{seed}/round/{number}")
    return RoundRow(
        number=number,
        draft_ms=round(noise.uniform(5, 20), 2),
        network_ms=round(noise.uniform(10, 40), 2),
        wait_ms=round(noise.uniform(0, 40), 2),
        verify_ms=round(noise.uniform(25, 45), 2),
        other_ms=1.5,
        streams=2 * agents,
        drafted=2 * agents,
        accepted=agents,
        committed=3 * agents,
        slowest=f"edge-{noise.randrange(agents):02}",
        held_ms=round(noise.uniform(0, 30), 2),
    )


@contextlib.asynccontextmanager
async def _played(agents: int) -> AsyncIterator[str]:
    """A server that shows its monitors a snapshot whenever a real one would."""

    async def show(connection: ServerConnection) -> None:
        await connection.recv()
        begun = time.monotonic()
        with contextlib.suppress(ConnectionClosed):  # the monitor has seen enough
            while True:
                shown = snapshot_at(1000 + time.monotonic() - begun, agents)
                await connection.send(encode(Snapshot(shown.to_json())))
                await asyncio.sleep(SNAPSHOT_INTERVAL_S)

    async with serve(show, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


async def _watched(address: str, width: int, height: int, seconds: float) -> dict[str, float]:
    """Run the monitor on a terminal of this size for so long."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "goodspeed_server", "top", address,
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env=environment | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )  # fmt: skip
    os.close(terminal)
    loop, drawn, written_bytes, pictures, said = asyncio.get_running_loop(), asyncio.Event(), 0, 0, b""

    def read() -> None:
        nonlocal written_bytes, pictures, said
        try:
            piece = os.read(controller, 2**16)
        except OSError:  # how a terminal says that its last writer has gone
            loop.remove_reader(controller)
            drawn.set()
            return
        written_bytes += len(piece)
        pictures += piece.count(_PICTURE_BEGINS)
        said = piece
        if b"edge-" in piece:
            drawn.set()

    loop.add_reader(controller, read)
    try:
        await asyncio.wait_for(drawn.wait(), 60)
        watched = psutil.Process(process.pid)
        # Not the first pictures: what they import and remember, the others find.
        await asyncio.sleep(2)
        if process.returncode is not None:
            raise GoodSpeedError(f"the monitor ended; it said {said.decode(errors='replace').strip()}")
        cpu_before, before, begun = watched.cpu_times(), (written_bytes, pictures), time.monotonic()
        await asyncio.sleep(seconds)
        cpu_after, wall_s = watched.cpu_times(), time.monotonic() - begun
        bytes_per_s, pictures_per_s = (written_bytes - before[0]) / wall_s, (pictures - before[1]) / wall_s
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        loop.remove_reader(controller)
        os.close(controller)
    cpu_s = cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system
    return {"width": width, "height": height, "wall_s": wall_s, "cpu_s": cpu_s, "cores": cpu_s / wall_s,
            "pictures_per_s": pictures_per_s, "terminal_bytes_per_s": bytes_per_s}  # fmt: skip


async def _measured(agents: int, seconds: float) -> list[dict[str, float]]:
    async with _played(agents) as address:
        return [await _watched(address, width, height, seconds) for width, height in SIZES]


def main(
    agents: Annotated[int, typer.Option(help="How many the server has.", min=1)] = 64,
    seconds: Annotated[float, typer.Option(help="How long each size is watched.")] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure, and print a line for each size of terminal."""
    snapshot_bytes = len(snapshot_at(1000.0, agents).to_json())
    typer.echo(f"{agents} agents, {1 / SNAPSHOT_INTERVAL_S:g} snapshots/s of {snapshot_bytes / 1000:.1f} kB")
    terminals = asyncio.run(_measured(agents, seconds))
    for row in terminals:
        typer.echo(
            f"{row['width']:.0f}x{row['height']:.0f}: {row['cores']:.2%} of a core (aim {AIM:.0%}), "
            f"{row['pictures_per_s']:.1f} pictures/s, {row['terminal_bytes_per_s'] / 1000:.1f} kB/s to the terminal"
        )
    if json_file is not None:
        figures = {"agents": agents, "snapshot_bytes": snapshot_bytes, "aim_cores": AIM, "terminals": terminals}
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
