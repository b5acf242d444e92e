"""A drafter without a model: text repeats itself, so go on as it went on the last times.

The index maps every `_SEED`-gram of the stream's own tokens to the places behind it. To draft, the places that share
the longest suffix with the transcript are found, and their next tokens are counted: that is `q`. The chosen token
keeps the places that agree with it, so that a whole draft costs one search. Nothing is guessed without a match.
(Drafting from the prompt's own n-grams: Saxena, Prompt Lookup Decoding, 2023; from suffixes: arXiv 2411.04975.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from goodspeed.rules import rule_named
from goodspeed.sampling import SamplingParams, gumbel, position_keys
from goodspeed.verification import Rule
from goodspeed_agent.drafters.interface import DraftSession, Guess, common_prefix

__all__ = ["SuffixDrafter"]

_SEED = 2
"""The shortest match: one token alone predicts nothing."""
_LONGEST = 16
"""A longer match is not a better one."""
_TRUST = 2
"""A draft is at most this many times as long as the match it continues."""
_PLACES = 16
"""How many of the latest places are looked at."""


@dataclass(frozen=True, slots=True)
class SuffixDrafter:
    """Needs neither a model nor torch, and no tokenizer of its own."""

    name: str = "suffix"
    max_draft: int = 32
    fingerprint: str | None = None

    def open(self, params: SamplingParams, *, rule: Rule, vocab_size: int, prompt_tokens: int = 0) -> DraftSession:
        """Begin a stream."""
        return SuffixSession(params, rule)


class SuffixSession:
    """The index over one stream's tokens."""

    def __init__(self, params: SamplingParams, rule: Rule) -> None:
        self._params = params
        self._rule = rule_named(rule)
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}

    def guesses(self, tokens: Sequence[int]) -> Iterator[Guess]:
        """Go on as the text went on behind the longest match, for a few times the match's length."""
        self._index(tokens)
        places, matched = self._longest_matches()
        text = list(self._tokens)
        # A place may run into what is being drafted: so a loop goes on as a loop.
        while places and len(text) - len(tokens) < _TRUST * matched:
            counts = Counter(text[place] for place in places)
            token = self._choose(counts, len(text))
            places = [place + 1 for place in places if text[place] == token]
            confidence = max(counts.values()) / counts.total() * matched / (matched + 1)
            yield Guess(token, confidence, self._rule.settled(token))
            text.append(token)

    def _index(self, tokens: Sequence[int]) -> None:
        known = len(self._tokens)
        if common_prefix(self._tokens, tokens) < known:
            self._tokens, self._places, known = [], {}, 0
        self._tokens.extend(tokens[known:])
        for end in range(max(known, _SEED - 1) + 1, len(tokens) + 1):
            self._places.setdefault(tuple(self._tokens[end - _SEED : end]), []).append(end)

    def _longest_matches(self) -> tuple[list[int], int]:
        """The places that share the longest suffix with the text, latest first, and that suffix's length."""
        text, size = self._tokens, len(self._tokens)
        # The last place is the end of the text itself.
        candidates = self._places.get(tuple(text[-_SEED:]), [])[-_PLACES - 1 : -1]
        best, longest = _SEED, list[int]()
        for place in reversed(candidates):
            length = _SEED
            while length < min(place, _LONGEST) and text[place - length - 1] == text[size - length - 1]:
                length += 1
            if length > best:
                best, longest = length, [place]
            elif length == best:
                longest.append(place)
        return longest, best

    def _choose(self, counts: Counter[int], position: int) -> int:
        if self._params.greedy or len(counts) == 1:
            return counts.most_common(1)[0][0]
        tokens = np.fromiter(counts, dtype=np.int32)
        log_q = np.log(np.fromiter(counts.values(), dtype=np.float32))
        noisy = log_q + gumbel(position_keys([self._params.seed], [position]), tokens)
        return int(tokens[int(noisy.argmax())])
