"""Rolling rounds in the server: it decodes on while agents guess, and what they guessed in time is verified."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from goodspeed.messages import Draft, DraftEnd, Failure, Open, Opened, Queued, Verdict
from goodspeed.rounds import Barrier, Rolling
from goodspeed.timing import EngineLoad, PassCost, PassSample
from goodspeed_server.observer import RoundRecord
from goodspeed_server.server import VerificationServer
from tests.serving import GREEDY, Peer, linked, serving, tiny_settings
from tests.stepping import TEXT, WRONG, Grants, SlowEngine, stepped
from tests.test_server import PROMPT, target_text
from tests.tiny_models import VOCAB

START = len(PROMPT)
LONG = 60


async def guess_along(peer: Peer, guess: Sequence[int], streams: int = 1, *, limit: int = LONG) -> list[list[int]]:
    """Guess from `guess` whenever a lead is told; returns the texts."""
    texts: list[list[int]] = [[] for _ in range(streams)]
    for number in range(streams):
        await peer.send(Open(number, PROMPT, START, GREEDY, limit, 8, True))
    while min(map(len, texts)) < limit:
        message = await peer.receive()
        if isinstance(message, Queued):
            continue
        if isinstance(message, Failure):
            assert message.code == "unknown_stream", "a guess may cross the end of its stream"
            continue
        assert isinstance(message, Opened | Verdict)
        assert message.base == START + len(texts[message.stream])
        if isinstance(message, Verdict):
            assert message.accepted == 0
            texts[message.stream] += message.tokens
        done = len(texts[message.stream])
        if message.budget:
            drafted = list(guess[done : done + message.budget])
            await peer.send(Draft(message.stream, START + done, drafted, 10))
    return texts


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses pay."""
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)


@pytest.mark.parametrize("scheduler", ["seconds", "goodspeed", "plain"])
@pytest.mark.usefixtures("slow")
async def test_the_text_is_the_targets_whoever_guesses(scheduler: str) -> None:
    right = target_text(PROMPT, LONG)
    wrong = [(token + 1) % VOCAB for token in right]
    mixed = [token if index % 3 else (token + 1) % VOCAB for index, token in enumerate(right)]
    async with serving(tiny_settings(scheduler=scheduler, rounds={"rounds": "rolling"})) as (_, address):
        for guess in (right, wrong, mixed, []):
            async with linked(address) as peer:
                assert await guess_along(peer, guess) == [right]


async def test_an_agent_that_says_nothing_holds_nobody_up() -> None:
    settings = tiny_settings(scheduler="seconds", rounds={"rounds": "rolling"})
    async with serving(settings) as (_, address), linked(address) as silent, linked(address) as other:
        await silent.open(0, PROMPT, max_new_tokens=4)
        assert await other.generate(0, PROMPT) == target_text(PROMPT, 8)
        heard: list[int] = []
        while len(heard) < 4:
            heard += (await silent.expect(Verdict)).tokens
        assert heard == target_text(PROMPT, 4)


async def test_a_stream_is_decoded_on_while_its_agent_says_nothing() -> None:
    async with stepped() as stream:
        live = stream.live
        assert stream.lead > 0
        before = live.estimator.alpha
        await stream.step_to_the_end()
        assert stream.passes == len(TEXT)
        assert live.estimator.alpha == before
        assert live.account.drafted == 0


async def test_right_guesses_that_come_late_save_passes() -> None:
    async with stepped() as stream:
        live = stream.live
        before = live.estimator.alpha
        assert await stream.steps(2) == [1, 1]
        await stream.guess(TEXT[:8], START)
        # Two are overtaken; of the six behind them three are verified at a time, and the pass brings a token itself.
        assert await stream.steps(3) == [4, 3, 1]
        await stream.step_to_the_end()
        assert stream.passes == len(TEXT) - 5
        assert live.estimator.alpha > before
        assert (live.account.drafted, live.account.accepted) == (5, 5)


async def test_guesses_that_were_all_overtaken_save_nothing_and_still_count() -> None:
    async with stepped() as stream:
        live = stream.live
        before = live.estimator.alpha
        await stream.steps(4)
        await stream.guess(TEXT[:3], START)
        assert live.estimator.alpha > before
        assert await stream.steps(2) == [1, 1]
        # Those behind them need not start anew.
        await stream.guess(TEXT[3:8], START, offset=3)
        assert await stream.steps(1) == [3]


