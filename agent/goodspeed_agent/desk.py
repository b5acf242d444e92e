"""Where an agent drafts: one thread, what a server waits for first, and several streams in one batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol, TypeVar

from goodspeed_agent.drafters.interface import DraftSession
from goodspeed_agent.steps import Steps

__all__ = ["Batching", "Desk", "OneByOne"]

T = TypeVar("T")

_PASSES = 8
"""Of the event loop: who has a piece to send first is back after a few, and one beside whom little happens is quick."""


class Batching(Protocol):
    """Whose sessions are at work here."""

    @property
    def together(self) -> int:
        """How many sessions may compute at once; 1 lets each piece of work end before the next begins."""

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """As `BatchDrafter.prepare`."""


class OneByOne:
    """Sessions that have nothing to compute together."""

    together = 1

    def prepare(self, sessions: Sequence[DraftSession]) -> list[bool]:
        """Each computes when it is asked."""
        return [True] * len(sessions)


class Desk:
    """Runs drafting off the event loop, in steps of a guess for everybody at work: models do not share a core well.

    Whoever comes while others are at work joins them with the next step. To be used on one event loop.

    Args:
        batching: says how many may be at work at once, and prepares each step.
    """

    def __init__(self, batching: Batching | None = None) -> None:
        self._batching = batching or OneByOne()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafting")
        self._urgent: deque[_Job] = deque()
        self._patient: deque[_Job] = deque()
        self._at_work: list[_Job] = []
        self._working: asyncio.Task[None] | None = None
        self._closed = False

    async def at_once(self, work: Callable[[], Steps[T]]) -> T:
        """Run something that a server waits for. A cancelled caller's work ends with its step."""
        job = self._put(self._urgent, _Job(work, urgent=True))
        result: T = await job.done
        return result

    async def in_between(self, brief: Callable[[], Callable[[], Steps[T]]]) -> T:
        """Run a short piece of work when nothing urgent is to be done; whoever waits longest is next.

        A cancelled caller waits for the end of the step that its work is in, and hears of its failure.

        Args:
            brief: asked for the work when its turn has come, on the event loop.
        """
        job = self._put(self._patient, _Job(brief, urgent=False))
        try:
            result: T = await asyncio.shield(job.done)
        except asyncio.CancelledError:
            if job in self._patient:
                self._patient.remove(job)
                raise
            job.wanted = False
            while not job.done.done():
                with contextlib.suppress(asyncio.CancelledError):  # once more; it still runs
                    await asyncio.wait([job.done])
            job.done.result()
            raise
        return result

    async def alone(self, work: Callable[[], T]) -> T:
        """Run something else on the drafting thread, between two steps."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Take on nothing more; a step that has begun is left to end by itself."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._working is not None:
            self._working.cancel()
        for job in (*self._urgent, *self._patient, *self._at_work):
            job.done.cancel()

    def _put(self, waiting: deque[_Job], job: _Job) -> _Job:
        if self._closed:
            raise RuntimeError("nothing is drafted here any more")
        waiting.append(job)
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return job

    async def _work(self) -> None:
        """Work until there is nothing left to do."""
        try:
            while self._gather():
                await asyncio.get_running_loop().run_in_executor(self._thread, self._step_on)
                for job in self._at_work:
                    job.report()
                await self._come_back(sum(job.done.done() and not job.urgent for job in self._at_work))
        finally:
            self._working = None

    async def _come_back(self, count: int) -> None:
        """Let those whose short piece is done put their next: in one batch they cost little more than one of them."""
        expected = len(self._patient) + count
        for _ in range(_PASSES):
            if len(self._patient) >= expected or self._urgent:
                break
            await asyncio.sleep(0)

    def _gather(self) -> bool:
        """Let those who are through go, and newcomers in; says whether anybody is at work."""
        self._at_work = [job for job in self._at_work if not job.done.done()]
        try:
            together = self._batching.together
        except Exception as error:
            for job in (*self._at_work, *self._urgent, *self._patient):
                if not job.done.done():
                    job.done.set_exception(error)
            self._urgent.clear()
            self._patient.clear()
            return False
        self._admit(self._urgent, together)
        if not any(job.urgent for job in self._at_work):
            self._admit(self._patient, together)
        return bool(self._at_work)

    def _admit(self, waiting: deque[_Job], together: int) -> None:
        while waiting and len(self._at_work) < together:
            job = waiting.popleft()
            if not job.done.cancelled() and job.begin():
                self._at_work.append(job)

    def _step_on(self) -> None:
        """Let everybody at work go on, a guess each a step, until one is through or a newcomer may join.

        On the drafting thread, and nobody but it touches the work meanwhile.
        """
        jobs = self._at_work
        urgent = any(job.urgent for job in jobs)
        for job in jobs:
            if job.session is None:
                job.advance()
        while not any(job.over for job in jobs):
            try:
                room = len(jobs) < self._batching.together
                ready = self._batching.prepare([job.session for job in jobs if job.session is not None])
            except BaseException as error:
                for job in jobs:
                    job.fail(error)
                return
            for job, good in zip(jobs, ready, strict=True):
                if good:
                    job.advance()
            if room and (self._urgent or (self._patient and not urgent)):
                return


class _Job:
    """A piece of work, and who waits for it."""

    def __init__(self, work: Callable[[], Any], *, urgent: bool) -> None:
        self.urgent = urgent
        self.wanted = True
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.session: DraftSession | None = None
        """Which it will ask for a guess next; None before its first step."""
        self._work = work
        # The caller's, so that what is logged on the drafting thread is about the caller's stream.
        self._context = copy_context()
        self._steps: Steps[Any]
        self._through = False
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended, or nobody wants it any more."""
        return self._through or not self.wanted or self.done.cancelled()

    def begin(self) -> bool:
        """On the event loop: its turn has come; says whether there is something to do."""
        try:
            self._steps = self._work() if self.urgent else self._work()()
        except Exception as error:
            self.done.set_exception(error)
            return False
        return True

    def advance(self) -> None:
        """Take it to its next guess, or to its end."""
        try:
            self.session = self._context.run(next, self._steps)
        except StopIteration as end:
            self._through, self._result = True, end.value
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """It cannot go on."""
        self._through, self._error = True, error

    def report(self) -> None:
        """On the event loop: tell who waits for it, if it is over."""
        if self.done.cancelled():
            self._steps.close()
        elif self._error is not None:
            self.done.set_exception(self._error)
        elif self._through:
            self.done.set_result(self._result)
        elif not self.wanted:
            self._steps.close()
            self.done.cancel()
