"""The terminal's side of a conversation: lines in, text out as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console

from goodspeed.errors import GoodSpeedError, LinkLost, ProtocolError, Refused
from goodspeed.logs import say
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.chat.conversation import Conversation
from goodspeed_agent.report import Completion, Origin
from goodspeed_agent.text import printable
from goodspeed_agent.waiting import WaitingLine
from goodspeed_agent.working import note

__all__ = ["chat"]

_COLOURS: dict[Origin, tuple[str, str]] = {
    "target": ("", ""),
    "accepted": ("\x1b[36m", "\x1b[39m"),
    "recovered": ("\x1b[33m", "\x1b[39m"),
    "bonus": ("\x1b[35m", "\x1b[39m"),
    "unverified": ("\x1b[31m", "\x1b[39m"),
}


def _shown(text: str, console: Console) -> str:
    """What the target says, to the letter; on a terminal without what would steer it."""
    return printable(text) if console.is_terminal else text


async def chat(agent: Agent, conversation: Conversation, console: Console) -> None:
    """Converse until the user ends it.

    On a terminal Ctrl-C stops an answer, and Ctrl-D ends. Elsewhere standard input is read line by line.

    Raises:
        GoodSpeedError: what has ended the link for good; whatever else `Agent.complete` raises is told.
    """
    async for line in _lines():
        text = line.strip()
        if not text:
            continue
        try:
            if text == "/again" and conversation.unanswered:
                await _answer(agent, conversation, console, conversation.unanswered)
            elif text.startswith("/"):
                if said := conversation.command(text):
                    console.print(said, style="dim", markup=False, highlight=False)
            else:
                await _answer(agent, conversation, console, text)
        except GoodSpeedError as error:
            if agent.link.ended:
                raise
            console.print(str(error), style="red", markup=False, highlight=False)
            if isinstance(error, LinkLost | Refused | ProtocolError):
                console.print("the question is kept: /again asks it once more", style="dim", highlight=False)
        if conversation.over:
            return


async def _lines() -> AsyncIterator[str]:
    if stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode):
        for line in sys.stdin:
            yield line
        return
    if not sys.stdin.isatty():
        reader = asyncio.StreamReader(limit=2**24)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        try:
            async for line in reader:
                yield line.decode(errors="replace")
        finally:
            transport.close()
        return
    session: PromptSession[str] = PromptSession()
    while True:
        try:
            # What the log has to say meanwhile stands above the prompt.
            with patch_stdout():
                yield await session.prompt_async("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


async def _answer(agent: Agent, conversation: Conversation, console: Console, text: str) -> None:
    request = conversation.ask(text)
    conversation.unanswered = text
    began_s = time.monotonic()

    def show(piece: Piece) -> None:
        if conversation.origins and piece.origins and console.color_system is not None:
            for part, origin in zip(piece.parts, piece.origins, strict=True):
                begin, end = _COLOURS[origin]
                console.file.write(f"{begin}{_shown(part, console)}{end}")
        else:
            console.file.write(_shown(piece.text, console))
        console.file.flush()

    with WaitingLine(console, note) as waiting:

        def write(piece: Piece) -> None:
            waiting.over()
            show(piece)

        try:
            completion = await _interruptible(agent, request, write, waiting.at)
        except GoodSpeedError:
            console.print()
            raise
    console.print()
    if completion is None:
        conversation.unanswered = ""
        console.print("stopped; the question is forgotten", style="dim")
    else:
        conversation.answered(text, completion, time.monotonic() - began_s)
        if completion.draft is not None:
            say("goodspeed-agent", f"nobody has verified this: {completion.draft} answered alone")


async def _interruptible(
    agent: Agent, request: TextRequest, show: Callable[[Piece], None], on_queued: Callable[[int], None]
) -> Completion | None:
    """The completion, or None if Ctrl-C came."""
    task = asyncio.create_task(agent.complete(request, show, on_queued))
    try:
        with _on_interrupt(task.cancel):
            await asyncio.wait([task])
        return None if task.cancelled() else task.result()
    finally:
        task.cancel()


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """What Ctrl-C does while the block runs."""
    loop, usual = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    try:
        loop.add_signal_handler(signal.SIGINT, act)
    except NotImplementedError:
        # Not on Windows: there it ends the conversation.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, usual)
