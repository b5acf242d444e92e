"""One engine on many ranks: rank 0's says what is to be done, and all others do the same to their own part.

```
rank 0:   LeadingEngine -> says the call, then runs it ---+
                             |                            | the layers of all ranks exchange what they computed
ranks 1-: follow ----------> hears it, runs it -----------+
```

Every rank has the keys and values of its own heads, in a slab of the same rows. Which row is whose only rank 0 knows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import PreTrainedModel

from goodspeed.engine.engine import Engine, Layout
from goodspeed.engine.group import PASS_TIMEOUT_S, Group
from goodspeed.engine.layouts import Segment
from goodspeed.engine.support import check_positions
from goodspeed.errors import GoodSpeedError, RankLost
from goodspeed.reasons import reason

__all__ = ["LeadingEngine", "follow"]


class _Make(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Make an engine; as its own arguments."""

    rows: int
    max_length: int
    layout: Layout
    dtype: str


class _Run(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Run a pass: row, start, tokens and logits of each segment."""

    segments: Sequence[tuple[int, int, Sequence[int], int]]


class _Clear(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """As `Engine.clear`."""

    row: int
    start: int


class _Copy(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """As `Engine.copy`."""

    source: int
    target: int
    end: int


class _Resize(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """As `Engine.resize`."""

    rows: int
    max_length: int


class _BeginAnew(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """As `Engine.begin_anew`."""

    rows: int
    max_length: int


class _End(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """There is nothing more to do."""


_Call = _Make | _Run | _Clear | _Copy | _Resize | _BeginAnew | _End
_decoder = msgspec.msgpack.Decoder(_Call)


class LeadingEngine(Engine):
    """The engine of rank 0, whose every call all other ranks `follow`.

    Where one rank stops, all others wait for it, and what they have cached is no longer the same: so whatever goes
    wrong in a call, a lack of memory too, is the end of all of them.

    Args:
        model: this rank's part of it.
        group: of the ranks; the others are following.
        rows: as for `Engine`; so are all that come after.
        max_length: likewise.
        layout: likewise.
        device: likewise.
        dtype: likewise.

    Raises:
        UnsupportedModel: the model cannot be served.
        RankLost: a rank is gone; any method may raise it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        group: Group,
        rows: int,
        max_length: int,
        layout: Layout,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._group = group
        self._at_work = threading.Lock()
        self._lost: str | None = None
        self._followed = False
        """Whether the others are told: as an engine is made it tries itself, and so does every rank's."""
        with self._in_step(None):
            self._say(_Make(rows, max_length, layout, str(dtype).removeprefix("torch.")))
            _limit_waiting(model)
            super().__init__(model, rows=rows, max_length=max_length, layout=layout, device=device, dtype=dtype)
        self._followed = True

    @property
    def busy_clock(self) -> Callable[[], float]:
        """Wall time: a pass is at work while it waits for another rank."""
        return time.perf_counter

    def clear(self, row: int, start: int) -> None:
        """As `Engine.clear`."""
        with self._in_step(_Clear(row, start)):
            super().clear(row, start)

    def copy(self, source: int, target: int, end: int) -> None:
        """As `Engine.copy`."""
        with self._in_step(_Copy(source, target, end)):
            super().copy(source, target, end)

    def resize(self, rows: int, max_length: int) -> None:
        """As `Engine.resize`."""
        self._check_larger(rows, max_length)
        with self._in_step(_Resize(rows, max_length)):
            super().resize(rows, max_length)

    def begin_anew(self, rows: int, max_length: int) -> None:
        """As `Engine.begin_anew`."""
        check_positions(self._model, max_length)
        with self._in_step(_BeginAnew(rows, max_length)):
            super().begin_anew(rows, max_length)

    def end(self) -> bool:
        """Let the other ranks go; whether they were told so: not while a pass is at work, nor once one of them is lost.

        No other method may be called after it.
        """
        if self._lost is not None or not self._at_work.acquire(blocking=False):
            return False
        try:
            self._say(_End())
        except RuntimeError:  # whoever is gone already need not be told
            return False
        return True

    def _run(self, segments: Sequence[Segment]) -> Tensor:
        if not self._followed:
            return super()._run(segments)
        parts = [(segment.row, segment.start, list(segment.tokens), segment.logits) for segment in segments]
        with self._in_step(_Run(parts)):
            return super()._run(segments)

    @contextlib.contextmanager
    def _in_step(self, call: _Call | None) -> Iterator[None]:
        """Say what is done in the block; what fails in it ends everything."""
        if self._lost is not None:
            raise RankLost(self._lost)
        with self._at_work:
            try:
                if call is not None:
                    self._say(call)
                yield
            except GoodSpeedError:
                raise
            except Exception as error:
                self._lost = (
                    f"the target's {self._group.size} ranks are out of step, and none can go on without the others "
                    f"({reason(error)}): start the server again"
                )
                # Not from the error: who finds that memory was lacking would try again.
                raise RankLost(self._lost) from None

    def _say(self, call: _Call) -> None:
        self._group.tell(msgspec.msgpack.encode(call))


def follow(group: Group, model: PreTrainedModel, device: torch.device | str) -> None:
    """Do what rank 0's engine does, until it ends.

    Args:
        group: of the ranks.
        model: this rank's part of it.
        device: where that is.

    Raises:
        UnsupportedModel: the model cannot be served.
        RankLost: rank 0 or another one is gone, or this one cannot do its part.
    """
    try:
        made = _heard(group)
        assert isinstance(made, _Make)
        _limit_waiting(model)
        engine = Engine(
            model,
            rows=made.rows,
            max_length=made.max_length,
            layout=made.layout,
            device=device,
            dtype=getattr(torch, made.dtype),
        )
        while not isinstance(call := _heard(group), _End):
            _do(engine, call)
    except (RuntimeError, MemoryError) as error:
        raise RankLost(
            f"rank {group.place.rank} of the target's {group.size} cannot go on, since another is gone or since this "
            f"one could not do its part ({reason(error)})"
        ) from None


def _heard(group: Group) -> _Call:
    call: _Call = _decoder.decode(group.hear())
    return call


def _do(engine: Engine, call: _Call) -> None:
    match call:
        case _Run(segments):
            engine.forward([Segment(*segment) for segment in segments])
        case _Clear(row, start):
            engine.clear(row, start)
        case _Copy(source, target, end):
            engine.copy(source, target, end)
        case _Resize(rows, max_length):
            engine.resize(rows, max_length)
        case _BeginAnew(rows, max_length):
            engine.begin_anew(rows, max_length)
        case _:
            raise AssertionError(call)


def _limit_waiting(model: PreTrainedModel) -> None:
    """Have what the layers exchange fail where a rank is silent: transformers' mesh leaves it at half an hour."""
    mesh: Any = model._mesh_manager
    _set_pg_timeout(timedelta(seconds=PASS_TIMEOUT_S), mesh.get_mesh("tp").get_group())
