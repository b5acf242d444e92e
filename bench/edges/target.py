"""The target's time: as it is, stretched to that of a larger one, or shared with drafts that are made beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from torch import Tensor

from goodspeed_server.engine import Engine, Segment

__all__ = ["ColocatedEngine", "DraftSteps", "EmulatedEngine", "PassTime"]


class PassTime(Struct, frozen=True):
    """How long a pass of the emulated target takes: `fixed_ms + token_ms * tokens`."""

    fixed_ms: float = 35.0
    token_ms: float = 0.6

    def seconds(self, tokens: int) -> float:
        """Of a pass over so many new tokens, all rows together."""
        return (self.fixed_ms + self.token_ms * tokens) / 1e3


class DraftSteps(Struct, frozen=True):
    """What drafting costs on the server's own accelerator: every step is one pass of the draft over the whole batch."""

    step_ms: float = 3.5
    """A tenth of the target's fixed part: the reading of a tenth of its weights."""

    def seconds(self, steps: int) -> float:
        """Of so many steps."""
        return self.step_ms * steps / 1e3


class EmulatedEngine(Engine):
    """The engine, whose passes take as long as a larger target's would.

    The computation is the bundled target's own; the thread then sleeps for what is left, so that the cores, which the
    agents share with it, are free meanwhile. Its busy time is therefore wall time, calibration at start-up included.

    Args:
        pass_time: of the target that is emulated.
        what: as `Engine`.
    """

    def __init__(self, *what: Any, pass_time: PassTime, **how: Any) -> None:
        super().__init__(*what, **how)
        self.passes = 0
        self.overruns = 0
        """Passes that took longer than they were to take."""
        self._pass_time = pass_time

    @property
    def busy_clock(self) -> Callable[[], float]:
        """Wall time: a larger target would be at work."""
        return time.perf_counter

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As `Engine.forward`, in the emulated target's time."""
        began_s = time.perf_counter()
        logits = super().forward(segments)
        self._wait_until(began_s + self._pass_time.seconds(sum(len(segment.tokens) for segment in segments)))
        return logits

    def _wait_until(self, due_s: float) -> None:
        left_s = due_s - time.perf_counter()
        self.passes += 1
        if left_s >= 0:
            time.sleep(left_s)
        else:
            self.overruns += 1


class ColocatedEngine(EmulatedEngine):
    """The engine of a server that drafts by itself: before each pass it takes as many draft steps as the longest draft.

    The drafts come from agents on loopback, which are given the time those steps take, and the time since the last
    pass ended counts: for the accelerator steps and pass follow on each other without a gap.

    Args:
        pass_time: of the target that is emulated.
        draft_steps: of the draft beside it.
        what: as `Engine`.
    """

    def __init__(self, *what: Any, pass_time: PassTime, draft_steps: DraftSteps, **how: Any) -> None:
        super().__init__(*what, pass_time=pass_time, **how)
        self._draft_steps = draft_steps
        self._ended_s = 0.0

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As `Engine.forward`, in the time of the draft steps and the pass together."""
        began_s = time.perf_counter()
        logits = Engine.forward(self, segments)
        tokens = sum(len(segment.tokens) for segment in segments)
        steps = max((segment.logits for segment in segments), default=1) - 1
        steps_s, pass_s = self._draft_steps.seconds(max(steps, 0)), self._pass_time.seconds(tokens)
        # Only where there was nothing to do for longer than all of it does the round begin later.
        idle = began_s - self._ended_s > steps_s + pass_s
        self._wait_until((began_s - steps_s if idle else self._ended_s) + steps_s + pass_s)
        self._ended_s = time.perf_counter()
        return logits
