"""What a pass has brought: transcripts grow, everybody learns from it, and who is at an end leaves.

Of a pass with many streams so much is to be done that no link would be heard meanwhile. So it is done for some streams
at a time, and in between others come and go: what was brought for one that has gone is void.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from goodspeed.logprobs import entry_bytes
from goodspeed.messages import Failure
from goodspeed.stream import Commit
from goodspeed.verification import Judgement
from goodspeed_server.auditing import Auditing
from goodspeed_server.fitting import Settled
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.passes import PlannedPass, Unfit
from goodspeed_server.planner import Planner
from goodspeed_server.recording import Recorder, Verified
from goodspeed_server.sharing import Sharing
from goodspeed_server.shortage import KEEP_S, Shortage
from goodspeed_server.slices import many, slices_of
from goodspeed_server.streams import Streams
from goodspeed_server.telemetry import Telemetry
from goodspeed_server.verifier import Turn

__all__ = ["Settlement", "Settling"]

logger = logging.getLogger(__name__)

_NO_MEMORY = (
    f"the server has had no memory for one more token of this text in {KEEP_S:g} s: go on later, or on another server "
    "(its operator can lower --max-streams or --max-length)"
)
_NO_MEMORY_RETRY_S = 5.0
"""An agent that keeps to it has the text tried twice more before it gives up."""


@dataclass(slots=True)
class Settlement:
    """What is to be said of a pass, and done after it."""

    commits: list[Commit] = field(default_factory=list)
    going_on: list[tuple[LiveStream, Commit]] = field(default_factory=list)
    """Streams that want another budget, and what they are to be told with it."""
    found_out: list[AgentAccount] = field(default_factory=list)
    price: float = 0.0
    """Of a drafted token, as of the budgets that were chosen then."""


@dataclass(slots=True)
class _Share:
    """Of some streams of a pass."""

    ended: list[LiveStream] = field(default_factory=list)
    verified: list[Verified] = field(default_factory=list)
    """For the recorder, if there is one."""
    renewed: list[LiveStream] = field(default_factory=list)
    """Streams whose next draft is another drafter's."""


class Settling:
    """Commits passes.

    Args:
        streams: whose rows they were at.
        planner: learns from what happened.
        telemetry: is told of every verdict.
        recorder: keeps what tuning needs of them; None keeps nothing.
        auditing: looks at what was claimed of drafts.
        shortage: keeps the streams that lack memory.
        sharing: is told what stands in the rows.
    """

    def __init__(
        self,
        streams: Streams,
        planner: Planner,
        telemetry: Telemetry,
        recorder: Recorder | None,
        auditing: Auditing,
        shortage: Shortage[LiveStream],
        sharing: Sharing,
    ) -> None:
        self._streams = streams
        self._planner = planner
        self._telemetry = telemetry
        self._recorder = recorder
        self._auditing = auditing
        self._shortage = shortage
        self._sharing = sharing

    def commit(
        self, planned: PlannedPass, settled: Settled, now: float, done: Settlement, *, spell_out: bool
    ) -> Iterator[None]:
        """Extend transcripts, learn from what happened, and end what is at its end; pauses, if there are many streams.

        Args:
            planned: the pass as it was run.
            settled: what came of it.
            now: seconds.
            done: is told what is to be said of the pass.
            spell_out: as in `LiveStream.tell`.
        """
        logprobs = settled.logprobs or [b""] * len(settled.judgements)
        turns = list(zip(planned.verified, planned.work.turns, settled.judgements, logprobs, strict=True))
        begun = 0
        for some in slices_of(turns):
            begun = self._commit_some(some, begun, settled, now, done, spell_out=spell_out)
            if many(turns):
                yield

    def _commit_some(
        self,
        turns: Iterable[tuple[LiveStream, Turn, Judgement, bytes]],
        begun: int,
        settled: Settled,
        now: float,
        done: Settlement,
        *,
        spell_out: bool,
    ) -> int:
        """Commit some turns, whose logits begin at `begun` of the pass; says where the next ones' do."""
        share, first = _Share(), begun
        for live, turn, judgement, packed in turns:
            place, first = first, first + turn.size
            self._shortage.over(live)
            if not self._streams.pass_over(live):
                continue
            if turn.row in settled.cut:
                live.budget = len(turn.drafted)  # of what its agent drafted beyond nobody asked the target
            commit = self._commit_turn(live, turn, judgement, packed, now, done, share)
            done.commits.append(commit)
            if self._recorder is not None:
                share.verified.append(Verified(live, place - begun, len(turn.drafted), commit))
            if commit.finish:
                live.tell(commit, now, spell_out=spell_out)
                share.ended.append(live)
            else:
                done.going_on.append((live, commit))
        if self._recorder is not None and settled.logits is not None:
            self._recorder.passed(settled.logits[begun:first], share.verified)
            for live in share.renewed:
                # A text is recorded with what drafted it: what follows is another's.
                self._recorder.ended(live)
        self._streams.end(*share.ended)
        return first

    def tell(self, done: Settlement, clock: Callable[[], float], *, spell_out: bool) -> Iterator[None]:
        """Tell those that go on what was committed, and what to draft; pauses, if they are many."""
        for some in slices_of(done.going_on):
            if many(done.going_on):
                yield
            now = clock()
            for live, commit in some:
                if not live.closed:
                    live.tell(commit, now, spell_out=spell_out)

    def set_aside(self, unfit: Unfit, now: float) -> None:
        """End the streams that cannot go on, and those that have lacked memory for too long; tell their agents why.

        The latter are told when to come back: they go on then from their agents' transcripts.
        """
        for live, fault in unfit.faulty:
            self._sharing.forget(live)
            if self._streams.pass_over(live):
                self._end(live, Failure(fault.code, str(fault), live.number))
        for live in unfit.lacking:
            if self._streams.pass_over(live) and not self._shortage.failed(live, now):
                self._end(live, Failure("overloaded", _NO_MEMORY, live.number, _NO_MEMORY_RETRY_S))

    def _end(self, live: LiveStream, failure: Failure) -> None:
        with live.logged():
            logger.warning("a text cannot go on: %s", failure.message)
        live.outbox.post(failure)
        self._streams.end(live)

    def prompts_advanced(self, pieces: Sequence[tuple[LiveStream, int]]) -> list[LiveStream]:
        """Note what stands in the slab now, and say which prompts are complete with it."""
        complete = []
        for live, cached in pieces:
            self._shortage.over(live)
            if not self._streams.pass_over(live):
                continue
            live.stream.cached = cached
            self._sharing.wrote(live)
            if live.stream.prefilled:
                del self._streams.prefilling[live]
                complete.append(live)
        return complete

    def _commit_turn(
        self,
        live: LiveStream,
        turn: Turn,
        judgement: Judgement,
        logprobs: bytes,
        now: float,
        done: Settlement,
        share: _Share,
    ) -> Commit:
        commit = live.stream.commit(turn.drafted, judgement)
        self._sharing.wrote(live)
        live.logprobs = logprobs[: commit.size * entry_bytes(turn.logprobs)]
        if self._auditing.found_out(live.account, turn, judgement):
            done.found_out.append(live.account)
        self._planner.committed(live, turn.drafted, judgement, commit, now)
        live.draft, live.q = None, []
        if live.fresh is not None:
            live.start_afresh()
            share.renewed.append(live)
        self._telemetry.committed(live, len(turn.drafted), commit, now)
        live.account.spend(commit.size, now)
        return commit
