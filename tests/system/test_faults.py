"""The short versions of `make chaos`, `make soak` and `make bench-overload`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.bare import linked
from bench.chaos.faults import Fault, faults_of
from bench.chaos.fleet import Chaos, Storm
from bench.chaos.recovery import Recovery
from bench.chaos.report import summary
from bench.chaos.texts import orders
from bench.chaos.weather import Ear
from bench.overload import ROWS, WAITING, measure
from bench.soak import HELD, fill, slope_of, soak
from goodspeed.messages import Opened, Verdict, encode
from tests.system.processes import forking, server

FAULTS = (
    Fault(0.2, "slice", 2, lasts_s=1.0, slice_bytes=5),
    Fault(0.3, "reset", 0, after_bytes=70),
    Fault(0.5, "kill agent", 1),
    Fault(0.7, "reset", 2, after_bytes=9, upstream=True),
    Fault(0.9, "delay", 0, lasts_s=0.5, delay_ms=50.0),
    Fault(1.2, "kill server"),
    Fault(1.4, "kill agent", 0),
    Fault(1.6, "stall", 1, lasts_s=0.3),
    Fault(1.8, "kill agent", 2),
)


async def test_whatever_is_killed_cut_and_sliced_every_text_is_whole(tmp_path: Path) -> None:
    storm = Storm(
        FAULTS, 2.0, agents=3, streams=2, texts_per_run=6, orders=orders(6, 0), drafts=("suffix", "none"),
        server_options=("--scheduler", "goodspeed", "--round-timeout-ms", "50"), seed=0,
    )  # fmt: skip
    async with forking(GOODSPEED_CACHE=str(tmp_path)) as (start, _):
        chaos = Chaos(storm, tmp_path, start)
        await chaos.run()
    figures = summary(chaos)
    assert figures["complaints"] == figures["differing"] == figures["refused"] == []
    assert figures["texts_compared"] == figures["texts_asked_for"] >= 18
    assert {"kill server", "kill agent", "slice", "delay", "stall"} <= figures["faults_by_kind"].keys()
    assert figures["recovery_s"]["count"] >= 2


async def test_visitors_leave_nothing_behind(tmp_path: Path) -> None:
    async with server("--dtype", "float32", "--max-streams", "8", "--max-length", "128") as address:
        await fill(address, 8, 128)
        soaked = await soak(address, 3.0, 0, tmp_path, arrivals_per_s=4.0, sample_s=0.5, busy_s=2.0)
    visits, quiet = soaked.visits, soaked.quiet
    assert visits.texts["complete"] > 0
    assert visits.texts["left without a word"] > 0
    assert visits.texts.keys() <= {"complete", "left", "left without a word"}
    assert quiet
    assert all(sample[name] > 0 for sample in soaked.busy + quiet for name in HELD)
    assert all(sample[name] == 0 for sample in quiet for name in ("streams", "waiting", "agents"))


async def test_ten_times_the_load_is_refused_and_does_not_keep_the_admitted_from_their_texts() -> None:
    options = ("--scheduler", "plain", "--max-streams", str(ROWS), "--max-waiting", str(WAITING))
    async with server(*options) as address:
        ((turn,),) = (await measure(address, (24,), 1, 2.0, 0)).values()
        async with linked(address, "after"):
            pass
    assert turn.at_capacity.ended > 0
    assert turn.at_capacity.refused_s == []
    assert turn.overloaded.tokens > 0
    assert turn.overloaded.codes.keys() == {"overloaded"}
    assert len(turn.overloaded.refused_s) >= ROWS


def test_a_slope_is_flat_whatever_comes_and_goes_and_steep_where_something_is_kept() -> None:
    at_s = [float(second) for second in range(0, 1800, 60)]
    held = [100.0 + (7 * number) % 13 for number in range(len(at_s))]
    kept = [value + at / 60 for value, at in zip(held, at_s, strict=True)]
    outlier = [*held[:10], 1e6, *held[11:]]
    assert slope_of(at_s, held)["flat"]
    assert slope_of(at_s, outlier)["flat"]
    assert slope_of(at_s, [5.0] * len(at_s))["flat"]
    grown = slope_of(at_s, kept)
    assert not grown["flat"]
    assert grown["over_the_run"] == pytest.approx(30.0, rel=0.1)


def test_a_seed_says_what_goes_wrong() -> None:
    faults = faults_of(3, 600.0, 16)
    assert faults == faults_of(3, 600.0, 16) != faults_of(4, 600.0, 16)
    assert len({fault.kind for fault in faults}) == 6
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


def test_an_absence_is_one_faults_or_several_faults() -> None:
    recovery = Recovery()
    assert recovery.told(at=1.0, opened_at=0.0) is None
    recovery.struck("reset", 2.0)
    assert recovery.told(at=2.5, opened_at=0.0) is None, "it was on its way"
    assert recovery.told(at=3.0, opened_at=2.6) == ("reset", 1.0)
    assert recovery.told(at=3.1, opened_at=2.6) is None

    recovery.struck("reset", 4.0)
    recovery.struck("kill server", 5.0)
    assert recovery.told(at=5.1, opened_at=4.2) is None
    assert recovery.told(at=14.0, opened_at=13.0) == ("several faults", 10.0)
    recovery.struck("kill agent", 15.0)
    assert recovery.told(at=17.0, opened_at=16.0) == ("kill agent", 2.0)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_ear_counts_verdicts_however_they_are_sliced(size: int) -> None:
    frames = [encode(Verdict(1, 3, 0, [9], 4)), encode(Opened(1, 3, 4)), encode(Verdict(1, 4, 0, [9] * 200, 4))]
    said = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    for frame in frames:
        head = bytes([len(frame)]) if len(frame) < 126 else b"\x7e" + len(frame).to_bytes(2, "big")
        said += b"\x82" + head + frame
    ear = Ear()
    assert sum(ear.verdicts(said[start : start + size]) for start in range(0, len(said), size)) == 2
