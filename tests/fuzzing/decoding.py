"""The decoders under fuzz: whatever comes, a message or an error of the protocol, and nothing is kept of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

from goodspeed.errors import MalformedMessage, VersionMismatch
from goodspeed.messages import AgentMessage, ServerMessage, decode_agent, decode_server, encode
from tests.fuzzing.frames import AGENT, SERVER, Frames, corpus

__all__ = ["Direction", "decode_many", "outcomes_of"]

Direction: TypeAlias = Literal["agent", "server"]

_DECODERS: dict[Direction, Callable[[bytes], AgentMessage | ServerMessage]] = {
    "agent": decode_agent,
    "server": decode_server,
}
_KINDS = {"agent": AGENT, "server": SERVER}
_ERRORS = (MalformedMessage, VersionMismatch)


def outcomes_of(direction: Direction) -> frozenset[str]:
    """What frames can become: every message, and every error."""
    return frozenset(kind.__name__ for kind in (*_KINDS[direction], *_ERRORS))


def decode_many(direction: Direction, count: int, seed: int) -> Counter[str]:
    """Decode so many frames.

    Args:
        direction: whose messages they are.
        count: how many.
        seed: of the frames.

    Returns:
        What became of them: how often each message came of one, and each error.

    Raises:
        Exception: whatever a decoder raised besides the errors of the protocol.
        AssertionError: what was read is not what is written of it.
    """
    decode = _DECODERS[direction]
    frames = Frames(_KINDS[direction], corpus(direction), random.Random(f"{direction}/{seed}"))
    became: Counter[str] = Counter()
    for _ in range(count):
        frame = frames.any()
        try:
            message = decode(frame)
        except _ERRORS as error:
            became[type(error).__name__] += 1
            continue
        became[type(message).__name__] += 1
        packed = encode(message)
        assert encode(decode(packed)) == packed, frame.hex()
    return became
