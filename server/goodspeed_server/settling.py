"""What a pass has brought: transcripts grow, everybody learns from it, and who is at an end leaves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    ended: list[LiveStream] = field(default_factory=list)
    verified: list[Verified] = field(default_factory=list)
    """For the recorder, if there is one."""
    renewed: list[LiveStream] = field(default_factory=list)
    """Streams whose next draft is another drafter's."""
    found_out: list[AgentAccount] = field(default_factory=list)


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

    def commit(self, planned: PlannedPass, settled: Settled, now: float, *, spell_out: bool) -> Settlement:
        """Extend transcripts, learn from what happened, and end what is at its end.

        Args:
            planned: the pass as it was run.
            settled: what came of it.
            now: seconds.
            spell_out: as in `LiveStream.tell`.
        """
        done = Settlement()
        first = 0
        logprobs = settled.logprobs or [b""] * len(settled.judgements)
        turns = zip(planned.verified, planned.work.turns, settled.judgements, logprobs, strict=True)
        for live, turn, judgement, packed in turns:
            begun, first = first, first + turn.size
            self._shortage.over(live)
            if not self._streams.pass_over(live):
                continue
            if turn.row in settled.cut:
                live.budget = len(turn.drafted)  # of what its agent drafted beyond nobody asked the target
            commit = self._commit_turn(live, turn, judgement, packed, now, done)
            done.commits.append(commit)
            if self._recorder is not None:
                done.verified.append(Verified(live, begun, len(turn.drafted), commit))
            if commit.finish:
                live.tell(commit, now, spell_out=spell_out)
                done.ended.append(live)
            else:
                done.going_on.append((live, commit))
        if self._recorder is not None and settled.logits is not None:
            self._recorder.passed(settled.logits, done.verified)
            for live in done.renewed:
                # A text is recorded with what drafted it: what follows is another's.
                self._recorder.ended(live)
        for live in done.ended:
            self._streams.end(live)
        return done

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
        self, live: LiveStream, turn: Turn, judgement: Judgement, logprobs: bytes, now: float, done: Settlement
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
            done.renewed.append(live)
        self._telemetry.committed(live, len(turn.drafted), commit, now)
        live.account.spend(commit.size, now)
        return commit
