"""What a round of verification costs on a CPU: as transformers runs a model, leanly, in other precisions, in llama.cpp.

`python -m bench.cpu [--threads N] [--turns N] [--json FILE]`

One run, on the bundled target and on a random Llama of 101 million parameters. All rivals have the same weights (for
llama.cpp in a GGUF file, in float32), run the same rounds in turns, and those in float32 must give the same logits.
Torch's int8 weights make another model of it. A round is 8 rows with as many tokens cached each. The milliseconds are
of processor time with one thread, and of wall time with several; ratios are medians over the turns, of rivals within
one.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.gguf import write_gguf
from bench.llama import LACKING, LlamaRounds, is_installed
from goodspeed.catalog import DEFAULT_TARGET, load_model
from goodspeed.engine import Engine, Segment

__all__ = ["main"]

ROWS = 8
MAX_DRAFT = 8
CONTEXTS = (256, 1024)
CHUNK = 256  # tokens of a prompt in one pass

AFTER, BEFORE, BFLOAT16, INT8, LLAMA = "lean", "transformers' layers", "lean, bfloat16", "int8 weights", "llama.cpp"
TOLERANCES = {AFTER: 1e-3, LLAMA: 0.2}
"""By how much logits may differ from those of transformers' layers, which are of the order of 10: llama.cpp caches in
float16."""
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Drafts:
    """How many tokens each row drafts."""

    name: str
    lengths: Callable[[random.Random], Sequence[int]]


DRAFTS = (
    Drafts("plain decoding, S = 0", lambda rng: [0] * ROWS),
    Drafts("S = 4", lambda rng: [4] * ROWS),
    Drafts("ragged, S <= 8", lambda rng: [rng.randint(0, MAX_DRAFT) for _ in range(ROWS)]),
)


class Rival(Protocol):
    """A way to run a round."""

    def fill(self, tokens: Sequence[int]) -> None:
        """Cache some tokens in every row, from its beginning."""
        ...

    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Logits:
        """Run new tokens in every row, and forget them: [sum of new tokens, vocab]."""
        ...


class InEngine:
    """The engine, packed."""

    def __init__(self, model: PreTrainedModel, max_length: int, dtype: torch.dtype, *, lean: bool) -> None:
        self._engine = Engine(
            model, rows=ROWS, max_length=max_length, layout="packed", device="cpu", dtype=dtype, lean=lean
        )

    def fill(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), CHUNK):
            self._engine.forward([Segment(0, start, tokens[start : start + CHUNK], logits=0)])
        for row in range(1, ROWS):
            self._engine.copy(0, row, len(tokens))

    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Logits:
        rows = enumerate(zip(starts, tokens, strict=True))
        logits = self._engine.forward([Segment(row, start, new, logits=len(new)) for row, (start, new) in rows])
        return cast(Logits, logits.numpy())


@dataclass(frozen=True)
class Result:
    """The rounds of one kind, turn by turn."""

    target: str
    cached: int
    drafts: str
    tokens: list[int]
    ms: dict[str, list[float]]

    def ratio(self, rival: str) -> float:
        """How many times the time of a lean round it takes."""
        pairs = zip(self.ms[rival], self.ms[AFTER], strict=True)
        return statistics.median(other / lean for other, lean in pairs)


def random_llama() -> PreTrainedModel:
    """101 million parameters: 12 layers, 768 wide, 12 query heads on 4 key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def rivals_of(model: PreTrainedModel, folder: Path, max_length: int, threads: int) -> dict[str, Rival]:
    """All upon the same weights."""
    rivals: dict[str, Rival] = {}
    if is_installed():
        path = write_gguf(folder / "target.gguf", model, [f"w{token}" for token in range(model.config.vocab_size)])
        rivals[LLAMA] = LlamaRounds(path, ROWS, max_length, threads)
    rivals[INT8] = InEngine(_in_int8(copy.deepcopy(model)), max_length, torch.float32, lean=True)
    rivals[BFLOAT16] = InEngine(copy.deepcopy(model), max_length, torch.bfloat16, lean=True)
    weights: dict[int, Any] = {id(weight): weight for weight in cast(nn.Module, model).parameters()}
    rivals[BEFORE] = InEngine(copy.deepcopy(model, weights), max_length, torch.float32, lean=False)
    rivals[AFTER] = InEngine(model, max_length, torch.float32, lean=True)
    return dict(reversed(rivals.items()))


