"""Is this box fit to draft for that server? Measured line by line, each with what to do where it is not."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rich.console import Console
from rich.text import Text

from goodspeed.errors import GoodSpeedError, ModelError, Refused
from goodspeed.messages import PROTOCOL_VERSION
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import Drafter
from goodspeed_agent.drafters.vocabulary import TokenLister
from goodspeed_agent.report import Completion

__all__ = ["Finding", "examination", "judge_drafting", "judge_round_trip", "judge_speed", "show"]

_SIGNS = {"good": ("✓", "green"), "fair": ("!", "yellow"), "bad": ("✗", "red")}

_PINGS = 7
_GUESSES = 48
_TEXT_TOKENS = 64
_JUDGED_TOKENS = 8
"""With fewer drafted tokens nothing can be said of them."""
_ACCEPTED_SHARE = 0.4
"""Of drafted tokens; with fewer the draft is not much of a help, however fast texts came this once."""
_SAMPLE = "def read_json(path):\n    with open(path) as file:\n        return json.load(file)\n\n\ndef read"
"""Something to go on from; any text would do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    what: str
    value: str
    state: Literal["good", "fair", "bad"] = "good"
    advice: str = ""
    """What to do; empty where nothing is."""


async def _findings(agent: Agent, drafter: Drafter, connected_s: float) -> AsyncIterator[Finding]:
    """Examine an agent that is linked.

    Args:
        agent: drafts with `drafter`.
        drafter: the same, to be measured by itself.
        connected_s: how long it took to connect and shake hands.
    """
    welcome = agent.link.welcome
    yield Finding("link", f"{agent.link.url}, up in {connected_s * 1e3:.0f} ms")
    yield Finding("protocol", f"version {PROTOCOL_VERSION}, {welcome.server}")
    waits = "waits for drafts" if welcome.waits else "decodes on while drafts are made"
    yield Finding("target", f"{welcome.model}, {welcome.rule} rule, {waits}, {welcome.max_length} tokens a stream")
    any_fits = drafter.fingerprint is None and not isinstance(drafter, TokenLister)
    fits = "fits every target" if any_fits else "the same as the target's"
    yield Finding("tokenizer", f"of {drafter.name}: {fits}")
    round_trip_s = statistics.median([await agent.link.ping() for _ in range(_PINGS)])
    try:
        plain, plain_s = await _text(agent, max_draft=0)
        plain_rate = len(plain.tokens) / plain_s
        yield judge_round_trip(round_trip_s, plain_rate)
        if not drafter.max_draft:
            value = f"{drafter.name} drafts nothing: the server writes every token by itself"
            yield Finding("drafting", value, "fair", "--draft suffix fits every target")
            return
        guesses_per_s = await asyncio.to_thread(_guess, agent, drafter)
        yield judge_speed(drafter.name, guesses_per_s, plain_rate)
        drafted, drafted_s = await _text(agent, max_draft=None)
        yield judge_drafting(drafted, len(drafted.tokens) / drafted_s, plain_rate)
    except GoodSpeedError as error:
        yield Finding("text", str(error), "bad", "the link stands, but no text came: see the server's log")


async def _text(agent: Agent, max_draft: int | None) -> tuple[Completion, float]:
    request = TextRequest(_SAMPLE, max_new_tokens=_TEXT_TOKENS, ignore_eos=True)
    began_s = time.perf_counter()
    completion = await agent.complete(replace(request, max_draft=max_draft))
    return completion, time.perf_counter() - began_s


def _guess(agent: Agent, drafter: Drafter) -> float | None:
    """Guesses a second, the first of them left out, since it reads the prompt; None if it has hardly any."""
    welcome, tokens = agent.link.welcome, agent.tokenizer.encode(_SAMPLE)
    session = drafter.open(
        SamplingParams(), rule=welcome.rule, vocab_size=welcome.vocab_size, prompt_tokens=len(tokens)
    )
    guesses = session.guesses(tokens)
    if next(guesses, None) is None:
        return None
    began_s, count = time.perf_counter(), 0
    while count < _GUESSES and next(guesses, None) is not None:
        count += 1
    return count / (time.perf_counter() - began_s) if count > 1 else None