@pytest.mark.parametrize("overtaken", [0, 1, 3])
async def test_wrong_guesses_cost_no_pass_and_count_as_one_miss(overtaken: int) -> None:
    async with stepped() as stream:
        live = stream.live
        before = live.estimator.alpha
        await stream.steps(overtaken)
        await stream.guess(WRONG[:8], START)
        assert await stream.steps(2) == [1, 1]
        assert live.estimator.alpha < before
        assert live.account.drafted == (0 if overtaken else 3), "what is known to be wrong is not verified"
        await stream.guess(TEXT[len(stream.text) :][:3])
        assert await stream.steps(1) == [4], "the next are none the worse for it"


async def test_what_follows_a_wrong_guess_is_not_verified_even_if_it_fits() -> None:
    async with stepped() as stream:
        await stream.steps(2)
        await stream.guess([TEXT[0], WRONG[1], *TEXT[2:8]], START)
        assert await stream.steps(1) == [1]
        assert stream.live.account.drafted == 0


async def test_pieces_are_put_together_whenever_they_come() -> None:
    async with stepped() as stream:
        await stream.guess(TEXT[:1])
        await stream.guess(TEXT[1:2], offset=1)
        assert await stream.steps(1) == [3]
        await stream.guess(TEXT[2:4], START, offset=2)
        await stream.guess([], START, offset=4)
        await stream.guess(TEXT[4:6], START, offset=4)
        assert await stream.steps(1) == [4], "one was overtaken, and three are verified"


async def test_a_piece_that_leaves_a_gap_or_comes_again_is_dropped() -> None:
    async with stepped() as stream:
        await stream.guess(TEXT[1:3], offset=1)
        await stream.guess(TEXT[:1])
        await stream.guess(TEXT[:1], offset=2)
        await stream.guess(TEXT[1:2], offset=1)
        await stream.guess(TEXT[1:2], offset=1)
        assert await stream.steps(2) == [3, 1]


async def test_pieces_that_continue_what_turned_out_wrong_are_dropped() -> None:
    async with stepped() as stream:
        live = stream.live
        await stream.guess(WRONG[:1])
        await stream.step()
        after = live.estimator.alpha
        for offset in (1, 2):
            await stream.guess(TEXT[offset : offset + 1], START, offset=offset)
        assert (await stream.steps(1), live.estimator.alpha, live.account.bad_drafts) == ([1], after, 0)
        await stream.guess(TEXT[2:5])
        assert await stream.steps(1) == [4]


async def test_whoever_begins_anew_is_held_to_the_new_guesses_only() -> None:
    async with stepped() as stream:
        before = stream.live.estimator.alpha
        await stream.guess(WRONG[:4])
        await stream.guess(TEXT[:3])
        assert await stream.steps(1) == [4]
        assert stream.live.estimator.alpha > before


@pytest.mark.parametrize("said", [0, 1, 2])
async def test_nothing_more_to_say_is_a_miss_where_the_next_token_would_be(said: int) -> None:
    alphas = {}
    for end in (DraftEnd.FAR_ENOUGH, DraftEnd.NOTHING_TO_SAY):
        async with stepped() as stream:
            await stream.guess(TEXT[:said], end=end)
            assert await stream.steps(2) == [1 + said, 1]
            alphas[end] = stream.live.estimator.alpha
    assert alphas[DraftEnd.NOTHING_TO_SAY] < alphas[DraftEnd.FAR_ENOUGH]


async def test_who_is_told_how_far_to_guess_is_told_of_what_will_be_overtaken_too() -> None:
    async with stepped() as stream:
        leads = [stream.lead]
        while len(stream.text) < len(TEXT):
            await stream.step()
            leads.append(stream.lead)
    # One is overtaken and three are verified, as long as there is room behind them for a token of the target's own.
    assert leads == [4] * 20 + [3, 2, 1, 0, 0]


@pytest.mark.parametrize(("max_draft", "lead"), [(0, 0), (2, 2), (4, 4), (8, 4)])
async def test_nobody_is_told_to_guess_more_than_it_can(max_draft: int, lead: int) -> None:
    async with stepped(max_draft=max_draft) as stream:
        assert stream.lead == lead


