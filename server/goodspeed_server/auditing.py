"""Claims held against what was drawn, and what becomes of an account whose claims are false."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Iterable

from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.logs import about
from goodspeed.verification import DraftDistribution, Judgement
from goodspeed_server.audits import Standing
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.telemetry import Telemetry
from goodspeed_server.verifier import Turn

__all__ = ["Auditing"]

logger = logging.getLogger(__name__)


class Auditing:
    """Audits every turn, and does without the drafts of who is found out.

    Args:
        live: those that have a row, however often it is asked.
        planner: knows where estimates begin.
        telemetry: is told who is found out.
        ask_no_more: decodes an account's streams without its drafts.
    """

    def __init__(
        self,
        live: Iterable[LiveStream],
        planner: Planner,
        telemetry: Telemetry,
        ask_no_more: Callable[[AgentAccount], None],
    ) -> None:
        self._live = live
        self._planner = planner
        self._telemetry = telemetry
        self._ask_no_more = ask_no_more

    def found_out(self, account: AgentAccount, turn: Turn, judgement: Judgement) -> bool:
        """Audit what was claimed of a draft, whatever became of it; whether its account is distrusted from now on."""
        standing = account.standing
        q = [one for one in turn.q if isinstance(one, DraftDistribution)]
        if (
            standing.distrusted
            or len(q) != len(turn.drafted)
            or not standing.audit.observe(q, turn.drafted, judgement.odds)
        ):
            return False
        standing.distrusted = True
        return True

    def do_without(self, found_out: AgentAccount) -> None:
        """Decode without the drafts of an account that was found out, and forget what they seemed to be worth."""
        standing = found_out.standing
        with about(agent=found_out.name):
            logger.warning(
                "the agent's drafts do not come of the distributions it claims (evidence 1e%.0f to 1 after %d tokens, "
                "z = %.1f): its texts are decoded without them until `goodspeed-server ctl trust %s`",
                standing.audit.log_evidence / math.log(10),
                standing.audit.tokens,
                standing.audit.z,
                shlex.quote(found_out.name),
            )
        self._telemetry.found_out(found_out)
        self.think_anew(standing)
        for account in {live.account for live in self._live if live.account.standing is standing}:
            self._ask_no_more(account)

    def think_anew(self, standing: Standing) -> None:
        """Forget what the streams of an account have shown: it was not true, or is to be shown again."""
        for live in self._live:
            if live.account.standing is standing:
                live.account.prior_alpha = PRIOR_ALPHA
                live.estimator = self._planner.estimator(PRIOR_ALPHA)
