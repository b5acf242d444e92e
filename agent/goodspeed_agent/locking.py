"""A file that one process at a time works on, where the system can see to it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from goodspeed.errors import InvalidRequest

if sys.platform != "win32":
    import fcntl

__all__ = ["alone_with"]


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep others who ask here from a file, which is made if it is not there, while the block runs.

    A pipe or a device is everybody's, and so is a file where there are no locks.

    Raises:
        InvalidRequest: another has it.
        OSError: it cannot be written.
    """
    if sys.platform == "win32" or (path.exists() and not path.is_file()):
        yield
        return
    with _locked(path):
        yield


def _locked(path: Path) -> BinaryIO:
    """The file, opened; the lock goes when it is closed."""
    while True:
        file = path.open("ab")
        try:
            _lock(file, path)
            # Whoever had the lock may have put another file in this one's place before letting go.
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequest(
            f"{path} is being written by another run: wait until that has ended, or name another file as --output"
        ) from None
    except OSError:
        # Some file systems have no locks; results are worth more than being safe from a second run.
        return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
