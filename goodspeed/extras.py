"""How what is not always installed is: the extras that `pyproject.toml` names."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Extra", "how_to_install"]

Extra: TypeAlias = Literal["models", "gguf", "tune", "bench"]


def how_to_install(extra: Extra) -> str:
    """What to do where an extra is missing, as part of a sentence."""
    return f"pip install '.[{extra}]' in GoodSpeed's repository"
