"""An agent that takes another draft on SIGHUP, before a server that records: no text notices either."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from goodspeed.catalog import resolve
from goodspeed.tuning.passages import read_shards
from tests.system.processes import agent, reaped, server, start_agent

NEW_TOKENS = 40
AFTERWARDS = 3
"""Texts that are awaited once the draft is another; at least one of them began with it."""


async def test_a_draft_is_exchanged_while_texts_are_written_and_recorded(tmp_path: Path) -> None:
    prompts, shards, current = tmp_path / "prompts.jsonl", tmp_path / "shards", tmp_path / "current"
    lines = [json.dumps({"prompt": f"def number_{n}(", "seed": n}) for n in range(500)]
    prompts.write_text("\n".join(lines))
    current.symlink_to(resolve("pico-draft-s"))
    options = ("--prompts", str(prompts), "--max-new-tokens", str(NEW_TOKENS), "--temperature", "0.8", "--ignore-eos")
    async with server("--scheduler=goodspeed", "--record", str(shards)) as address:
        run = ("run", "--server", address, *options)
        start = start_agent(*run, "--draft", str(current), "--name", "edge", "--concurrency", "2")
        async with reaped(await start) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            written = [await process.stdout.readline()]
            current.unlink()
            current.symlink_to(resolve("pico-draft-l"))
            process.send_signal(signal.SIGHUP)
            async for said in process.stderr:
                if f"drafting with {current} as it is now" in said.decode():
                    break
            # The texts of before are on their way; those behind them begin with the new draft.
            written += [await process.stdout.readline() for _ in range(AFTERWARDS)]
            process.terminate()
            written += (await process.stdout.read()).splitlines()
        prompts.write_text("\n".join(lines[: len(written)]))
        code, plain, complaints = await agent(*run, "--draft", "none")
        assert code == 0, complaints
    texts = [json.loads(line)["tokens"] for line in written]
    assert texts == [json.loads(line)["tokens"] for line in plain.splitlines()]
    recorded = {tuple(passage.tokens[-NEW_TOKENS:]) for passage in read_shards(shards) if passage.client == "edge"}
    assert recorded >= set(map(tuple, texts[:1]))
