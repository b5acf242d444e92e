"""The garbage collector stops everybody for as long as it takes to look at all there is."""

from __future__ import annotations

import gc

__all__ = ["spare_what_is_there"]


def spare_what_is_there() -> None:
    """Never look again at what there is: modules, and the model; before a server begins.

    That is most of what there will ever be, and a look at it takes longer than a link should wait.
    """
    gc.collect()
    gc.freeze()
