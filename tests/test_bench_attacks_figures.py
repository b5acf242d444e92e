"""What `make bench-attacks` makes of its cases: which are compared, and what comes of that."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from bench.attacks import attacker
from bench.attacks.cases import Case
from bench.attacks.figures import Row, flood_lines, row_of, shortfalls, waits_of
from bench.attacks.floods import FLOODS
from bench.attacks.newcomers import Newcomers
from bench.attacks.pairing import Compared, between_controls

assert attacker.REGISTERED
BRUTE = FLOODS["token brute force"]
CALM = Case(
    seconds=6.0, tokens=600, cpu_s=6.0, busy_s=5.0, passes=100, rss_grown_bytes=0.0, throttled_s=0.0,
    refusals=Counter(), newcomers=Newcomers(), got={},
)  # fmt: skip
MET = replace(CALM, refusals=Counter(too_many_failures=9, unauthorized=10))


def row(*attacked: Case, before: Case = CALM, behind: Case = CALM) -> Row:
    return row_of(BRUTE, [Compared(case, before, behind) for case in attacked])


@pytest.mark.parametrize(
    ("names", "turns", "order"),
    [
        (["a"], 1, ["-", "a", "-"]),
        (["a", "b"], 2, ["-", "a", "b", "-", "b", "a", "-"]),
        (["a", "b", "c"], 2, ["-", "a", "b", "-", "c", "c", "-", "b", "a", "-"]),
        (["a"], 3, ["-", "a", "a", "-", "a", "-"]),
    ],
)
async def test_a_control_runs_around_every_two_attacks(names: list[str], turns: int, order: list[str]) -> None:
    ran: list[str] = []

    async def run(name: str | None, number: int) -> int:
        assert number == len(ran)
        ran.append(name or "-")
        return number

    found = await between_controls(names, turns, run)
    assert ran == order
    assert {name: len(compared) for name, compared in found.items()} == dict.fromkeys(names, turns)
    controls = [number for number, name in enumerate(order) if name == "-"]
    for name, compared in found.items():
        for one in compared:
            assert order[one.attacked] == name
            assert one.before == max(number for number in controls if number < one.attacked)
            assert one.behind == min(number for number in controls if number > one.attacked)


def test_an_attacked_case_is_compared_with_the_mean_of_its_controls() -> None:
    found = row(replace(MET, tokens=450), before=replace(CALM, tokens=700), behind=replace(CALM, tokens=500))
    assert found.per_cpu_s == pytest.approx(450 / 600)
    costly = row(replace(MET, cpu_s=8.0), before=replace(CALM, cpu_s=5.0), behind=replace(CALM, cpu_s=7.0))
    assert costly.cpu_share == pytest.approx((3.0 - 1.0) / 6.0)


def test_what_is_kept_is_no_matter_of_the_machines_speed() -> None:
    slow = replace(MET, tokens=300, passes=50)
    assert row(slow).kept == pytest.approx(1.0)
    assert row(slow).per_cpu_s == pytest.approx(0.5)
    assert row(replace(slow, busy_s=4.0)).kept == pytest.approx(4 / 5), "it took time from passes"
    assert row(replace(slow, tokens=240)).kept == pytest.approx(4 / 5), "it made passes bring less"


def test_who_still_waits_bounds_the_times_of_all_from_below() -> None:
    exact = waits_of([0.01, 0.02, 0.03], [])
    assert exact is not None
    assert (exact.median_ms, exact.median_is_bound, exact.most_ms, exact.most_is_bound) == (20.0, False, 30.0, False)
    one = waits_of([0.01, 0.02], [6.0])
    assert one is not None
    assert (one.median_ms, one.median_is_bound, one.most_ms, one.most_is_bound) == (20.0, False, 6000.0, True)
    most = waits_of([0.01], [6.0, 5.0])
    assert most is not None
    assert (most.median_ms, most.median_is_bound) == (5000.0, True)
    assert str(most) == "≥5000/≥6000"
    assert waits_of([], []) is None


def test_an_early_end_of_a_wait_is_no_short_wait() -> None:
    """Half a second of waiting may have become any time, and the median with it."""
    waits = waits_of([1.0, 2.0], [0.5])
    assert waits is not None
    assert waits.median_ms == pytest.approx(1e3 * statistics.median([0.5, 1.0, 2.0]))
    assert waits.median_is_bound


def test_a_flood_is_met_that_meets_another_defence_in_each_turn() -> None:
    other = replace(CALM, refusals=Counter(too_many_handshakes=7))
    assert row(MET, other).met
    assert not row(MET, replace(CALM, refusals=Counter(unauthorized=3))).met
    assert row(MET, other).met_by == {"too_many_failures": 9, "too_many_handshakes": 7}
    assert row_of(FLOODS["nothing"], [Compared(CALM, CALM, CALM)]).met


def test_what_is_below_the_aim_is_told_and_what_is_not_met() -> None:
    assert shortfalls([row(MET)], {"tiny q": {"others": 1.0}}) == []
    slow, unmet = row(replace(MET, tokens=560)), row(CALM)
    short = shortfalls([slow, unmet], {"flat q": {"others": 0.94}})
    assert [sentence.partition(":")[0] for sentence in short] == [BRUTE.name, BRUTE.name, "flat q"]
    assert "none of its defences" in short[0]
    assert "0.933" in short[1]
    assert shortfalls([row(MET, MET, replace(MET, tokens=100))], {}) == []  # the median counts


def test_figures_are_json_where_nobody_was_let_in() -> None:
    shut = replace(MET, newcomers=Newcomers(kept_out=6))
    figures = json.loads(json.dumps(row(shut).to_json(), allow_nan=False))
    assert figures["newcomers"] is None
    assert figures["kept_out"] == 6
    waiting = row(replace(MET, newcomers=Newcomers(waited_s=[6.0])))
    assert all(math.isfinite(value) for value in json.loads(json.dumps(waiting.to_json()))["newcomers"].values())


def test_the_table_fits_a_terminal_and_shows_who_was_kept_out() -> None:
    refusals = Counter({f"some_other_refusal_{number}": 1000 for number in range(30)}) + MET.refusals
    case = replace(
        MET, refusals=refusals, newcomers=Newcomers([0.01], [5.0, 6.0], kept_out=17),
        got={"counts": {f"answered {status}": 10**6 for status in range(400, 430)}},
    )  # fmt: skip
    lines = flood_lines([row(case)])
    assert max(map(len, lines)) <= 120
    assert next(line for line in lines if line.startswith(BRUTE.name)).split()[-2:] == ["≥5000/≥6000", "17"]
    assert "    met by: too_many_failures 9" in lines
