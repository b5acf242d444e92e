"""Is it worth it? Tokens per second of *server busy time*, against plain decoding and transformers' `generate`.

One run, the bundled target and a bundled draft, T = 0, eight streams at a time until all bundled prompts are done.
Each policy is a real server in this process and a real agent in another; busy time is the processor time that the
engine's thread spent on passes (prefill included) and on judging drafts. Policies take turns, and the table shows
medians over the turns. All texts are checked to be the same. `python -m bench.worth [--json FILE]`
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvloop
from tokenizers import Tokenizer

from bench.workloads import load_prompts
from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["main"]

STREAMS = 8
PLAIN = "plain decoding (S = 0)"
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
    prompts = [prompt.text for prompt in load_prompts()]
    policies = {PLAIN: ("plain", 0)}
    for budget in (2, 4, 6, 8):
        policies[f"GoodSpeed-Sched, C = {budget * STREAMS}"] = ("goodspeed", budget * STREAMS)
    busy_s: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[list[int]]] = {}
    for _ in range(turns):
        for policy, (scheduler, capacity) in policies.items():
            seconds, texts[policy] = uvloop.run(_serve(_server(scheduler, capacity), draft, prompts, new_tokens))
            busy_s[policy].append(seconds)
        seconds, texts[GENERATE] = _generate(prompts, new_tokens)
        busy_s[GENERATE].append(seconds)
    _report(busy_s, texts, draft, new_tokens, threads, as_json)


def _server(scheduler: str, capacity: int) -> VerificationServer:
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
    server: VerificationServer, draft: str, prompts: list[str], new_tokens: int
) -> tuple[float, list[list[int]]]:
    """Let an agent work through the prompts, `STREAMS` at a time; busy seconds and texts."""
    with tempfile.TemporaryDirectory() as folder:
        todo, done = Path(folder, "todo.jsonl"), Path(folder, "done.jsonl")
        todo.write_text("".join(json.dumps({"prompt": prompt, "ignore_eos": True}) + "\n" for prompt in prompts))
        before = server.snapshot()
        async with server.listen() as address:
            agent = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "goodspeed_agent", "run", "--server", address, "--draft", draft,
                "--prompts", str(todo), "--output", str(done), "--concurrency", str(STREAMS),
                "--max-new-tokens", str(new_tokens),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            if await agent.wait() != 0:
                raise RuntimeError(f"the agent ended with exit code {agent.returncode}")
        after = server.snapshot()
        texts = [json.loads(line)["tokens"] for line in done.read_text().splitlines()]
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
