"""What others lose by an agent that does not play by the rules, and what it gains.

A real server with the bundled target in this process, a few honest agents with a bundled draft, and in one more place
by turns an honest agent and every attacker of the registry. What counts is committed tokens per second of *server busy
time* (processor time of the engine's thread, as in `bench.worth`), of the honest agents and of who sits in that place.
Each is compared, within a turn, with the case in which an honest agent sits there. An attacker comes under a new name
in every turn, since a server remembers who was found out. `python -m bench.attacks [--json FILE] [--only NAME ...]`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
import uvloop
from tokenizers import Tokenizer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET, load_model, tokenizer_files
from goodspeed.errors import InvalidRequest
from goodspeed.messages import (
    MAX_DRAFT_TOKENS,
    PROTOCOL_VERSION,
    AgentMessage,
    Draft,
    DraftEnd,
    Hello,
    Open,
    Opened,
    Redraft,
    Verdict,
    decode_server,
    encode,
)
from goodspeed.sampling import SamplingParams
from goodspeed.scenarios.prompts import bundled_prompts
from goodspeed.stream import Transcript
from goodspeed.verification import DraftDistribution, pack_q
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import load_drafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import RoundSettings, ServerSettings

__all__ = ["ATTACKS", "Attack", "Seat", "main"]

HONEST = "honest"
CAPACITY = 24
RuleName = Literal["ratio", "coupled"]


@dataclass(slots=True)
class Seat:
    """What an attacker knows when it is its turn."""

    stream: int
    transcript: Transcript
    budget: int
    told: list[int] = field(default_factory=list)
    """The tokens that the last verdict brought."""

    @property
    def base(self) -> int:
        """The committed length."""
        return self.transcript.length

    def draft(self, tokens: Sequence[int], q: bytes = b"") -> Draft:
        """A draft upon the committed length."""
        return Draft(self.stream, self.base, list(tokens), q=q)


Move = Callable[[Seat], Sequence[AgentMessage]]


@dataclass(frozen=True, slots=True)
class Attack:
    """One way not to play by the rules."""

    name: str
    rule: RuleName
    move: Move
    """What it sends when it is told what is committed, and what to draft."""


ATTACKS: dict[str, Attack] = {}
"""All of them, by name; `bench.attacks` runs each."""


def attack(name: str, rule: RuleName) -> Callable[[Move], Move]:
    """Enter a move into the registry."""

    def enter(move: Move) -> Move:
        ATTACKS[name] = Attack(name, rule, move)
        return move

    return enter


def _claimed(token: int, weights: Sequence[int]) -> bytes:
    """A claim about a token, the first weight being its own."""
    tokens = np.array([token, *(other for other in range(len(weights)) if other != token)][: len(weights)])
    return pack_q([DraftDistribution(tokens, np.array(weights))])


@attack("tiny q", "ratio")
def _tiny(seat: Seat) -> Sequence[AgentMessage]:
    """Repeats what was committed last, and claims that it was the unlikeliest of all."""
    tokens = [seat.transcript.tokens[-1]] * seat.budget
    return [seat.draft(tokens, b"".join(_claimed(token, [1, *[65535] * 31]) for token in tokens))]


@attack("forced token", "ratio")
def _forced(seat: Seat) -> Sequence[AgentMessage]:
    """Always the same token, whatever the target thinks of it."""
    return [seat.draft([7] * seat.budget, _claimed(7, [1, *[65535] * 31]) * seat.budget)]


@attack("flat q", "ratio")
def _flat(seat: Seat) -> Sequence[AgentMessage]:
    """The text's own continuation where it has been there before, with a claim that says nothing."""
    tokens = seat.transcript.tokens
    seen = next((place for place in range(len(tokens) - 2, 0, -1) if tokens[place] == tokens[-1]), 0)
    drafted = (tokens[seen + 1 :] * seat.budget)[: seat.budget]
    return [seat.draft(drafted, b"".join(_claimed(token, [1] * 32) for token in drafted))]


@attack("sure things behind junk", "ratio")
def _behind(seat: Seat) -> Sequence[AgentMessage]:
    """A first token that cannot stand, and behind it one that is repeated until everybody is sure of it."""
    tokens = [seat.transcript.tokens[-1] ^ 1, *[11] * seat.budget][: seat.budget]
    return [seat.draft(tokens, b"".join(_claimed(token, [1]) for token in tokens))]


@attack("q that is none", "ratio")
def _none(seat: Seat) -> Sequence[AgentMessage]:
    """Floats that are not numbers where weights should be, and a weight of zero."""
    bad = bytes([4]) + np.full(6, np.nan, dtype=np.float32).tobytes()
    return [seat.draft([5] * seat.budget, bad * seat.budget), seat.draft([5], bytes([1, 5, 0, 0, 0, 0, 0]))]


@attack("replayed drafts", "ratio")
def _replayed(seat: Seat) -> Sequence[AgentMessage]:
    """Everything sixteen times, and what was answered long ago again."""
    fresh = seat.draft([3] * seat.budget, _claimed(3, [1]) * seat.budget)
    old = Draft(seat.stream, seat.transcript.prompt_tokens, [3], q=_claimed(3, [1]))
    return [fresh, *[fresh, old] * 15]


@attack("copies of verdicts", "coupled")
def _copied(seat: Seat) -> Sequence[AgentMessage]:
    """Guesses late what it was told, and behind that whatever."""
    known = seat.told[-32:]
    return [Draft(seat.stream, seat.base - len(known), [*known, *[9] * (MAX_DRAFT_TOKENS - len(known))])]


