"""What an agent can draft with: nothing, its own text's repetitions, a small model, or anybody's own class."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from goodspeed import catalog
from goodspeed.errors import ModelError
from goodspeed.extras import how_to_install
from goodspeed.plugins import Kind, find, make
from goodspeed_agent.drafters.interface import Drafter, DraftSession, Guess
from goodspeed_agent.drafters.none import NoDrafter
from goodspeed_agent.drafters.suffix import SuffixDrafter

__all__ = ["DRAFTER", "DraftSession", "Drafter", "Guess", "NoDrafter", "SuffixDrafter", "default_draft", "load_drafter"]

_BUILT_IN: Mapping[str, Callable[..., Drafter]] = {"none": NoDrafter, "suffix": SuffixDrafter}

# mypy has no type for "a protocol's own class".
DRAFTER: Kind[Drafter] = Kind("drafter", "goodspeed.drafters", Drafter, _BUILT_IN)  # type: ignore[type-abstract]


def load_drafter(name: str, *, threads: int | None = None) -> Drafter:
    """Make a drafter.

    Args:
        name: `none`, `suffix`, a class of one's own (see `goodspeed.plugins`), a GGUF file, a bundled model, a local
            folder or a Hugging Face name.
        threads: how many a model may use, None for as many as suit it; told to a constructor that has a parameter
            `threads`.

    Raises:
        ModelError: the model cannot be used, or what runs it is not installed.
        InvalidRequest: a class of one's own cannot be used.
    """
    if find(DRAFTER, name) is not None:
        return make(DRAFTER, name, threads=threads)
    if name.lower().endswith(".gguf"):
        from goodspeed_agent.drafters.gguf import GgufDrafter

        return GgufDrafter.load(name, threads=threads)
    if not _have_torch():
        raise ModelError(
            f"drafting with {name!r} needs torch: {how_to_install('models')}, or draft without: --draft suffix"
        )
    from goodspeed_agent.drafters.model import ModelDrafter

    return ModelDrafter.load(name, threads=threads or 1)


def default_draft() -> str:
    """The drafter of a user who named none: the bundled draft if it can run here, else `suffix`."""
    here = any(model.name == catalog.DEFAULT_DRAFT for model in catalog.bundled())
    return catalog.DEFAULT_DRAFT if here and _have_torch() else "suffix"


def _have_torch() -> bool:
    return all(importlib.util.find_spec(module) is not None for module in ("torch", "transformers"))
