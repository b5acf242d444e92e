"""What came of a generation, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from goodspeed.logprobs import TokenLogprobs
from goodspeed.stream import Finish

__all__ = ["Completion", "Origin", "Speculation"]

Origin: TypeAlias = Literal["target", "accepted", "recovered", "bonus", "unverified"]
"""Where a token comes from: the target decoded it where nothing was drafted, or it was drafted and accepted, or it
stands in place of the first that was not, or behind a draft that was accepted whole; or the draft wrote it alone."""


@dataclass(slots=True)
class Speculation:
    """How well drafting went, in vLLM's terms."""

    num_draft_tokens: int = 0
    """That a pass of the server verified."""
    acceptance_histogram: list[int] = field(default_factory=list)
    """At `j`, how many verified drafts of at least one token had exactly `j` tokens accepted."""
    num_sent_tokens: int = 0
    """Drafted tokens that went to the server: also those that came too late to be verified, or behind a wrong one."""

    num_spec_tokens: int = 0
    """The longest draft that the server asked for; where it does not wait, the farthest ahead of the text."""

    def verified(self, accepted: int) -> None:
        """Count one draft that the server verified, of which so many tokens were accepted."""
        self.acceptance_histogram += [0] * (accepted + 1 - len(self.acceptance_histogram))
        self.acceptance_histogram[accepted] += 1

    def add(self, other: Speculation) -> None:
        """Sum up over generations."""
        self.num_draft_tokens += other.num_draft_tokens
        self.num_sent_tokens += other.num_sent_tokens
        self.num_spec_tokens = max(self.num_spec_tokens, other.num_spec_tokens)
        for accepted, count in enumerate(other.acceptance_histogram):
            self.acceptance_histogram += [0] * (accepted + 1 - len(self.acceptance_histogram))
            self.acceptance_histogram[accepted] += count

    @property
    def num_spec_steps(self) -> int:
        """Verdicts upon a draft of at least one token."""
        return sum(self.acceptance_histogram)

    @property
    def num_accepted_tokens(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(accepted * count for accepted, count in enumerate(self.acceptance_histogram))

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per verified draft, the recovered or bonus token among them; None without a draft."""
        return 1 + self.num_accepted_tokens / self.num_spec_steps if self.num_spec_steps else None

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Accepted of verified tokens; None without a draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else None

    def to_json(self) -> dict[str, Any]:
        """The counters and what follows from them."""
        return {
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_sent_tokens": self.num_sent_tokens,
            "num_spec_tokens": self.num_spec_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "mean_acceptance_length": _rounded(self.mean_acceptance_length),
            "draft_acceptance_rate": _rounded(self.draft_acceptance_rate),
            "acceptance_histogram": self.acceptance_histogram,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    tokens: list[int]
    finish_reason: Finish
    prompt_tokens: int
    speculation: Speculation = field(default_factory=Speculation)
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Of the tokens, where they were asked for."""
    parts: Sequence[str] = ()
    """The text, as it became certain with each of the tokens."""
    draft: str | None = None
    """Which draft wrote it alone, where no server could be reached; None of a text that was verified."""

    def to_json(self) -> dict[str, Any]:
        """One object, as `--json` prints it."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": len(self.tokens)},
            "speculative": self.speculation.to_json(),
        } | ({} if self.draft is None else {"verified": False, "model": self.draft})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
