"""A file is one process's at a time, and the file that is locked is the one that is there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from goodspeed.errors import InvalidRequest
from goodspeed_agent.locking import alone_with

fcntl = pytest.importorskip("fcntl")


def test_a_file_has_one_owner_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with alone_with(path), pytest.raises(InvalidRequest, match="another run"), alone_with(path):
        pass
    with alone_with(path):
        pass


def test_a_file_that_was_replaced_before_it_was_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "file", tmp_path / "new"
    new.write_bytes(b"new")
    flock = fcntl.flock

    def late(file: BinaryIO, operation: int) -> None:
        if new.exists():
            os.replace(new, path)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_with(path), pytest.raises(InvalidRequest), alone_with(path):
        pass
    assert path.read_bytes() == b"new"


def test_where_there_are_no_locks_a_file_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: BinaryIO, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with alone_with(tmp_path / "file"), alone_with(tmp_path / "file"):
        pass


def test_a_device_is_everybodys() -> None:
    with alone_with(Path(os.devnull)), alone_with(Path(os.devnull)):
        pass
