"""The process of a rank other than the first: listened to from its start to its end.

A rank says that it is ready, and from then on nothing of meaning: the end of its standard output is its own. Whoever
waits for ranks, at whatever, waits for `lost` too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from concurrent.futures import Future

from goodspeed.errors import RankLost

__all__ = ["READY", "RankProcess"]

READY = b"ready\n"
"""What a rank says on standard output when it is about to meet the others."""
_READ_BYTES = 4096
_SHOWN_BYTES = 80
_END_S = 5.0
"""How long a rank may go on that says nothing any more, or is told to end."""


class RankProcess:
    """One rank.

    Args:
        process: its own, with a pipe for its standard output.
        rank: which one it is.
        size: how many ranks there are.
    """

    def __init__(self, process: subprocess.Popen[bytes], rank: int, size: int) -> None:
        self._process = process
        self._rank = rank
        self._size = size
        self.ready: Future[None] = Future()
        """Done once it has said so; failed with what `lost` is, if that comes first."""
        self.lost: Future[RankLost] = Future()
        """What to say of it once no other rank can go on; an end in order counts."""
        for future in (self.ready, self.lost):
            future.set_running_or_notify_cancel()  # whoever does not wait any more leaves it to others
        self._listener = threading.Thread(target=self._listen, name=f"rank {rank}", daemon=True)
        self._listener.start()

    def status(self, timeout_s: float) -> int | None:
        """With which status it has ended; None if it has not, and does not in that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def loss(self) -> RankLost:
        """What to say of it now that it is at its end, whether that has been heard or not."""
        return self.lost.result() if self.lost.done() else self._ended()

    def wait(self) -> None:
        """Give it the time to end that it may take, once it has been told to."""
        self.status(_END_S)

    def kill(self) -> None:
        """End it, in whatever state it is, and what listens to it."""
        self._process.kill()
        self._listener.join(_END_S)

    def _ended(self) -> RankLost:
        status = self.status(_END_S)
        if status is None:
            how = "says nothing any more, and does not end"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        return RankLost(
            f"rank {self._rank} of the target's {self._size} {how}, and no other can go on without it: start the "
            "server again (what that rank had to say stands above)"
        )

    def _listen(self) -> None:
        assert self._process.stdout is not None
        pipe, said = self._process.stdout.fileno(), b""
        while READY.startswith(said) and said != READY and (more := os.read(pipe, _READ_BYTES)):
            said += more
        if said.startswith(READY):
            self.ready.set_result(None)
            while os.read(pipe, _READ_BYTES):  # libraries print what they like
                pass
            self.lost.set_result(self._ended())
            return
        lost = self._ended() if READY.startswith(said) else self._nonsense(said)
        self.lost.set_result(lost)
        self.ready.set_exception(lost)

    def _nonsense(self, said: bytes) -> RankLost:
        words = said[:_SHOWN_BYTES].decode(errors="replace")
        return RankLost(
            f"rank {self._rank} of the target's {self._size} said {words!r} where it should have said that it is "
            "ready: see that nothing prints as this Python starts (sitecustomize.py, a .pth file), and start the "
            "server again"
        )
