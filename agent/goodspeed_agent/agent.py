"""An agent: one link, one drafter, the target's tokenizer, and any number of completions side by side."""

from __future__ import annotations

import logging
import platform
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeGuard, cast

import goodspeed
from goodspeed.catalog import Files
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import InvalidRequest, TokenizerMismatch
from goodspeed.logprobs import TokenLogprobs
from goodspeed.logs import about
from goodspeed.messages import MAX_DRAFT_TOKENS, MAX_TEXT, PROTOCOL_VERSION, Hello, Welcome
from goodspeed.sampling import SamplingParams
from goodspeed_agent.ahead import Ahead, AheadMode
from goodspeed_agent.alone import able_alone, tokens_alone
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.channel import Channel
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters import Drafter
from goodspeed_agent.drafters.swappable import Swappable, try_out
from goodspeed_agent.drafters.vocabulary import TokenLister, check_tokens
from goodspeed_agent.drafting import Drafting
from goodspeed_agent.driver import NotBegun, tokens_of
from goodspeed_agent.generation import Generation, Request
from goodspeed_agent.link import Link
from goodspeed_agent.lookahead import Calibration, Lookahead
from goodspeed_agent.report import Completion, Origin
from goodspeed_agent.silence import PATIENCE_S
from goodspeed_agent.text import TextStream
from goodspeed_agent.tokenizer import TargetTokenizer, TokenizerCache

__all__ = ["Agent", "Piece", "TextRequest"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of a text."""

    text: str
    """That is certain; may be empty."""
    tokens: Sequence[int]
    """That were committed; there may be none, and their text may come later."""
    parts: Sequence[str] = ()
    """The text again, as it became certain with each of the tokens."""
    origins: Sequence[Origin] = ()
    """Of the tokens."""
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Of the tokens, where they were asked for."""
    draft: str | None = None
    """As in `Completion`."""


OnText = Callable[[Piece], None]


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
            _check_text("a stop string", text, "stop")
        _check_text("the domain", self.domain, "domain")

    def validate_prompt(self) -> None:
        """As `validate`, of the prompt alone."""
        if not self.prompt:
            raise InvalidRequest("the prompt is empty", code="empty_prompt", param="prompt")
        if _is_tokens(self.prompt):
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
                _check_text("the prompt", text, "prompt")

    def tokenized(self, prompt: Sequence[int], max_draft: int, *, room: int) -> Request:
        """The same of a prompt in tokens.

        Args:
            prompt: the tokens.
            max_draft: the longest draft that drafter and server agree on.
            room: how many tokens may stand behind the prompt.
        """
        most = room if self.max_new_tokens is None else self.max_new_tokens
        return Request(tuple(prompt), self.params, most, max_draft, self.ignore_eos, self.domain, self.logprobs)


def _is_tokens(prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]) -> TypeGuard[Sequence[int]]:
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


def _check_text(what: str, text: str, param: str | None = None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{what} is not Unicode text: it has a lone surrogate (U+{ord(text[error.start]):04X}) as character "
            f"{error.start + 1}, which stands for half a character, or for a byte that is not UTF-8; take it out",
            param=param,
        ) from None


def _climate(params: SamplingParams) -> float | None:
    """What a drafter's confidence depends on: whether texts are greedy, or else the temperature to a tenth."""
    return None if params.greedy else round(min(params.temperature, 2.0), 1)


