"""What the server says of itself, against sums by hand."""

import pytest

from goodspeed.snapshot import ServerSnapshot
from goodspeed.utility import AlphaFair
from goodspeed_server.telemetry import RoundRecord, ServerFacts, Telemetry


def record(streams: int, drafted: int, accepted: int, forward_s: float, judge_s: float = 0.0) -> RoundRecord:
    return RoundRecord(
        at=1.0,
        gather_s=0.004,
        plan_s=0.001,
        verify_s=forward_s + judge_s,
        forward_s=forward_s,
        judge_s=judge_s,
        commit_s=0.002,
        streams=streams,
        prefilled=0,
        drafted=drafted,
        accepted=accepted,
        committed=streams + accepted,
    )


def telemetry(plain_pass_s: float) -> Telemetry:
    return Telemetry(ServerFacts("m", "s", "r", "packed", 8, 64, AlphaFair(), lambda _rows: plain_pass_s), now=0.0)


def snapshot(of: Telemetry) -> ServerSnapshot:
    return of.snapshot(2.0, [], capacity=0, waiting=0, prefilling=lambda _: False, draining=False)


def test_speed_up_is_tokens_for_the_engines_time() -> None:
    measured = telemetry(plain_pass_s=0.02)
    for _ in range(3):
        measured.round_over(record(streams=4, drafted=12, accepted=8, forward_s=0.03, judge_s=0.01))
    seen = snapshot(measured)
    assert seen.mean_acceptance_length == pytest.approx(3.0)
    assert seen.speedup == pytest.approx(3.0 * 0.02 / 0.04)


def test_speed_up_never_exceeds_the_acceptance_length_of_passes_that_cost_what_plain_ones_do() -> None:
    measured = telemetry(plain_pass_s=0.02)
    for accepted in (0, 3, 12):
        measured.round_over(record(streams=4, drafted=12, accepted=accepted, forward_s=0.02))
    seen = snapshot(measured)
    assert seen.speedup <= seen.mean_acceptance_length + 1e-9


def test_plain_utility_is_that_of_decoding_and_nothing_else() -> None:
    seen = snapshot(telemetry(0.02))
    assert (seen.utility, seen.plain_utility, seen.fairness) == (0.0, 0.0, 1.0)


def test_phases_are_means_over_rounds() -> None:
    measured = telemetry(0.02)
    measured.round_over(record(4, 12, 8, forward_s=0.03))
    measured.round_over(record(4, 12, 8, forward_s=0.05))
    phases = snapshot(measured).phases
    assert (phases.gather_ms, phases.plan_ms, phases.verify_ms, phases.commit_ms) == pytest.approx((4, 1, 40, 2))
