"""What one round of verification costs: packed, padded, and a loop over the rows with transformers' own cache.

`python -m bench.engine [--threads N] [--repeats N] [--json FILE]`

All three run the same weights over the same rounds, in turns, and must give the same logits. The loop is the best
that transformers offers for ragged rows: a `DynamicCache` a row, batch of one, cropped after each round.
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import goodspeed
from goodspeed.engine import Engine, Layout, Segment

ROWS = 8
MAX_DRAFT = 8
CHUNK = 256  # tokens of a prompt in one pass
TOLERANCE = 1e-3
BUNDLED_TARGET = Path(goodspeed.__file__).parent / "models" / "pico-target"

MIXED = (120, 210, 300, 410, 520, 640, 770, 900)
ONE_LONG = (1800, 60, 80, 100, 120, 140, 160, 180)


@dataclass(frozen=True)
class Shape:
    """A kind of round: what the rows have cached, and how many tokens each drafts."""

    name: str
    contexts: tuple[int, ...]
    drafts: Callable[[random.Random], Sequence[int]]


SHAPES = (
    Shape("ragged drafts, S <= 8", MIXED, lambda rng: [rng.randint(0, MAX_DRAFT) for _ in range(ROWS)]),
    Shape("uniform drafts, S = 8", MIXED, lambda rng: [MAX_DRAFT] * ROWS),
    Shape("one fast agent, S = 8 and 1", MIXED, lambda rng: _shuffled(rng, [MAX_DRAFT, *[1] * (ROWS - 1)])),
    Shape("plain decoding, S = 0", MIXED, lambda rng: [0] * ROWS),
    Shape("one long context, S <= 2", ONE_LONG, lambda rng: [rng.randint(0, 2) for _ in range(ROWS)]),
)


def _shuffled(rng: random.Random, values: list[int]) -> list[int]:
    rng.shuffle(values)
    return values


class Contender(Protocol):
    """A way to run a round."""

    def fill(self, row: int, tokens: Sequence[int]) -> None:
        """Cache the tokens of a row, from its beginning."""
        ...

    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Run new tokens in every row, and forget them. Returns [sum of new tokens, vocab]."""
        ...


class WithEngine:
    """The engine, in one of its layouts."""

    def __init__(self, model: PreTrainedModel, layout: Layout, max_length: int) -> None:
        self._engine = Engine(model, rows=ROWS, max_length=max_length, layout=layout, device="cpu", dtype=torch.float32)

    def fill(self, row: int, tokens: Sequence[int]) -> None:
        """In chunks, without logits."""
        for start in range(0, len(tokens), CHUNK):
            self._engine.forward([Segment(row, start, tokens[start : start + CHUNK], logits=0)])

    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """In one pass; the next one starts where this one did, which rolls it back."""
        rows = enumerate(zip(starts, tokens, strict=True))
        return self._engine.forward([Segment(row, start, new, logits=len(new)) for row, (start, new) in rows])


class Loop:
    """Row after row, each with a cache of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._caches: dict[int, DynamicCache] = {}

    @torch.inference_mode()
    def fill(self, row: int, tokens: Sequence[int]) -> None:
        """Into a new cache, in chunks."""
        self._caches[row] = DynamicCache(config=self._model.config)
        for start in range(0, len(tokens), CHUNK):
            self._run(row, tokens[start : start + CHUNK], logits=1)

    @torch.inference_mode()
    def verify(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Row by row, cropping each cache behind it."""
        logits = []
        for row, new in enumerate(tokens):
            logits.append(self._run(row, new, logits=len(new)))
            self._caches[row].crop(-len(new))
        return torch.cat(logits)

    def _run(self, row: int, tokens: Sequence[int], logits: int) -> Tensor:
        ids = torch.tensor([tokens])
        output = self._model(input_ids=ids, cache=self._caches[row], use_cache=True, logits_to_keep=logits)
        return cast(Tensor, output.logits)[0]


@dataclass(frozen=True)
class Result:
    """The rounds of one shape. The rivals took turns within each, so that a round can be compared with itself."""

    model: str
    shape: str
    tokens: list[int]
    padded_tokens: list[int]
    wall_ms: dict[str, list[float]]
    cpu_ms: dict[str, list[float]]

    def ratio(self, rival: str) -> float:
        """How many times the CPU time of a packed round the rival takes: the median over the rounds."""
        pairs = zip(self.cpu_ms[rival], self.cpu_ms["packed"], strict=True)
        return statistics.median(other / packed for other, packed in pairs)


def random_target() -> PreTrainedModel:
    """A Llama of 10 layers, 768 wide, 12 query heads on 4 key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def contenders(model: PreTrainedModel, max_length: int) -> dict[str, Contender]:
    """All three upon the same weights; the loop keeps transformers' attention."""
    weights: dict[int, Any] = {id(weight): weight for weight in cast(nn.Module, model).parameters()}
    plain = copy.deepcopy(model, weights)
    cast(nn.Module, plain).eval()
    return {
        "packed": WithEngine(model, "packed", max_length),
        "padded": WithEngine(model, "padded", max_length),
        "loop": Loop(plain),
    }


