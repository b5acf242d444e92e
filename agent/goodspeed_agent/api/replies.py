"""What clients are answered, in OpenAI's shapes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from goodspeed_agent.agent import Piece
from goodspeed_agent.api.logprobs import chat_logprobs, text_logprobs
from goodspeed_agent.report import Completion, Speculation

__all__ = ["Reply", "draft_of", "marks"]


def marks(draft: str | None) -> dict[str, str]:
    """The headers of an answer that the draft wrote alone; none of one that was verified."""
    return {} if draft is None else {"X-GoodSpeed-Verified": "false"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole or in chunks.

    What the draft wrote alone names it as `model`, and says so in every chunk.

    Args:
        kind: which endpoint's.
        model: the target.
        bytes_of: a token's.
    """

    kind: Literal["chat", "text"]
    model: str
    bytes_of: Callable[[int], bytes]
    id: str = field(default="", init=False)
    _lengths: dict[int, int] = field(default_factory=dict, init=False)
    """How much of each choice's text has been sent, characters."""
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        object.__setattr__(self, "id", f"{prefix}-{secrets.token_hex(12)}")

    def whole(self, completions: Sequence[Completion], prompts: int) -> dict[str, Any]:
        """All choices at once.

        Args:
            completions: of every prompt its choices, one prompt behind the other.
            prompts: how many there are.
        """
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        return self._head("chat.completion" if self.kind == "chat" else "text_completion", draft_of(completions)) | {
            "choices": choices,
            "usage": _usage(completions, prompts),
            "metrics": _metrics(completions),
        }

    def begin(self, index: int, draft: str | None) -> dict[str, Any]:
        """The first chunk of a choice of a conversation; `draft` as in `Completion`."""
        assert self.kind == "chat"
        return self._chunk(index, {"role": "assistant", "content": ""}, draft)

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """More of a choice's text."""
        said: Any = {"content": piece.text} if self.kind == "chat" else piece.text
        offset = self._lengths.get(index, 0)
        self._lengths[index] = offset + len(piece.text)
        return self._chunk(index, said, piece.draft, logprobs=self._logprobs(piece, offset))

    def end(self, index: int, completion: Completion, written: Sequence[Completion] = ()) -> dict[str, Any]:
        """The last chunk of a choice; `written` are all of them, where it is the last of the answer."""
        said: Any = {} if self.kind == "chat" else ""
        chunk = self._chunk(index, said, completion.draft, finish_reason=completion.finish_reason)
        return chunk | {"metrics": _metrics(written)} if written else chunk

    def usage(self, completions: Sequence[Completion], prompts: int) -> dict[str, Any]:
        """The chunk behind all choices."""
        about: dict[str, Any] = {"choices": [], "usage": _usage(completions, prompts), "metrics": _metrics(completions)}
        return self._head(self._chunk_object, draft_of(completions)) | about

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
            if self.kind == "chat"
            else {"text": completion.text}
        )
        logprobs = self._logprobs(completion, 0)
        return {"index": index} | said | {"logprobs": logprobs, "finish_reason": completion.finish_reason}

    def _logprobs(self, said: Piece | Completion, offset: int) -> dict[str, Any] | None:
        """In the endpoint's own shape; None where nobody asked."""
        if not said.logprobs:
            return None
        if self.kind == "chat":
            return chat_logprobs(said.tokens, said.logprobs, self.bytes_of)
        return text_logprobs(said.tokens, said.logprobs, self.bytes_of, said.parts, offset)

    def _chunk(
        self,
        index: int,
        said: Any,
        draft: str | None,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta" if self.kind == "chat" else "text": said,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._head(self._chunk_object, draft) | {"choices": [choice]}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _head(self, kind: str, draft: str | None) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": draft or self.model}
        return head if draft is None else head | {"goodspeed": {"verified": False, "model": draft}}


def draft_of(completions: Sequence[Completion]) -> str | None:
    """Who wrote at least one of them alone: the whole is verified only if each is."""
    return next((completion.draft for completion in completions if completion.draft is not None), None)


def _usage(completions: Sequence[Completion], prompts: int) -> dict[str, int]:
    """A prompt counts once, however many choices are written to it."""
    each = len(completions) // prompts
    prompt_tokens = sum(completion.prompt_tokens for completion in completions[::each])
    completion_tokens = sum(len(completion.tokens) for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _metrics(completions: Sequence[Completion]) -> dict[str, Any]:
    total = Speculation()
    for completion in completions:
        total.add(completion.speculation)
    figures = total.to_json()
    # vLLM's own name for it, its histogram, which has a place for every length that was possible, and its numbers where
    # nothing was drafted.
    figures["num_accepted_draft_tokens"] = figures.pop("num_accepted_tokens")
    histogram = total.acceptance_histogram
    figures["acceptance_histogram"] = histogram + [0] * (total.num_spec_tokens + 1 - len(histogram))
    if not total.num_spec_steps:
        figures |= {"mean_acceptance_length": 1.0, "draft_acceptance_rate": 0.0}
    return {"speculative_decoding": figures}
