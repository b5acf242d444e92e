"""A draft that nobody waits for any more is not waited for again when the barrier's timeout changes."""

from __future__ import annotations

from dataclasses import replace

from goodspeed.scheduling import FixedS
from tests.planted import Agent, PlantedEngine, make_rounds


def test_who_goes_on_without_a_draft_does_so_under_another_timeout_too() -> None:
    """Three agents owe a draft, one of them for so long that its stream is ready without; the others owe it still."""
    rounds = make_rounds(PlantedEngine(rows=3), FixedS(2), rounds="barrier", round_timeout_s=1000.0)
    agents = [Agent() for _ in range(3)]
    for number, agent in enumerate(agents):
        rounds._telemetry.joined(agent.account, 0.0)
        agent.open(rounds, number)
    hanging, *others = rounds.live
    rounds._rounds.arrive(hanging, rounds.now(), 0)  # as when it is overdue
    asked_at = [live.asked_at for live in others]
    for timeout_s in (1.0, 500.0):
        rounds.adopt(FixedS(2), replace(rounds.settings, round_timeout_s=timeout_s), lambda: None)
        assert list(rounds._rounds.ready) == [hanging]
        assert list(rounds._rounds.drafting) == others
        assert [live.asked_at for live in others] == asked_at, "what was waited already counts"
        assert rounds._rounds.outstanding == sum(live.budget for live in rounds.live)
