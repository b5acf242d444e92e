"""What the server says of itself, against sums by hand."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.snapshot import ServerSnapshot
from goodspeed.timing import PassSample
from goodspeed.utility import AlphaFair
from goodspeed_server.live import AgentAccount
from goodspeed_server.observer import RoundRecord
from goodspeed_server.telemetry import ServerFacts, Telemetry


def pass_s(rows: int, tokens: int) -> float:
    """What the planted engine takes."""
    return 0.01 + 0.001 * rows + 0.0005 * tokens


def record(
    streams: int,
    drafted: int = 0,
    accepted: int = 0,
    forward_s: float = 0.03,
    judge_s: float = 0.0,
    prefilled: int = 0,
) -> RoundRecord:
    return RoundRecord(
        at=1.0,
        gather_s=0.004,
        plan_s=0.001,
        verify_s=forward_s + judge_s,
        forward_s=forward_s,
        judge_s=judge_s,
        commit_s=0.002,
        streams=streams,
        prompts=int(prefilled > 0),
        prefilled=prefilled,
        drafted=drafted,
        accepted=accepted,
        committed=streams + accepted,
    )


def timed(slower: float, streams: int, drafted: int = 0, accepted: int = 0, prefilled: int = 0) -> RoundRecord:
    """A pass of the planted engine when everything takes so many times as long; a quarter of it is judging."""
    seconds = slower * pass_s(streams + (prefilled > 0), streams + drafted + prefilled)
    return record(streams, drafted, accepted, 0.75 * seconds, 0.25 * seconds, prefilled)


def telemetry() -> Telemetry:
    sizes = itertools.product((1, 2, 4, 8), (1, 5))
    measured = [PassSample(rows, rows * each, pass_s(rows, rows * each)) for rows, each in sizes]
    return Telemetry(ServerFacts("m", "s", "r", "packed", 8, 64, AlphaFair(), measured), now=0.0)


def snapshot(of: Telemetry) -> ServerSnapshot:
    rows = [row for some in of.agents(2.0, [], lambda _: False) for row in some]
    return of.snapshot(2.0, [], rows, capacity=0, waiting=0, parked=0, draining=False)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 64), st.floats(0.2, 5.0)), min_size=1, max_size=50))
def test_plain_decoding_is_as_fast_as_plain_decoding(passes: list[tuple[int, int, float]]) -> None:
    """Whatever else the machine does, and however long the prompts are."""
    measured = telemetry()
    for streams, prefilled, slower in passes:
        measured.round_over(timed(slower, streams, prefilled=prefilled))
    assert snapshot(measured).speedup == pytest.approx(1.0)


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_speed_up_is_tokens_for_the_engines_time(slower: float) -> None:
    measured = telemetry()
    for _ in range(200):
        measured.round_over(timed(slower, streams=4, drafted=12, accepted=8))
    seen = snapshot(measured)
    assert seen.mean_acceptance_length == pytest.approx(3.0)
    assert seen.speedup == pytest.approx(3.0 * pass_s(4, 4) / pass_s(4, 16), rel=1e-2)


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 5), st.floats(0, 1), st.floats(0.2, 5.0)), min_size=1),
)
def test_speed_up_never_exceeds_the_acceptance_length(passes: list[tuple[int, int, float, float]]) -> None:
    measured = telemetry()
    longest = 1.0
    for streams, each, share, slower in passes:
        accepted = int(share * streams * each)
        measured.round_over(timed(slower, streams, streams * each, accepted))
        longest = max(longest, 1 + accepted / streams)
    assert snapshot(measured).speedup <= longest + 1e-9


def test_what_is_recorded_in_a_pass_says_nothing_of_how_long_passes_take() -> None:
    measured, undisturbed = telemetry(), telemetry()
    measured.round_over(replace(timed(500.0, streams=4, drafted=12, accepted=8), recorded=True))
    assert measured._plain_pass_s(4) == undisturbed._plain_pass_s(4)


def test_plain_utility_is_that_of_decoding_and_nothing_else() -> None:
    seen = snapshot(telemetry())
    assert (seen.utility, seen.plain_utility, seen.fairness) == (0.0, 0.0, 1.0)


def test_phases_are_means_over_rounds() -> None:
    measured = telemetry()
    measured.round_over(record(4, 12, 8, forward_s=0.03))
    measured.round_over(record(4, 12, 8, forward_s=0.05))
    phases = snapshot(measured).phases
    assert (phases.gather_ms, phases.plan_ms, phases.verify_ms, phases.commit_ms) == pytest.approx((4, 1, 40, 2))


def test_monitors_are_shown_no_more_of_a_name_than_anybody_reads() -> None:
    measured = telemetry()
    measured.joined(AgentAccount("n" * 4096, "d" * 4096, PRIOR_ALPHA), 0.0)
    (row,) = snapshot(measured).agents
    assert (row.name, row.drafter) == ("n" * 200, "d" * 200)
