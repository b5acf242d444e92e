"""Many servers under a virtual clock, in small: the comparison of policies, and that nobody is lost in it."""

import numpy as np
import pytest

from bench.simulated.servers import POLICIES, Course, Crowd, Summary, figures, run

COURSE = Course(servers=10, streams=2_000, warm_s=25, dies_s=30, returns_s=40, ends_s=60)


def test_prices_are_equal_where_streams_go_to_the_lowest_and_hardly_anything_has_more_goodput() -> None:
    """Among so few servers who is there at the time makes half a percent."""
    runs = {name: run(policy, COURSE) for name, policy in POLICIES.items()}
    found = {name: Summary.of(each, COURSE) for name, each in runs.items()}
    price, two, stale = found["lowest price"], found["two choices"], found["two choices, stale"]
    assert price.price_spread < 0.02
    assert price.price_spread < two.price_spread < found["random"].price_spread
    assert price.geometric_mean > 0.99 * max(each.geometric_mean for each in found.values())
    for name in ("random", "round robin", "least streams", "lowest price, stale"):
        assert found[name].price_spread > 0.15, name
        assert found[name].geometric_mean < min(two.geometric_mean, stale.geometric_mean), name
    assert price.settled_after_death_s == 0.0
    assert price.settled_after_return_s is not None
    assert figures(runs, COURSE)["streams"] == COURSE.streams


def test_the_same_seed_gives_the_same_run() -> None:
    short = Course(servers=4, streams=100, warm_s=5, dies_s=10, returns_s=15, ends_s=20)
    one, again, other = (run(POLICIES["two choices"], short, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.utility, again.utility)
    assert (one.utility != other.utility).any()


@pytest.mark.parametrize("name", POLICIES)
def test_servers_that_are_dead_have_no_streams_and_no_stream_is_lost(name: str) -> None:
    crowd = Crowd(POLICIES[name], COURSE, seed=0)
    fleet, dead = crowd.fleet, np.array([2, 7])

    def hold_together() -> None:
        np.testing.assert_array_equal(fleet.count, np.bincount(fleet.at, minlength=COURSE.servers))
        assert fleet.count.sum() == COURSE.streams
        assert (fleet.goodput > 0).all()

    crowd.die(dead)
    for now_s in range(5):
        hold_together()
        assert (fleet.count[dead] == 0).all()
        crowd.step(now_s)
    crowd.revive(dead)
    for now_s in range(5, 10):
        crowd.step(now_s)
    hold_together()
    assert (fleet.count[dead] > 0).all()
