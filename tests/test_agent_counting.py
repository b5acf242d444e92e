"""What an agent says of its drafts is what the server has counted, whatever came too late."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from goodspeed.errors import ProtocolError
from goodspeed.messages import Draft, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Commit
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import Drafter, DraftSession, Guess
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.generation import Generation, Request
from goodspeed_agent.report import Completion, Origin, Speculation
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.live import LiveStream, Outbox
from goodspeed_server.server import VerificationServer
from goodspeed_server.settings import ServerSettings
from tests.fake_server import FakeServer
from tests.serving import serving, tiny_settings
from tests.stepping import Grants, SlowEngine
from tests.test_agent_along import once, sent
from tests.test_agent_driver import Guesser, generate
from tests.test_agent_with_server import NEW_TOKENS, PROMPTS, QUICK, WARM, almost_the_target
from tests.test_server_metrics import get, samples

BARRIER = tiny_settings()
ROLLING = tiny_settings(rounds={"rounds": "rolling"})
IMPATIENT = tiny_settings(rounds={"round_timeout_s": 1e-5})


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses pay."""
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)


def almost() -> Drafter:
    return ModelDrafter(almost_the_target(), "almost", None)


class Late:
    """Guesses only what the server has overtaken, as one that is much slower than it."""

    name = "late"
    max_draft = 8
    fingerprint = None

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._length = 0

    def committed(self, live: LiveStream) -> None:
        with self._told:
            self._length = live.stream.length
            self._told.notify_all()

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        self._length = 0
        return self

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        on_trial = len(tokens) == 2
        with self._told:
            assert self._told.wait_for(lambda: on_trial or self._length > len(tokens), timeout=60.0)
        for token in range(8):
            yield Guess(token, 0.9)


def overtake_now_and_then(server: VerificationServer) -> None:
    """Let every third pass of rolling rounds be without guesses, and the others wait for some."""
    rounds = server._rounds
    close, draft = rounds._rounds.close, rounds.draft
    passes = 0

    def gated(now: float, *, prompts: bool) -> list[LiveStream]:
        nonlocal passes
        asked = [live for live in rounds.live if live.lead and live.draft_limit]
        if passes % 3 and not all(live.guesses.beyond(live.stream.length, 1)[0] for live in asked):
            return []
        batch = close(now, prompts=prompts)
        passes += bool(batch)
        return batch

    def heard(outbox: Outbox, message: Draft) -> None:
        draft(outbox, message)
        rounds._changed.set()

    rounds._rounds.close = gated  # type: ignore[method-assign, assignment]
    rounds.draft = heard  # type: ignore[method-assign]


async def counted(
    settings: ServerSettings,
    drafter: Drafter,
    folder: Path,
    prompts: Sequence[str],
    prepare: Callable[[VerificationServer], None] = lambda server: None,
) -> tuple[Speculation, Counter[Origin]]:
    """Write texts; what the agent has counted, and where it says that the tokens come from."""
    origins: Counter[Origin] = Counter()

    def show(piece: Piece) -> None:
        origins.update(piece.origins)

    async def write(agent: Agent, prompt: str, params: SamplingParams) -> Completion:
        return await agent.complete(TextRequest(prompt, params, max_new_tokens=2 * NEW_TOKENS), show)

    total = Speculation()
    async with asyncio.timeout(60), serving(settings) as (server, address):
        server._rounds.planner.scheduler = Grants(4, needs_no_capacity=True)
        prepare(server)
        async with Agent(address, drafter, cache=TokenizerCache(folder), backoff=QUICK) as agent:
            for params in (SamplingParams(), WARM):
                for one in await asyncio.gather(*(write(agent, prompt, params) for prompt in prompts)):
                    total.add(one.speculation)
        snapshot = server.snapshot()
        found = samples((await asyncio.to_thread(get, address))[1])
    assert total.num_draft_tokens == snapshot.drafted
    assert total.num_accepted_tokens == snapshot.accepted == origins["accepted"]
    assert total.num_spec_steps == found["goodspeed_spec_decode_num_drafts_total"]
    assert origins.total() == snapshot.committed
    ends = origins["recovered"] + origins["bonus"]
    assert total.num_spec_steps - len(prompts) * 2 <= ends <= total.num_spec_steps
    assert total.num_sent_tokens >= total.num_draft_tokens
    return total, origins


def ending_at(server: VerificationServer) -> None:
    """Some tokens end a text, as likely as not within what was accepted."""
    server._rounds._streams._eos_tokens = frozenset(range(0, 97, 13))


