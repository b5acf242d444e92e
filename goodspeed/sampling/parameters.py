"""How a stream's tokens are to be drawn, as the user asked for it."""

from __future__ import annotations

import math

from msgspec import Struct

from goodspeed.errors import InvalidRequest

__all__ = ["SamplingParams"]

_MAX_SEED = 2**63 - 1
_MAX_TOP_K = 2**31 - 1
_MAX_PENALTY = 2.0
_MAX_BIAS = 100.0
_MAX_BIASES = 1024
_MIN_TEMPERATURE = 1e-4
"""Below it no noise can lift a token over one that float32 logits tell from it, and scaled logits overflow."""


class SamplingParams(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Temperature, truncation, seed and bending of one stream; they travel with `messages.Open`.

    The order: biases and penalties, then transformers' own: temperature, then top-k, then top-p on what is left, then
    min-p.
    """

    temperature: float = 0.0
    """0 is greedy decoding, and so is anything below 0.0001."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose mass reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest; 0 keeps all."""
    seed: int = 0
    """Names the noise: with the same seed, prompt and parameters the text is the same."""
    frequency_penalty: float = 0.0
    """What a token loses for every time it has been generated."""
    presence_penalty: float = 0.0
    """What a token loses once it has been generated."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of some tokens."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that no noise is needed."""
        return self.temperature < _MIN_TEMPERATURE

    @property
    def truncated(self) -> bool:
        """Whether only some of the vocabulary can be drawn."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on what has been generated."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def bent(self) -> bool:
        """Whether the logits are the target's own no more; see `sampling.bending`."""
        return self.penalised or bool(self.logit_bias)

    def validate(self) -> None:
        """Check every value against its range.

        Raises:
            InvalidRequest: naming the value, and the range it has to be in.
        """
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise _out_of_range("temperature", self.temperature, "0 (greedy) or above")
        if not 0.0 < self.top_p <= 1.0:
            raise _out_of_range("top_p", self.top_p, "above 0 and at most 1 (1 keeps every token)")
        if not 0 <= self.top_k <= _MAX_TOP_K:
            raise _out_of_range("top_k", self.top_k, f"between 0 (keep every token) and {_MAX_TOP_K}")
        if not 0.0 <= self.min_p <= 1.0:
            raise _out_of_range("min_p", self.min_p, "between 0 (keep every token) and 1")
        if not 0 <= self.seed <= _MAX_SEED:
            raise _out_of_range("seed", self.seed, f"between 0 and {_MAX_SEED}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(value := getattr(self, name)) <= _MAX_PENALTY:
                raise _out_of_range(name, value, f"between -{_MAX_PENALTY:g} and {_MAX_PENALTY:g}")
        if (fault := self._fault_of_bias()) is not None:
            raise InvalidRequest(f"logit_bias {fault}", param="logit_bias")

    def _fault_of_bias(self) -> str | None:
        """What is wrong with the biases."""
        if len(self.logit_bias) > _MAX_BIASES:
            return f"has {len(self.logit_bias)} entries: {_MAX_BIASES} at most"
        seen: set[int] = set()
        for token, bias in self.logit_bias:
            if not 0 <= token < 2**31:
                return f"has a token {str(token)[:40]}: there is no such number"
            if token in seen:
                return f"names token {token} twice: once is enough"
            if not abs(bias) <= _MAX_BIAS:
                return f"of token {token} is {bias}: it must be between -100 and 100"
            seen.add(token)
        return None


def _out_of_range(name: str, value: float, where: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {value}: it must be {where}", param=name)
