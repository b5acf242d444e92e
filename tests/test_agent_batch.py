from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from goodspeed.errors import ModelError, Refused
from goodspeed.messages import AgentMessage, Draft, Failure, Open, Verdict
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.batch import work_through
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.prompts import PromptLine
from goodspeed_agent.report import Completion
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, queueing
from tests.linking import QUICK


class Watching:
    def __init__(self) -> None:
        self.count = 0
        self.done: list[Completion | None] = []
        self.places: list[tuple[int, int | None]] = []

    def tokens(self, count: int) -> None:
        self.count += count

    def queued(self, index: int, place: int | None) -> None:
        if place is not None or (self.places and self.places[-1] != (index, None)):
            self.places.append((index, place))

    def finished(self, completion: Completion | None) -> None:
        self.done.append(completion)


async def work(
    server: FakeServer, tmp_path: Path, prompts: list[PromptLine], written: list[dict[str, Any]], concurrency: int = 3
) -> tuple[int, Watching]:
    watching = Watching()
    async with asyncio.timeout(60), server.listening():
        cache = TokenizerCache(tmp_path)
        async with Agent(server.url, SuffixDrafter(), cache=cache, backoff=QUICK) as agent:
            return await work_through(agent, prompts, concurrency, written.append, watching), watching


def prompts(*lengths: int) -> list[PromptLine]:
    return [
        PromptLine(number, f"p{number}", TextRequest("ab"[number % 2] * number, max_new_tokens=length))
        for number, length in enumerate(lengths, start=1)
    ]


async def test_results_come_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = []
    failed, watching = await work(FakeServer(), tmp_path, prompts(40, 3, 9, 1, 30, 2), written)
    assert failed == 0
    assert [result["line"] for result in written] == [1, 2, 3, 4, 5, 6]
    assert [result["id"] for result in written] == ["p1", "p2", "p3", "p4", "p5", "p6"]
    assert [len(result["tokens"]) for result in written] == [40, 3, 9, 1, 30, 2]
    assert watching.count == 85
    # The short ones were done first, on three streams at once.
    assert [len(done.tokens) for done in watching.done if done] != [40, 3, 9, 1, 30, 2]


async def test_the_text_does_not_depend_on_the_concurrency(tmp_path: Path) -> None:
    alone: list[dict[str, Any]] = []
    crowd: list[dict[str, Any]] = []
    await work(FakeServer(budget=0), tmp_path, prompts(*range(1, 17)), alone, concurrency=1)
    await work(FakeServer(budget=5), tmp_path, prompts(*range(1, 17)), crowd, concurrency=16)
    assert [result["tokens"] for result in alone] == [result["tokens"] for result in crowd]


async def test_whoever_watches_knows_who_waits_for_a_row(tmp_path: Path) -> None:
    server = FakeServer(hook=queueing(2, 1))
    _, watching = await work(server, tmp_path, prompts(3, 4), [], concurrency=1)
    assert watching.places == [(0, 2), (0, 1), (0, None), (1, 2), (1, 1), (1, None)]


async def test_a_prompt_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = []
    batch = prompts(3, 3, 3)
    batch[1] = PromptLine(2, None, TextRequest("x" * 50))
    failed, watching = await work(FakeServer(max_length=50), tmp_path, batch, written)
    assert failed == 1
    assert written[1]["line"] == 2
    assert "id" not in written[1]
    assert written[1]["error"]["code"] == "prompt_too_long"
    assert [len(result.get("tokens", [])) for result in written] == [3, 0, 3]
    assert None in watching.done


async def test_a_text_about_which_a_server_contradicts_itself_does_not_stop_the_others(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft) and message.stream == 2:
            await server.send(connection, Verdict(message.stream, 10**6, 0, [1], 0))
            return True
        return False

    written: list[dict[str, Any]] = []
    failed, _ = await work(FakeServer(hook=hook), tmp_path, prompts(3, 3, 3), written, concurrency=1)
    assert failed == 1
    assert [result.get("error", {}).get("code") for result in written] == [None, "protocol_error", None]


async def test_what_ends_the_link_ends_the_batch_and_keeps_what_was_done(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        first = server.got(Open)[0].stream if server.got(Open) else None
        if isinstance(message, Draft) and message.stream == first:
            return True  # kept waiting until the others are done
        if isinstance(message, Open) and len(server.got(Open)) == 4:
            await server.send(connection, Failure("forbidden", "because"))
            return True
        return False

    written: list[dict[str, Any]] = []
    server = FakeServer(hook=hook)
    with pytest.raises(Refused, match="because"):
        await work(server, tmp_path, prompts(20, 2, 2, 20), written, concurrency=2)
    assert [result["line"] for result in written] == [2, 3]


async def test_a_draft_that_cannot_go_on_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, asked = Agent.complete, 0

    async def breaking(self: Agent, request: TextRequest, *more: Any) -> Completion:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise ModelError("broken")
        return await complete(self, request, *more)

    monkeypatch.setattr(Agent, "complete", breaking)
    written: list[dict[str, Any]] = []
    with pytest.raises(ModelError, match="broken"):
        await work(FakeServer(), tmp_path, prompts(3, 3, 3), written, concurrency=1)
    assert asked == 2
    assert [(result["line"], len(result["tokens"])) for result in written] == [(1, 3)]
