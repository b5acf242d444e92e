"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from goodspeed.errors import InvalidRequest

__all__ = ["expanded"]


def expanded(path: Path) -> Path:
    """Put a home in place of a leading `~`, which no shell does in files, in the environment or behind a `=`.

    Raises:
        InvalidRequest: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise InvalidRequest(f"{path} cannot be found: there is no user {path.parts[0]}, or it has no home") from None
