"""What others' code says of why it failed, as part of a sentence of ours."""

from __future__ import annotations

__all__ = ["reason"]


def reason(error: BaseException) -> str:
    """What it says, in one line and cut short, or the kind of error where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
