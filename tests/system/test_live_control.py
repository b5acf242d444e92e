"""`goodspeed-server ctl` against a server process, while agents write."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.processes import address_of, agent, ctl, reaped, start_agent, start_server

NEW_TOKENS = 64
PROMPTS = 400
ENDED = "agent edge: its last stream has ended"


async def test_an_operator_changes_a_server_and_no_text_notices(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"def number_{n}(", "seed": n}) for n in range(PROMPTS)]
    prompts.write_text("\n".join(lines))
    options = ("--prompts", str(prompts), "--max-new-tokens", str(NEW_TOKENS), "--temperature", "0.8", "--ignore-eos")
    async with reaped(await start_server()) as serving:
        address = await address_of(serving)
        run = ("run", "--server", address, *options)
        async with reaped(await start_agent(*run, "--draft", "suffix", "--name", "edge", "--concurrency", "2")) as edge:
            written = [await edge.stdout.readline()]
            for arguments, said in (
                (("scheduler", "goodspeed"), "scheduler: seconds -> goodspeed; rounds: rolling -> barrier"),
                (("scheduler", "seconds"), "scheduler: goodspeed -> seconds; rounds: barrier -> rolling"),
                (("drain", "edge", "--now", "--wait"), "agent 'edge': served -> drained undrafted\n" + ENDED),
                (("undrain", "edge"), "agent 'edge': drained undrafted -> served"),
            ):  # fmt: skip
                assert await ctl(address, *arguments) == (0, f"{said}\n", ""), arguments
            code, output, _ = await ctl(address, "show")
            assert code == 0
            assert [" ".join(line.split()) for line in output.splitlines()] == [
                "scheduler seconds",
                "rounds rolling",
                "fairness 1",
                "capacity auto, by price",
                "round timeout 500 ms",
            ]
            code, _, complaints = await ctl(address, "drain", "wedge")
            assert (code, complaints) == (2, "goodspeed-server: no agent 'wedge' is linked up: there is 'edge'\n")
            edge.terminate()
            written += (await edge.stdout.read()).splitlines()
        texts = [json.loads(line)["tokens"] for line in written]
        assert 0 < len(texts) < PROMPTS, "the changes were made while texts were written"
        prompts.write_text("\n".join(lines[: len(written)]))
        code, plain, complaints = await agent(*run, "--draft", "none")
        assert code == 0, complaints
        assert texts == [json.loads(line)["tokens"] for line in plain.splitlines()]
        serving.terminate()
        log = (await serving.stderr.read()).decode()
        assert log.count("without a token") == 5, "four changes, and one that could not be"
    code, output, complaints = await ctl(address, "show")
    assert (code, output) == (1, "")
    assert "no server can be reached" in complaints
