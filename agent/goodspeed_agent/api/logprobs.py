"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from goodspeed.logprobs import TokenLogprobs

__all__ = ["chat_logprobs", "text_logprobs"]

_UNKNOWN = -9999.0
"""What OpenAI writes where there is nothing to tell."""

Decode = Callable[[Sequence[int]], str]


def chat_logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None], decode: Decode) -> dict[str, Any]:
    """As `/v1/chat/completions` gives them: an entry a token, with its bytes."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        entry(token, _UNKNOWN if known is None else known.logprob)
        | {"top_logprobs": [entry(*other) for other in (() if known is None else known.alternatives)]}
        for token, known in zip(tokens, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None], decode: Decode) -> dict[str, Any]:
    """As `/v1/completions` gives them: a list of each kind."""
    texts = [decode([token]) for token in tokens]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [_UNKNOWN if known is None else known.logprob for known in logprobs],
        "top_logprobs": [
            {} if known is None else {decode([token]): logprob for token, logprob in known.alternatives}
            for known in logprobs
        ],
        "text_offset": offsets[:-1],
    }
