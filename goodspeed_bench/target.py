"""The target's time: as it is, stretched to that of a larger one, or shared with drafts that are made beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from torch import Tensor
from transformers import PreTrainedModel

from goodspeed.engine import Engine, Segment

__all__ = ["ColocatedEngine", "DraftSteps", "EmulatedEngine", "PassTime"]


class PassTime(Struct, frozen=True):
    """How long a pass of the emulated target takes: `fixed_ms + row_ms * rows + token_ms * tokens`."""

    fixed_ms: float = 35.0
    token_ms: float = 0.6
    row_ms: float = 0.0

    def seconds(self, tokens: int, rows: int = 0) -> float:
        """Of a pass over so many new tokens, all rows together."""
        return (self.fixed_ms + self.row_ms * rows + self.token_ms * tokens) / 1e3


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
        model: as for `Engine`, and so are all others that are not named here.
        pass_time: of the target that is emulated.
        clock: seconds, monotonic.
        sleep: blocks for so many seconds of that clock.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pass_time: PassTime,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        **others: Any,
    ) -> None:
        super().__init__(model, **others)
        self.passes = 0
        self.overruns = 0
        """Passes that took longer than they were to take."""
        self._pass_time = pass_time
        self._clock = clock
        self._sleep = sleep

    @property
    def busy_clock(self) -> Callable[[], float]:
        """Wall time: a larger target would be at work."""
        return self._clock

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As `Engine.forward`, in the emulated target's time."""
        began_s = self._clock()
        logits = super().forward(segments)
        tokens = sum(len(segment.tokens) for segment in segments)
        self._wait_until(began_s + self._pass_time.seconds(tokens, len(segments)))
        return logits

    def _wait_until(self, due_s: float) -> None:
        left_s = due_s - self._clock()
        self.passes += 1
        if left_s >= 0:
            self._sleep(left_s)
        else:
            self.overruns += 1


class ColocatedEngine(EmulatedEngine):
    """The engine of a server that drafts by itself: before each pass it takes as many draft steps as the longest draft.

    The drafts come from agents on loopback, which are given the time those steps take, and the time since the last
    pass ended counts: for the accelerator steps and pass follow on each other without a gap.

    Args:
        model: as for `EmulatedEngine`, and so are all others that are not named here.
        draft_steps: of the draft beside the target.
    """

    def __init__(self, model: PreTrainedModel, *, draft_steps: DraftSteps, **others: Any) -> None:
        super().__init__(model, **others)
        self._draft_steps = draft_steps
        self._ended_s = 0.0

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As `Engine.forward`, in the time of the draft steps and the pass together."""
        began_s = self._clock()
        logits = Engine.forward(self, segments)
        tokens = sum(len(segment.tokens) for segment in segments)
        steps = max((segment.logits for segment in segments), default=1) - 1
        steps_s, pass_s = self._draft_steps.seconds(max(steps, 0)), self._pass_time.seconds(tokens, len(segments))
        # Only where there was nothing to do for longer than all of it does the round begin later.
        idle = began_s - self._ended_s > steps_s + pass_s
        self._wait_until((began_s - steps_s if idle else self._ended_s) + steps_s + pass_s)
        self._ended_s = self._clock()
        return logits
