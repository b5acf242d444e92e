"""What it costs to copy the beginning of a prompt from another row, beside running it again.

`python -m bench.prefixes [--threads N] [--repeats N] [--json FILE]`

Both take turns on the same rows. What is copied was computed in passes of another shape than the text's own would have
had, so the last columns say how far the two are apart, as logits of a continuation see it.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.engine import BUNDLED_TARGET, draw
from goodspeed.engine import Engine, Layout, Segment

LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
LENGTHS = (16, 64, 256, 896)
CHUNK = 512
"""Tokens of a prompt in one pass, as a server has it."""
OTHER_CHUNK = 93
"""As several prompts that share a pass would have."""
CONTINUATION = 64
SOURCE, TARGET, OWN = range(3)


@dataclass(frozen=True)
class Result:
    """One length of beginning."""

    model: str
    layout: Layout
    tokens: int
    copy_ms: list[float]
    run_ms: list[float]
    apart: float
    """The largest difference of logits of a continuation, behind a copy and behind a prompt of its own."""
    flipped: int
    """In how many of its places the likeliest token is another."""

    @property
    def share(self) -> float:
        """What a copy takes of what running the tokens takes."""
        return statistics.median(self.copy_ms) / statistics.median(self.run_ms)


def bundled_target() -> PreTrainedModel:
    """What a server has without being told."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BUNDLED_TARGET, dtype=torch.float32)
    return model


def random_target() -> PreTrainedModel:
    """A Llama of 12 layers, 768 wide, with 99M weights: wide enough that logits are not flat."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16384,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            initializer_range=0.05,
        )
    )


def measure(name: str, model: PreTrainedModel, layout: Layout, dtype: torch.dtype, repeats: int) -> Iterator[Result]:
    """Time a copy and a prefill of every length."""
    engine = Engine(model, rows=3, max_length=1024, layout=layout, device="cpu", dtype=dtype)
    rng = random.Random(0)
    text = draw(max(LENGTHS) + CONTINUATION, rng, engine.vocab_size)
    prefill(engine, SOURCE, text[: max(LENGTHS)], OTHER_CHUNK)
    for tokens in LENGTHS:
        run, copy = _run(engine, text[:tokens]), _copy(engine, tokens)
        run_ms, copy_ms = [], []
        for _ in range(repeats):
            run_ms.append(cpu_ms(run))
            copy_ms.append(cpu_ms(copy))
        run()
        copy()
        new = text[tokens : tokens + CONTINUATION]
        behind = [engine.forward([Segment(row, tokens, new, CONTINUATION)]) for row in (TARGET, OWN)]
        flipped = int((behind[0].argmax(-1) != behind[1].argmax(-1)).sum())
        apart = float((behind[0] - behind[1]).abs().max())
        yield Result(name, layout, tokens, copy_ms, run_ms, apart, flipped)


def _run(engine: Engine, tokens: Sequence[int]) -> Callable[[], None]:
    return lambda: prefill(engine, OWN, tokens, CHUNK)


def _copy(engine: Engine, tokens: int) -> Callable[[], None]:
    return lambda: engine.copy(SOURCE, TARGET, tokens)


def prefill(engine: Engine, row: int, tokens: Sequence[int], chunk: int) -> None:
    for start in range(0, len(tokens), chunk):
        engine.forward([Segment(row, start, tokens[start : start + chunk], logits=0)])


def cpu_ms(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def report(results: Sequence[Result], threads: int) -> Table:
    table = Table(title=f"The beginning of a prompt: copied, and run; {threads} CPU thread(s), medians of CPU ms")
    for words in ("target", "layout"):
        table.add_column(words, no_wrap=True)
    for figures in ("tokens", "copied", "run", "copied : run", "logits apart", f"flipped of {CONTINUATION}"):
        table.add_column(figures, justify="right")
    for result in results:
        table.add_row(
            result.model,
            result.layout,
            str(result.tokens),
            f"{statistics.median(result.copy_ms):.3f}",
            f"{statistics.median(result.run_ms):.1f}",
            f"{100 * result.share:.2f}%",
            f"{result.apart:.1e}",
            str(result.flipped),
        )
    return table


def main(
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Of each length.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there as well.")] = None,
) -> None:
    """Compare copying what prompts begin with to running it again."""
    torch.set_num_threads(threads)
    results: list[Result] = []
    for name, build, dtype in (
        ("bundled, float32", bundled_target, torch.float32),
        ("bundled, bfloat16", bundled_target, torch.bfloat16),
        ("random 99M, float32", random_target, torch.float32),
    ):
        for layout in LAYOUTS:
            for result in measure(name, build(), layout, dtype, repeats):
                typer.echo(f"{name}, {layout}, {result.tokens}: {100 * result.share:.2f}%", err=True)
                results.append(result)
    Console(width=120).print(report(results, threads))
    if json_file is not None:
        about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": threads}
        json_file.write_text(json.dumps(about | {"results": [asdict(result) for result in results]}, indent=2))


if __name__ == "__main__":
    typer.run(main)