class Agent:
    """An agent at work while the block runs.

    Args:
        servers: the server's address, or several; see `Link`.
        drafter: what to draft with.
        name: what the server's operator sees.
        cache: where tokenizers are kept.
        backoff: how patiently a link that fails is made again, and an overloaded server asked again.
        draft_ahead: whether to draft on while a verdict is on its way.
        credentials: to be let in with.
        alone_after_s: after how long without a server the draft answers new texts alone, which are marked as such
            (`Piece.draft`, `Completion.draft`); None waits for a server.
        patience_s: how long a server may owe a text an answer; see `Silence`.

    Raises:
        InvalidRequest: on construction, an address is none, or the name not text, or the drafter cannot answer alone.
    """

    link: Link
    tokenizer: TargetTokenizer

    def __init__(
        self,
        servers: str | Sequence[str],
        drafter: Drafter,
        *,
        name: str | None = None,
        cache: TokenizerCache | None = None,
        backoff: Backoff | None = None,
        draft_ahead: AheadMode = "auto",
        credentials: Credentials = NOBODY,
        alone_after_s: float | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if alone_after_s is not None:
            able_alone(drafter)
        self._alone_after_s = alone_after_s
        self._patience_s = patience_s
        _check_text("the agent's name", name or "")
        if len(name or "") > MAX_TEXT:
            raise InvalidRequest(f"the agent's name has {len(name or '')} characters: {MAX_TEXT} at most")
        self._drafter = Swappable(drafter)
        self._backoff = backoff or Backoff()
        hello = Hello(
            PROTOCOL_VERSION,
            "agent",
            name or platform.node(),
            drafter.name,
            drafter.fingerprint,
            f"goodspeed {goodspeed.__version__}",
        )
        self.link = Link(
            servers, hello, cache or TokenizerCache(), self._backoff, credentials,
            adopt=self._adopt, alone_after_s=alone_after_s,
        )  # fmt: skip
        self._ahead = Ahead(draft_ahead)
        self._calibrations: defaultdict[float | None, Calibration] = defaultdict(Calibration)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            LinkLost: no connection could be made in time.
            Refused: the server said no.
            TokenizerMismatch: the draft's tokenizer is not the target's.
            ModelError: the draft cannot guess.
            ProtocolError: the server does not speak this protocol.
        """
        self._desk = Desk(self._drafter)
        try:
            await self.link.__aenter__()
        except BaseException:
            self._desk.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.link.__aexit__(kind, error, trace)
        finally:
            self._desk.close()

    @property
    def drafter(self) -> str:
        """What it drafts with now."""
        return self._drafter.name

    async def swap(self, drafter: Drafter) -> None:
        """Draft with another drafter from now on; streams go on, and the server learns anew how often it accepts.

        Raises:
            TokenizerMismatch: the draft's tokenizer is not the target's; nothing has changed.
            ModelError: it cannot guess; nothing has changed.
            InvalidRequest: it cannot answer alone, and is to; nothing has changed.
        """
        if self._alone_after_s is not None:
            able_alone(drafter)
        await self._check(drafter, self.link.welcome, self.tokenizer)
        self._drafter.exchange(drafter)
        for calibration in self._calibrations.values():
            calibration.restart()
        await self.link.redraft(drafter.name, drafter.fingerprint)

    async def _adopt(self, welcome: Welcome, files: Files) -> None:
        """Work for this target from now on, if the draft can."""
        tokenizer = TargetTokenizer(files)
        await self._check(self._drafter.current, welcome, tokenizer)
        self.tokenizer = tokenizer

    async def _check(self, drafter: Drafter, welcome: Welcome, tokenizer: TargetTokenizer) -> None:
        if drafter.fingerprint not in (None, welcome.fingerprint):
            raise TokenizerMismatch(
                f"the draft {drafter.name!r} does not share a tokenizer with {welcome.model!r}: "
                "choose a draft of the same family, or --draft suffix, which fits every target"
            )

        def examine() -> None:
            if isinstance(drafter, TokenLister):
                check_tokens(drafter.name, drafter.tokens, welcome.model, tokenizer.tokens[: welcome.vocab_size])
            highest = tokenizer.highest_token
            try_out(drafter, [0, highest], rule=welcome.rule, vocab_size=welcome.vocab_size)

        await self._desk.alone(examine)

    async def complete(
        self,
        request: TextRequest,
        on_text: OnText | None = None,
        on_queued: Callable[[int], None] | None = None,
        *,
        checked: bool = False,
    ) -> Completion:
        """Generate a text.

        Args:
            request: what is asked for.
            on_text: called as the text comes.
            on_queued: called with its place as long as the server has no row for it, whenever that changes: 1 is next.
            checked: whether it was validated before, and its prompt is what `prompt_tokens` made of the user's.

        Raises:
            InvalidRequest: a value is out of range, or the prompt too long for this server.
            GoodSpeedError: as `driver.tokens_of`, or `alone.tokens_alone`.
        """
        if not checked:
            request.validate()
        if self._alone_after_s is not None:
            await self.link.settled()
        if not checked:
            request = replace(request, prompt=self.prompt_tokens(request.prompt))
        if not self.link.alone:
            tokenized = self._tokenized(request)
            channel = self.link.channel()
            with about(stream=channel.stream), suppress(NotBegun):
                return await self._generate(request, tokenized, channel, on_text, on_queued)
        return await self._write_alone(request, on_text)

    async def _generate(
        self,
        request: TextRequest,
        tokenized: Request,
        channel: Channel,
        on_text: OnText | None,
        on_queued: Callable[[int], None] | None,
    ) -> Completion:
        generation, welcome = Generation(channel.stream, tokenized), self.link.welcome
        session = self._drafter.open(
            request.params, rule=welcome.rule, vocab_size=welcome.vocab_size, prompt_tokens=len(tokenized.prompt)
        )
        lookahead = Lookahead(session, welcome.rule, self._calibrations[_climate(request.params)], self._ahead)
        drafting = Drafting(self._desk, lookahead, self._ahead)
        verified = tokens_of(
            generation, channel, drafting, self._backoff, lambda: self.link.welcome.waits, on_queued,
            patience_s=self._patience_s,
        )  # fmt: skip
        return await self._spell(request, generation, verified, on_text)

    async def _write_alone(self, request: TextRequest, on_text: OnText | None) -> Completion:
        """A text that nobody verifies."""
        welcome, name, context = self.link.welcome, self._drafter.name, able_alone(self._drafter.current).context
        room = min(welcome.max_length, context)
        tokenized = self._tokenized(request, room)
        generation = Generation(0, tokenized)
        session = self._drafter.open(
            request.params, rule="coupled", vocab_size=welcome.vocab_size, prompt_tokens=len(tokenized.prompt)
        )
        drawn = tokens_alone(
            generation, session, self._desk, eos_tokens=welcome.eos_tokens, room=room - len(tokenized.prompt)
        )
        return await self._spell(request, generation, drawn, on_text, draft=name)

    async def _spell(
        self,
        request: TextRequest,
        generation: Generation,
        coming: AsyncGenerator[list[int], None],
        on_text: OnText | None,
        *,
        draft: str | None = None,
    ) -> Completion:
        """Turn tokens into text as they come, up to a stop string."""
        began_s, prompt = time.monotonic(), generation.request.prompt
        text = TextStream(self.tokenizer.decode, request.stop, prompt=prompt)
        pieces: list[str] = []
        parts: list[str] = []

        def take(new: list[str], tokens: list[int]) -> None:
            piece = "".join(new)
            pieces.append(piece)
            parts.extend(new[: len(tokens)])
            if on_text is not None:
                these = slice(len(text.tokens) - len(tokens), len(text.tokens))
                on_text(Piece(piece, tokens, new, generation.origins[these], generation.logprobs[these], draft))

        async with aclosing(coming):
            async for tokens in coming:
                taken = len(text.tokens)
                new = []
                for token in tokens:
                    new.append(text.push(token))
                    if text.stopped:
                        break
                take(new, text.tokens[taken:])
                if text.stopped:
                    break
        take([text.finish()], [])
        finish = "stop" if text.stopped else generation.transcript.finish
        assert finish is not None
        _log.info(
            "a text ends (%s): prompt %d tokens, text %d tokens in %.2f s%s",
            finish, len(prompt), len(text.tokens), time.monotonic() - began_s, "" if draft is None else ", unverified",
        )  # fmt: skip
        return Completion(
            "".join(pieces), text.tokens, finish, generation.transcript.prompt_tokens, generation.speculation,
            generation.logprobs[: len(text.tokens)], parts, draft,
        )  # fmt: skip

    def encode(self, prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]) -> Sequence[int]:
        """A prompt as the target's tokens; a conversation goes through its chat template.

        Raises:
            InvalidRequest: the template refuses it.
        """
        if _is_tokens(prompt):
            return prompt
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.tokenizer.encode_chat(cast("Sequence[Mapping[str, Any]]", prompt))

    def prompt_tokens(self, prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]) -> tuple[int, ...]:
        """A prompt that was validated as tokens that the target knows.

        Raises:
            InvalidRequest: there are none, or others, or the template refuses it.
        """
        tokens, welcome = tuple(self.encode(prompt)), self.link.welcome
        if not tokens:
            raise InvalidRequest(
                "the prompt is empty: it needs at least one token", code="empty_prompt", param="prompt"
            )
        if max(tokens) >= welcome.vocab_size:
            raise InvalidRequest(
                f"token id {max(tokens)} is out of range in the prompt: the vocabulary has {welcome.vocab_size} tokens",
                code="token_out_of_range",
                param="prompt",
            )
        return tokens

    def _tokenized(self, request: TextRequest, holds: int | None = None) -> Request:
        """The request in tokens.

        Args:
            request: in text.
            holds: how many tokens the draft holds, where it answers alone.
        """
        prompt = self.encode(request.prompt)
        welcome = self.link.welcome
        most, who = (welcome.max_length, "this server holds") if holds is None else (holds, "the draft alone holds")
        if len(prompt) >= most:
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens and {who} {most} a stream, prompt and "
                f"text together: shorten it to {most - 1} or less",
                code="prompt_too_long",
                param="prompt",
            )
        biased = max((token for token, _ in request.params.logit_bias), default=0)
        if biased >= welcome.vocab_size:
            raise InvalidRequest(
                f"token id {biased} is out of range in logit_bias: the vocabulary has {welcome.vocab_size} tokens",
                code="token_out_of_range",
                param="logit_bias",
            )
        wanted = MAX_DRAFT_TOKENS if request.max_draft is None else request.max_draft
        max_draft = min(wanted, self._drafter.max_draft, welcome.max_draft)
        made = request.tokenized(prompt, max_draft, room=most - len(prompt))
        made.validate()
        return made
