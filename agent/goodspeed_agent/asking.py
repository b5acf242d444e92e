"""What a user asks for, in text, and what can be checked of it without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams
from goodspeed_agent.generation import Request

__all__ = ["TextRequest", "check_text", "is_tokens"]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """What a user asks for, in text."""

    prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]
    """Text, or the messages of a conversation (`role` and `content` each) for the target's chat template, or tokens."""
    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = 128
    """None for as many as the server holds."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    ignore_eos: bool = False
    max_draft: int | None = None
    """The longest draft; None leaves it to drafter and server."""
    domain: str = ""
    """What it is about, for those who tune drafts on what the server records."""
    logprobs: int = -1
    """Of how many alternatives to tell the log-probability with every token, besides its own; -1 for none of it."""

    def validate(self) -> None:
        """Check what can be checked without a server.

        Raises:
            InvalidRequest: naming the value, and the range it has to be in.
        """
        self.validate_options()
        self.validate_prompt()

    def validate_options(self) -> None:
        """As `validate`, of everything but the prompt."""
        self.tokenized((0,), self.max_draft or 0, room=1).validate()
        if "" in self.stop:
            raise InvalidRequest("a stop string is empty: it would end every text before it begins", param="stop")
        for text in self.stop:
            check_text("a stop string", text, "stop")
        check_text("the domain", self.domain, "domain")

    def validate_prompt(self) -> None:
        """As `validate`, of the prompt alone."""
        if not self.prompt:
            raise InvalidRequest("the prompt is empty", code="empty_prompt", param="prompt")
        if is_tokens(self.prompt):
            for token in (min(self.prompt), max(self.prompt)):
                if not 0 <= token < 2**31:
                    shown = str(token)[:40]
                    raise InvalidRequest(
                        f"the prompt has a token {shown}, which is no token id",
                        code="token_out_of_range",
                        param="prompt",
                    )
        else:
            if not isinstance(self.prompt, str):
                _check_messages(cast("Sequence[Mapping[str, Any]]", self.prompt))
            for text in _texts(self.prompt):
                check_text("the prompt", text, "prompt")

    def tokenized(self, prompt: Sequence[int], max_draft: int, *, room: int) -> Request:
        """The same of a prompt in tokens.

        Args:
            prompt: the tokens.
            max_draft: the longest draft that drafter and server agree on.
            room: how many tokens may stand behind the prompt.
        """
        most = room if self.max_new_tokens is None else self.max_new_tokens
        return Request(tuple(prompt), self.params, most, max_draft, self.ignore_eos, self.domain, self.logprobs)


def is_tokens(prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is in tokens."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], int)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    for number, message in enumerate(messages, start=1):
        for name in ("role", "content"):
            # A template would write nothing, or "None", in its place.
            if message.get(name) is None:
                raise InvalidRequest(
                    f'message {number} has no "{name}": a message needs both "role" and "content"', param="prompt"
                )


def _texts(value: Any) -> Iterator[str]:
    """Every string in a prompt or in what stands in its messages."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case Mapping() as entries:
                waiting += [*entries.keys(), *entries.values()]
            case list() | tuple() as items:
                waiting += items


def check_text(what: str, text: str, param: str | None = None) -> None:
    """Refuse what is no Unicode text.

    Args:
        what: names it, at the beginning of a sentence.
        text: a user's.
        param: the value's own name, where it has one.

    Raises:
        InvalidRequest: it has half a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{what} is not Unicode text: it has a lone surrogate (U+{ord(text[error.start]):04X}) as character "
            f"{error.start + 1}, which stands for half a character, or for a byte that is not UTF-8; take it out",
            param=param,
        ) from None