def measure(name: str, model: PreTrainedModel, repeats: int) -> Iterator[Result]:
    """Time every shape of round."""
    max_length = min(2048, model.config.max_position_embeddings)
    rivals = contenders(model, max_length)
    rng = random.Random(0)
    filled: tuple[int, ...] = ()
    for shape in SHAPES:
        contexts = tuple(min(context, max_length - MAX_DRAFT - 1) for context in shape.contexts)
        if contexts != filled:
            fill(rivals, contexts, rng, model.config.vocab_size)
            filled = contexts
        result = Result(name, shape.name, [], [], {rival: [] for rival in rivals}, {rival: [] for rival in rivals})
        for turn in range(repeats):
            tokens = [draw(draft + 1, rng, model.config.vocab_size) for draft in shape.drafts(rng)]
            if turn == 0:
                race(rivals, list(rivals), contexts, tokens)  # warms up
            order = sorted(rivals, key=lambda rival: rng.random())
            wall_ms, cpu_ms = race(rivals, order, contexts, tokens)
            result.tokens.append(sum(map(len, tokens)))
            result.padded_tokens.append(ROWS * max(map(len, tokens)))
            for rival in rivals:
                result.wall_ms[rival].append(wall_ms[rival])
                result.cpu_ms[rival].append(cpu_ms[rival])
        yield result


def draw(count: int, rng: random.Random, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def fill(rivals: dict[str, Contender], contexts: Sequence[int], rng: random.Random, vocab_size: int) -> None:
    for row, context in enumerate(contexts):
        tokens = draw(context, rng, vocab_size)
        for contender in rivals.values():
            contender.fill(row, tokens)


def race(
    rivals: dict[str, Contender], order: Sequence[str], contexts: Sequence[int], tokens: Sequence[Sequence[int]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Run one round in every way.

    Returns:
        Wall time and CPU time of each, in ms.

    Raises:
        RuntimeError: the logits differ, so that comparing the times would mean nothing.
    """
    wall_ms: dict[str, float] = {}
    cpu_ms: dict[str, float] = {}
    logits: dict[str, Tensor] = {}
    for rival in order:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        logits[rival] = rivals[rival].verify(contexts, tokens)
        wall_ms[rival] = 1e3 * (time.perf_counter() - wall_start)
        cpu_ms[rival] = 1e3 * (time.process_time() - cpu_start)
    apart = max(float((logits[rival] - logits["loop"]).abs().max()) for rival in rivals)
    if not apart < TOLERANCE:
        raise RuntimeError(f"the logits are {apart} apart")
    return wall_ms, cpu_ms


def report(results: Sequence[Result], threads: int) -> Table:
    table = Table(title=f"One round of {ROWS} rows, float32, {threads} CPU thread(s); medians: ms of wall / CPU time")
    for words in ("target", "round"):
        table.add_column(words, no_wrap=True)
    for figures in ("tokens / padded", "packed", "padded", "loop", "padded : packed", "loop : packed"):
        table.add_column(figures, justify="right")
    median = statistics.median
    for result in results:
        table.add_row(
            result.model,
            result.shape,
            f"{median(result.tokens):.0f} / {median(result.padded_tokens):.0f}",
            *(f"{median(result.wall_ms[rival]):.1f} / {median(result.cpu_ms[rival]):.1f}" for rival in result.wall_ms),
            f"{result.ratio('padded'):.2f}",
            f"{result.ratio('loop'):.2f}",
        )
    return table


def main(
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds of each shape.")] = 25,
    model: Annotated[str | None, typer.Option(help="A path or name to time instead of the usual targets.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every round's figures there as well.")] = None,
) -> None:
    """Time a round of verification in every layout and shape."""
    torch.set_num_threads(threads)
    # Without it transformers copies keys and values for every query head, and the loop would lose by that alone.
    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1"
    targets: dict[str, PreTrainedModel] = {}
    if model is None:
        targets["random, 10 x 768"] = random_target()
    if model is not None or BUNDLED_TARGET.exists():
        path = model or BUNDLED_TARGET
        targets[Path(path).name] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    results: list[Result] = []
    for name, target in targets.items():
        for result in measure(name, target, repeats):
            typer.echo(f"{name}: {result.shape}: padded {result.ratio('padded'):.2f} times packed", err=True)
            results.append(result)
    Console(width=150).print(report(results, threads))
    if json_file is not None:
        about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": threads}
        json_file.write_text(json.dumps(about | {"results": [asdict(result) for result in results]}, indent=2))


if __name__ == "__main__":
    typer.run(main)
