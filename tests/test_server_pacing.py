"""How much a peer is listened to, whatever it sends and however it deals it out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed_server.pacing import Bucket, LinkPace, PeerPace

BURST = 1024
OF_A_LINK, PIECE, ANSWER, LARGEST = 16, 0.25, 2, 200


@given(
    st.integers(1, 20),
    st.floats(0.1, 100.0),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
)
def test_a_bucket_gives_no_more_than_it_holds_and_what_has_flowed_in(
    burst: int, per_s: float, pauses: list[float]
) -> None:
    bucket, taken = Bucket(burst, per_s), []
    for now in itertools.accumulate(pauses):
        lacking_s = bucket.lacking_s(now)
        if lacking_s == 0.0:
            bucket.take(now)
            taken.append(now)
        else:
            assert Bucket.lacking_s(bucket, now + lacking_s + 1e-6) == 0.0
            return
    for (i, first), (j, last) in itertools.combinations(enumerate(taken), 2):
        assert j - i + 1 <= burst + (last - first) * per_s + 1e-6


class Flooding:
    """A link that sends whenever it is read."""

    def __init__(self, peer: PeerPace) -> None:
        self.pace = LinkPace(peer)
        self.read_again_at = 0.0

    def send(self, now: float, frames: int, refused: bool) -> float:
        """What it costs; nothing while it is not read."""
        if now < self.read_again_at:
            return 0.0
        self.read_again_at = now + self.pace.came(now, 0, frames)
        if refused:
            self.pace.answered(now)
        return (frames * (1 + PIECE) if frames else PIECE) + ANSWER * refused


@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.001, 0.1, 1.0]), st.integers(0, 5), st.integers(0, LARGEST), st.booleans()
        ),
        min_size=1,
        max_size=300,
    ),
    st.integers(1, 500),
)
def test_all_links_of_a_peer_together_cost_no_more_than_it_may(
    links: int, deeds: list[tuple[float, int, int, bool]], rate: int
) -> None:
    peer, now, spent = PeerPace(rate), 0.0, 0.0
    flooding = [Flooding(peer) for _ in range(links)]
    for pause, which, frames, refused in deeds:
        now += pause
        spent += flooding[which % links].send(now, frames, refused)
        # What a link overdraws once, it waits for.
        overdrawn = (links + 1) * (LARGEST * (1 + PIECE) + ANSWER)
        assert spent <= BURST + rate * now + links * OF_A_LINK + overdrawn + 1e-6


@given(st.integers(1, 100), st.integers(1, 200))
def test_a_link_that_sends_little_waits_for_no_other(links: int, frames: int) -> None:
    """Its neighbours flood for a minute, and it sends something every second."""
    peer, waited_s = PeerPace(200.0), 0.0
    calm, others = LinkPace(peer), [Flooding(peer) for _ in range(links)]
    for tick in range(600):
        for one in others:
            one.send(tick / 10, frames, refused=False)
        if tick % 10 == 0:
            waited_s += calm.came(tick / 10, 100, 1)
    assert waited_s < 2.0 * max(1.0, links * 1.25 / 200.0)


def test_drafts_that_are_asked_for_cost_nothing() -> None:
    """64 texts, 32 tokens each asked for by every pass, one in a message: many times what it may send unasked."""
    pace, now = LinkPace(PeerPace(1.0)), 0.0
    for _ in range(100):
        for _ in range(64):
            pace.asked(32)
        for _ in range(64 * 32):
            now += 0.05 / (64 * 32)
            assert pace.came(now, 0, 1) == 0.0
            pace.draft_came(1)


def test_what_is_asked_for_pays_for_nothing_else() -> None:
    pace = LinkPace(PeerPace(1.0))
    pace.asked(10**6)
    for _ in range(3):
        assert pace.came(0.0, 0, 300) == 0.0
    assert pace.came(0.0, 0, 300) > 0.0


def test_drafts_that_nobody_asked_for_cost_what_others_do() -> None:
    pace, waited_s = LinkPace(PeerPace(1.0)), 0.0
    pace.asked(8)
    for _ in range(BURST + 100):
        waited_s = pace.came(0.0, 0, 1)
        pace.draft_came(1)
    assert waited_s > 0.0


def test_long_messages_count_as_many_and_so_does_being_woken() -> None:
    """To read a frame costs more the longer it is, and a byte that comes alone costs a quarter of a message."""
    for size, times in ((100 * 4096, 100), (1, 10**4)):
        pace, now = LinkPace(PeerPace(1000.0)), 0.0
        for _ in range(times):
            now += pace.came(now, size, 0)
        cost = times * (size / 4096 + PIECE)
        assert now == pytest.approx((cost - BURST) / 1000, rel=0.02)


def test_what_brings_nothing_costs_what_being_woken_does() -> None:
    woken, idle = LinkPace(PeerPace(10.0, 16.0)), LinkPace(PeerPace(10.0, 16.0))
    waits_s = [woken.came(0.0, 0, 0) for _ in range(400)]
    assert idle.idled(0.0, 400) == waits_s[-1] > 0.0


@pytest.mark.parametrize("uptime_s", [0.0, 1e6])
def test_little_is_read_of_who_is_not_known(uptime_s: float) -> None:
    pace = LinkPace(None)
    assert pace.came(uptime_s, 400, 0) == 0.0
    assert pace.came(uptime_s, 512, 85) > 10.0


def test_what_is_asked_for_is_not_waited_for_where_a_neighbour_has_left_nothing() -> None:
    """It cannot be told from anything else before it is handled."""
    peer = PeerPace(200.0)
    asked, _ = LinkPace(peer), [LinkPace(peer) for _ in range(255)]
    LinkPace(peer).came(0.0, 0, 4000)
    for _ in range(8):
        asked.asked(64)
        assert asked.came(0.0, 64 * 20, 64) == 0.0
        for _ in range(64):
            asked.draft_came(1)
    assert asked.came(0.0, 64 * 20, 64) > 0.0


def test_a_neighbour_that_sends_what_nobody_asked_it_for_takes_from_no_other() -> None:
    peer = PeerPace(200.0)
    asked, other = LinkPace(peer), LinkPace(peer)
    asked.asked(64)
    for _ in range(2000):
        other.came(0.0, 20, 1)
        other.draft_came(1)
    assert asked.came(0.0, 64 * 20, 64) == 0.0


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)), max_size=40))
def test_drafts_bring_no_more_than_they_cost(slices: list[tuple[int, int]]) -> None:
    """However they are bundled, and however many tokens they hold."""
    peer = PeerPace(1.0)
    pace = LinkPace(peer)
    pace.came(0.0, 0, 1000)
    owed_s = peer.unasked.due_s()
    for frames, tokens in slices:
        pace.asked(10**6)
        pace.came(0.0, 0, frames)
        for _ in range(frames):
            pace.draft_came(tokens)
    assert peer.unasked.due_s() == pytest.approx(owed_s)


def test_as_many_tokens_are_free_as_were_asked_for_in_however_few_drafts() -> None:
    peer = PeerPace(1.0)
    pace = LinkPace(peer)
    pace.came(0.0, 0, 1000)
    owed_s = peer.unasked.due_s()
    pace.asked(8)
    for tokens in (4, 4, 4):
        pace.came(0.0, 0, 1)
        pace.draft_came(tokens)
    assert peer.unasked.due_s() == pytest.approx(owed_s + 1 + PIECE)


def test_what_is_owed_has_an_end() -> None:
    """Who is let in again and again can overdraw again and again, and others have their share only meanwhile."""
    peer, now = PeerPace(200.0), 0.0
    for _ in range(5 * 3600):
        now += 0.2
        LinkPace(peer).came(now, 512, 85)
    assert peer.unasked.due_s() <= 4 * BURST / 200


def test_what_is_read_or_answered_when_a_link_has_gone_is_no_trouble() -> None:
    pace = LinkPace(PeerPace(1.0))
    pace.gone()
    pace.answered(0.0)
    assert pace.came(0.0, 100, 1) == 0.0
