"""`make chaos`: many agents and a server in a storm; every completed text is compared with an undisturbed run's.

Agents and server are real processes, killed with SIGKILL and started again. Between each agent and the server stands a
proxy that resets, stalls, delays and slices its connections at random points. What happens when is drawn beforehand;
`--seed` repeats it, as far as a machine repeats itself.
`python -m bench.chaos [--minutes 10] [--seed 0] [--json FILE]`
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.chaos.faults import faults_of
from bench.chaos.fleet import Chaos, Storm
from bench.chaos.report import sentences, summary
from bench.chaos.texts import orders
from bench.processes import ENVIRONMENT, Start

__all__ = ["main"]

DRAFTS = ("pico-draft-s", *("suffix",) * 6, "none")
"""Of eight agents: a model's drafts, and those that cost two shared cores next to nothing."""
POLICY = ("--scheduler", "goodspeed", "--round-timeout-ms", "100")
"""The paper's, behind its barrier: there every round has drafts, and an agent that is gone holds up all the others."""
DISTINCT = 96
TEXTS_PER_RUN = 48


def starting(folder: Path) -> Start:
    """Starts processes whose cache is in a folder."""

    async def start(module: str, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT | {"GOODSPEED_CACHE": str(folder), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    return start


def main(
    minutes: Annotated[float, typer.Option(help="How long the storm lasts.", min=0.1)] = 10.0,
    agents: Annotated[int, typer.Option(min=1)] = 16,
    streams: Annotated[int, typer.Option(help="Of each agent, at once.", min=1)] = 4,
    texts: Annotated[int, typer.Option(help="How many different ones there are.", min=1)] = DISTINCT,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Run the storm; exit with 1 if a text differs or is missing, or a process ended as it should not."""
    # Whoever ends it, no process is to outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds = 60 * minutes
        storm = Storm(
            faults_of(seed, seconds, agents),
            seconds,
            agents,
            streams,
            texts_per_run=min(TEXTS_PER_RUN, texts),
            orders=orders(texts, seed),
            drafts=DRAFTS,
            server_options=POLICY,
            seed=seed,
        )
        chaos = Chaos(storm, folder, starting(folder), lambda what: typer.echo(what, err=True))
        asyncio.run(chaos.run())
    figures = summary(chaos)
    typer.echo("\n".join(sentences(figures)))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    whole = figures["texts_compared"] == figures["texts_asked_for"]
    raise typer.Exit(0 if whole and not figures["differences"] and not figures["complaints"] else 1)


if __name__ == "__main__":
    typer.run(main)
