"""An agent that guesses along with a server that does not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from goodspeed.guesses import Guesses
from goodspeed.messages import AgentMessage, Draft, DraftEnd, Failure, Open, Opened, Verdict
from goodspeed_agent.ahead import Ahead, AheadMode
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters import Guess
from goodspeed_agent.drafting import Drafting
from goodspeed_agent.generation import Generation
from goodspeed_agent.link import Link
from goodspeed_agent.lookahead import Calibration, Lookahead, Wanted
from goodspeed_agent.steps import alone
from goodspeed_agent.tokenizer import TokenizerCache
from tests.fake_server import FakeServer
from tests.linking import HELLO, QUICK
from tests.test_agent_driver import PROMPT, REQUEST, Guesser, expected, generate

Beat = Callable[[FakeServer], Awaitable[None]]


def once(enough: Callable[[FakeServer], bool]) -> Beat:
    """The server makes no pass before the agent has sent enough."""

    async def beat(server: FakeServer) -> None:
        while not enough(server):
            await asyncio.sleep(0)

    return beat


def sent(server: FakeServer) -> int:
    return sum(len(draft.tokens) for draft in server.got(Draft))


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("budget", [0, 1, 3, 8])
@pytest.mark.parametrize("wrong", [1, 2, 7, 1000])
async def test_the_text_is_the_targets_however_far_the_agent_comes(
    tmp_path: Path, budget: int, wrong: int, mode: AheadMode
) -> None:
    server = FakeServer(budget=budget, waits=False, beat=once(lambda server: not budget or bool(server.got(Draft))))
    generation, taken = await generate(server, tmp_path, Guesser(wrong), mode=mode)
    assert list(chain.from_iterable(taken)) == generation.transcript.generated == expected(20)
    assert bool(server.got(Draft)) == bool(budget)
    if wrong == 1000:
        assert server.stale == 0


async def test_guesses_that_come_true_are_sent_once_each(tmp_path: Path) -> None:
    server = FakeServer(budget=4, waits=False, beat=once(lambda server: sent(server) >= 4))
    generation, _ = await generate(server, tmp_path, Guesser(1000), mode="off")
    drafts = server.got(Draft)
    assert server.stale == 0
    assert all(len(draft.tokens) + draft.offset + draft.base < len(PROMPT) + 20 for draft in drafts), "the room"
    assert generation.speculation.num_sent_tokens == sent(server)
    assert generation.speculation.num_spec_steps > 0


@pytest.mark.parametrize(("mode", "max_draft", "most"), [("off", 8, 3), ("on", 8, 7), ("on", 5, 5), ("auto", 8, 7)])
async def test_the_lead_is_what_was_asked_and_what_is_drafted_ahead(
    tmp_path: Path, mode: AheadMode, max_draft: int, most: int
) -> None:
    server = FakeServer(budget=3, waits=False)
    before: list[int] = []

    async def beat(server: FakeServer) -> None:
        await once(lambda server: sent(server) >= most)(server)
        before.append(sent(server))

    server.beat = beat
    await generate(server, tmp_path, Guesser(1000), replace(REQUEST, max_draft=max_draft), mode=mode)
    assert before[0] == most


async def test_a_drafter_with_nothing_to_say_says_so_at_once(tmp_path: Path) -> None:
    server = FakeServer(budget=4, waits=False, beat=once(lambda server: bool(server.got(Draft))))
    await generate(server, tmp_path, Guesser(limit=0))
    assert server.got(Draft)[0] == Draft(
        1, len(PROMPT), [], computed_us=server.got(Draft)[0].computed_us, end=DraftEnd.NOTHING_TO_SAY
    )


async def test_what_a_drafter_raises_ends_the_generation(tmp_path: Path) -> None:
    class Breaks(Guesser):
        def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
            yield from islice(super().guesses(tokens), 2)
            broken.append(True)
            raise RuntimeError("the drafter broke")

    broken: list[bool] = []
    server = FakeServer(budget=4, waits=False, beat=once(lambda server: bool(broken)))
    with pytest.raises(RuntimeError, match="the drafter broke"):
        await generate(server, tmp_path, Breaks(1000), replace(REQUEST, max_new_tokens=1000))


@pytest.mark.parametrize(("price_percent", "sent"), [(70, 6), (96, 0)])
async def test_the_price_ends_a_piece(tmp_path: Path, price_percent: int, sent: int) -> None:
    """It is sent even if it is empty: the server may be waiting for it."""

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        if isinstance(message, Open):
            await server.send(connection, Opened(message.stream, len(PROMPT), 8, price_percent=price_percent))
        elif isinstance(message, Draft):
            pieces.append(message)
            if message.end is DraftEnd.PRICED_OUT:
                await server.send(connection, Verdict(message.stream, len(PROMPT), 0, [4], 0, finish="length"))
        return isinstance(message, Open | Draft)

    pieces: list[Draft] = []
    await generate(FakeServer(hook=hook, waits=False), tmp_path, mode="off")
    # Guesses of confidence 0.9 come true with 0.95 each by an unread calibration: 0.95 ** 7 < 0.7 < 0.95 ** 6.
    assert sum(len(piece.tokens) for piece in pieces) == sent


async def test_a_link_that_breaks_begins_anew(tmp_path: Path) -> None:
    drops = 0

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal drops
        if isinstance(message, Draft) and drops < 3:
            drops += 1
            await connection.close()
            return True
        return False

    server = FakeServer(
        budget=4, hook=hook, waits=False, beat=once(lambda server: len(server.got(Draft)) >= server.links)
    )
    generation, _ = await generate(server, tmp_path, Guesser(1000))
    assert drops > 0
    assert generation.transcript.generated == expected(20)
    received = server.received
    first = [
        next((m for m in received[i:] if isinstance(m, Draft)), None)
        for i, m in enumerate(received)
        if isinstance(m, Open)
    ]
    assert all(draft is None or draft.offset == 0 for draft in first)


async def test_a_refused_piece_is_followed_by_one_that_begins_anew(tmp_path: Path) -> None:
    refused = False

    async def hook(server: FakeServer, connection: ServerConnection, message: AgentMessage) -> bool:
        nonlocal refused
        if isinstance(message, Draft) and not refused:
            refused = True
            await server.send(connection, Failure("invalid_q", "because", message.stream))
            return True
        return False

    server = FakeServer(budget=4, hook=hook, waits=False, beat=once(lambda server: refused))
    generation, _ = await generate(server, tmp_path, Guesser(1000))
    assert generation.transcript.generated == expected(20)


@given(st.data())
def test_every_piece_continues_what_the_server_holds_or_begins_anew(data: st.DataObject) -> None:
    """Replayed with the commits as the agent heard of them, sooner or later, and a link that may lose what is held."""
    truth = [*PROMPT, *expected(60)]
    generation, held = Generation(1, replace(REQUEST, max_new_tokens=60)), Guesses()
    drafter = Guesser(data.draw(st.sampled_from([2, 5, 1000])), data.draw(st.sampled_from([3, 64])))
    looking = Lookahead(drafter, "coupled", Calibration(), Ahead())
    generation.opening()
    known: int | None = None
    heard = generation.transcript.tokens[:]
    while generation.room > 6:
        if data.draw(st.integers(0, 9)) == 0:
            known = None
            held.drop()
        if data.draw(st.booleans()):
            heard = generation.transcript.tokens[:]
            chain = looking.follow(heard, 4, anew=known is None)
            if chain != known:
                generation.begin_guessing(len(heard))
                known = chain
        if known is not None:
            piece: list[Guess] = []
            while isinstance(guess := alone(looking.further(Wanted(5))), Guess):
                piece.append(guess)
                if data.draw(st.booleans()):
                    break
            message = generation.piece(piece, 0.0, guess if isinstance(guess, DraftEnd) else DraftEnd.FAR_ENOUGH)
            if held.continues(message.base, message.offset):
                held.take(message.base, message.offset, message.tokens, ended=message.end is DraftEnd.NOTHING_TO_SAY)
            else:
                assert len(heard) < generation.transcript.length, "only who has not heard of a commit says stale things"
            held.follow(generation.transcript.tokens)
        length = generation.transcript.length
        size = data.draw(st.integers(1, 3))
        generation.commit(Verdict(1, length, 0, truth[length : length + size], 4))
        held.follow(generation.transcript.tokens)
    assert generation.transcript.tokens == truth[: generation.transcript.length]


def test_what_was_guessed_beyond_the_lead_is_heard_of() -> None:
    policy = Ahead()
    looking = Lookahead(Guesser(1000), "coupled", Calibration(), policy)
    looking.follow([1], 2)
    for _ in range(2):
        alone(looking.further(Wanted(2)))
    looking.follow([1, 2], 2)
    assert policy.hit_rate == 0.5, "nothing had been guessed beyond the lead"
    for _ in range(4):
        alone(looking.further(Wanted(5)))
    looking.follow([1, 2, 3], 2)
    assert (before := policy.hit_rate) > 0.5
    looking.follow([1, 2, 3, 9], 2)
    assert policy.hit_rate < before


async def test_a_guess_that_the_server_overtakes_is_sent_all_the_same(tmp_path: Path) -> None:
    """Or who guesses more slowly than the server decodes would never be heard of, and guess on for ever."""
    gate, passes = threading.Event(), 0

    class Slow(Guesser):
        def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
            for guess in super().guesses(tokens):
                gate.wait(30)
                yield guess

    async def beat(server: FakeServer) -> None:
        nonlocal passes
        await once(lambda _: guesser.begun > 0 if passes < 4 else sent(server) > 0)(server)
        passes += 1
        if passes == 4:
            gate.set()

    guesser = Slow(1000)
    server = FakeServer(budget=4, waits=False, beat=beat)
    await generate(server, tmp_path, guesser, mode="off")
    first = server.got(Draft)[0]
    assert (first.base, first.offset, first.tokens) == (len(PROMPT), 0, expected(1))


async def test_streams_of_one_agent_take_turns(tmp_path: Path) -> None:
    """Whatever the order in which the server's verdicts come, and however often."""
    server, go = FakeServer(waits=False), threading.Semaphore(0)

    class Waits(Guesser):
        def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
            for guess in super().guesses(tokens):
                go.acquire(timeout=30)
                done.append(self)
                yield guess

    done: list[Guesser] = []
    sessions = [Waits() for _ in range(3)]
    async with (
        asyncio.timeout(60),
        server.listening(),
        Link(server.url, HELLO, TokenizerCache(tmp_path), QUICK) as link,
    ):
        desk, ahead = Desk(), Ahead("off")
        streams = [Drafting(desk, Lookahead(one, "coupled", Calibration(), ahead), ahead) for one in sessions]
        channels = [link.channel() for _ in sessions]
        generations = [Generation(channel.stream, REQUEST) for channel in channels]
        for number in range(12):
            for drafting, generation, channel in zip(streams, generations, channels, strict=True):
                drafting.along(generation, channel, Wanted(8))
            go.release()
            while len(done) == number:
                await asyncio.sleep(0)
        for _ in range(100):
            go.release()
        for drafting in streams:
            await drafting.close()
        for channel in channels:
            channel.close()
        desk.close()
    assert [done[:12].count(session) for session in sessions] == [4, 4, 4]
