"""The commands: one prompt, or a file of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from goodspeed.environment import check_environment
from goodspeed.errors import GoodSpeedError
from goodspeed.given import CommandGroup
from goodspeed.logs import JsonLines, Readable, announce, log_to
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.batch import work_through
from goodspeed_agent.exits import Exit, exit_codes, run
from goodspeed_agent.inputs import read_prompt, read_prompt_lines
from goodspeed_agent.itinerary import addresses
from goodspeed_agent.options import (
    Ca,
    ClientCert,
    ClientKey,
    ConnectTimeout,
    Domain,
    Draft,
    DraftAhead,
    IgnoreEos,
    LogJson,
    MaxDraft,
    MaxNewTokens,
    MinP,
    Name,
    OfflineAfter,
    OfflineFallback,
    Patience,
    Seed,
    Server,
    Stop,
    Temperature,
    Threads,
    Token,
    TopK,
    TopP,
    Verbose,
)
from goodspeed_agent.progress import ProgressDisplay
from goodspeed_agent.report import Completion
from goodspeed_agent.results import results_in
from goodspeed_agent.silence import LEAST_PATIENCE_S, PATIENCE_S
from goodspeed_agent.text import printable
from goodspeed_agent.waiting import WaitingLine
from goodspeed_agent.working import agent_maker, drafter_loader, note, with_agent

__all__ = ["app"]

T = TypeVar("T")

_OUTPUT = "Where the results go, standard output by default; a file that an earlier run has left is gone on with."

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Drafts tokens here, has them verified by a goodspeed-server, and prints what the server's model says.",
)


@app.callback()
def main() -> None:
    """Before a command reads its options, which may be missing since a variable is misspelt."""
    with exit_codes():
        check_environment("goodspeed-agent")


@app.command()
def complete(
    ctx: typer.Context,
    server: Server,
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads it from standard input.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file (- is standard input).")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message: use the chat template.")
    ] = False,
    draft: Draft = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    max_draft: MaxDraft = None,
    domain: Domain = "",
    draft_ahead: DraftAhead = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    name: Name = None,
    threads: Threads = None,
    connect_timeout: ConnectTimeout = 30.0,
    patience_s: Patience = PATIENCE_S,
    offline_fallback: OfflineFallback = False,
    offline_after_s: OfflineAfter = 5.0,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    verbose: Verbose = False,
) -> None:
    """Complete one prompt; verified text streams to standard output as it comes."""
    _write_utf8()
    _log_to_stderr(verbose)
    with exit_codes():
        text = read_prompt(prompt, prompt_file)
        request = _request(
            [{"role": "user", "content": text}] if chat else text,
            max_new_tokens, temperature, top_p, top_k, min_p, seed, stop, ignore_eos, max_draft, domain,
        )  # fmt: skip
        began_s = time.monotonic()
        with WaitingLine(Console(stderr=True), note) as waiting:

            def write(piece: Piece) -> None:
                waiting.over()
                if not as_json:
                    _write(piece)

            completion = with_agent(lambda agent: agent.complete(request, write, waiting.at), ctx.params)
        if as_json:
            print(json.dumps(completion.to_json(), ensure_ascii=False))
        else:
            print("" if completion.text.endswith("\n") else "\n", end="", flush=True)
            _summarise(completion, time.monotonic() - began_s)
        if completion.draft is not None:
            note(f"nobody has verified this text: {completion.draft} wrote it alone, since no server could be reached")


@app.command(name="run")
def run_file(
    ctx: typer.Context,
    prompts: Annotated[Path, typer.Option(help='JSON lines: {"prompt": "..."}, and any of the options below.')],
    server: Server,
    output: Annotated[Path | None, typer.Option(help=_OUTPUT)] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many streams at once.")] = 8,
    draft: Draft = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    max_draft: MaxDraft = None,
    domain: Domain = "",
    draft_ahead: DraftAhead = "auto",
    name: Name = None,
    threads: Threads = None,
    connect_timeout: ConnectTimeout = 300.0,
    patience_s: Patience = PATIENCE_S,
    offline_fallback: OfflineFallback = False,
    offline_after_s: OfflineAfter = 5.0,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Work through a file of prompts; results come in its order, one JSON object a line."""
    _write_utf8()
    _log_to_stderr(verbose, log_json=log_json, name=name)
    with exit_codes():
        defaults = _request(
            "-", max_new_tokens, temperature, top_p, top_k, min_p, seed, stop, ignore_eos, max_draft, domain
        )
        lines = read_prompt_lines(prompts, defaults)
        console, unverified = Console(stderr=True), 0

        async def work(agent: Agent) -> int:
            # Opened only now that the link stands: a start that fails leaves earlier results alone.
            with results_in(output, lines, agent.link.welcome) as results:
                left = len(results.missing)
                if results.cut_off:
                    note(f"the last result in {output} was cut off: it is dropped, and its prompt done again")
                if results.kept:
                    note(f"{output} has {results.kept} of {len(lines)} results already: {left} prompts are left")
                # A bar and results on the same terminal would write over each other.
                bar = console.is_terminal and not results.file.isatty() and not log_json

                def write(result: dict[str, Any]) -> None:
                    nonlocal unverified, left
                    unverified += result.get("verified", True) is False
                    results.write(result)
                    left -= 1

                try:
                    with ProgressDisplay(left, console, bar=bar, say=note if log_json else None) as display:
                        return await work_through(agent, results.missing, concurrency, write, display)
                except GoodSpeedError:
                    note(f"{left} of {len(lines)} prompts are left")
                    raise

        failed = with_agent(work, ctx.params)
        if unverified:
            note(f'{unverified} of {len(lines)} texts are unverified: the draft wrote them alone ("verified": false)')
        if failed:
            note(f"{failed} of {len(lines)} prompts failed; their results say why")
            raise typer.Exit(Exit.SOME_FAILED)


