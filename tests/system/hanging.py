"""`goodspeed-server`, whose engine never returns from a pass over a certain token."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from unittest import mock

from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed_server.cli import app

__all__ = ["HANGS_AT"]

HANGS_AT = 2047
_forward = Engine.forward


def _hang(self: Engine, segments: Sequence[Segment]) -> Tensor:
    if any(HANGS_AT in segment.tokens for segment in segments):
        threading.Event().wait()
    return _forward(self, segments)


if __name__ == "__main__":
    with mock.patch.object(Engine, "forward", _hang), mock.patch("goodspeed_server.server._LAST_PASS_S", 0.1):
        app()
