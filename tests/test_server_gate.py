"""Who is let in by address and in all, and how little an attacker has of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server import gate as gate_module
from goodspeed_server.gate import Gate, Visitor, key_of
from goodspeed_server.settings import DoorSettings

STRANGER = "192.0.2.7"


class Watched(Gate[str]):
    """A gate that keeps what it decided."""

    def __init__(self, **settings: float | None) -> None:
        self.cut: list[str] = []
        self.sent_away: list[str] = []
        self.busy: set[str] = set()
        super().__init__(
            DoorSettings(**settings),  # type: ignore[arg-type]
            cut_off=self.cut.append,
            make_way=self.sent_away.append,
            is_busy=self.busy.__contains__,
        )

    def link(self, who: str, now: float = 0.0, host: str = STRANGER) -> Visitor[str]:
        visitor = self.arrive(who, host, now)
        assert visitor.refusal is None
        assert self.admit(visitor, now) is None
        return visitor


def strangers(count: int) -> list[str]:
    return [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(count)]


@pytest.mark.parametrize(
    ("host", "key", "loopback"),
    [
        ("192.0.2.7", "192.0.2.7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.9.9.9", "127.9.9.9", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::1", "::1", True),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", False),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64", False),
        ("fe80::1%eth0", "fe80::/64", False),
        ("", "", False),
        ("somewhere", "", False),
    ],
)
def test_addresses_are_told_apart_by_what_one_customer_has(host: str, key: str, loopback: bool) -> None:
    assert key_of(host) == (key, loopback)


def test_an_address_has_so_many_connections_from_when_they_are_accepted() -> None:
    gate = Watched(max_links_per_address=2)
    first, _ = gate.arrive("first", STRANGER, 0.0), gate.link("second")
    refused = gate.arrive("third", STRANGER, 1.0)
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.refusal.status) == ("too_many_links_of_address", 429)
    assert gate.arrive("another's", "192.0.2.8", 1.0).refusal is None
    gate.left(first, 2.0)
    gate.left(first, 2.0)
    assert gate.arrive("fourth", STRANGER, 2.0).refusal is None
    assert gate.arrive("fifth", STRANGER, 2.0).refusal is not None


def test_who_is_turned_away_is_told_so_unless_many_are() -> None:
    gate = Watched(max_links_per_address=1)
    gate.link("one")
    turned_away = [gate.arrive("more", STRANGER, 0.0) for _ in range(10)]
    assert [visitor.cut for visitor in turned_away] == [False] * 4 + [True] * 6
    for visitor in turned_away:
        gate.left(visitor, 1.0)
    assert not gate.arrive("more", STRANGER, 1.0).cut
    assert gate.pending == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_this_machine_has_no_limits_unless_they_were_set(host: str) -> None:
    gate = Watched(max_links=10_000)
    for n in range(2000):
        gate.failed(gate.link(str(n), host=host), 0.0)
    assert gate.barred(gate.link("last", host=host), 0.0) is None
    limited = Watched(max_links_per_address=1)
    limited.link("one", host=host)
    assert limited.arrive("two", host, 0.0).refusal is not None


def test_handshakes_are_counted_by_the_minute() -> None:
    gate = Watched(handshakes_per_minute=6)
    for _ in range(6):
        gate.left(gate.arrive("x", STRANGER, 0.0), 0.0)
    refusal = gate.arrive("x", STRANGER, 4.0).refusal
    assert refusal is not None
    assert refusal.code == "too_many_handshakes"
    assert refusal.retry_after_s == pytest.approx(6.0)
    assert gate.arrive("x", STRANGER, 4.001 + refusal.retry_after_s).refusal is None


def test_too_many_wrong_tokens_of_an_address_and_none_of_it_is_looked_at() -> None:
    gate = Watched()
    guessing, other = gate.arrive("guessing", STRANGER, 0.0), gate.arrive("other", "192.0.2.8", 0.0)
    for _ in range(10):
        assert gate.barred(guessing, 0.0) is None
        gate.failed(guessing, 0.0)
    # Another connection of the same address, and another address.
    again = gate.arrive("again", STRANGER, 1.0)
    barred = gate.barred(again, 1.0)
    assert barred is not None
    assert (barred.code, barred.status) == ("too_many_failures", 429)
    assert barred.retry_after_s == pytest.approx(5.0)
    assert gate.barred(other, 1.0) is None
    assert gate.barred(again, 6.1) is None
    gate.failed(again, 6.1)
    assert gate.barred(again, 6.1) is not None


def test_the_longest_idle_link_makes_way_and_none_that_is_at_work() -> None:
    gate = Watched(max_links=3, idle_s=300.0)
    working, idle, talking = (gate.link(name) for name in ("working", "idle", "talking"))
    gate.busy.add("working")
    gate.heard(talking, 100.0)
    late = gate.arrive("late", STRANGER, 299.0)
    refusal = gate.admit(late, 299.0)
    assert refusal is not None
    assert (refusal.code, refusal.status) == ("too_many_links", 503)
    assert gate.sent_away == []
    assert gate.admit(late, 301.0) is None
    assert (gate.sent_away, gate.links) == (["idle"], 3)
    gate.heard(idle, 302.0)  # its last words
    gate.left(idle, 302.0)
    assert gate.admit(gate.arrive("later", STRANGER, 350.0), 350.0) is not None
    assert gate.admit(gate.arrive("later", STRANGER, 400.0), 400.0) is None
    assert gate.sent_away == ["idle", "talking"]
    gate.left(working, 400.0)
    assert gate.links == 2


def test_who_never_says_a_word_is_cut_off_for_who_comes_behind() -> None:
    gate = Watched(max_links=8)
    linked = gate.link("linked", host="192.0.2.9")
    silent = [gate.arrive(f"silent {n}", host, n * 1e-3) for n, host in enumerate(strangers(100))]
    assert gate.cut == [f"silent {n}" for n in range(36)]
    assert gate.pending == 64
    assert gate.admit(silent[-1], 1.0) is None
    assert (gate.links, gate.pending, linked.gone) == (2, 63, False)


def test_who_is_being_limited_is_not_forgotten_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "REMEMBERED", 16)
    gate = Watched(failed_tokens_per_minute=3, handshakes_per_minute=100)

    def is_barred(now: float) -> bool:
        visitor = gate.arrive("guessing", STRANGER, now)
        barred = gate.barred(visitor, now) is not None
        if not barred:
            gate.failed(visitor, now)
        gate.left(visitor, now)
        return barred

    assert [is_barred(0.0) for _ in range(4)] == [False, False, False, True]
    for host in strangers(5000):
        gate.left(gate.arrive("x", host, 1.0), 1.0)
        assert gate.remembered <= 17
    assert is_barred(1.0)


def test_strangers_share_what_one_address_has_where_all_that_are_remembered_are_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_module, "REMEMBERED", 16)
    gate = Watched(handshakes_per_minute=5)
    hosts = strangers(1000)
    for host in hosts[:16]:
        for _ in range(6):
            gate.left(gate.arrive("x", host, 0.0), 0.0)
    let_in = 0
    for host in hosts[16:]:
        visitor = gate.arrive("x", host, 1.0)
        let_in += visitor.refusal is None
        gate.left(visitor, 1.0)
    assert let_in == 5
    assert gate.remembered == 16
    # A minute later nobody is limited any more, and each has its own again.
    for host in hosts[100:200]:
        for _ in range(5):
            visitor = gate.arrive("x", host, 62.0)
            assert visitor.refusal is None
            gate.left(visitor, 62.0)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "admit", "leave", "hear", "fail"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.1, 3.0, 70.0]),
    ),
    max_size=120,
)


@given(ACTIONS)
def test_counts_are_those_of_who_is_there(actions: list[tuple[str, int, float]]) -> None:
    """Against sets of who is there, by whatever order they come, fail, speak and go."""
    gate = Watched(max_links=6, max_links_per_address=4, handshakes_per_minute=30, idle_s=10.0)
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::", ""]
    there: list[Visitor[str]] = []
    handshakes: dict[str, list[float]] = {}
    now = 0.0
    for number, (what, which, pause) in enumerate(actions):
        now += pause
        if what == "arrive":
            visitor = gate.arrive(str(number), hosts[which], now)
            key = key_of(hosts[which])[0]
            of_key = [other for other in there if other.address is visitor.address and other.refusal is None]
            assert (len(of_key) >= 4) == (
                visitor.refusal is not None and visitor.refusal.code == "too_many_links_of_address"
            )
            if visitor.refusal is None:
                handshakes.setdefault(key, []).append(now)
            if not visitor.cut:
                there.append(visitor)
        elif there:
            visitor = there[which % len(there)]
            if (
                what == "admit"
                and not visitor.is_link
                and visitor.refusal is None
                and visitor.who not in gate.sent_away
            ):
                gate.admit(visitor, now)
            elif what == "leave":
                gate.left(visitor, now)
                there.remove(visitor)
            elif what == "hear":
                gate.heard(visitor, now)
            elif what == "fail":
                gate.failed(visitor, now)
        assert gate.links == sum(visitor.is_link for visitor in there) <= 6
        pending = [v for v in there if not v.is_link and v.who not in gate.sent_away]
        assert gate.pending == len(pending)
    for times in handshakes.values():
        for (i, first), (j, last) in itertools.combinations(enumerate(times), 2):
            assert j - i + 1 <= 30 + (last - first) * 0.5 + 1e-6
    for visitor in there:
        gate.left(visitor, now)
    assert (gate.links, gate.pending, len(gate._here)) == (0, 0, 0)
