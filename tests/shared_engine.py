"""`python -m tests.shared_engine RANK SIZE MEETING OUT MODEL...`: one of the ranks that share each model in turn.

Rank 0 puts each through `passes`, in every layout, and writes down what came of it.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from goodspeed.catalog import load_model, weights_digest
from goodspeed.engine import Engine, Layout, Segment
from goodspeed.engine.group import Group, Place
from goodspeed.engine.parallel import LeadingEngine, follow
from tests.tiny_models import CONTEXT, VOCAB

__all__ = ["LAYOUTS", "ROWS", "Outcome", "passes"]

LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
ROWS = 3
Outcome = dict[str, Tensor | str | int]
"""Of one model: logits by layout, the digest of its weights, and the bytes that a token takes on a rank."""


def passes(engine: Engine) -> Tensor:
    """Chunks of prompts beside drafts, drafts that are rejected, rows that change hands, a slab that grows.

    Returns:
        [tokens, vocab], all logits that were wanted.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(VOCAB, (count,), generator=generator).tolist()

    a, b = engine.allocate(), engine.allocate()
    logits = [
        engine.forward([Segment(a, 0, tokens(20), 0)]),
        engine.forward([Segment(a, 20, tokens(5), 5), Segment(b, 0, tokens(33), 1)]),
        engine.forward([Segment(a, 22, tokens(3), 3), Segment(b, 33, tokens(1), 1)]),
    ]
    engine.release(a)
    a = engine.allocate()
    logits.append(engine.forward([Segment(a, 0, tokens(7), 7), Segment(b, 34, tokens(4), 4)]))
    engine.clear(b, 30)
    logits.append(engine.forward([Segment(b, 30, tokens(6), 6)]))
    engine.copy(b, a, 30)
    logits.append(engine.forward([Segment(a, 30, tokens(2), 2)]))
    engine.resize(ROWS + 1, CONTEXT)
    logits.append(engine.forward([Segment(row, 7, tokens(2), 2) for row in (a, b)]))
    engine.begin_anew(ROWS, CONTEXT)
    logits.append(engine.forward([Segment(engine.allocate(), 0, tokens(CONTEXT), CONTEXT)]))
    return torch.cat(logits)


def _share(group: Group, model_folder: str) -> Outcome | None:
    """Run a model on all ranks; what came of it, on rank 0."""
    outcome: Outcome = {}
    for layout in LAYOUTS:
        model = load_model(model_folder, device="cpu", dtype="float32", ranks=group.size)
        outcome["weights"] = weights_digest(model)
        if group.place.rank:
            follow(group, model, "cpu")
            continue
        engine = LeadingEngine(
            model, group=group, rows=ROWS, max_length=CONTEXT, layout=layout, device="cpu", dtype=torch.float32
        )
        outcome[layout] = passes(engine)
        outcome["kv_bytes_per_token"] = engine.kv_bytes_per_token
        assert engine.end()
    return None if group.place.rank else outcome


def _say_much(group: Group) -> None:
    """What does not fit into one broadcast is heard as it was said."""
    for size in (0, 1, 8187, 8188, 8189, 50_000):
        said = bytes(number * 7 % 256 for number in range(size))
        if group.place.rank:
            assert zlib.crc32(group.hear()) == zlib.crc32(said)
        else:
            group.tell(said)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    rank, size, meeting, out, *models = arguments
    group = Group(Place(int(rank), int(size), int(rank), int(size), meeting), "cpu")
    _say_much(group)
    assert group.least(10 - group.place.rank) == 11 - group.size
    outcomes = [_share(group, model) for model in models]
    if not group.place.rank:
        torch.save(outcomes, Path(out))
    group.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
