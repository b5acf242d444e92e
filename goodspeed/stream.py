"""One generation: its committed tokens, and the cursor that makes lost, repeated and late messages harmless.

Both sides hold the transcript. A draft and a verdict each name the committed length they build on, their `base`; what
does not fit is recognised by that number alone: an agent that is behind is answered with the suffix it is missing,
an overlap is skipped, and any server can go on from the agent's copy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.logprobs import MAX_ALTERNATIVES
from goodspeed.messages import MAX_DRAFT_TOKENS, Draft, Open, Verdict
from goodspeed.rules import rule_named
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Judgement, Rule

__all__ = ["Commit", "Finish", "ServedStream", "Transcript", "check_draft"]

Finish = Literal["stop", "length"]


class Transcript:
    """The committed tokens of a stream, as the agent holds them.

    Args:
        prompt: the prompt's tokens, at least one.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.finish: Finish | None = None

    @property
    def length(self) -> int:
        """The committed length, prompt included: the base of the next draft."""
        return len(self.tokens)

    @property
    def generated(self) -> list[int]:
        """The committed tokens behind the prompt."""
        return self.tokens[self.prompt_tokens :]

    def apply(self, verdict: Verdict, drafted: Sequence[int]) -> list[int]:
        """Commit what a verdict says.

        Args:
            verdict: from the server.
            drafted: the draft sent for this base, empty if none was.

        Returns:
            The tokens that are new here: none if the verdict was a repetition.

        Raises:
            ProtocolError: the verdict leaves a gap, contradicts the transcript, or accepts what was not drafted.
        """
        if verdict.base > self.length:
            raise ProtocolError(
                f"a verdict upon {verdict.base} tokens of stream {verdict.stream}, which has {self.length} here"
            )
        if verdict.base < self.length:
            # A repetition: everything it holds must be here already, or follow what is.
            known = self.tokens[verdict.base :]
            if verdict.accepted > len(known):
                raise ProtocolError(
                    f"a verdict accepts {verdict.accepted} tokens upon {verdict.base} of stream {verdict.stream}, "
                    f"which has {self.length} here"
                )
            told = known[: verdict.accepted] + verdict.tokens
            new = told[len(known) :]
            if told[: len(known)] != known[: len(told)]:
                raise ProtocolError(f"a verdict contradicts what was committed to stream {verdict.stream}")
        else:
            if verdict.accepted > len(drafted):
                raise ProtocolError(
                    f"{verdict.accepted} tokens accepted of the {len(drafted)} drafted for stream {verdict.stream}"
                )
            new = [*drafted[: verdict.accepted], *verdict.tokens]
        self.tokens += new
        self.finish = verdict.finish or self.finish
        return new


@dataclass(frozen=True, slots=True)
class Commit:
    """What a judgement adds to a stream, after its end has been looked for."""

    base: int
    accepted: int
    appended: tuple[int, ...]
    """The recovered or bonus token, unless the stream ended inside the accepted tokens."""
    finish: Finish | None
    verified: int
    """How many drafted tokens were judged."""

    @property
    def ended_within(self) -> bool:
        """Whether the stream ended inside the accepted tokens."""
        return not self.appended

    @property
    def size(self) -> int:
        """Committed tokens: the goodput of this round."""
        return self.accepted + len(self.appended)


