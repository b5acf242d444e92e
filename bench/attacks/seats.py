"""What honest agents keep beside each claim, and what whoever makes it has.

A real server with the bundled target in this process, a few honest agents with a bundled draft, and in one more place
by turns an honest agent and whoever makes a claim. What counts is committed tokens per second of *server busy time*
(processor time of the engine's thread, as in `bench.worth`), of the honest agents and of who sits in that place. Each
is compared with cases in which an honest agent sits there; with which of them, `pairing.py` says. A liar comes under a
new name in every case, since a server remembers who was found out.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.attacks.claims import Claim, RuleName, Seat
from bench.attacks.pairing import Compared, between_controls
from goodspeed.catalog import DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.errors import GoodSpeedError
from goodspeed.messages import (
    MAX_DRAFT_TOKENS,
    PROTOCOL_VERSION,
    Draft,
    Hello,
    Open,
    Opened,
    Verdict,
    decode_server,
    encode,
)
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed.stream import Transcript
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import load_drafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["beside_claims"]

CAPACITY = 24
_GONE_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one case in one turn."""

    others: float
    """Committed tokens per busy second of the honest agents, all together."""
    own: float
    """The same of who sits in the place that changes hands."""
    drafted: int
    """How many of its tokens were verified."""
    state: str


def beside_claims(
    claims: Sequence[Claim], turns: int, agents: int, new_tokens: int, draft: str
) -> dict[str, dict[str, Any]]:
    """What becomes of the others, and of who claims.

    Args:
        claims: each has its turn.
        turns: how many.
        agents: honest ones, beside the place that changes hands.
        new_tokens: that each of them writes in a case.
        draft: of the honest agents.

    Returns:
        By the name of each claim, medians over the turns of ratios to controls, and what the server said in the end.
    """
    found: dict[str, list[Compared[Figures]]] = {}
    for rule in dict.fromkeys(one.rule for one in claims):
        mine = {one.name: one for one in claims if one.rule == rule}
        found |= uvloop.run(_on_one_server(rule, mine, turns, agents, new_tokens, draft))
    return {one.name: _over(found[one.name]) for one in claims}


def _over(turns: Sequence[Compared[Figures]]) -> dict[str, Any]:
    others = [turn.ratio(lambda figures: figures.others) for turn in turns]
    own = [turn.ratio(lambda figures: figures.own) for turn in turns]
    return {
        "others": statistics.median(others),
        "own": statistics.median(own),
        "drafted": statistics.median(
            turn.attacked.drafted / max(1.0, turn.control(lambda figures: figures.drafted)) for turn in turns
        ),
        "others_least": min(others),
        "own_most": max(own),
        "state": turns[-1].attacked.state,
    }


async def _on_one_server(
    rule: RuleName, claims: Mapping[str, Claim], turns: int, agents: int, new_tokens: int, draft: str
) -> dict[str, list[Compared[Figures]]]:
    """One server for all cases; under the ratio rule behind the barrier, else as it is by default."""
    rounds = RoundSettings(capacity=CAPACITY if rule == "ratio" else None, round_timeout_s=0.5)
    settings = ServerSettings(
        port=0, rule=rule, scheduler="goodspeed" if rule == "ratio" else "auto", max_streams=agents + 1,
        device="cpu", dtype="float32", rounds=rounds,
    )  # fmt: skip
    server = VerificationServer(
        settings, load_model(DEFAULT_TARGET, device="cpu", dtype="float32"), tokenizer_files(DEFAULT_TARGET)
    )
    async with server.listen() as address:

        async def run(name: str | None, number: int) -> Figures:
            one = None if name is None else claims[name]
            called = f"{name or 'honest'} {number}"
            figures = await _case(server, address, one, called, agents, new_tokens, draft)
            await _emptied(server, called)
            return figures

        return await between_controls(list(claims), turns, run)


async def _case(
    server: VerificationServer, address: str, one: Claim | None, name: str, agents: int, new_tokens: int, draft: str
) -> Figures:
    prompts = [prompt.text for prompt in bundled_prompts()]
    with tempfile.TemporaryDirectory() as folder:
        cache = TokenizerCache(Path(folder))

        def place(called: str) -> Agent:
            return Agent(address, load_drafter(draft), name=called, cache=cache)

        def request(number: int, tokens: int) -> TextRequest:
            params = SamplingParams(0.8, seed=number)
            return TextRequest(prompts[number % len(prompts)], params, max_new_tokens=tokens, ignore_eos=True)

        async with contextlib.AsyncExitStack() as linked:
            others = [await linked.enter_async_context(place(f"other {number}")) for number in range(agents)]
            changing = await linked.enter_async_context(place(name)) if one is None else None
            if changing is not None:
                writing = asyncio.create_task(_write_on(changing, request(agents, new_tokens)))
            else:
                assert one is not None
                writing = asyncio.create_task(_play(address, name, one, prompts[agents % len(prompts)]))
            try:
                before = _busy_s(server)
                await asyncio.gather(*(agent.complete(request(i, new_tokens)) for i, agent in enumerate(others)))
                busy_s = _busy_s(server) - before
                row = next((row for row in server.snapshot().agents if row.name == name), None)
            finally:
                writing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await writing
    if row is None:
        return Figures(agents * new_tokens / busy_s, 0.0, 0, "its link was closed")
    return Figures(agents * new_tokens / busy_s, row.committed / busy_s, row.drafted, row.state)


async def _emptied(server: VerificationServer, behind: str) -> None:
    """Wait until nobody's link is left of a case."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GONE_WITHIN_S):
            while server.snapshot().agents:
                await asyncio.sleep(_LOOK_EVERY_S)
    left = [row.name for row in server.snapshot().agents]
    if left:
        raise GoodSpeedError(f"{_GONE_WITHIN_S:g} s after {behind!r} had ended the server still has links of {left}")


def _busy_s(server: VerificationServer) -> float:
    now = server.snapshot()
    return now.busy_s + now.judge_s


async def _write_on(agent: Agent, request: TextRequest) -> None:
    while True:
        await agent.complete(request)


async def _play(address: str, name: str, one: Claim, prompt: str) -> None:
    """Attack, for ever: a text behind the other."""
    tokenizer = Tokenizer.from_str(tokenizer_files(DEFAULT_TARGET)["tokenizer.json"].decode())
    ids = tokenizer.encode(prompt).ids
    async with connect(address, compression=None, max_size=None) as connection:
        await connection.send(encode(Hello(PROTOCOL_VERSION, "agent", name, "an attacker")))
        for stream in range(2**31):
            params = SamplingParams(0.8, seed=stream)
            await connection.send(encode(Open(stream, ids, len(ids), params, 96, MAX_DRAFT_TOKENS, True)))
            await _play_text(connection, Seat(stream, Transcript(ids), 0), one)


async def _play_text(connection: ClientConnection, seat: Seat, one: Claim) -> None:
    drafted: Sequence[int] = ()
    while seat.transcript.finish is None:
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        match decode_server(frame):
            case Opened(stream=seat.stream) as opened:
                seat.budget = opened.budget
            case Verdict(stream=seat.stream) as verdict:
                before = seat.base
                seat.told = seat.transcript.apply(verdict, drafted if verdict.base == before else ())
                seat.budget = verdict.budget
                if seat.base == before:
                    continue  # of what was said already
            case _:
                continue
        moves = one.move(seat) if seat.budget or one.rule == "coupled" else ()
        drafted = next((move.tokens for move in moves if isinstance(move, Draft) and move.base == seat.base), ())
        for move in moves:
            await connection.send(encode(move))
