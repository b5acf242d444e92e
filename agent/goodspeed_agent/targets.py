"""What makes a target the same as before, and what it may say."""

from __future__ import annotations

import logging

from goodspeed.errors import ProtocolError, TargetChanged
from goodspeed.messages import Verdict, Welcome

__all__ = ["check_same", "check_tokens", "identity"]

_log = logging.getLogger(__name__)


def identity(welcome: Welcome) -> tuple[object, ...]:
    """All that has to stay the same for a text to go on as it began; a name may change, and so may limits."""
    return (
        welcome.weights, welcome.fingerprint, welcome.tokenizer, welcome.rule, welcome.vocab_size,
        welcome.eos_tokens,
    )  # fmt: skip


def check_same(welcome: Welcome, before: Welcome, url: str) -> None:
    """See whether texts can go on at a server, and say if they have less room there.

    Args:
        welcome: what it says of itself.
        before: what was said where the texts began.
        url: its address.

    Raises:
        TargetChanged: they cannot.
    """
    if identity(welcome) != identity(before):
        raise TargetChanged(
            f"the server at {url} came back with another target or rule ({welcome.model}, {welcome.rule}): "
            "what was generated so far cannot be continued there; start anew"
        )
    if welcome.max_length < before.max_length:
        _log.warning(
            "the server at %s holds %d tokens a stream, prompt and text together, and there were %d before: a text "
            "that was begun with more room ends sooner there, or is refused",
            url,
            welcome.max_length,
            before.max_length,
        )


def check_tokens(verdict: Verdict, vocab_size: int) -> None:
    """See whether a verdict's tokens can be the target's.

    Raises:
        ProtocolError: a drafter would be handed them, repeat them, and be taken for broken.
    """
    highest = max(verdict.tokens, default=0)
    if highest >= vocab_size:
        raise ProtocolError(
            f"a verdict commits token {highest} to stream {verdict.stream}, and the target's vocabulary has "
            f"{vocab_size} tokens"
        )