def judge_round_trip(round_trip_s: float, plain_rate: float) -> Finding:
    """How far the server gets while a message is on its way.

    Args:
        round_trip_s: of a ping.
        plain_rate: tokens a second that the server decodes of one stream, alone.
    """
    overtaken = round_trip_s * plain_rate
    value = f"{round_trip_s * 1e3:.1f} ms, in which the server decodes {overtaken:.1f} tokens"
    if overtaken <= 2:
        return Finding("round trip", value)
    advice = "guesses have to outrun the server: only a draft that is nearly always right can make texts faster"
    return Finding("round trip", value, "fair" if overtaken <= 8 else "bad", advice)


def judge_speed(name: str, guesses_per_s: float | None, plain_rate: float) -> Finding:
    """Whether the drafter is quicker than what it drafts for."""
    if guesses_per_s is None:
        return Finding("drafting", f"{name} has nothing to say about a text it does not know", "fair", "it may later")
    value = f"{name} guesses {guesses_per_s:.0f} tokens a second; the server decodes {plain_rate:.0f} of one stream"
    if guesses_per_s >= 2 * plain_rate:
        return Finding("drafting", value)
    advice = "take a smaller draft, more --threads, or --draft suffix"
    return Finding("drafting", value, "fair" if guesses_per_s >= plain_rate else "bad", advice)


def judge_drafting(completion: Completion, rate: float, plain_rate: float) -> Finding:
    """What drafting brings, and what budget there is to expect."""
    speculation = completion.speculation
    speed = f"{rate:.0f} tokens a second, {rate / plain_rate:.2f} times those without drafts"
    sent = speculation.num_sent_tokens
    if sent >= _JUDGED_TOKENS and not speculation.num_spec_steps:
        value = f"all {sent} guesses came after the server had decoded past them: {speed}"
        return Finding("budget", value, "bad", "take a smaller draft, or --draft suffix")
    if speculation.num_draft_tokens < _JUDGED_TOKENS:
        advice = "the server finds that drafts do not pay here, and decodes by itself: nothing is wrong with that"
        return Finding("budget", f"hardly anything was drafted: {speed}", "fair", advice)
    budget = speculation.num_draft_tokens / speculation.num_spec_steps
    share = speculation.draft_acceptance_rate or 0.0
    value = f"{budget:.1f} drafted tokens a verdict, {share:.0%} of them accepted: {speed}"
    if share < _ACCEPTED_SHARE:
        advice = "a draft of the target's family agrees more, and so does one that is tuned to it: goodspeed tune"
        return Finding("budget", value, "fair", advice)
    if rate < plain_rate:
        advice = "guesses are right but cost more than they save: a smaller draft, more --threads, or --draft suffix"
        return Finding("budget", value, "fair", advice)
    return Finding("budget", value)


async def examination(
    make: Callable[[Drafter], Agent], load: Callable[[], Drafter], show: Callable[[Finding], None]
) -> list[Finding]:
    """Examine from the first step on, showing every finding as it comes.

    Args:
        make: an agent that drafts so, not yet linked.
        load: makes the drafter; blocks.
        show: is told every finding.
    """
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        show(finding)

    try:
        drafter = await asyncio.to_thread(load)
        began_s = time.perf_counter()
        async with make(drafter) as agent:
            async for finding in _findings(agent, drafter, time.perf_counter() - began_s):
                found(finding)
    except ModelError as error:
        found(Finding("draft", str(error), "bad", "choose another --draft; suffix fits every target"))
    except GoodSpeedError as error:
        found(Finding("link", str(error), "bad", _advice(error)))
    return findings


def _advice(error: GoodSpeedError) -> str:
    """What to do where there is no link."""
    match error:
        case Refused(code="unauthorized" | "forbidden"):
            return "give a token of role agent as GOODSPEED_TOKEN: the server's operator makes one"
        case Refused(code="not_a_server"):
            return "see that the address is right"
        case _:
            return ""  # its sentence says so


def show(*, as_json: bool) -> Callable[[Finding], None]:
    """A way to print findings: for people, or a JSON object a line."""
    if as_json:
        return lambda finding: print(json.dumps(asdict(finding)), flush=True)
    console = Console(highlight=False)

    def line(finding: Finding) -> None:
        sign, style = _SIGNS[finding.state]
        text = Text.assemble((f"{sign} {finding.what:<11}", style), finding.value)
        console.print(text)
        if finding.advice:
            console.print(Text(f"{'':<13}{finding.advice}", "dim"))

    return line