@app.command(name="chat")
def converse(
    ctx: typer.Context,
    server: Server,
    draft: Draft = None,
    system: Annotated[str, typer.Option(help="What the target is told before the conversation.")] = "",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    origins: Annotated[bool, typer.Option("--origins", help="Colour tokens by where they come from.")] = False,
    draft_ahead: DraftAhead = "auto",
    name: Name = None,
    threads: Threads = None,
    connect_timeout: ConnectTimeout = 300.0,
    patience_s: Patience = PATIENCE_S,
    offline_fallback: OfflineFallback = False,
    offline_after_s: OfflineAfter = 5.0,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    verbose: Verbose = False,
) -> None:
    """Converse with the server's model; /help says how."""
    _write_utf8()
    _log_to_stderr(verbose)
    with exit_codes():
        from goodspeed_agent.chat import Conversation, chat

        params = SamplingParams(temperature, top_p, top_k, min_p, seed)
        params.validate()
        conversation = Conversation(params, max_new_tokens, system, origins)

        async def work(agent: Agent) -> None:
            welcome = agent.link.welcome
            note(f"{welcome.model}, drafted for by {agent.drafter}; /help for commands, Ctrl-D to end")
            await chat(agent, conversation, Console())

        with_agent(work, ctx.params)


@app.command(name="serve")
def serve_api(
    ctx: typer.Context,
    server: Server,
    host: Annotated[str, typer.Option(help="Whom to serve; who listens beyond this machine serves everybody.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 11_435,
    draft: Draft = None,
    draft_ahead: DraftAhead = "auto",
    name: Name = None,
    threads: Threads = None,
    connect_timeout: ConnectTimeout = 300.0,
    patience_s: Patience = PATIENCE_S,
    offline_fallback: OfflineFallback = False,
    offline_after_s: OfflineAfter = 5.0,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Answer OpenAI clients on this machine."""
    _write_utf8()
    _log_to_stderr(verbose, log_json=log_json, name=name)
    with exit_codes():
        # Imported here: other commands need no HTTP.
        from goodspeed_agent.api.serving import serve

        async def work(agent: Agent) -> None:
            model = agent.link.welcome.model
            try:
                await serve(agent, host, port, lambda url: announce("goodspeed-agent", f"serving {model} at {url}"))
            except asyncio.CancelledError:
                note("no more requests; the texts that were being written have ended")
                raise

        with_agent(work, ctx.params)


@app.command(name="doctor")
def examine_agent(
    ctx: typer.Context,
    server: Server,
    draft: Draft = None,
    threads: Threads = None,
    connect_timeout: ConnectTimeout = 10.0,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Say whether this box is fit to draft for a server, or each of several, and what to do where it is not."""
    _write_utf8()
    with exit_codes():
        from goodspeed_agent.doctor import Finding, examination, show

        # Each server by itself: the agent would stay with the first that works.
        patience_s = max(connect_timeout, LEAST_PATIENCE_S)
        makers = [agent_maker({**ctx.params, "server": url, "patience_s": patience_s}) for url in addresses(server)]

        async def examine() -> list[Finding]:
            load, tell = drafter_loader(ctx.params), show(as_json=as_json)
            return [finding for make in makers for finding in await examination(make, load, tell)]

        findings = run(examine())
        if any(finding.state == "bad" for finding in findings):
            raise typer.Exit(1)


def _request(
    prompt: str | list[dict[str, str]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int,
    stop: list[str] | None,
    ignore_eos: bool,
    max_draft: int | None,
    domain: str,
) -> TextRequest:
    """What the options ask for, checked."""
    params = SamplingParams(temperature, top_p, top_k, min_p, seed)
    request = TextRequest(prompt, params, max_new_tokens, tuple(stop or ()), ignore_eos, max_draft, domain)
    request.validate()
    return request


def _write(piece: Piece) -> None:
    if piece.text:
        print(printable(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)


def _summarise(completion: Completion, seconds: float) -> None:
    """On a terminal, say how it went; never into a file."""
    if not sys.stderr.isatty():
        return
    count, speculation = len(completion.tokens), completion.speculation
    parts = [f"{count} tokens in {seconds:.1f} s"]
    if speculation.mean_acceptance_length is not None:
        parts.append(f"{speculation.mean_acceptance_length:.2f} per verdict")
        parts.append(f"{speculation.draft_acceptance_rate:.0%} of {speculation.num_draft_tokens} drafted accepted")
    Console(stderr=True).print(", ".join(parts), style="dim", highlight=False)


def _write_utf8() -> None:
    """Let nothing that a model says end its text: in another encoding most characters do not exist."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _log_to_stderr(verbose: bool, *, log_json: bool = False, name: str | None = None) -> None:
    # A person knows which agent it is.
    formatter = JsonLines({"agent": name or platform.node()}) if log_json else Readable("goodspeed-agent: %(message)s")
    log_to(
        logging.StreamHandler(),
        formatter,
        ours=("goodspeed_agent", "goodspeed.engine", "uvicorn.access"),
        verbose=verbose,
    )
