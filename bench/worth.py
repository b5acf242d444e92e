"""Is it worth it? Tokens per second of *server busy time*, against plain decoding and transformers' `generate`.

One run, the bundled target and a bundled draft, T = 0, eight streams at a time until all bundled prompts are done.
Each policy is a real server and a real agent on a real link; busy time is the processor time that the engine's thread
spent on passes (prefill included) and on judging drafts. Policies take turns, and the table shows medians over the
turns. A first turn, which does not count, lets every draft be computed once: an agent is elsewhere in the world, and a
draft model at work on the server's own cores would sweep the target's weights out of their caches before each pass.
All texts are checked to be the same. `python -m bench.worth [--json FILE]`
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvloop
from tokenizers import Tokenizer

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import Drafter, load_drafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_bench.drafting import Remembering
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["main"]

STREAMS = 8
PLAIN = "plain decoding (S = 0)"
DEFAULT = "the default: seconds, rolling"
GENERATE = "transformers generate, batched"


def main(
    draft: Annotated[str, typer.Option(help="The agent's draft.")] = DEFAULT_DRAFT,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each text.")] = 128,
    turns: Annotated[int, typer.Option(help="How often each policy runs.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads of the target.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print goodput per second of server busy time, by policy."""
    torch.set_num_threads(threads)
    prompts = [prompt.text for prompt in bundled_prompts()]
    policies: dict[str, tuple[str, int | None]] = {PLAIN: ("plain", 0)}
    for budget in (2, 4, 6, 8):
        policies[f"GoodSpeed-Sched, C = {budget * STREAMS}"] = ("goodspeed", budget * STREAMS)
    policies[DEFAULT] = ("auto", None)
    busy_s: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[list[int]]] = {}
    drafter = Remembering(load_drafter(draft))
    for turn in range(turns + 1):
        for policy, (scheduler, capacity) in policies.items():
            seconds, texts[policy] = uvloop.run(_serve(_server(scheduler, capacity), drafter, prompts, new_tokens))
            if turn:
                busy_s[policy].append(seconds)
        seconds, texts[GENERATE] = _generate(prompts, new_tokens)
        if turn:
            busy_s[GENERATE].append(seconds)
    _report(busy_s, texts, draft, new_tokens, threads, as_json)


def _server(scheduler: str, capacity: int | None) -> VerificationServer:
    settings = ServerSettings(
        port=0,
        scheduler=scheduler,
        max_streams=STREAMS,
        dtype="float32",
        device="cpu",
        rounds=RoundSettings(capacity=capacity, round_timeout_s=10.0),
    )
    model = load_model(DEFAULT_TARGET, device="cpu", dtype="float32")
    return VerificationServer(settings, model, tokenizer_files(DEFAULT_TARGET))


async def _serve(
    server: VerificationServer, drafter: Drafter, prompts: list[str], new_tokens: int
) -> tuple[float, list[list[int]]]:
    """Let an agent work through the prompts, `STREAMS` at a time; busy seconds and texts."""
    before = server.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        at_once = asyncio.Semaphore(STREAMS)
        async with server.listen() as address, Agent(address, drafter, cache=TokenizerCache(Path(folder))) as agent:

            async def complete(prompt: str) -> list[int]:
                async with at_once:
                    request = TextRequest(prompt, max_new_tokens=new_tokens, ignore_eos=True)
                    return (await agent.complete(request)).tokens

            texts = await asyncio.gather(*map(complete, prompts))
    after = server.snapshot()
    return after.busy_s + after.judge_s - before.busy_s - before.judge_s, texts


def _generate(prompts: list[str], new_tokens: int) -> tuple[float, list[list[int]]]:
    """Transformers' own batched greedy decoding, `STREAMS` prompts a batch, padded on the left."""
    tokenizer = Tokenizer.from_str(tokenizer_files(DEFAULT_TARGET)["tokenizer.json"].decode())
    model: Any = load_model(DEFAULT_TARGET, device="cpu", dtype="float32")
    seconds, texts = 0.0, []
    for first in range(0, len(prompts), STREAMS):
        rows = [tokenizer.encode(prompt).ids for prompt in prompts[first : first + STREAMS]]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            started = time.thread_time()
            output = model.generate(
                ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
            seconds += time.thread_time() - started
        texts += output[:, width:].tolist()
    return seconds, texts


def _report(
    busy_s: dict[str, list[float]],
    texts: dict[str, list[list[int]]],
    draft: str,
    new_tokens: int,
    threads: int,
    as_json: Path | None,
) -> None:
    same = all(text == texts[PLAIN] for text in texts.values())
    tokens = len(texts[PLAIN]) * new_tokens
    rates = {policy: tokens / statistics.median(seconds) for policy, seconds in busy_s.items()}
    print(
        f"{DEFAULT_TARGET} with {draft}, T = 0, {len(texts[PLAIN])} texts of {new_tokens} tokens, "
        f"{STREAMS} streams at a time, {threads} thread(s)"
    )
    print(f"{'policy':<32} {'tokens / busy s':>16} {'x plain':>8} {'x generate':>11}")
    for policy, rate in rates.items():
        print(f"{policy:<32} {rate:>16.0f} {rate / rates[PLAIN]:>8.2f} {rate / rates[GENERATE]:>11.2f}")
    print(f"texts identical under every policy, and to generate's: {'yes' if same else 'NO'}")
    if as_json:
        figures = {
            "target": DEFAULT_TARGET,
            "draft": draft,
            "streams": STREAMS,
            "texts": len(texts[PLAIN]),
            "new_tokens": new_tokens,
            "threads": threads,
            "busy_s": dict(busy_s),
            "tokens_per_busy_s": rates,
            "texts_identical": same,
        }
        as_json.write_text(json.dumps(figures, indent=2))
    if not same:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
