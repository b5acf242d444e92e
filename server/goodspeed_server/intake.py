"""What agents send for streams that have a row: drafts behind a barrier, guesses where nobody waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import Draft, DraftEnd, Verdict
from goodspeed.rounds import Rounds
from goodspeed.timing import Pace
from goodspeed.verification import Rule
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.planner import Planner
from goodspeed_server.telemetry import Telemetry

__all__ = ["Intake"]

_REDRAFT_S = 5.0


class Intake:
    """Takes what can be used, and tells rounds and planner of it.

    Each method says whether a round may close now that did not before.

    Args:
        planner: learns how agents draft.
        telemetry: is told of what comes.
        rule: reads what is sent with a draft.
        vocab_size: of the target.
        clock: seconds, monotonic.
    """

    def __init__(
        self, planner: Planner, telemetry: Telemetry, rule: Rule, vocab_size: int, clock: Callable[[], float]
    ) -> None:
        self._planner = planner
        self._telemetry = telemetry
        self._rule = rule
        self._vocab_size = vocab_size
        self._clock = clock

    def take(
        self, live: LiveStream, message: Draft, rounds: Rounds[LiveStream], *, waits: bool, prefilling: bool
    ) -> bool:
        """Take a draft.

        A draft that cannot be used is answered with a `Failure` and counts as an empty one, so that the stream goes on.
        Where the server waits, one that builds on less than what is committed is answered with the suffix its agent is
        missing, and a repetition of one that is here already is dropped. Where it does not, drafts are always late, and
        only those are dropped that continue what has turned out wrong.

        Raises:
            ProtocolError: the draft builds on more than was ever committed.
        """
        missing = live.stream.missing(message.base)
        if not waits:
            return self.guesses(live, message, rounds, len(missing))
        if message.offset:
            return False  # it was sent while nobody waited, and what it continues is no draft of these rounds
        if missing:
            if message.base >= live.told_to:
                return False  # a repetition: its pass is over, and what came of it is about to be said
            live.account.answered(self._clock())
            told = missing[: live.told_to - message.base]  # the rest is about to be said
            live.outbox.post(Verdict(message.stream, message.base, 0, told, live.lead, 0, live.price_percent))
            return False
        return live.draft is None and self.draft(live, message, rounds, prefilling=prefilling)

    def draft(self, live: LiveStream, message: Draft, rounds: Rounds[LiveStream], *, prefilling: bool) -> bool:
        """Take a draft that its stream is waited for with; one that is overdue is stale, and the stream on its way."""
        # Who was asked for something else a moment ago is not to blame; what is too much is not verified.
        most = live.stream.max_draft if live.spelled_out else live.budget
        draft, q = live.usable(message, most, self._vocab_size, self._rule)
        if live.budget == 0 or not (prefilling or live in rounds.drafting):
            return False
        live.draft, live.q = draft, q
        if prefilling:
            return False
        now = self._clock()
        if not rounds.arrive(live, now, len(draft.tokens)):
            return False
        self._planner.drafted(live, draft, now - live.asked_at)
        self._telemetry.came(live, draft, live.way)
        return True

    def guesses(self, live: LiveStream, message: Draft, rounds: Rounds[LiveStream], behind: int) -> bool:
        """Take guesses that continue those that are here; `behind` tokens were committed since they were begun."""
        guesses, now = live.guesses, self._clock()
        if not guesses.continues(message.base, message.offset):
            return False
        most = max(0, live.stream.max_draft + behind - message.offset)
        draft, q = live.usable(message, most, self._vocab_size, self._rule)
        guesses.take(draft.base, draft.offset, draft.tokens, q, ended=draft.end is DraftEnd.NOTHING_TO_SAY)
        before = live.way
        self._planner.guessed(live, draft, now)
        self._telemetry.came(live, draft, None if live.way is before else live.way)
        here, more = len(live.to_verify()[0]), draft.end is DraftEnd.FAR_ENOUGH
        return bool(here or not more) and rounds.arrive(live, now, here, more=more)

    def redraft(self, account: AgentAccount, streams: Iterable[LiveStream], drafter: str) -> None:
        """A link's drafts come of another drafter: what was learned of the one before is forgotten, now and then.

        Who says so all the time has no use of it: estimates begin anew once in `_REDRAFT_S`.
        """
        account.drafter = drafter
        now = self._clock()
        if now - account.redrafted_at < _REDRAFT_S:
            return
        account.redrafted_at = now
        account.prior_alpha, account.pace = PRIOR_ALPHA, Pace()
        for live in streams:
            # A draft that is here or in the pass is still the old one's; guesses behind it are worth nothing.
            live.fresh = self._planner.estimator(PRIOR_ALPHA)
            live.guesses.drop()