def _in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """What torch itself offers: weights in int8, each product's inputs quantised as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantise: Any = torch.ao.quantization.quantize_dynamic
        return cast(PreTrainedModel, quantise(model, {nn.Linear}, dtype=torch.qint8))


def measure(name: str, model: PreTrainedModel, threads: int, turns: int) -> Iterator[Result]:
    """Time every kind of round on one target."""
    limit = model.config.max_position_embeddings
    contexts = [min(context, limit - MAX_DRAFT - 1) for context in CONTEXTS]
    clock = time.process_time if threads == 1 else time.perf_counter
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        rivals = rivals_of(model, Path(folder), max(contexts) + MAX_DRAFT + 1, threads)
        for cached in contexts:
            prompt = _draw(cached, rng, model.config.vocab_size)
            for rival in rivals.values():
                rival.fill(prompt)
            for drafts in DRAFTS:
                result = Result(name, cached, drafts.name, [], {way: [] for way in rivals})
                for turn in range(-1, turns):
                    news = [_draw(length + 1, rng, model.config.vocab_size) for length in drafts.lengths(rng)]
                    order = rng.sample(list(rivals), len(rivals))
                    ms = _race(rivals, order, [cached] * ROWS, news, clock)
                    if turn >= 0:  # the first one warms up
                        result.tokens.append(sum(map(len, news)))
                        for way in rivals:
                            result.ms[way].append(ms[way])
                yield result
        if isinstance(llama := rivals.get(LLAMA), LlamaRounds):
            llama.close()


def _draw(count: int, rng: random.Random, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def _race(
    rivals: dict[str, Rival],
    order: Sequence[str],
    starts: Sequence[int],
    news: Sequence[Sequence[int]],
    clock: Callable[[], float],
) -> dict[str, float]:
    """Run one round in every way: the milliseconds of each.

    Raises:
        RuntimeError: logits differ that should not, so that comparing the times would mean nothing.
    """
    ms: dict[str, float] = {}
    logits: dict[str, Logits] = {}
    for rival in order:
        begun_s = clock()
        logits[rival] = rivals[rival].verify(starts, news)
        ms[rival] = 1e3 * (clock() - begun_s)
    for rival in set(TOLERANCES) & set(rivals):
        apart = float(np.abs(logits[rival] - logits[BEFORE]).max())
        if not apart < TOLERANCES[rival]:
            raise RuntimeError(f"logits of {rival} are {apart} apart")
    return ms


def report(results: Sequence[Result], threads: int) -> Table:
    """One line for each kind of round."""
    times = "processor time" if threads == 1 else "wall time"
    table = Table(
        title=f"A round of {ROWS} rows, {threads} CPU thread(s); median ms of {times}, and times the lean round"
    )
    for words in ("target", "cached", "round", "tokens"):
        table.add_column(words, no_wrap=True)
    names = list(dict.fromkeys(rival for result in results for rival in result.ms))
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        figures = [f"{statistics.median(result.ms[rival]):.2f} ({result.ratio(rival):.2f})" for rival in names]
        tokens = f"{statistics.median(result.tokens):.0f}"
        table.add_row(result.target, str(result.cached), result.drafts, tokens, *figures)
    return table


def main(
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Rounds of each kind.")] = 25,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every round's figures there as well.")] = None,
) -> None:
    """Time rounds of verification on a CPU, before and after, and beside llama.cpp."""
    torch.set_num_threads(threads)
    if not is_installed():
        typer.echo(LACKING, err=True)
    results: list[Result] = []
    targets = {
        DEFAULT_TARGET: load_model(DEFAULT_TARGET, device="cpu", dtype="float32"),
        "random Llama, 101M": random_llama(),
    }
    for name, model in targets.items():
        for result in measure(name, model, threads, turns):
            figures = ", ".join(f"{rival} {result.ratio(rival):.2f}" for rival in result.ms)
            typer.echo(f"{name}, {result.cached} cached, {result.drafts}: {figures}", err=True)
            results.append(result)
    Console(width=170).print(report(results, threads))
    if json_file is not None:
        about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": threads}
        medians = [_summary(result) for result in results]
        json_file.write_text(json.dumps(about | {"medians": medians, "rounds": list(map(asdict, results))}) + "\n")


def _summary(result: Result) -> dict[str, Any]:
    about = {"target": result.target, "cached": result.cached, "drafts": result.drafts}
    ms = {rival: round(statistics.median(times), 3) for rival, times in result.ms.items()}
    return about | {"ms": ms, "times_lean": {rival: round(result.ratio(rival), 3) for rival in result.ms}}


if __name__ == "__main__":
    typer.run(main)
