"""The other ranks of a tensor-parallel target, as rank 0's process has them: started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any

import msgspec
from transformers import PreTrainedModel

from goodspeed.catalog import check_sharing
from goodspeed.engine import Engine
from goodspeed.engine.group import Place
from goodspeed.engine.parallel import LeadingEngine
from goodspeed.errors import RankLost
from goodspeed.reasons import reason
from goodspeed_server.parts import Part, PartSettings, check_device, share_cores
from goodspeed_server.rank_process import RankProcess
from goodspeed_server.settings import ServerSettings

__all__ = ["Ranks", "gathered"]

_NAMING_S = 2.0
"""How soon after something failed here it is known which rank is gone."""


class Ranks:
    """The ranks of a target, of which this process is the first.

    Args:
        settings: what each has to know.
        place: that of this process.
        others: ranks 1 and on; none of those that torchrun has started.
    """

    def __init__(self, settings: PartSettings, place: Place, others: Sequence[RankProcess]) -> None:
        self.size = place.size
        self._settings = settings
        self._place = place
        self._others = others
        self._engine: LeadingEngine | None = None
        self._part: Part | None = None
        self._lost = False

    @property
    def weights(self) -> str:
        """The digest of the whole target, once it is loaded."""
        return self._loaded.weights

    @property
    def free_bytes(self) -> int:
        """As in `Part`, once that is loaded."""
        return self._loaded.free_bytes

    @property
    def token_bytes(self) -> int:
        """As in `Part`, once that is loaded."""
        return self._loaded.token_bytes

    @property
    def _loaded(self) -> Part:
        assert self._part is not None
        return self._part

    def load(self) -> PreTrainedModel:
        """Have every rank load its part of the target; this one's.

        Raises:
            ModelError: it cannot be loaded, or cannot be shared by so many.
            RankLost: one of them ended meanwhile, or is no rank.
        """
        share_cores(self._settings, self._place)
        readies = [other.ready for other in self._others]
        for ready in wait(readies, return_when=FIRST_EXCEPTION).done:
            ready.result()
        self._part = self._meet()
        return self._part.model

    def _meet(self) -> Part:
        """Load this rank's part beside the others'.

        On a thread of its own: what ranks exchange may wait for one that is gone for as long as loading may take.
        """
        part: Future[Part] = Future()

        def load() -> None:
            try:
                part.set_result(Part.load(self._settings, self._place))
            except BaseException as error:
                part.set_exception(error)

        threading.Thread(target=load, name="loading", daemon=True).start()
        lost = [other.lost for other in self._others]
        either: list[Future[Any]] = [part, *lost]
        wait(either, return_when=FIRST_COMPLETED)
        # What a rank ended for may be what this one is about to find, and can say better.
        if wait([part], _NAMING_S).not_done:
            raise next(one for one in lost if one.done()).result()
        try:
            return part.result()
        except RuntimeError as error:
            raise RankLost(
                f"the target's {self.size} ranks could not load it together ({reason(error)}): start the server again"
            ) from None

    def make_engine(self, *arguments: Any, **options: Any) -> Engine:
        """Make the engine, upon all ranks that have loaded their parts: as `Engine`."""
        self._engine = LeadingEngine(*arguments, group=self._loaded.group, **options)
        return self._engine

    async def while_whole(self, rounds: Coroutine[Any, Any, None]) -> None:
        """Run rounds to their end, or until a rank ends.

        Raises:
            RankLost: one has.
            Exception: whatever the rounds raised.
        """
        running = asyncio.ensure_future(rounds)
        gone = asyncio.create_task(self._gone(), name="ranks")
        try:
            await asyncio.wait([running, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
            running.result()
        finally:
            for task in (running, gone):
                task.cancel()
            await asyncio.gather(running, gone, return_exceptions=True)

    async def _gone(self) -> None:
        """Wait until a rank ends, which none does before it is told to.

        Raises:
            RankLost: one has.
        """
        lost = [asyncio.wrap_future(other.lost) for other in self._others]
        if not lost:
            await asyncio.Event().wait()  # torchrun watches over its own
        await asyncio.wait(lost, return_when=asyncio.FIRST_COMPLETED)
        self._lost = True
        raise next(one for one in lost if one.done()).result()

    def cause(self) -> RankLost | None:
        """Which rank's end is behind what has just failed here; None if all are there, or it has been said.

        A pass that could not do without a rank may fail before that is seen to have ended.
        """
        if self._lost:
            return None
        ended = [(status, other) for other in self._others if (status := other.status(_NAMING_S)) is not None]
        self._lost = bool(ended)
        # Whoever was killed did not end because of another.
        return min(ended, key=lambda one: one[0])[1].loss() if ended else None

    def close(self) -> None:
        """Let the others go, if they listen; `gathered` sees that they do."""
        if self._engine is not None and not self._lost and self._engine.end():
            for other in self._others:
                other.wait()
            self._loaded.group.leave()


@contextlib.contextmanager
def gathered(settings: ServerSettings, place: Place | None, *, log_json: bool = False) -> Iterator[Ranks | None]:
    """The ranks of a server's target while the block runs; None where it has one alone.

    Args:
        settings: the operator's choices.
        place: rank 0's, by torchrun; None has the others started here, and ended at the end.
        log_json: whether what they log is to be JSON lines.

    Raises:
        ModelError: there are too few GPUs for them, or the target cannot be shared by so many.
        InvalidRequest: ranks cannot run on that device, or the target was to be quantised.
        RankLost: a rank ended, and what was done in the block could not go on.
    """
    size = settings.tensor_parallel
    if place is None and size == 1:
        yield None
        return
    parts = PartSettings.of(settings)
    with contextlib.ExitStack() as stack:
        others: list[RankProcess] = []
        if place is None:
            # Refused here, every rank need not say it.
            check_device(settings.device, size)
            check_sharing(settings.model, size)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="goodspeed-"))
            # They meet in a file and talk over loopback, so that nobody else can come between.
            os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
            place = Place(0, size, 0, size, (Path(folder) / "ranks").as_uri())
            starting = (_started(settings, place, rank, log_json=log_json) for rank in range(1, size))
            others.extend(map(stack.enter_context, starting))
        ranks = Ranks(parts, place, others)
        stack.callback(ranks.close)
        try:
            yield ranks
        except (RankLost, RuntimeError):
            if cause := ranks.cause():
                raise cause from None
            raise


@contextlib.contextmanager
def _started(settings: ServerSettings, place: Place, rank: int, *, log_json: bool) -> Iterator[RankProcess]:
    """A rank as a process, which is gone at the end of the block; it ends by itself when this process does."""
    there = Place(rank, place.size, rank, place.local_size, place.meeting)
    what = msgspec.json.encode({"settings": PartSettings.of(settings), "place": there, "log_json": log_json})
    environment = os.environ | {"LOCAL_RANK": str(rank)}  # as transformers reads it to choose the GPU
    with subprocess.Popen(
        [sys.executable, "-m", "goodspeed_server.follower", what.decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # an interrupt from the terminal is for this process, which ends the others
    ) as child:
        started = RankProcess(child, rank, place.size)
        try:
            yield started
        finally:
            started.kill()
