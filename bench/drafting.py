"""Guesses a second of one agent's streams: in one batch, and one stream after another.

A draft model of the bundled ones guesses for streams of unequal lengths, at T = 1 under the coupled rule. The two ways
take turns, and the figures are medians over the rounds. `python -m bench.drafting [--json FILE]`
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from goodspeed.catalog import DEFAULT_DRAFT
from goodspeed.sampling import SamplingParams
from goodspeed_agent.drafters import DraftSession
from goodspeed_agent.drafters.model import ModelDrafter

__all__ = ["main"]

STREAMS = (1, 2, 4, 8, 16)
BUDGET = 4
PROMPT_TOKENS = 60
app = typer.Typer(add_completion=False)


@app.command()
def main(
    draft: Annotated[str, typer.Option(help="The draft model.")] = DEFAULT_DRAFT,
    rounds: Annotated[int, typer.Option(help="Of each way.")] = 21,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print guesses per second of processor time, and how many times as many the batch makes."""
    drafter = ModelDrafter.load(draft, threads=threads)
    figures = [_measured(drafter, streams, rounds) for streams in STREAMS]
    print(f"{draft}, {threads} thread(s), torch {torch.__version__}: guesses a second")
    print(f"{'streams':>8} {'one by one':>11} {'in a batch':>11} {'times':>6}")
    for row in figures:
        print(f"{row['streams']:8.0f} {row['alone_per_s']:11.0f} {row['batched_per_s']:11.0f} {row['times']:6.2f}")
    if as_json is not None:
        found = {"draft": draft, "threads": threads, "budget": BUDGET, "rounds": rounds, "cases": figures}
        as_json.write_text(json.dumps(found, indent=2) + "\n")


def _measured(drafter: ModelDrafter, streams: int, rounds: int) -> dict[str, float]:
    sessions = [
        drafter.open(SamplingParams(temperature=1.0, seed=seed), rule="coupled", vocab_size=2**31)
        for seed in range(streams)
    ]
    texts = [[(7 * n * place + 3) % 1000 + 10 for place in range(PROMPT_TOKENS + 5 * n)] for n in range(streams)]
    alone_s, batched_s = [], []
    for _ in range(rounds + 1):
        alone_s.append(_seconds(drafter, sessions, texts, together=False))
        batched_s.append(_seconds(drafter, sessions, texts, together=True))
    # The first round has the prompts.
    alone, batched = (streams * BUDGET / statistics.median(taken[1:]) for taken in (alone_s, batched_s))
    return {"streams": streams, "alone_per_s": alone, "batched_per_s": batched, "times": batched / alone}


def _seconds(
    drafter: ModelDrafter, sessions: Sequence[DraftSession], texts: Sequence[list[int]], *, together: bool
) -> float:
    """Processor time until every stream has its draft; at the end of it every stream is where it was."""
    began_s = time.process_time()
    guesses = [session.guesses(text) for session, text in zip(sessions, texts, strict=True)]
    for _ in range(BUDGET):
        if together:
            while not all(drafter.prepare(sessions)):
                pass
        for more in guesses:
            next(more)
    return time.process_time() - began_s


if __name__ == "__main__":
    app()
