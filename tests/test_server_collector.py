"""The garbage collector of a server does not look at its model, nor at what it has imported."""

from __future__ import annotations

import gc

from goodspeed_server.collector import spare_what_is_there


def test_what_is_there_before_a_server_begins_is_never_looked_at_again() -> None:
    before, there = gc.get_freeze_count(), [[number] for number in range(1000)]
    try:
        spare_what_is_there()
        assert gc.get_freeze_count() > before + len(there)
        assert not any(known is there for known in gc.get_objects())
    finally:
        gc.unfreeze()
