"""Live control: what an operator changes of a server that runs, and what is in force.

Scheduler, capacity and the barrier's timeout are changed between two rounds, and all streams go on. Weights and drained
agents are kept by the agents' names, so that who comes back is what it was; names are what agents say of themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from goodspeed.control import (
    Change,
    Changed,
    ControlState,
    Policy,
    Service,
    SetCapacity,
    SetRoundTimeout,
    SetScheduler,
    SetService,
    SetWeight,
    SteeredAgent,
    Trust,
)
from goodspeed.errors import InvalidRequest
from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.plugins import installed, unknown
from goodspeed.scheduling import SCHEDULER
from goodspeed.utility import AlphaFair
from goodspeed_server.audits import Audits
from goodspeed_server.live import AgentAccount
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.settings import RoundSettings, RoundsName, what_auto_means
from goodspeed_server.telemetry import Telemetry

__all__ = ["LiveControl"]

logger = logging.getLogger(__name__)

_LONGEST_NAME = 60
_MOST_NAMES = 12
"""So many agents are named to who asks for one that is not there."""


class LiveControl:
    """Makes changes, and remembers what there was at the start.

    Args:
        rounds: of the server.
        telemetry: is told what budgets come of.
        scheduler: the name of the one that plans.
        fairness: of its utility.
        kind: of rounds, as the server was started: `auto` goes with the scheduler.
        announce: tells all agents whether they are waited for.
        draining_s: for how much longer the server goes on, once it goes away.
    """

    def __init__(
        self,
        rounds: RoundLoop,
        telemetry: Telemetry,
        *,
        scheduler: str,
        fairness: float,
        kind: RoundsName,
        announce: Callable[[], None],
        draining_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._rounds = rounds
        self._telemetry = telemetry
        self._scheduler = scheduler
        self._fairness = fairness
        self._kind: RoundsName = kind
        self._announce = announce
        self._draining_s = draining_s
        self._at_start = self._policy()
        rounds.planner.on_fault = self._tell_what_plans
        self._accounts: dict[AgentAccount, float] = {}
        """Of everybody who is linked up, with the weight of its token."""
        self._weights: dict[str, float] = {}
        self._services: dict[str, Service] = {}
        self._audits = Audits()

    def joined(self, account: AgentAccount) -> None:
        """An agent has linked up."""
        self._accounts[account] = account.weight
        account.weight = self._weights.get(account.name, account.weight)
        account.service = self._services.get(account.name, "served")
        account.standing = self._audits.joined(account.holder, account.name, self._rounds.now())

    def left(self, account: AgentAccount) -> None:
        """Its link has gone."""
        self._accounts.pop(account, None)
        self._audits.left(account.holder, self._rounds.now())

    async def obey(self, change: Change | None, who: str) -> ControlState:
        """Make a change, if there is one.

        Args:
            change: None only asks.
            who: wants it, for the log.

        Returns:
            What is in force now.

        Raises:
            InvalidRequest: it cannot be; nothing has changed.
            GoodSpeedError: the server is shutting down.
        """
        if change is None:
            return self._state(())
        change.validate()
        return await self._rounds.boundary.reached(lambda: self._state(self._made(change, who)))

    def _made(self, change: Change, who: str) -> tuple[Changed, ...]:
        match change:
            case SetScheduler():
                changed = self._set_scheduler(change)
            case SetCapacity():
                changed = self._adopt("capacity", replace(self._rounds.settings, capacity=change.tokens))
            case SetRoundTimeout():
                settings = replace(self._rounds.settings, round_timeout_s=change.timeout_ms / 1e3)
                changed = self._adopt("round timeout", settings)
            case SetWeight():
                changed = self._set_weight(change)
            case SetService():
                changed = self._set_service(change)
            case Trust():
                changed = self._trust(change)
        if any(one.before != one.after for one in changed):
            # It belongs into every log, whatever that leaves out.
            logger.warning("%s, by %s", "; ".join(map(str, changed)), who)
        return changed

    def _set_scheduler(self, change: SetScheduler) -> tuple[Changed, ...]:
        # Whoever may steer the server may not have it run whatever lies on its disk.
        if change.name not in ("auto", self._at_start.scheduler) and not installed(SCHEDULER, change.name):
            raise unknown(SCHEDULER, change.name[:_LONGEST_NAME], also=("auto",), places=False)
        utility = AlphaFair(self._fairness if change.fairness is None else change.fairness)
        chosen = what_auto_means(change.name, self._kind, utility)
        before = self._policy()
        self._rounds.adopt(chosen.scheduler, replace(self._rounds.settings, rounds=chosen.rounds), self._announce)
        self._scheduler, self._fairness = chosen.name, utility.fairness
        self._tell_what_plans()
        return self._since(before, "scheduler")

    def _adopt(self, about: str, settings: RoundSettings) -> tuple[Changed, ...]:
        before = self._policy()
        self._rounds.adopt(self._rounds.planner.scheduler, settings, self._announce)
        if self._policy() != before:
            self._tell_what_plans()
        return self._since(before, about)

    def _tell_what_plans(self) -> None:
        self._telemetry.planned_by(self._planning, AlphaFair(self._fairness), self._rounds.settings)

    def _since(self, before: Policy, about: str) -> tuple[Changed, ...]:
        """What is not as it was, and what it was about."""
        pairs = zip(_said(before).items(), _said(self._policy()).values(), strict=True)
        return tuple(Changed(what, was, is_) for (what, was), is_ in pairs if what == about or was != is_)

    def _set_weight(self, change: SetWeight) -> tuple[Changed, ...]:
        name, accounts = change.agent, self._links_of(change.agent, self._weights)
        own = max((self._accounts[account] for account in accounts), default=1.0)
        before, changed = self._weights.get(name, own), self._weights.get(name)
        if change.weight is None:
            self._weights.pop(name, None)
        else:
            self._weights[name] = change.weight
        for account in accounts:
            account.weight = self._weights.get(name, self._accounts[account])
        if change.weight != changed:
            self._telemetry.weighed(name, change.weight)
        return (Changed(f"weight of {name!r}", f"{before:g}", f"{self._weights.get(name, own):g}"),)

    def _set_service(self, change: SetService) -> tuple[Changed, ...]:
        name, accounts = change.agent, self._links_of(change.agent, self._services)
        before = self._services.pop(name, "served")
        if change.service != "served":
            self._services[name] = change.service
        for account in accounts:
            account.service = change.service
            if change.service == "drained undrafted":
                self._rounds.ask_no_more(account)
        if change.service != before:
            self._telemetry.served(name, change.service)
        return (Changed(f"agent {name!r}", before, change.service),)

    def _trust(self, change: Trust) -> tuple[Changed, ...]:
        name = change.agent
        self._links_of(name, self._audits.distrusted_names())
        forgiven = self._audits.trust(name)
        for standing in forgiven:
            self._rounds.auditing.think_anew(standing)
        for account in self._accounts:
            if account.standing in forgiven:
                account.prior_alpha = PRIOR_ALPHA
        return (Changed(f"agent {name!r}", "distrusted" if forgiven else "trusted", "trusted"),)

    def _links_of(self, asked: str, changed: Container[str]) -> list[AgentAccount]:
        """An agent's links: none if it is away, and something was changed of it before.

        Raises:
            InvalidRequest: there is none of that name.
        """
        there = {account.name for account in self._accounts}
        if asked not in there and asked not in changed:
            names = [repr(name[:60]) for name in sorted(there)]
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise InvalidRequest(
                f"no agent {asked[:60]!r} is linked up: there {'are ' if len(names) > 1 else 'is '}"
                f"{', '.join(names[:_MOST_NAMES]) or 'none'}{more}"
            )
        return [account for account in self._accounts if account.name == asked]

    @property
    def _planning(self) -> str:
        """What plans, which is not what was chosen if that has failed."""
        return self._scheduler if self._rounds.planner.fault is None else f"plain ({self._scheduler} failed)"

    def _policy(self) -> Policy:
        settings = self._rounds.settings
        return Policy(
            scheduler=self._planning,
            rounds=settings.rounds,
            fairness=self._fairness,
            capacity=settings.capacity,
            round_timeout_ms=settings.round_timeout_s * 1e3,
        )

    def _state(self, changed: tuple[Changed, ...]) -> ControlState:
        # Thousands may be linked up, each under a name of its own, and who drains one asks four times a second.
        by_name: dict[str, list[AgentAccount]] = {}
        for account in self._accounts:
            by_name.setdefault(account.name, []).append(account)
        distrusted = self._audits.names_of_distrusted()
        names = by_name.keys() | self._weights.keys() | self._services.keys() | self._audits.distrusted_names()
        planner = self._rounds.planner
        return ControlState(
            now=self._policy(),
            at_start=self._at_start,
            capacity_now=None if planner.limited_by_price else self._rounds.capacity,
            agents=tuple(
                self._agent(name, by_name.get(name, []), distrusted=name in distrusted) for name in sorted(names)
            ),
            changed=changed,
            draining_s=self._draining_s(),
        )

    def _agent(self, name: str, accounts: Sequence[AgentAccount], *, distrusted: bool) -> SteeredAgent:
        own = max((self._accounts[account] for account in accounts), default=None)
        return SteeredAgent(
            name=name,
            links=len(accounts),
            streams=sum(account.streams for account in accounts),
            weight=self._weights.get(name, own),
            own_weight=own,
            reweighted=name in self._weights,
            service=self._services.get(name, "served"),
            distrusted=distrusted,
        )


def _said(policy: Policy) -> dict[str, str]:
    return {
        "scheduler": policy.scheduler,
        "rounds": policy.rounds,
        "fairness": f"{policy.fairness:g}",
        "capacity": "auto" if policy.capacity is None else str(policy.capacity),
        "round timeout": f"{policy.round_timeout_ms:g} ms",
    }