@pytest.mark.parametrize("capacity", [1, 8])
@pytest.mark.usefixtures("slow")
async def test_no_pass_verifies_more_than_the_capacity(records: list[RoundRecord], capacity: int) -> None:
    right = target_text(PROMPT, LONG)
    settings = tiny_settings(max_streams=5, rounds={"rounds": "rolling", "capacity": capacity})
    async with serving(settings) as (_, address), linked(address) as peer:
        assert await guess_along(peer, right, streams=8) == [right] * 8
    assert 0 < max(record.drafted for record in records) <= capacity


def at_a_price(server: VerificationServer, token_s: float) -> None:
    """Have the engine's passes cost so much a token."""
    samples = [PassSample(rows, rows * n, 1.0 + rows * n * token_s) for rows in (1, 4) for n in (1, 5)]
    server._rounds.planner.meter.load = EngineLoad(PassCost(samples), pass_s=60.0)


@pytest.mark.parametrize("worth_s", [0.0011, 0.004, 1.0])
async def test_the_price_is_the_chance_at_which_a_token_is_worth_its_time(
    worth_s: float,
) -> None:
    async with stepped(Grants(3, worth_s)) as stream:
        at_a_price(stream.server, 0.001)
        for _ in range(3):
            verdict = await stream.step()
            assert verdict.price_percent == pytest.approx(100 * 0.001 / worth_s, abs=1.01)
            assert (verdict.budget, verdict.overtaken) == (1 + stream.live.budget, 1)


async def test_guesses_that_the_price_ended_show_no_miss() -> None:
    async with stepped(Grants(3, 0.002)) as stream:
        at_a_price(stream.server, 0.001)
        alphas = [stream.live.estimator.alpha]
        await stream.step()
        for _ in range(3):
            await stream.guess(TEXT[len(stream.text) :][:2], end=DraftEnd.PRICED_OUT)
            await stream.step()
            alphas.append(stream.live.estimator.alpha)
        assert alphas == sorted(set(alphas))


@pytest.mark.parametrize(
    ("guesses", "why", "told"),
    [
        (0, {"end": DraftEnd.PRICED_OUT}, [(0, False)]),
        (0, {"end": DraftEnd.NOTHING_TO_SAY}, [(0, False)]),
        (2, {"end": DraftEnd.NOTHING_TO_SAY}, [(2, False)]),
        (2, {}, [(2, True)]),
        (0, {}, []),
    ],
)
async def test_the_rounds_are_told_what_is_here_and_whether_more_comes(
    guesses: int, why: dict[str, DraftEnd], told: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nobody waits for an agent that has said that it will say nothing."""
    heard: list[tuple[int, bool]] = []

    def arrive(_: object, __: float, drafted: int, *, more: bool) -> bool:
        heard.append((drafted, more))
        return False

    async with stepped() as stream:
        monkeypatch.setattr(stream.server._rounds._rounds, "arrive", arrive)
        await stream.guess(TEXT[:guesses], **why)
        assert heard == told


async def test_whoever_keeps_guessing_right_has_its_text_in_a_quarter_of_the_passes() -> None:
    async with stepped() as stream:
        while len(stream.text) < len(TEXT):
            await stream.guess(TEXT[len(stream.text) :][:3])
            await stream.step()
        assert stream.passes == len(TEXT) / 4


@pytest.mark.parametrize(
    ("scheduler", "rounds", "stands_for", "waits"),
    [
        ("auto", "auto", "seconds", False),
        ("auto", "barrier", "goodspeed", True),
        ("auto", "rolling", "seconds", False),
        ("goodspeed", "auto", "goodspeed", True),
        ("seconds", "barrier", "seconds", True),
    ],
)
async def test_what_auto_stands_for(scheduler: str, rounds: str, stands_for: str, waits: bool) -> None:
    async with serving(tiny_settings(scheduler=scheduler, rounds={"rounds": rounds})) as (server, address):
        assert server.snapshot().scheduler == stands_for
        assert isinstance(server._rounds._rounds, Barrier if waits else Rolling)
        async with linked(address, greet=False) as peer:
            assert (await peer.greet()).waits is waits
