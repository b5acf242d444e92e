"""The server's heart: `gather -> plan -> verify -> commit`, for ever.

Everything here runs on the event loop and never blocks; the one blocking step, the forward pass, runs on the engine's
own thread, so that links stay alive meanwhile. Decisions are taken by the pure objects of the core: `Rounds` say when
a round closes, `ServedStream` what a judgement commits, the scheduler what everybody drafts next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest, Overloaded
from goodspeed.logs import about
from goodspeed.messages import Draft, Open
from goodspeed.reasons import reason
from goodspeed.rounds import Rounds
from goodspeed.scheduling import Scheduler
from goodspeed.timing import PassSample
from goodspeed.verification import Rule
from goodspeed_server.arrivals import Arrivals, look_back
from goodspeed_server.auditing import Auditing
from goodspeed_server.boundary import Boundary
from goodspeed_server.fitting import Fitting, Settled
from goodspeed_server.granting import Granting
from goodspeed_server.intake import Intake
from goodspeed_server.live import AgentAccount, LiveStream, Outbox, Session
from goodspeed_server.observer import Phases, RoundRecord
from goodspeed_server.passes import PlannedPass, plan_pass
from goodspeed_server.planner import Planner
from goodspeed_server.recording import Recorder
from goodspeed_server.settings import RoundSettings
from goodspeed_server.settling import Settlement, Settling
from goodspeed_server.sharing import Sharing
from goodspeed_server.shortage import Shortage
from goodspeed_server.slices import many
from goodspeed_server.streams import Streams
from goodspeed_server.telemetry import Telemetry
from goodspeed_server.verifier import Pass, Verifier

__all__ = ["RoundLoop"]

logger = logging.getLogger(__name__)


class RoundLoop:
    """Owns the live streams and runs the rounds.

    Args:
        engine: the target.
        rule: its name.
        planner: chooses the budgets.
        eos_tokens: any of them ends a stream.
        settings: the operator's choices.
        telemetry: is told about every round.
        recorder: is told what tuning needs of every verdict; None records nothing.
        pass_tokens: that there is memory for in one pass; None if that is not known.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        rule: Rule,
        planner: Planner,
        eos_tokens: frozenset[int],
        settings: RoundSettings,
        telemetry: Telemetry,
        recorder: Recorder | None = None,
        pass_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        verifier = Verifier(engine, rule, keep_logits=recorder is not None)
        self._fitting = Fitting(verifier, engine, pass_tokens)
        self._intake = Intake(planner, telemetry, rule, engine.vocab_size, clock)
        self.planner = planner
        planner.on_overtaken = telemetry.overtaken
        self._telemetry = telemetry
        self._clock = clock
        self._streams = Streams(
            engine,
            planner,
            telemetry,
            recorder,
            max_waiting=settings.max_waiting,
            max_waiting_tokens=settings.max_waiting_tokens,
            max_streams_per_agent=settings.max_streams_per_agent,
            park_s=settings.park_s,
            eos_tokens=eos_tokens,
            clock=clock,
            on_begin=self._begin,
            on_end=self._leave,
        )
        self._granting = Granting(
            self._streams, planner, settings, telemetry, most=lambda: self._fitting.most, clock=clock
        )
        self.auditing = Auditing(self._streams, planner, telemetry, self.ask_no_more)
        self._shortage: Shortage[LiveStream] = Shortage()
        sharing = self._sharing = Sharing(settings.prefix_sharing, lambda: engine.free)
        self._settling = Settling(self._streams, planner, telemetry, recorder, self.auditing, self._shortage, sharing)
        self._changed = asyncio.Event()
        self.boundary = Boundary(self._changed.set)
        """Between two rounds."""
        self._ended = asyncio.Event()
        """Set whenever a stream has."""
        self._stopping = False
        self._untold: Settlement | None = None
        """Of the last pass, while its agents have not been told."""
        self._round = 0
        """How many have begun: the number of the one that runs, or ran last."""
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def waits(self) -> bool:
        """Whether streams are verified only once their drafts are here."""
        return self._granting.waits

    @property
    def settings(self) -> RoundSettings:
        """The operator's choices, as they are in force."""
        return self._granting.settings

    @property
    def capacity(self) -> int:
        """Draft tokens the next pass may verify."""
        return self._granting.capacity

    @property
    def _rounds(self) -> Rounds[LiveStream]:
        return self._granting.rounds

    @property
    def live(self) -> Sequence[LiveStream]:
        """Every stream that has a row."""
        return tuple(self._streams)

    @property
    def waiting(self) -> int:
        """How many streams wait for a row."""
        return self._streams.waiting

    @property
    def parked(self) -> int:
        """How many streams are parked."""
        return self._streams.parked

    @property
    def _prompts(self) -> list[LiveStream]:
        """Whose prompts the next pass may carry, in order of admission."""
        return [live for live in self._streams.prefilling if not self._shortage.rests(live)]

    def now(self) -> float:
        """The loop's clock, seconds."""
        return self._clock()

    def is_prefilling(self, live: LiveStream) -> bool:
        """Whether the stream's prompt is still on its way into the slab."""
        return live in self._streams.prefilling

    def open(self, outbox: Outbox, account: AgentAccount, message: Open) -> None:
        """Admit a stream, or queue it; raises as `Streams.open`."""
        self._streams.open(outbox, account, message)
        self._changed.set()  # it may have a place to be told

    def draft(self, outbox: Outbox, message: Draft) -> None:
        """Take a draft: `Intake.take`.

        Raises:
            InvalidRequest: the stream is not open on this link.
            ProtocolError: the draft builds on more than was ever committed.
        """
        live = self._streams.find(outbox, message.stream)
        if live is None:
            raise InvalidRequest(f"stream {message.stream} is not open on this link", code="unknown_stream")
        prefilling = live in self._streams.prefilling
        if self._intake.take(live, message, self._rounds, waits=self.waits, prefilling=prefilling):
            self._changed.set()

    def redraft(self, outbox: Outbox, account: AgentAccount, drafter: str) -> None:
        """A link's drafts come of another drafter: `Intake.redraft`."""
        self._intake.redraft(account, self._streams.of_link(outbox), drafter)

    def close(self, outbox: Outbox, number: int, session: Session | None = None) -> None:
        """End a stream its agent wants no more of: `Streams.close`."""
        if self._streams.close(outbox, number, session):
            self._changed.set()  # others may have moved up

    def drop(self, outbox: Outbox) -> None:
        """End every stream of a link that has gone, and will not come back for them."""
        self._streams.drop(outbox)
        self._changed.set()

    def turn_away(self, error: Overloaded) -> None:
        """Refuse all who wait for a row."""
        self._streams.turn_away(error)

    async def emptied(self) -> None:
        """Wait until no stream has a row."""
        while self._streams:
            self._ended.clear()
            await self._ended.wait()

    def park(self, outbox: Outbox) -> None:
        """Keep the streams of a link that was lost for a while: `Streams.park`."""
        if self._stopping:
            self._streams.drop(outbox)
        else:
            self._streams.park(outbox)
        self._changed.set()  # others may have moved up

    def adopt(self, scheduler: Scheduler, settings: RoundSettings, announce: Callable[[], None]) -> None:
        """Plan by another scheduler and other settings: `Granting.adopt`. Only at the `boundary`."""
        self._granting.adopt(scheduler, settings, announce)

    def ask_no_more(self, account: AgentAccount) -> None:
        """Decode a link's streams without its drafts, whatever it was granted. Only at the `boundary`."""
        self._granting.ask_no_more(account)

    def stop(self) -> None:
        """Let `run` return after the round that runs now."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Run rounds until `stop`.

        Raises:
            Exception: whatever the engine raised; the streams are lost, and the server should end.
        """
        try:
            while not self._stopping:
                gathering = self._clock()
                if (batch := await self._gather()) is None:
                    break
                gathered = self._clock()
                # Neighbouring rows in order are one block of the slab, which the padded layout reads without a copy.
                batch.sort(key=lambda live: live.row)
                chunk, most = self.settings.prefill_chunk, self._fitting.most
                planned = plan_pass(batch, self._sharing.begin(batch, self._prompts), chunk, most, self._shortage)
                if not planned.verified and not planned.prefilled:
                    await self._tell()
                    await asyncio.sleep(0)  # whatever is waited for, others have to be heard
                    continue
                arrivals = self._look_back(planned, gathering, gathered)
                if many(batch):
                    await asyncio.sleep(0)  # To lay out a large pass takes as long as to hear many links.
                self._round += 1
                with about(round=self._round):
                    verifying = self._clock()
                    settled, verified = await self._run_pass(planned.work)
                    planned, unfit = planned.as_run(settled)
                    work = planned.work
                    # Nor does how long it takes to copy say anything of the next.
                    if work.rows and settled.typical:
                        self.planner.meter.observe(PassSample(len(work.rows), work.tokens, verified - verifying))
                    self._settling.set_aside(unfit, verified)
                    done = self._untold = Settlement()
                    for _ in self._commit(planned, settled, done):
                        await asyncio.sleep(0)
                    phases = Phases(gathering, gathered, verifying, verified, self._clock())
                    self._telemetry.round_over(RoundRecord.of(settled, done.commits, phases, arrivals, done.price))
            await self._tell()
        finally:
            self._stopping = True
            self._streams.give_up_parked(math.inf)
            self.boundary.end()
            self._engine_thread.shutdown(wait=False)  # a pass may hang, and whoever cancels this knows

    async def _run_pass(self, work: Pass) -> tuple[Settled, float]:
        """Run a pass on the engine's thread, and tell meanwhile what the one before it has brought."""
        run = partial(copy_context().run, self._verify, work)
        running = asyncio.get_running_loop().run_in_executor(self._engine_thread, run)
        try:
            await asyncio.sleep(0)  # The interpreter's lock is the engine's thread's first.
            await self._tell()
            await asyncio.wait([running])
        except BaseException:
            running.add_done_callback(_given_up)
            raise
        return running.result()

    def _verify(self, work: Pass) -> tuple[Settled, float]:
        """Run a pass, on the engine's thread, and say when it was over: the loop may have others to tell by then."""
        return self._fitting.run(work), self._clock()

    async def _gather(self) -> list[LiveStream] | None:
        """Wait until the round closes, or there is a prompt to work on meanwhile; None: there is no further round."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            if self.boundary.errands:
                await self._tell()
                self.boundary.here()
            places_at = self._streams.tell_places()
            now = self._clock()
            self._try_again(now)
            prompts = bool(self._prompts)
            batch = self._rounds.close(now, prompts=prompts)
            if batch or prompts:
                return batch
            if self._untold is not None:
                await self._tell()
                continue
            self._changed.clear()
            dates = (self._rounds.closes_at(), places_at, self._shortage.next_at)
            wake_at = min((at for at in dates if at is not None), default=None)
            alarm = None if wake_at is None else loop.call_later(max(0.0, wake_at - now), self._changed.set)
            await self._changed.wait()
            if alarm is not None:
                alarm.cancel()
        return None

    def _try_again(self, now: float) -> None:
        """Have those that lacked memory in the next pass, without a draft, if it is time."""
        for live in self._shortage.due(now):
            if live not in self._streams.prefilling:
                live.draft, live.q, live.budget = None, [], 0
                self._granting.expect(live, now)

    def _look_back(self, planned: PlannedPass, opened_at: float, closed_at: float) -> Arrivals:
        turns = zip(planned.verified, planned.work.turns, strict=True)
        drafts = [live for live, turn in turns if turn.drafted or live.draft is not None]
        # A draft that is later than that was not waited for any more.
        since = opened_at - self.settings.round_timeout_s
        return look_back(
            drafts, [live for live in self._rounds.drafting if live.asked_at > since], opened_at, closed_at
        )

    def _commit(self, planned: PlannedPass, settled: Settled, done: Settlement) -> Iterator[None]:
        """Extend transcripts, learn from what happened, and choose the next budgets; with pauses."""
        spell_out = not self.waits
        yield from self._settling.commit(planned, settled, self._clock(), done, spell_out=spell_out)
        for live in self._settling.prompts_advanced(planned.prefilled):
            self._granting.join(live)
        yield from self._granting.schedule([live for live, _ in done.going_on if not live.closed])
        done.price = self._granting.price
        for account in done.found_out:
            self.auditing.do_without(account)

    async def _tell(self) -> None:
        """Tell agents what the last pass has brought, and what to draft, if they have not been told.

        That is done while the next pass runs already, if nobody is to be waited for.
        """
        for _ in self._telling():
            await asyncio.sleep(0)

    def _telling(self) -> Iterator[None]:
        done, self._untold = self._untold, None
        if done is not None:
            yield from self._settling.tell(done, self._clock, spell_out=not self.waits)

    def _begin(self, live: LiveStream) -> None:
        self._granting.begin(live)
        self._changed.set()

    def _leave(self, live: LiveStream) -> None:
        self._rounds.leave(live)
        self._shortage.over(live)
        self._ended.set()
        self._changed.set()


def _given_up(running: asyncio.Future[tuple[Settled, float]]) -> None:
    """A pass is over that the rounds have not waited for."""
    if not running.cancelled() and (error := running.exception()) is not None:
        logger.warning("a pass failed that the rounds did not wait for any more: %s", reason(error))
