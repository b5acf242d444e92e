"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from goodspeed.logprobs import TokenLogprobs

__all__ = ["chat_logprobs", "text_logprobs"]

_UNKNOWN = -9999.0
"""What OpenAI writes where there is nothing to tell."""

TokenBytes = Callable[[int], bytes]


def chat_logprobs(
    tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None], bytes_of: TokenBytes
) -> dict[str, Any]:
    """As `/v1/chat/completions` gives them: an entry a token, with its bytes, which put characters together again."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = bytes_of(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        entry(token, _UNKNOWN if known is None else known.logprob)
        | {"top_logprobs": [entry(*other) for other in (() if known is None else known.alternatives)]}
        for token, known in zip(tokens, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    tokens: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    bytes_of: TokenBytes,
    parts: Sequence[str],
    offset: int,
) -> dict[str, Any]:
    """As `/v1/completions` gives them: a list of each kind.

    Args:
        tokens: committed.
        logprobs: of each.
        bytes_of: a token's.
        parts: the text that became certain with each token.
        offset: where the first of them begins in the whole text, characters.
    """

    def name(token: int) -> str:
        raw = bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            # As OpenAI names a token that is no whole character: two of them are not to be one.
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    offsets = [offset]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return {
        "tokens": [name(token) for token in tokens],
        "token_logprobs": [_UNKNOWN if known is None else known.logprob for known in logprobs],
        "top_logprobs": [
            # The chosen token too, which need not be among the likeliest.
            {}
            if known is None
            else {name(one): logprob for one, logprob in (*known.alternatives, (token, known.logprob))}
            for token, known in zip(tokens, logprobs, strict=True)
        ],
        "text_offset": offsets[: len(tokens)],
    }
