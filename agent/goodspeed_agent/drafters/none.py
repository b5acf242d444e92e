"""No drafter: the server decodes by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import DraftSession, Guess

__all__ = ["NoDrafter"]


@dataclass(frozen=True, slots=True)
class NoDrafter:
    """Plain central decoding: what speculation is compared with."""

    name: str = "none"
    max_draft: int = 0
    fingerprint: str | None = None

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return _Silence()


class _Silence:
    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        return iter(())
