"""Users who ask for texts: closed loops, arrivals, prompts on their way into the cache; how prompts share a pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.rounds import share_out
from goodspeed.scheduling import FixedS, PlainDecoding, Scheduler, SecondsSched
from goodspeed.simulation import Agent, Engine, RoundsKind, Texts, simulate
from goodspeed.simulation.texts import Asking, Length

ENGINE = Engine(fixed_s=0.02, row_s=0.0, token_s=0.001)


def always(tokens: int) -> Length:
    return lambda _random: tokens


def test_a_lone_closed_loop_takes_as_long_as_computed() -> None:
    texts = Texts(always(100), always(10))
    agent = Agent(draft_s=0.01, latency_s=0.05, alpha=0.5, texts=texts)
    run = simulate([agent], ENGINE, PlainDecoding(), rounds="rolling", duration_s=60, warm_up_s=0, prefill_chunk=60)
    prefill_s = ENGINE.seconds(1, 60) + ENGINE.seconds(1, 40)
    first = run.written[0]
    assert first.first_at - first.asked_at == pytest.approx(0.1 + prefill_s + ENGINE.seconds(1, 1))
    assert first.done_at - first.asked_at == pytest.approx(0.1 + prefill_s + 10 * ENGINE.seconds(1, 1))
    assert run.written[1].asked_at == first.done_at
    assert {text.tokens for text in run.written} == {10}
    assert len(run.written) == 60 // (first.done_at - first.asked_at)


@pytest.mark.parametrize(("scheduler", "rounds"), [(FixedS(4), "barrier"), (SecondsSched(), "rolling")])
def test_no_text_is_longer_than_was_asked_for_and_none_is_lost(scheduler: Scheduler, rounds: RoundsKind) -> None:
    lengths: list[int] = []

    def length(random: np.random.Generator) -> int:
        lengths.append(int(random.integers(1, 30)))
        return lengths[-1]

    texts = Texts(lambda random: int(random.integers(0, 40)), length)
    agents = [Agent(0.004, 0.01, 0.8, texts=texts, leaves_at=leaves_at) for leaves_at in (np.inf, np.inf, 12.0)]
    run = simulate(agents, ENGINE, scheduler, rounds=rounds, capacity=12, duration_s=30, warm_up_s=0)
    assert len(run.written) > 50
    assert len(run.written) >= len(lengths) - len(agents), "all but those under way"
    assert sum(text.tokens for text in run.written) <= run.tokens.sum()
    assert all(text.asked_at < text.first_at <= text.done_at for text in run.written)
    assert max(text.done_at for text in run.written if text.agent == 2) < 12.1


def test_arrivals_are_those_of_the_rate_whatever_becomes_of_them() -> None:
    texts = Texts(always(0), always(4), rate=lambda now: 2.0 if now < 50 else 0.5, peak_rate=2.0)
    agents = [Agent(0.004, 0.01, 0.8, texts=texts)] * 20
    plain, ours = (
        simulate(agents, ENGINE, scheduler, rounds="rolling", duration_s=100, warm_up_s=0).written
        for scheduler in (PlainDecoding(), SecondsSched())
    )
    early = [text for text in plain if text.asked_at < 50]
    assert len(early) == pytest.approx(20 * 100, rel=0.1)
    assert len(plain) - len(early) == pytest.approx(20 * 25, rel=0.2)
    assert sorted(text.asked_at for text in plain)[:1000] == sorted(text.asked_at for text in ours)[:1000]


def test_who_leaves_as_it_comes_holds_nobody_up() -> None:
    agents = [Agent(0.004, 0.01, 0.8), Agent(0.004, 0.01, 0.8, joins_at=2.0, leaves_at=2.0)]
    run = simulate(agents, ENGINE, FixedS(4), rounds="barrier", capacity=12, duration_s=20, warm_up_s=3)
    assert run.goodput[0] > 10


def test_a_rate_of_nothing_asks_for_nothing() -> None:

    assert Asking(Texts(always(1), always(1), lambda _now: 0.0, 0.0), np.random.default_rng(0)).next_at(3.0) == np.inf


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 2000))
def test_prompts_share_a_pass_evenly(wanted: list[int], room: int) -> None:
    shares = share_out(wanted, room)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == min(room, sum(wanted))
    # Nobody who lacks tokens still got less than anybody else, but for what cannot be divided.
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert not short or min(short) >= max(shares) - 1
