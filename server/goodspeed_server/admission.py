"""Who gets a row: streams up to the engine's rows, a bounded queue behind them, a clear refusal behind that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from goodspeed.errors import Overloaded

__all__ = ["Admission"]

KeyT = TypeVar("KeyT")
RequestT = TypeVar("RequestT")


class Admission(Generic[KeyT, RequestT]):
    """The queue in front of the engine, first come, first served.

    Args:
        max_waiting: how many streams may wait; 0 refuses as soon as every row is taken.
        retry_after_s: what a refused agent is told to wait.
    """

    def __init__(self, *, max_waiting: int, retry_after_s: float = 1.0) -> None:
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._waiting: OrderedDict[KeyT, RequestT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestT]:
        return iter(self._waiting.values())

    def __contains__(self, key: KeyT) -> bool:
        return key in self._waiting

    def wait(self, key: KeyT, request: RequestT) -> None:
        """Put a request at the end of the queue.

        Raises:
            Overloaded: the queue is full.
        """
        if len(self._waiting) >= self._max_waiting:
            waiting = f" and {len(self._waiting)} streams wait already" if self._waiting else ""
            raise Overloaded(
                f"every row of the server is taken{waiting}: try again in {self._retry_after_s:g} s "
                "(its operator can raise --max-streams or --max-waiting)",
                retry_after_s=self._retry_after_s,
            )
        self._waiting[key] = request

    def next(self) -> tuple[KeyT, RequestT] | None:
        """Take the request that has waited longest."""
        return self._waiting.popitem(last=False) if self._waiting else None

    def withdraw(self, key: KeyT) -> RequestT | None:
        """Forget a request; None if there was none."""
        return self._waiting.pop(key, None)

    def withdraw_all(self, gone: Callable[[KeyT], bool]) -> list[RequestT]:
        """Forget every request whose key `gone` says so of, and give them back."""
        return [self._waiting.pop(key) for key in [key for key in self._waiting if gone(key)]]
