import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import MalformedMessage
from goodspeed.snapshot import AgentRow, PhaseTimes, ServerSnapshot

numbers = st.integers(0, 2**40)
values = st.floats(-1e12, 1e12)
snapshots = st.builds(
    ServerSnapshot,
    model=st.text(max_size=20),
    scheduler=st.text(max_size=20),
    rule=st.text(max_size=20),
    layout=st.text(max_size=20),
    phases=st.builds(PhaseTimes, gather_ms=values, plan_ms=values, verify_ms=values, commit_ms=values),
    agents=st.lists(
        st.builds(
            AgentRow,
            name=st.text(max_size=20),
            drafter=st.text(max_size=20),
            **dict.fromkeys(("streams", "prefilling", "drafted", "accepted", "committed"), numbers),
            **dict.fromkeys(("budget", "alpha", "goodput"), values),
            history=st.lists(values, max_size=5).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    goodput_history=st.lists(values, max_size=5).map(tuple),
    **dict.fromkeys(("rounds", "streams", "waiting", "rows", "free_rows", "kv_used_tokens"), numbers),
    **dict.fromkeys(("kv_tokens", "committed", "drafted", "accepted"), numbers),
    **dict.fromkeys(
        (
            "uptime_s",
            "rounds_per_s",
            "fairness",
            "utility",
            "plain_utility",
            "goodput",
            "busy_s",
            "judge_s",
            "plain_busy_s",
        ),
        values,
    ),
    capacity=st.none() | numbers,
    draining=st.booleans(),
)


def snapshot(committed: int = 0, accepted: int = 0, busy_s: float = 0.0, plain_busy_s: float = 0.0) -> ServerSnapshot:
    return ServerSnapshot(
        model="m", scheduler="goodspeed", rule="coupled", layout="packed", capacity=8, uptime_s=1.0, rounds=3,
        rounds_per_s=3.0, phases=PhaseTimes(gather_ms=1, plan_ms=2, verify_ms=3, commit_ms=4), agents=(), streams=0,
        waiting=0, rows=8, free_rows=8, kv_used_tokens=0, kv_tokens=100, fairness=1.0, utility=0.0,
        plain_utility=0.0, goodput=0.0, goodput_history=(), committed=committed, drafted=0, accepted=accepted,
        busy_s=busy_s, judge_s=0.0, plain_busy_s=plain_busy_s,
    )  # fmt: skip


@given(snapshots)
def test_what_the_server_shows_is_what_a_monitor_sees(shown: ServerSnapshot) -> None:
    assert ServerSnapshot.from_json(shown.to_json()) == shown


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"new": ' + b"[" * 100_000,
        b'{"model": "\xff"}',
        snapshot().to_json()[:-1],
        snapshot().to_json().replace(b'"rounds":3', b'"rounds":"3"'),
        snapshot().to_json().replace(b'"utility":0.0', b'"utility":null'),
    ],
)
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not a snapshot"):
        ServerSnapshot.from_json(data)


@given(st.binary(max_size=100))
def test_random_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        ServerSnapshot.from_json(data)


def test_a_newer_server_may_show_more() -> None:
    assert ServerSnapshot.from_json(snapshot().to_json()[:-1] + b',"news":[1,{"a":2}]}') == snapshot()


def test_derived_figures() -> None:
    assert snapshot().phases.total_ms == 10
    assert snapshot().mean_acceptance_length == 0.0
    assert snapshot(committed=30, accepted=20).mean_acceptance_length == 3.0
    assert snapshot().speedup == 1.0
    assert snapshot(busy_s=2.0, plain_busy_s=5.0).speedup == 2.5


def test_nobody_changes_what_was_shown() -> None:
    with pytest.raises(AttributeError):
        snapshot().rounds = 4  # type: ignore[misc]
