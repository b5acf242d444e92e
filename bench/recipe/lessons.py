"""What drafts are tuned upon: the corpus, and what the target writes after its beginnings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers

from bench.recipe import corpus
from goodspeed.catalog import DEFAULT_TARGET, load_model, tokenizer_files, weights_digest
from goodspeed.errors import InvalidRequest
from goodspeed.tuning.passages import SHARD_SUFFIX, write_shard
from goodspeed.tuning.sources import DataSpec, load_source

__all__ = ["make_lessons"]

ROW_TOKENS = 256
SHARD_ROWS = 500


def make_lessons(folder: Path, rows: int, *, target: str = DEFAULT_TARGET, seed: int = 0) -> Path:
    """Read the standard library, and have the target read and write; what is there is kept.

    The clients are the corpus's domains: code, prose and tests.

    Args:
        folder: for the corpus and the shards.
        rows: so many of 256 tokens are read, and as many written.
        target: by name, or its folder.
        seed: of the choice of rows, and of what the target writes.

    Returns:
        The folder with the shards.

    Raises:
        InvalidRequest: what is there is of other rows, another seed or another target.
    """
    shards, unfinished = folder / "lessons", folder / "lessons.unfinished"
    model = load_model(target)
    about = {"rows": rows, "seed": seed, "target": weights_digest(model)}
    if shards.exists():
        made = json.loads((shards / "about.json").read_text())
        if made != about:
            raise InvalidRequest(f"the lessons in {shards} are others ({made}, not {about}): delete them")
        return shards
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    texts = folder / "train.jsonl"
    documents = corpus.split(corpus.read_standard_library())["train"]
    texts.write_text("".join(json.dumps({"text": one.text, "client": one.domain}) + "\n" for one in documents))
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_files(target)["tokenizer.json"])
    passages = [
        passage
        for kind in ("read", "write")
        for passage in load_source(
            DataSpec(texts, kind=kind), model, tokenizer, row_tokens=ROW_TOKENS, at_most=rows, seed=seed
        )
    ]
    order = np.random.default_rng(seed).permutation(len(passages))
    for number, begin in enumerate(range(0, len(order), SHARD_ROWS)):
        chosen = [passages[place] for place in order[begin : begin + SHARD_ROWS]]
        write_shard(unfinished / f"{number:03d}{SHARD_SUFFIX}", chosen)
    (unfinished / "about.json").write_text(json.dumps(about))
    unfinished.rename(shards)
    return shards