@dataclass(slots=True)
class ServedStream:
    """A stream as the server holds it.

    Raises:
        InvalidRequest: from `opened`, with a sentence that names the value that is out of range.
    """

    tokens: list[int]
    prompt_tokens: int
    params: SamplingParams
    max_new_tokens: int
    max_draft: int
    max_length: int
    eos_tokens: Collection[int]
    domain: str = ""
    """As in `messages.Open`; so is `logprobs`."""
    logprobs: int = -1
    opened_at: float = 0.0
    """When it was asked for, seconds."""
    cached: int = 0
    """How many tokens stand in the KV slab; rolling back is making this smaller."""
    finish: Finish | None = field(default=None)

    @classmethod
    def opened(cls, message: Open, *, vocab_size: int, max_length: int, eos_tokens: Collection[int]) -> ServedStream:
        """Check an `Open` and make its stream."""
        message.params.validate()
        size = len(message.tokens)
        if message.prompt_tokens <= 0:
            raise InvalidRequest("the prompt is empty: send at least one token", code="empty_prompt")
        if message.max_new_tokens <= 0:
            raise InvalidRequest(f"max_new_tokens is {message.max_new_tokens}: it must be 1 or above")
        if not 0 <= message.max_draft <= MAX_DRAFT_TOKENS:
            raise InvalidRequest(f"max_draft is {message.max_draft}: it must be between 0 and {MAX_DRAFT_TOKENS}")
        if message.prompt_tokens > size:
            raise InvalidRequest(f"a prompt of {message.prompt_tokens} tokens was announced, and {size} tokens came")
        if size >= max_length:
            raise InvalidRequest(
                f"the prompt has {size} tokens and this server holds {max_length} a stream, prompt and text together: "
                f"shorten it to {max_length - 1} or less",
                code="prompt_too_long",
            )
        _check_ids(message.tokens, vocab_size, "token_out_of_range")
        _check_ids([token for token, _ in message.params.logit_bias], vocab_size, "token_out_of_range")
        if not -1 <= message.logprobs <= min(MAX_ALTERNATIVES, vocab_size):
            raise InvalidRequest(
                f"{message.logprobs} alternatives are asked for: it must be between -1, for no log-probabilities, and "
                f"{MAX_ALTERNATIVES}"
            )
        if size - message.prompt_tokens >= message.max_new_tokens:
            raise InvalidRequest(
                f"{size - message.prompt_tokens} tokens are generated already and max_new_tokens is "
                f"{message.max_new_tokens}: nothing is left to do"
            )
        return cls(
            tokens=list(message.tokens),
            prompt_tokens=message.prompt_tokens,
            params=message.params,
            max_new_tokens=message.max_new_tokens,
            max_draft=message.max_draft,
            max_length=max_length,
            eos_tokens=() if message.ignore_eos else eos_tokens,
            domain=message.domain,
            logprobs=message.logprobs,
        )

    @property
    def length(self) -> int:
        """The committed length."""
        return len(self.tokens)

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def prefilled(self) -> bool:
        """Whether all but the last token stand in the slab, so that the stream can take part in rounds."""
        return self.cached >= self.length - 1

    @property
    def room(self) -> int:
        """How many tokens the stream may still grow by."""
        return min(self.max_new_tokens - self.generated, self.max_length - self.length)

    @property
    def draft_limit(self) -> int:
        """The longest draft that can still be of use: one token of every round comes from the target itself."""
        return max(0, min(self.max_draft, self.room - 1))

    def missing(self, base: int) -> list[int]:
        """The suffix an agent at `base` lacks.

        Raises:
            ProtocolError: it claims to hold more than was ever committed.
        """
        if base > self.length or base < self.prompt_tokens:
            raise ProtocolError(f"a draft upon {base} tokens of a stream that has {self.length}")
        return self.tokens[base:]

    def commit(self, drafted: Sequence[int], judgement: Judgement) -> Commit:
        """Append what was accepted and the token behind it, up to the stream's end."""
        base, room = self.length, self.room
        new = [*drafted[: judgement.accepted], judgement.token]
        finish: Finish | None = None
        for index, token in enumerate(new):
            if token in self.eos_tokens:
                new, finish = new[: index + 1], "stop"
                break
        if len(new) > room or (len(new) == room and finish is None):
            new, finish = new[:room], "length"
        self.tokens += new
        self.finish = finish
        # The last committed token has not been through the model yet; everything before it has.
        self.cached = self.length - 1
        accepted = min(judgement.accepted, len(new))
        return Commit(base, accepted, tuple(new[accepted:]), finish, len(drafted))


def check_draft(message: Draft, budget: int, vocab_size: int, rule: Rule) -> list[Any]:
    """See whether a draft can be used.

    Returns:
        What its rule reads out of what was sent with each token; nothing, where nothing is.

    Raises:
        InvalidRequest: it is longer than its budget, or a token or its distribution cannot be.
    """
    if len(message.tokens) > budget:
        raise InvalidRequest(
            f"{len(message.tokens)} tokens were drafted and the budget is {budget}", code="draft_too_long"
        )
    _check_ids(message.tokens, vocab_size, "draft_out_of_range")
    try:
        evidence = list(rule_named(rule).read(message.q, message.tokens, vocab_size))
    except InvalidRequest:
        raise
    # A rule of somebody's own; whatever a peer sent, it is the peer who is told.
    except Exception as error:
        raise InvalidRequest(f"what was sent with the draft cannot be read: {error}", code="invalid_q") from error
    if evidence and len(evidence) != len(message.tokens):
        raise InvalidRequest(
            f"something was sent with {len(evidence)} of {len(message.tokens)} drafted tokens", code="invalid_q"
        )
    return evidence


def _check_ids(tokens: Sequence[int], vocab_size: int, code: str) -> None:
    for token in (min(tokens, default=0), max(tokens, default=0)):
        if not 0 <= token < vocab_size:
            raise InvalidRequest(f"token id {token} is out of range: the vocabulary has {vocab_size} tokens", code=code)
