"""Another drafter in the middle of a text: the text goes on as it would have, and what was believed is forgotten."""

from __future__ import annotations

import asyncio
import math
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from goodspeed import catalog
from goodspeed.errors import ModelError, TokenizerMismatch
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Hello
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent import reloading
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.connecting import Connected, Door
from goodspeed_agent.drafters import Drafter, DraftSession, Guess, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.drafters.swappable import Swappable
from goodspeed_agent.lookahead import Calibration
from goodspeed_agent.reloading import Reloading
from goodspeed_agent.tokenizer import TokenizerCache
from tests.serving import serving, tiny_settings, tiny_tokenizer
from tests.tiny_models import VOCAB, tiny_llama

QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)
PROMPT = "w5 w17 w3 w60 w2"
TRIED = 2
"""Guesses that a drafter is tried out with."""
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)


def model_drafter(name: str, seed: int = 0) -> ModelDrafter:
    return ModelDrafter(tiny_llama(seed=seed), name, catalog.fingerprint(tiny_tokenizer()))


def agent_of(address: str, drafter: Drafter, folder: Path) -> Agent:
    return Agent(address, drafter, cache=TokenizerCache(folder), backoff=QUICK)


async def swapped_after_four_tokens(agent: Agent, new: Drafter) -> list[int]:
    """Generate a text and swap in its middle."""
    swaps: list[asyncio.Task[None]] = []
    count = 0

    def on_text(piece: Piece) -> None:
        nonlocal count
        count += len(piece.tokens)
        if count >= 4 and not swaps:
            swaps.append(asyncio.create_task(agent.swap(new)))

    completion = await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40), on_text)
    await swaps[0]
    return completion.tokens


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_a_text_goes_on_as_it_would_have(rounds: str, tmp_path: Path) -> None:
    settings = tiny_settings(scheduler="seconds", rounds={"rounds": rounds, "capacity": 16})
    async with serving(settings) as (server, address):
        async with agent_of(address, NoDrafter(), tmp_path) as agent:
            expected = (await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40))).tokens
        for old, new in (
            (model_drafter("stranger", seed=5), model_drafter("target")),
            (model_drafter("target"), model_drafter("stranger", seed=5)),
            (SuffixDrafter(), model_drafter("target")),
        ):
            watched = Watched(new)
            async with agent_of(address, old, tmp_path) as agent:
                assert await swapped_after_four_tokens(agent, watched) == expected
                # More than it was tried out with; a server that does not wait may be too quick for it.
                assert watched.count > TRIED or rounds == "rolling"
                row = next(row for row in server.snapshot().agents if row.drafter == new.name)
                assert row.state == "ok"


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
async def test_the_server_learns_anew_how_often_it_accepts(rule: Rule, tmp_path: Path) -> None:
    stranger = model_drafter("stranger", seed=5)
    async with serving(tiny_settings(rule=rule)) as (server, address), agent_of(address, stranger, tmp_path) as agent:
        await agent.complete(TextRequest(PROMPT, max_new_tokens=20))
        account = next(iter(server._telemetry._meters))
        assert account.prior_alpha < PRIOR_ALPHA - 0.05
        (calibration,) = agent._calibrations.values()
        assert calibration.chance(0.05) < Calibration().chance(0.05)
        await agent.swap(model_drafter("target"))
        assert calibration.chance(0.05) == Calibration().chance(0.05)
        completion = await agent.complete(TextRequest(PROMPT, max_new_tokens=20))
        assert completion.speculation.num_accepted_tokens > 0
        assert account.drafter == "target"
        assert account.prior_alpha > PRIOR_ALPHA


async def test_a_link_that_is_made_again_greets_with_the_new_drafter(tmp_path: Path) -> None:
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        await agent.swap(model_drafter("target"))
        for link in list(server._links):
            link.abort()
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["target"]


