"""An agent: one link, one drafter, the target's tokenizer, and any number of completions side by side."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

import goodspeed
from goodspeed.catalog import Files
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import InvalidRequest, TokenizerMismatch
from goodspeed.logs import about
from goodspeed.messages import MAX_DRAFT_TOKENS, MAX_TEXT, PROTOCOL_VERSION, Hello, Welcome
from goodspeed.sampling import SamplingParams
from goodspeed_agent.ahead import Ahead, AheadMode
from goodspeed_agent.alone import able_alone, tokens_alone
from goodspeed_agent.asking import TextRequest, check_text, is_tokens
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
from goodspeed_agent.report import Completion
from goodspeed_agent.silence import PATIENCE_S
from goodspeed_agent.spelling import OnText, Piece, spell
from goodspeed_agent.tokenizer import TargetTokenizer, TokenizerCache

__all__ = ["Agent", "Piece", "TextRequest"]


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
        check_text("the agent's name", name or "")
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
        return await spell(generation, verified, self.tokenizer.decode, request.stop, on_text)

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
        return await spell(generation, drawn, self.tokenizer.decode, request.stop, on_text, draft=name)

    def encode(self, prompt: str | Sequence[Mapping[str, Any]] | Sequence[int]) -> Sequence[int]:
        """A prompt as the target's tokens; a conversation goes through its chat template.

        Raises:
            InvalidRequest: the template refuses it.
        """
        if is_tokens(prompt):
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
