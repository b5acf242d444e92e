"""Generations driven over a link, against a server that misbehaves in every way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from goodspeed.errors import Overloaded, ProtocolError, Refused
from goodspeed.messages import AgentMessage, Close, Draft, DraftEnd, Failure, Open, Opened, Verdict
from goodspeed.stream import Finish
from goodspeed_agent.ahead import Ahead, AheadMode
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters import DraftSession, Guess
from goodspeed_agent.drafting import Drafting
from goodspeed_agent.driver import tokens_of
from goodspeed_agent.generation import Generation, Request
from goodspeed_agent.link import Link
from goodspeed_agent.lookahead import Calibration, Lookahead
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer, Hook, counting, queueing, refusing
from tests.linking import HELLO, QUICK

PROMPT = (1, 2, 3)
REQUEST = Request(PROMPT, max_new_tokens=20, max_draft=8)


class Guesser:
    """Guesses that it goes on counting, and is wrong at every multiple of `wrong`."""

    def __init__(self, wrong: int = 7, limit: int = 64) -> None:
        self.wrong = wrong
        self.limit = limit
        self.threads: set[int] = set()
        self.begun = self.guessed = 0

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        self.begun += 1
        for i in range(1, self.limit + 1):
            self.guessed += 1
            self.threads.add(threading.get_ident())
            token = (tokens[-1] + i) % 50
            yield Guess(token + 1 if token % self.wrong == 0 else token, 0.9)


async def generate(
    server: FakeServer,
    tmp_path: Path,
    session: DraftSession | None = None,
    request: Request = REQUEST,
    backoff: Backoff = QUICK,
    leave_after: int | None = None,
    mode: AheadMode = "auto",
    on_queued: Callable[[int], None] | None = None,
) -> tuple[Generation, list[list[int]]]:
    """Run one generation against the server."""
    async with (
        asyncio.timeout(60),
        server.listening(),
        Link(server.url, HELLO, TokenizerCache(tmp_path), backoff) as link,
    ):
        channel = link.channel()
        generation = Generation(channel.stream, request)
        taken = []
        desk, ahead = Desk(), Ahead(mode)
        drafting = Drafting(desk, Lookahead(session or Guesser(), server.rule, Calibration(), ahead), ahead)
        stream = tokens_of(generation, channel, drafting, backoff, lambda: server.waits, on_queued)
        try:
            async with aclosing(stream):
                async for tokens in stream:
                    taken.append(tokens)
                    if len(taken) == leave_after:
                        break
        finally:
            desk.close()
        assert not link._channels
    return generation, taken


def expected(count: int) -> list[int]:
    tokens, target = list(PROMPT), counting(50)
    for _ in range(count):
        tokens.append(target(tokens))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("budget", [0, 1, 3, 8])
@pytest.mark.parametrize("wrong", [1, 2, 7, 1000])
async def test_the_text_is_the_targets_whatever_is_drafted(
    tmp_path: Path, budget: int, wrong: int, mode: AheadMode
) -> None:
    server = FakeServer(budget=budget)
    generation, taken = await generate(server, tmp_path, Guesser(wrong), mode=mode)
    assert list(chain.from_iterable(taken)) == generation.transcript.generated == expected(20)
    assert generation.transcript.finish == "length"
    assert server.got(Close) == []


async def test_who_waits_for_a_row_is_told_its_place(tmp_path: Path) -> None:
    places: list[int] = []
    server = FakeServer(hook=queueing(3, 2, 1))
    generation, _ = await generate(server, tmp_path, on_queued=places.append)
    assert places == [3, 2, 1]
    assert generation.transcript.generated == expected(20)
    unheard, _ = await generate(FakeServer(hook=queueing(1)), tmp_path)
    assert unheard.transcript.generated == expected(20)


async def test_one_draft_for_every_budget_and_none_without(tmp_path: Path) -> None:
    server, guesser = FakeServer(budget=4), Guesser()
    generation, taken = await generate(server, tmp_path, guesser)
    drafts = server.got(Draft)
    assert [len(draft.tokens) for draft in drafts[:3]] == [4] * 3
    assert len({draft.base for draft in drafts}) == len(drafts) == len(taken)
    assert generation.speculation.num_spec_steps == len(drafts)
    assert generation.speculation.num_draft_tokens == sum(len(draft.tokens) for draft in drafts)
    assert generation.speculation.num_accepted_tokens == 20 - len(taken)
    assert generation.speculation.num_spec_tokens == 4
    alone = FakeServer(budget=0)
    generation, _ = await generate(alone, tmp_path)
    assert generation.speculation.num_spec_tokens == 0
    assert alone.got(Draft) == []
    assert generation.speculation.num_spec_steps == 0


async def test_a_drafter_with_nothing_to_say_says_so(tmp_path: Path) -> None:
    server = FakeServer(budget=4)
    generation, taken = await generate(server, tmp_path, Guesser(limit=0))
    assert len(taken) == 20
    assert all(draft.tokens == [] for draft in server.got(Draft))
    assert generation.speculation.num_spec_steps == 0


async def test_while_it_waits_an_agent_guesses_the_bonus_token_and_the_next_draft(tmp_path: Path) -> None:
    guesser = Guesser(1000)

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            # A verdict comes when four tokens, the bonus token and four more are there, as far as the text goes.
            while guesser.guessed < min(message.base - len(PROMPT) + 9, 19):
                await asyncio.sleep(0.001)
        return False

    async with asyncio.timeout(30):
        server = FakeServer(budget=4, hook=hook)
        await generate(server, tmp_path, guesser, mode="on")
    assert guesser.begun == 1, "every guess came true, so nothing was ever begun anew"


async def test_what_a_drafter_raises_ahead_is_raised(tmp_path: Path) -> None:
    loop, broken = asyncio.get_running_loop(), asyncio.Event()

    class Breaks(Guesser):
        def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
            yield from islice(super().guesses(tokens), 5)
            loop.call_soon_threadsafe(broken.set)
            raise RuntimeError("the drafter broke")

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            await broken.wait()  # a verdict that came before would have guesses begun anew
        return False

    with pytest.raises(RuntimeError, match="the drafter broke"):
        await generate(FakeServer(budget=4, hook=hook), tmp_path, Breaks(1000), mode="on")


async def test_an_agent_that_is_told_the_price_stops_short(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await server.send(connection, Opened(message.stream, len(PROMPT), 8, price_percent=70))
        return isinstance(message, Open | Draft)

    server = FakeServer(hook=hook)
    async with (
        asyncio.timeout(30),
        server.listening(),
        Link(server.url, HELLO, TokenizerCache(tmp_path), QUICK) as link,
    ):
        desk, ahead = Desk(), Ahead("off")
        drafting = Drafting(desk, Lookahead(Guesser(), server.rule, Calibration(), ahead), ahead)
        writing = asyncio.create_task(
            anext(tokens_of(Generation(1, REQUEST), link.channel(), drafting, QUICK, lambda: True))
        )
        while not server.got(Draft):
            await asyncio.sleep(0.001)
        writing.cancel()
        await asyncio.wait([writing])
        desk.close()
    # Guesses of confidence 0.9 come true with 0.95 each by an unread calibration: 0.95 ** 6 < 0.7 < 0.95 ** 5.
    assert [(len(draft.tokens), draft.end) for draft in server.got(Draft)] == [(6, DraftEnd.PRICED_OUT)]


async def test_drafting_does_not_block_the_event_loop(tmp_path: Path) -> None:
    guesser = Guesser()
    await generate(FakeServer(), tmp_path, guesser)
    assert threading.get_ident() not in guesser.threads
    assert len(guesser.threads) == 1


async def test_the_end_of_text_ends_it(tmp_path: Path) -> None:
    generation, _ = await generate(FakeServer(eos_tokens=(10,)), tmp_path)
    assert generation.transcript.generated == [4, 5, 6, 7, 8, 9, 10]
    assert generation.transcript.finish == "stop"
    generation, _ = await generate(FakeServer(eos_tokens=(10,)), tmp_path, request=replace(REQUEST, ignore_eos=True))
    assert generation.transcript.generated == expected(20)


async def test_leaving_early_closes_the_stream(tmp_path: Path) -> None:
    server = FakeServer(budget=4)
    generation, taken = await generate(server, tmp_path, leave_after=2)
    assert len(taken) == 2
    assert server.got(Close) == [Close(generation.stream)]


async def test_cancelling_closes_the_stream(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            working.cancel()
        return isinstance(message, Draft)

    server = FakeServer(hook=hook)
    working = asyncio.create_task(generate(server, tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await working
    assert len(server.got(Close)) == 1


@pytest.mark.parametrize("budget", [0, 4])
async def test_a_lost_link_loses_nothing(tmp_path: Path, budget: int) -> None:
    drops = 0

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal drops
        kind = Draft if budget else Open
        if isinstance(message, kind) and drops < 3 and len(server.received) % 2:
            drops += 1
            await connection.close()
            return True
        return False

    server = FakeServer(budget=budget, hook=hook)
    generation, taken = await generate(server, tmp_path)
    assert drops > 0
    assert list(chain.from_iterable(taken)) == generation.transcript.generated == expected(20)
    opens = server.got(Open)
    assert len(opens) == drops + 1
    for message in opens:
        assert message.prompt_tokens == len(PROMPT)
        assert message.tokens == [*PROMPT, *expected(20)][: len(message.tokens)]


async def test_a_full_server_is_asked_again_until_it_has_room(tmp_path: Path) -> None:
    server = FakeServer(hook=refusing("overloaded", times=3, retry_after_s=0.001))
    generation, _ = await generate(server, tmp_path)
    assert generation.transcript.generated == expected(20)
    assert len(server.got(Open)) == 4


async def test_a_server_that_stays_full_is_reported(tmp_path: Path) -> None:
    server = FakeServer(hook=refusing("overloaded", times=10**9, retry_after_s=0.01))
    with pytest.raises(Overloaded, match="because of overloaded"):
        await generate(server, tmp_path, backoff=replace(QUICK, give_up_after_s=0.1))
    assert len(server.got(Open)) > 1


async def test_a_server_that_opens_a_text_and_never_writes_of_it_is_reported(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Open) or len(server.got(Open)) > 100:
            return False
        opened = Opened(message.stream, len(message.tokens), 0)
        await server.send(connection, opened, Failure("overloaded", "no memory", message.stream, 0.01))
        return True

    with pytest.raises(Overloaded, match="no memory"):
        await generate(FakeServer(hook=hook), tmp_path, backoff=replace(QUICK, give_up_after_s=0.1))


async def test_a_draft_that_meets_the_end_of_its_stream_on_the_way_does_not_end_the_text(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if len(server.got(Open)) > 1:
            return False
        if isinstance(message, Open):
            await server.send(connection, Opened(message.stream, len(message.tokens), 4))
        elif isinstance(message, Draft):
            ended = Failure("overloaded", "no memory", message.stream, 0.001)
            await server.send(connection, ended, Failure("unknown_stream", "not open", message.stream))
        return isinstance(message, Open | Draft)

    server = FakeServer(hook=hook)
    generation, _ = await generate(server, tmp_path)
    assert generation.transcript.generated == expected(20)
    assert len(server.got(Open)) == 2


async def test_a_server_that_does_not_know_what_it_has_opened_is_reported(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            await server.send(connection, Failure("unknown_stream", "not open", message.stream))
        return isinstance(message, Draft)

    with pytest.raises(Refused, match="not open"):
        await generate(FakeServer(hook=hook), tmp_path)


@pytest.mark.parametrize("code", ["invalid_request", "prompt_too_long", "token_out_of_range", "duplicate_stream"])
async def test_a_refused_stream_is_reported_and_not_repeated(tmp_path: Path, code: str) -> None:
    server = FakeServer(hook=refusing(code))
    with pytest.raises(Refused, match=f"because of {code}") as caught:
        await generate(server, tmp_path)
    assert caught.value.code == code
    assert len(server.got(Open)) == 1


def complaining(code: str) -> Hook:
    """A hook that finds fault with every draft, which then counts as an empty one."""

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if not isinstance(message, Draft):
            return False
        budget = server.budget if message.base < 9 else 0
        finish: Finish | None = None if budget else "length"
        await server.send(
            connection,
            Failure(code, "because", message.stream),
            Verdict(message.stream, message.base, 0, [message.base], budget, finish=finish),
        )
        return True

    return hook


async def test_a_failure_nobody_expects_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="because") as caught:
        await generate(FakeServer(hook=complaining("unknown_stream")), tmp_path)
    assert caught.value.code == "unknown_stream"


@pytest.mark.parametrize("code", ["draft_out_of_range", "draft_too_long", "invalid_q"])
async def test_a_draft_the_server_cannot_use_is_an_empty_one_and_warned_of_once(
    tmp_path: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    generation, _ = await generate(FakeServer(hook=complaining(code)), tmp_path)
    assert generation.transcript.finish == "length"
    assert generation.speculation.num_draft_tokens == 0
    assert caplog.messages == ["the server cannot use this drafter's drafts: because"]


async def test_a_server_that_accepts_what_was_not_drafted_is_caught(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft):
            await server.send(connection, Verdict(message.stream, message.base, 9, [1], 4))
        return isinstance(message, Draft)

    with pytest.raises(ProtocolError, match="9 tokens accepted of the"):
        await generate(FakeServer(hook=hook), tmp_path)


async def test_repeated_and_stale_verdicts_change_nothing_and_do_not_multiply(tmp_path: Path) -> None:
    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Draft) and message.base == 8:
            # A repetition from the very beginning, and one of what the agent has just been told.
            await server.send(connection, Verdict(message.stream, 3, 0, [4], 4), Verdict(message.stream, 3, 5, [], 4))
        return False

    server = FakeServer(hook=hook)
    generation, taken = await generate(server, tmp_path, Guesser(1000))
    assert list(chain.from_iterable(taken)) == expected(20)
    bases = [draft.base for draft in server.got(Draft)]
    assert bases == sorted(set(bases))
    assert generation.speculation.num_draft_tokens == sum(len(draft.tokens) for draft in server.got(Draft))