@attack("redraft at will", "coupled")
def _redrafting(seat: Seat) -> Sequence[AgentMessage]:
    """Bad guesses, and a new drafter every time."""
    return [Redraft("another"), seat.draft([9] * seat.budget)]


@attack("nothing is worth its price", "coupled")
def _priced_out(seat: Seat) -> Sequence[AgentMessage]:
    """Is waited for, and sends nothing."""
    return [Draft(seat.stream, seat.base, [], end=DraftEnd.PRICED_OUT)]


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


def main(
    only: Annotated[list[str] | None, typer.Option(help="Of the registry; all by default.")] = None,
    turns: Annotated[int, typer.Option(help="How often each case runs.")] = 5,
    agents: Annotated[int, typer.Option(help="Honest agents beside the place that changes hands.")] = 3,
    new_tokens: Annotated[int, typer.Option(help="Tokens that each of them writes in a case.")] = 96,
    draft: Annotated[str, typer.Option(help="Of the honest agents.")] = DEFAULT_DRAFT,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print what honest agents keep of their goodput beside each attacker, and what the attacker has."""
    unknown = set(only or ()) - ATTACKS.keys()
    if unknown:
        raise InvalidRequest(f"there is no attack {sorted(unknown)}: there are {', '.join(ATTACKS)}")
    chosen = [ATTACKS[name] for name in only or ATTACKS]
    torch.set_num_threads(1)
    figures: dict[str, list[Figures]] = {}
    for rule in dict.fromkeys(one.rule for one in chosen):
        mine = [one for one in chosen if one.rule == rule]
        figures |= uvloop.run(_by_turns(rule, mine, turns, agents, new_tokens, draft))
    rows = {
        name: _against(figures[f"{HONEST}, {ATTACKS[name].rule}"], figures[name]) for name in figures if name in ATTACKS
    }
    print(f"{DEFAULT_TARGET}, {agents} honest agents with {draft}, {turns} turns; medians of ratios within a turn")
    print(f"{'in the last place':<28} {'others':>8} {'its own':>8} {'drafted':>8}  state")
    for name, row in rows.items():
        print(f"{name:<28} {row['others']:>8.3f} {row['own']:>8.3f} {row['drafted']:>8.2f}  {figures[name][-1].state}")
    if as_json:
        kept = {"agents": agents, "turns": turns, "new_tokens": new_tokens, "draft": draft, "ratios": rows}
        as_json.write_text(json.dumps(kept | {"states": {name: figures[name][-1].state for name in rows}}, indent=2))


def _against(honest: Sequence[Figures], attacked: Sequence[Figures]) -> dict[str, float]:
    pairs = list(zip(attacked, honest, strict=True))
    return {
        "others": statistics.median(bad.others / good.others for bad, good in pairs),
        "own": statistics.median(bad.own / good.own for bad, good in pairs),
        "drafted": statistics.median(bad.drafted / max(1, good.drafted) for bad, good in pairs),
        "others_least": min(bad.others / good.others for bad, good in pairs),
        "own_most": max(bad.own / good.own for bad, good in pairs),
    }


async def _by_turns(
    rule: RuleName, attacks: Sequence[Attack], turns: int, agents: int, new_tokens: int, draft: str
) -> dict[str, list[Figures]]:
    """One server for all cases, which take turns; under the ratio rule behind the barrier, else as it is by default."""
    rounds = RoundSettings(capacity=CAPACITY if rule == "ratio" else None, round_timeout_s=0.5)
    settings = ServerSettings(
        port=0, rule=rule, scheduler="goodspeed" if rule == "ratio" else "auto", max_streams=agents + 1,
        device="cpu", dtype="float32", rounds=rounds,
    )  # fmt: skip
    server = VerificationServer(
        settings, load_model(DEFAULT_TARGET, device="cpu", dtype="float32"), tokenizer_files(DEFAULT_TARGET)
    )
    found: dict[str, list[Figures]] = {}
    async with server.listen() as address:
        for turn in range(turns):
            cases: list[Attack | None] = [None, *attacks]
            for one in cases if turn % 2 == 0 else reversed(cases):
                name = f"{HONEST}, {rule}" if one is None else one.name
                figures = await _case(server, address, one, f"{name} {turn}", agents, new_tokens, draft)
                found.setdefault(name, []).append(figures)
    return found


async def _case(
    server: VerificationServer, address: str, one: Attack | None, name: str, agents: int, new_tokens: int, draft: str
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


def _busy_s(server: VerificationServer) -> float:
    now = server.snapshot()
    return now.busy_s + now.judge_s


async def _write_on(agent: Agent, request: TextRequest) -> None:
    while True:
        await agent.complete(request)


async def _play(address: str, name: str, one: Attack, prompt: str) -> None:
    """Attack, for ever: a text behind the other."""
    tokenizer = Tokenizer.from_str(tokenizer_files(DEFAULT_TARGET)["tokenizer.json"].decode())
    ids = tokenizer.encode(prompt).ids
    async with connect(address, compression=None, max_size=None) as connection:
        await connection.send(encode(Hello(PROTOCOL_VERSION, "agent", name, "an attacker")))
        for stream in range(2**31):
            params = SamplingParams(0.8, seed=stream)
            await connection.send(encode(Open(stream, ids, len(ids), params, 96, MAX_DRAFT_TOKENS, True)))
            await _play_text(connection, Seat(stream, Transcript(ids), 0), one)


async def _play_text(connection: ClientConnection, seat: Seat, one: Attack) -> None:
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


if __name__ == "__main__":
    typer.run(main)
