"""How a batch is going: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from goodspeed_agent.report import Completion, Speculation

__all__ = ["ProgressDisplay"]


class ProgressDisplay:
    """Counts tokens and prompts and shows them.

    Args:
        total: how many prompts there are.
        console: where to show it, standard error normally.
        bar: draw a bar; otherwise a line a finished prompt.
        say: takes those lines instead of the console.
        clock: in seconds.
    """

    def __init__(
        self,
        total: int,
        console: Console,
        *,
        bar: bool,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._say = say or partial(console.print, markup=False, highlight=False, soft_wrap=True)
        self._clock = clock
        self._began_s = clock()
        self._tokens = 0
        self._done = 0
        self._failed = 0
        self._speculation = Speculation()
        self._places: dict[int, int] = {}
        self._told_of_queue = False
        self._bar: Progress | None = None
        if bar:
            self._bar = Progress(
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        """Begin to show it."""
        self._began_s = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tokens(self, count: int) -> None:
        """Tokens were committed."""
        self._tokens += count
        if self._bar is not None:
            self._bar.update(self._task, description=self._few_figures())

    def queued(self, index: int, place: int | None) -> None:
        """A prompt waits for a row of the server, in this place of its queue; None if it does not or no longer."""
        if self._places.get(index) == place:
            return
        if place is None:
            del self._places[index]
        else:
            self._places[index] = place
        if self._bar is not None:
            self._bar.update(self._task, description=self._few_figures())
        elif not self._told_of_queue:
            # A line for each step would be many: the lines of finished prompts tell how it goes on.
            self._told_of_queue = True
            self._say(f"{self._done}/{self._total} prompts, {self._waiting}")

    def finished(self, completion: Completion | None) -> None:
        """A prompt is done; None if it failed."""
        self._done += 1
        if completion is None:
            self._failed += 1
        else:
            self._speculation.add(completion.speculation)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self._few_figures())
        else:
            self._say(f"{self._done}/{self._total} prompts, {self._figures()}")

    @property
    def _tokens_per_s(self) -> float:
        return self._tokens / max(self._clock() - self._began_s, 1e-9)

    @property
    def _waiting(self) -> str:
        return f"{len(self._places)} waiting for a row (place {min(self._places.values())})"

    def _few_figures(self) -> str:
        """What fits beside a bar."""
        if self._places:
            return f"{self._tokens} tokens, {self._tokens_per_s:.1f}/s, {self._waiting}"
        rate = self._speculation.draft_acceptance_rate
        accepted = "" if rate is None else f", {rate:.0%} accepted"
        return f"{self._tokens} tokens, {self._tokens_per_s:.1f}/s{accepted}"

    def _figures(self) -> str:
        parts = [f"{self._tokens} tokens", f"{self._tokens_per_s:.1f} tokens/s"]
        rate, length = self._speculation.draft_acceptance_rate, self._speculation.mean_acceptance_length
        if rate is not None and length is not None:
            parts.append(f"{rate:.0%} of drafts accepted ({length:.2f} tokens per verdict)")
        if self._places:
            parts.append(self._waiting)
        if self._failed:
            parts.append(f"{self._failed} failed")
        return ", ".join(parts)