async def test_a_swap_after_the_greeting_of_a_new_link_is_told_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        connect = Door.connect

        async def swap_behind(self: Door, hello: Hello, timeout_s: float) -> Connected:
            made = await connect(self, hello, timeout_s)
            await agent.swap(model_drafter("target"))
            return made

        monkeypatch.setattr(Door, "connect", swap_behind)
        for link in list(server._links):
            link.abort()
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["target"]


async def test_a_draft_of_another_tokenizer_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        with pytest.raises(TokenizerMismatch, match="does not share a tokenizer"):
            await agent.swap(ModelDrafter(tiny_llama(), "foreign", "another"))
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["suffix"]


class Loads:
    """Drafts that are loaded one after another, each once it is released; an exception is a draft that cannot be."""

    def __init__(self, *results: Drafter | Exception) -> None:
        self._results = iter(results)
        self.began: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.release = threading.Semaphore(0)
        self.count = 0

    def __call__(self) -> Drafter:
        self.count += 1
        self.began.put(self.count)
        self.release.acquire()
        result = next(self._results)
        if isinstance(result, Exception):
            raise result
        return result


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


async def test_sighup_loads_the_draft_anew_and_a_draft_that_is_broken_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    load = Loads(model_drafter("target"), ModelError("it is broken"), ZeroDivisionError(), SuffixDrafter())
    load.release.release(4)
    async with serving() as (server, address), agent_of(address, SuffixDrafter(), tmp_path) as agent:
        with Reloading(load, said.put_nowait) as reloads:
            reloads.attach(agent)
            hang_up()
            assert await said.get() == "drafting with target as it is now"
            hang_up()
            assert await said.get() == "the draft stays as it is: it is broken"
            hang_up()
            while not caplog.messages:
                await asyncio.sleep(0)
            assert caplog.messages == ["the draft stays as it is"]
        await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
        assert [row.drafter for row in server.snapshot().agents] == ["target"]


