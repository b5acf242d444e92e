"""One stream's life at the agent, as messages in and messages out: open, draft, hear the verdict, and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.logprobs import MAX_ALTERNATIVES, TokenLogprobs, unpack_logprobs
from goodspeed.messages import MAX_DRAFT_TOKENS, MAX_TEXT, Draft, DraftEnd, Open, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Transcript
from goodspeed_agent.drafters.interface import Guess
from goodspeed_agent.report import Origin, Speculation

__all__ = ["Generation", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 128
    max_draft: int = 0
    ignore_eos: bool = False
    domain: str = ""
    """What it is about; see `messages.Open`."""
    logprobs: int = -1
    """As in `messages.Open`."""

    def validate(self) -> None:
        """Check every value that can be checked here.

        Raises:
            InvalidRequest: naming the value, and the range it has to be in.
        """
        self.params.validate()
        if not self.prompt:
            raise InvalidRequest(
                "the prompt is empty: it needs at least one token", code="empty_prompt", param="prompt"
            )
        if not 1 <= self.max_new_tokens < 2**31:
            raise InvalidRequest(
                f"max_new_tokens is {self.max_new_tokens}: it must be between 1 and {2**31 - 1}", param="max_new_tokens"
            )
        if not 0 <= self.max_draft <= MAX_DRAFT_TOKENS:
            raise InvalidRequest(
                f"max_draft is {self.max_draft}: it must be between 0 and {MAX_DRAFT_TOKENS}", param="max_draft"
            )
        if not -1 <= self.logprobs <= MAX_ALTERNATIVES:
            raise InvalidRequest(
                f"{self.logprobs} alternatives are asked for: it must be between 0 and {MAX_ALTERNATIVES}",
                param="logprobs",
            )
        if len(self.domain) > MAX_TEXT:
            raise InvalidRequest(f"domain has {len(self.domain)} characters: {MAX_TEXT} at most", param="domain")


class Generation:
    """The agent's side of a stream.

    Args:
        stream: its number on the link.
        request: validated.
    """

    def __init__(self, stream: int, request: Request) -> None:
        self.stream = stream
        self.request = request
        self.transcript = Transcript(request.prompt)
        self.speculation = Speculation()
        self.logprobs: list[TokenLogprobs | None] = []
        """Of every generated token, where they were asked for; None where the server had none to give."""
        self.origins: list[Origin] = []
        """Of every generated token."""
        self._drafted: list[int] = []
        self._drafted_upon = -1
        """The length that the draft under way builds on."""

    def opening(self) -> Open:
        """The message that opens the stream, or opens it again from what is committed."""
        self._drafted, self._drafted_upon = [], -1
        return Open(
            self.stream,
            list(self.transcript.tokens),
            self.transcript.prompt_tokens,
            self.request.params,
            self.request.max_new_tokens,
            self.request.max_draft,
            self.request.ignore_eos,
            self.request.domain,
            self.request.logprobs,
        )

    def draft(self, guesses: Sequence[Guess], computed_s: float = 0.0, end: DraftEnd = DraftEnd.FAR_ENOUGH) -> Draft:
        """The message that sends a draft upon the committed length; see `messages.Draft`."""
        message = self._message(self.transcript.length, guesses, computed_s, end)
        self._drafted, self._drafted_upon = message.tokens, message.base
        self.speculation.num_sent_tokens += len(message.tokens)
        return message

    def begin_guessing(self, upon: int) -> None:
        """What was guessed before is of no use, or there is none: the next piece builds on so many committed tokens."""
        self._drafted, self._drafted_upon = [], upon

    def piece(self, guesses: Sequence[Guess], computed_s: float, end: DraftEnd = DraftEnd.FAR_ENOUGH) -> Draft:
        """The message that sends what was guessed behind all that was sent before."""
        offset = len(self._drafted)
        message = self._message(self._drafted_upon, guesses, computed_s, end, offset)
        self._drafted += message.tokens
        self.speculation.num_sent_tokens += len(message.tokens)
        return message

    def _message(self, base: int, guesses: Sequence[Guess], computed_s: float, end: DraftEnd, offset: int = 0) -> Draft:
        tokens, q = [guess.token for guess in guesses], b"".join(guess.q for guess in guesses)
        computed_us = min(int(computed_s * 1e6), 2**31 - 1)
        return Draft(self.stream, base, tokens, computed_us, offset, end, q)

    @property
    def room(self) -> int:
        """How many tokens the text may still grow by."""
        return self.request.max_new_tokens - len(self.transcript.generated)

    def asked(self, budget: int) -> None:
        """The server asks for a draft of so many tokens, or for guesses so far ahead."""
        self.speculation.num_spec_tokens = max(self.speculation.num_spec_tokens, budget)

    def draft_refused(self) -> None:
        """The draft under way counts as an empty one; its verdict is still to come."""
        self._drafted = []

    def commit(self, verdict: Verdict) -> list[int]:
        """Take a verdict in.

        Returns:
            The tokens that are new.

        Raises:
            ProtocolError: it does not fit what was drafted and committed.
        """
        drafted = self._drafted[verdict.base - self._drafted_upon :] if 0 <= self._drafted_upon <= verdict.base else []
        new = self.transcript.apply(verdict, drafted)
        if self.request.logprobs >= 0:
            known = unpack_logprobs(verdict.logprobs, self.request.logprobs)
            if known and len(known) != verdict.accepted + len(verdict.tokens):
                raise ProtocolError(f"log-probabilities of {len(known)} tokens came with another number of them")
            self.logprobs += known[len(known) - len(new) :] if known else [None] * len(new)
        if new:
            stood = _stood(verdict)
            self.origins += _origins(verdict, stood)[-len(new) :]
            if verdict.verified:
                # What the server judged counts, not what was sent: it may have come too late for any pass.
                self.speculation.num_draft_tokens += verdict.verified
                self.speculation.verified(stood)
        return new

    def told_by_draft(self, token: int) -> None:
        """Take in a token that nobody verifies."""
        self.transcript.tokens.append(token)
        self.origins.append("unverified")
        if self.request.logprobs >= 0:
            # The target's are asked for.
            self.logprobs.append(None)

    def draft_due(self, budget: int) -> bool:
        """Whether the server waits for a draft, and none is under way upon the committed length."""
        return budget > 0 and self.transcript.finish is None and self._drafted_upon != self.transcript.length


def _stood(verdict: Verdict) -> int:
    """How many of the verified tokens were accepted.

    Raises:
        ProtocolError: that cannot be.
    """
    if not verdict.accepted <= verdict.stood <= verdict.verified:
        raise ProtocolError(
            f"a verdict of {verdict.accepted} accepted and {len(verdict.tokens)} other tokens of stream "
            f"{verdict.stream} says that {verdict.verified} were verified"
        )
    return verdict.stood


def _origins(verdict: Verdict, stood: int) -> list[Origin]:
    """Where the tokens of a verdict come from, of which the first `stood` were accepted."""
    rest = verdict.accepted + len(verdict.tokens) - stood
    if not verdict.verified:
        return ["target"] * rest
    own: Origin = "recovered" if stood < verdict.verified else "bonus"
    accepted: list[Origin] = ["accepted"] * stood
    return [*accepted, *[own] * rest]
