"""What came of a generation, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from goodspeed.stream import Finish

__all__ = ["Completion", "Speculation"]


@dataclass(slots=True)
class Speculation:
    """How well drafting went, in vLLM's terms."""

    num_spec_steps: int = 0
    """Verdicts that answered a draft of at least one token."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def add(self, other: Speculation) -> None:
        """Sum up over generations."""
        self.num_spec_steps += other.num_spec_steps
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per verified draft, the recovered or bonus token among them; None without a draft."""
        return 1 + self.num_accepted_tokens / self.num_spec_steps if self.num_spec_steps else None

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Accepted of drafted tokens; None without a draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else None

    def to_json(self) -> dict[str, Any]:
        """The counters and what follows from them."""
        return {
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "mean_acceptance_length": _rounded(self.mean_acceptance_length),
            "draft_acceptance_rate": _rounded(self.draft_acceptance_rate),
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    tokens: list[int]
    finish_reason: Finish
    prompt_tokens: int
    speculation: Speculation = field(default_factory=Speculation)

    def to_json(self) -> dict[str, Any]:
        """One object, as `--json` prints it."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": len(self.tokens)},
            "speculative": self.speculation.to_json(),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