async def test_where_drafts_are_waited_for(tmp_path: Path) -> None:
    total, origins = await counted(BARRIER, almost(), tmp_path, PROMPTS)
    assert 0 < total.num_accepted_tokens < total.num_draft_tokens
    assert origins["recovered"]
    assert origins["bonus"]


async def test_where_the_server_decodes_on(tmp_path: Path) -> None:
    total, _ = await counted(ROLLING, almost(), tmp_path, PROMPTS[:1], overtake_now_and_then)
    assert total.num_sent_tokens > total.num_draft_tokens > total.num_accepted_tokens > 0


async def test_what_comes_too_late_was_never_drafted(tmp_path: Path) -> None:
    for settings in (IMPATIENT, ROLLING):
        drafter = Late()

        def prepare(server: VerificationServer, drafter: Late = drafter) -> None:
            telemetry = server._rounds._telemetry
            committed = telemetry.committed

            def watched(live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
                committed(live, drafted, commit, now)
                drafter.committed(live)

            telemetry.committed = watched  # type: ignore[method-assign]

        total, origins = await counted(settings, drafter, tmp_path, PROMPTS[:1], prepare)
        assert total.num_sent_tokens > 0
        assert total.num_draft_tokens == total.num_spec_steps == 0
        assert set(origins) == {"target"}


@pytest.mark.parametrize("settings", [BARRIER, ROLLING], ids=["barrier", "rolling"])
async def test_a_text_that_ends_within_its_draft(settings: ServerSettings, tmp_path: Path) -> None:
    def prepare(server: VerificationServer) -> None:
        ending_at(server)
        if settings is ROLLING:
            overtake_now_and_then(server)

    for prompt in PROMPTS:
        await counted(settings, almost(), tmp_path, [prompt], prepare)


@pytest.mark.parametrize("waits", [True, False])
async def test_all_that_was_accepted_counts_where_the_end_of_the_text_is_among_it(tmp_path: Path, waits: bool) -> None:
    server = FakeServer(budget=4, waits=waits, eos_tokens=(6,), beat=once(lambda server: sent(server) >= 4))
    generation, _ = await generate(server, tmp_path, Guesser(1000), mode="off")
    assert generation.transcript.generated == [4, 5, 6]
    assert generation.speculation.acceptance_histogram == [0, 0, 0, 1]
    assert generation.speculation.num_draft_tokens == 4
    assert generation.origins == ["accepted"] * 3


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict(1, 3, 0, [], 4), []),
        (Verdict(1, 3, 0, [4, 5], 4), ["target", "target"]),
        (Verdict(1, 3, 2, [9], 4, 4), ["accepted", "accepted", "recovered"]),
        (Verdict(1, 3, 2, [9], 4, 2), ["accepted", "accepted", "bonus"]),
        (Verdict(1, 3, 0, [9], 4, 2), ["recovered"]),
        (Verdict(1, 3, 2, [], 0, 3, finish="stop", ended_within=True), ["accepted", "accepted"]),
        (Verdict(1, 3, 0, [4, 5, 6], 4, 2), ["accepted", "accepted", "bonus"]),
        (Verdict(1, 3, 0, [4, 5, 9], 4, 4), ["accepted", "accepted", "recovered"]),
        (Verdict(1, 3, 0, [4, 5], 0, 2, finish="stop", ended_within=True), ["accepted", "accepted"]),
    ],
)
def test_where_tokens_come_from(verdict: Verdict, expected: list[Origin]) -> None:
    generation = Generation(1, Request((1, 2, 3), max_new_tokens=50, max_draft=8))
    generation.draft([Guess(token, 0.5) for token in (4, 5, 6, 7)])
    generation.commit(verdict)
    assert generation.origins == expected


@pytest.mark.parametrize(
    "verdict", [Verdict(1, 3, 2, [6], 4), Verdict(1, 3, 2, [6], 4, 1), Verdict(1, 3, 0, [4, 5, 6], 4, 1)]
)
def test_a_server_that_accepts_more_than_it_verified_is_caught(verdict: Verdict) -> None:
    generation = Generation(1, Request((1, 2, 3), max_new_tokens=50, max_draft=8))
    generation.draft([Guess(token, 0.5) for token in (4, 5, 6, 7)])
    with pytest.raises(ProtocolError, match="were verified"):
        generation.commit(verdict)
