"""A rank of a tensor-parallel target other than the first: it serves nobody, and does as rank 0's engine does.

`python -m goodspeed_server.follower` is how a server starts those it wants (`ranks.gathered`). Under torchrun it is
`goodspeed-server run` that becomes one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import msgspec
import typer

from goodspeed.engine.group import Place
from goodspeed.engine.parallel import follow
from goodspeed.errors import RankLost
from goodspeed.logs import JsonLines, Readable, log_to
from goodspeed_server.errands import errors_named
from goodspeed_server.parts import Part, PartSettings, share_cores
from goodspeed_server.rank_process import READY

__all__ = ["be_follower"]


class _Started(msgspec.Struct, frozen=True):
    """What `ranks.gathered` has to say."""

    settings: PartSettings
    place: Place
    log_json: bool


def be_follower(settings: PartSettings, place: Place) -> None:
    """Have a part of the target, until rank 0 says that it is over.

    Raises:
        GoodSpeedError: the part cannot be loaded, or another rank is gone.
    """
    # What ends a server is sent to all of its processes, and rank 0 still needs this one to end in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    share_cores(settings, place)
    try:
        part = Part.load(settings, place)
    except RuntimeError as error:
        raise RankLost(
            f"rank {place.rank} of the target's {place.size} could not load its part with the others ({error})"
        ) from None
    follow(part.group, part.model, part.model.device)
    part.group.leave()


def _end_with_rank_0() -> None:
    """Whatever this process waits for, it ends when the one that started it is gone, and with it the other end."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _main() -> None:
    started = msgspec.json.decode(sys.argv[1], type=_Started)
    formatter = JsonLines() if started.log_json else Readable("%(asctime)s %(levelname)s %(message)s")
    log_to(logging.StreamHandler(), formatter, ours=("goodspeed_server",))
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    try:
        with errors_named():
            be_follower(started.settings, started.place)
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    _main()
