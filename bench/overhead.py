"""What a round costs beside its forward pass: decode, plan, sample, update, encode, send.

A real server with a target of about 100M parameters (random weights) in this process; its agents, reduced to their
messages, in another, so that their work is not counted. Everything the event loop's thread computes in a round is
overhead (processor time, so that waiting for drafts is not), and so is everything of the engine's thread that is not
the forward pass. Two schedules: drafts of four tokens from everybody in every round behind the barrier, and the default
(rolling rounds, the scheduler in seconds), which soon finds that random drafts are worth nothing and decodes alone.
`python -m bench.overhead [--json FILE]`
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvloop
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM
from websockets.asyncio.client import connect

from goodspeed.messages import PROTOCOL_VERSION, Draft, Hello, Open, Opened, Verdict, Welcome, decode_server, encode
from goodspeed.sampling import SamplingParams
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["main"]

VOCAB = 32_000
PROMPT_TOKENS = 32
STREAMS_PER_LINK = 4
BUDGET = 4
AIM = {8: 0.10, 64: 0.20}
SCHEDULES = ("fixed/barrier", "seconds/rolling")
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(help="Rounds measured for each case.")] = 24,
    threads: Annotated[int, typer.Option(help="CPU threads of the forward pass.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print the overhead of a round, and its share of the forward pass."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(threads)
    target = _target()
    parameters = sum(weight.numel() for weight in target.parameters())
    print(f"target: {parameters / 1e6:.0f}M parameters, {threads} thread(s)")
    print(
        f"{'schedule':>16} {'streams':>8} {'T':>4} {'drafted':>8} {'forward ms':>11} {'loop ms':>8} {'judge ms':>9} "
        f"{'overhead':>9}  aim"
    )
    figures = []
    for schedule, streams, temperature in itertools.product(SCHEDULES, (8, 64), (0.0, 0.8)):
        figure = uvloop.run(_measure(target, schedule, streams, temperature, rounds))
        figures.append(figure)
        print(
            f"{schedule:>16} {streams:>8} {temperature:>4} {figure['drafted_per_round']:>8.1f} "
            f"{figure['forward_ms']:>11.1f} {figure['loop_ms']:>8.2f} {figure['judge_ms']:>9.2f} "
            f"{figure['share']:>9.1%}  {AIM[streams]:.0%}"
        )
    if as_json:
        as_json.write_text(json.dumps({"threads": threads, "cases": figures}, indent=2))


def _target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=10,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.train(False)
    return model


async def _measure(
    target: LlamaForCausalLM, schedule: str, streams: int, temperature: float, rounds: int
) -> dict[str, Any]:
    settings = ServerSettings(
        model="random-100m",
        port=0,
        max_streams=streams,
        max_length=1024,
        scheduler=schedule.split("/")[0],
        rounds=_round_settings(schedule, streams),
    )
    tokenizer = HubTokenizer(WordLevel({"w": 0}, unk_token="w"))
    server = VerificationServer(
        settings, target, {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": b"{}"}
    )
    async with server.listen() as address:
        peers = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.overhead", "agents", address, str(streams), str(temperature)
        )
        try:
            await _until(server, lambda snapshot: snapshot.rounds >= 3 and snapshot.streams == streams)
            before, cpu_before = server.snapshot(), time.thread_time()
            await _until(server, lambda snapshot: snapshot.rounds >= before.rounds + rounds)
            after, cpu_after = server.snapshot(), time.thread_time()
        finally:
            peers.kill()
            await peers.wait()
    count = after.rounds - before.rounds
    drafted_per_round = (after.drafted - before.drafted) / count
    if schedule == "fixed/barrier" and drafted_per_round < 0.95 * BUDGET * streams:
        raise RuntimeError(f"{drafted_per_round} tokens drafted a round: this machine is too busy to measure on")
    forward_ms = 1e3 * (after.busy_s - before.busy_s) / count
    loop_ms = 1e3 * (cpu_after - cpu_before) / count
    judge_ms = 1e3 * (after.judge_s - before.judge_s) / count
    return {
        "schedule": schedule,
        "streams": streams,
        "temperature": temperature,
        "rounds": count,
        "drafted_per_round": drafted_per_round,
        "forward_ms": forward_ms,
        "loop_ms": loop_ms,
        "judge_ms": judge_ms,
        "share": (loop_ms + judge_ms) / forward_ms,
    }


def _round_settings(schedule: str, streams: int) -> RoundSettings:
    if schedule == "fixed/barrier":
        # Whatever the drafts are worth, everybody drafts as much in every round.
        return RoundSettings(rounds="barrier", capacity=BUDGET * streams, round_timeout_s=60.0)
    return RoundSettings(rounds="rolling")


async def _until(server: VerificationServer, reached: Any) -> None:
    while not reached(server.snapshot()):
        await asyncio.sleep(0.25)


@app.command(hidden=True)
def agents(address: str, streams: int, temperature: float) -> None:
    """Answer every verdict with random tokens at once, on links of a few streams each, until killed."""
    asyncio.run(_act_as_agents(address, streams, temperature))


async def _act_as_agents(address: str, streams: int, temperature: float) -> None:
    links = [range(first, min(first + STREAMS_PER_LINK, streams)) for first in range(0, streams, STREAMS_PER_LINK)]
    await asyncio.gather(*(_act_as_agent(address, numbers, temperature) for numbers in links))


async def _act_as_agent(address: str, numbers: range, temperature: float) -> None:
    draw = random.Random(numbers.start)
    lengths: dict[int, int] = {}
    async with connect(address, compression=None) as connection:
        await connection.send(encode(Hello(PROTOCOL_VERSION, "agent", f"synthetic-{numbers.start}")))
        for number in numbers:
            prompt = [draw.randrange(VOCAB) for _ in range(PROMPT_TOKENS)]
            params = SamplingParams(temperature, seed=number)
            await connection.send(encode(Open(number, prompt, PROMPT_TOKENS, params, 900, 8)))
        async for frame in connection:
            assert isinstance(frame, bytes)
            message = decode_server(frame)
            match message:
                case Welcome():
                    continue
                case Opened():
                    lengths[message.stream] = message.base
                case Verdict():
                    lengths[message.stream] = message.base + message.accepted + len(message.tokens)
                case _:
                    raise RuntimeError(f"the server said {message}")
            if message.budget:
                drafted = [draw.randrange(VOCAB) for _ in range(message.budget)]
                await connection.send(encode(Draft(message.stream, lengths[message.stream], drafted)))


if __name__ == "__main__":
    app()