async def test_of_signals_that_come_while_a_draft_is_loaded_the_last_decides(tmp_path: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    load = Loads(model_drafter("old"), model_drafter("new"))
    async with serving() as (_, address):
        with Reloading(load, said.put_nowait) as reloads:
            # Before there is an agent, it is remembered.
            hang_up()
            async with agent_of(address, SuffixDrafter(), tmp_path) as agent:
                await asyncio.sleep(0)
                assert load.count == 0
                reloads.attach(agent)
                assert await asyncio.to_thread(load.began.get) == 1
                for _ in range(3):
                    hang_up()
                await asyncio.sleep(0)
                load.release.release(2)
                assert [await said.get(), await said.get()] == [
                    "drafting with old as it is now", "drafting with new as it is now"
                ]  # fmt: skip
                assert (agent._drafter.name, load.count) == ("new", 2)


async def test_a_terminal_that_is_closed_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = asyncio.Event()
    monkeypatch.setattr(reloading, "_on_a_terminal", lambda: True)
    monkeypatch.setattr(signal, "raise_signal", lambda _: raised.set())
    load = Loads()
    with Reloading(load, print):
        monkeypatch.setattr(reloading, "_on_a_terminal", lambda: False)
        hang_up()
        await raised.wait()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def broken(seed: int = 0) -> ModelDrafter:
    """A model that has diverged."""
    model = tiny_llama(seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return ModelDrafter(model, "broken", catalog.fingerprint(tiny_tokenizer()))


@pytest.mark.parametrize("drafter", [broken(), ModelDrafter(tiny_llama(vocab_size=VOCAB // 2), "narrow", None)])
async def test_a_draft_that_cannot_guess_is_refused(drafter: ModelDrafter, tmp_path: Path) -> None:
    async with serving() as (server, address):
        with pytest.raises(ModelError, match=f"the draft '{drafter.name}' is broken: it cannot guess"):
            async with agent_of(address, drafter, tmp_path):
                pass
        async with agent_of(address, SuffixDrafter(), tmp_path) as agent:
            with pytest.raises(ModelError, match="is broken"):
                await agent.swap(drafter)
            await agent.complete(TextRequest(PROMPT, max_new_tokens=8))
            assert [row.drafter for row in server.snapshot().agents] == ["suffix"]


class Watched:
    """A drafter that counts its guesses, and fails after so many."""

    def __init__(self, drafter: Drafter, fails_after: float = math.inf) -> None:
        self._drafter = drafter
        self._left = fails_after
        self.count = 0
        self.name, self.max_draft, self.fingerprint = drafter.name, drafter.max_draft, drafter.fingerprint

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        session = self._drafter.open(params, rule=rule, vocab_size=vocab_size, prompt_tokens=prompt_tokens)
        return WatchedSession(self, session)

    def guessed(self) -> None:
        if self.count >= self._left:
            raise ZeroDivisionError
        self.count += 1


class WatchedSession:
    def __init__(self, owner: Watched, session: DraftSession) -> None:
        self._owner = owner
        self._session = session

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        for guess in self._session.guesses(tokens):
            self._owner.guessed()
            yield guess


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_a_draft_that_fails_in_the_middle_of_a_text_costs_no_text(
    rounds: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tiny_settings(scheduler="seconds", rounds={"rounds": rounds, "capacity": 16})
    async with serving(settings) as (_, address):
        async with agent_of(address, NoDrafter(), tmp_path) as agent:
            expected = (await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40))).tokens
        failing = Watched(model_drafter("target"), fails_after=TRIED)
        async with agent_of(address, failing, tmp_path) as agent:
            assert (await agent.complete(TextRequest(PROMPT, WARM, max_new_tokens=40))).tokens == expected
            assert failing.count == TRIED
            good = Watched(model_drafter("target"))
            assert await swapped_after_four_tokens(agent, good) == expected
            assert good.count > TRIED or rounds == "rolling"
    assert [message for message in caplog.messages if "is broken" in message] == [
        "the draft target is broken: texts go on without it"
    ]


def test_a_calibration_that_restarts_believes_confidences_again() -> None:
    fresh, used = Calibration(), Calibration()
    for _ in range(100):
        used.observe(0.75, right=False)
    assert used.chance(0.75) < 0.1
    used.restart()
    assert used.chance(0.75) == fresh.chance(0.75)


class Reading:
    """Computes for several, and is still at its prompts."""

    name, max_draft, fingerprint, together = "reading", 4, None, 8

    def __init__(self, *, breaks: bool) -> None:
        self.breaks = breaks

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        return self

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        return [False] * len(sessions)

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        if self.breaks:
            raise RuntimeError("the one before is broken")
        yield Guess(1, 0.5)

    def __repr__(self) -> str:
        return self.name


class Plain(Reading):
    """Does not compute for several."""

    name = "plain"
    prepare = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(breaks=False)

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        yield Guess(2, 0.5)


@pytest.mark.parametrize("breaks", [False, True])
def test_what_was_exchanged_within_a_prompt_guesses_nothing_in_the_name_of_the_other(
    breaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Swappable(Reading(breaks=breaks))
    session = owner.open(WARM, rule="coupled", vocab_size=VOCAB)
    guesses = session.guesses([1])
    assert owner.prepare([session]) == [False]
    owner.exchange(Plain())
    assert owner.prepare([session]) == [True]
    assert list(guesses) == []
    assert caplog.messages == []
    assert [guess.token for guess in session.guesses([1])] == [2]


def test_a_drafter_that_cannot_say_for_how_many_it_computes_does_so_for_one(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Reading):
        @property
        def together(self) -> int:  # type: ignore[override]
            raise RuntimeError("together is broken")

    owner = Swappable(Faulty(breaks=False))
    session = owner.open(WARM, rule="coupled", vocab_size=VOCAB)
    assert owner.together == 1
    assert owner.prepare([session]) == [True]
    assert [guess.token for guess in session.guesses([1])] == [1]
    assert caplog.messages == ["the draft reading is broken: texts go on without it"]
