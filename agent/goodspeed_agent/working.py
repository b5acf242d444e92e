"""From a command's options to an agent that is linked and at work."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from goodspeed.credentials import Credentials
from goodspeed.errors import TokenizerMismatch
from goodspeed.extras import how_to_install
from goodspeed.logs import say
from goodspeed_agent.agent import Agent
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import Drafter, SuffixDrafter, default_draft, load_drafter
from goodspeed_agent.exits import run
from goodspeed_agent.itinerary import addresses
from goodspeed_agent.reloading import Reloading

__all__ = ["agent_maker", "drafter_loader", "note", "with_agent"]

T = TypeVar("T")


def with_agent(work: Callable[[Agent], Coroutine[None, None, T]], given: Mapping[str, Any]) -> T:
    """Connect an agent and let it work.

    Args:
        work: what it does.
        given: the command's options.
    """
    make, load = agent_maker(given), drafter_loader(given)
    chosen = given["draft"] or default_draft()
    if given["draft"] is None and chosen == "suffix":
        note(f"drafting from the text's own repetitions; for a draft model: {how_to_install('models')}")

    async def main() -> T:
        async with AsyncExitStack() as stack:
            # The first of all: a signal that nobody awaits would end the process.
            reloading = stack.enter_context(Reloading(load, note))
            drafter = await asyncio.to_thread(load)
            try:
                agent = await stack.enter_async_context(make(drafter))
            except TokenizerMismatch:
                if given["draft"] is not None or given["offline_fallback"]:
                    raise
                # Nobody asked for this draft; the one that fits every target does as well.
                note(f"{chosen} does not fit this server's model; drafting from the text's own repetitions instead")
                agent = await stack.enter_async_context(make(SuffixDrafter()))
            reloading.attach(agent)
            return await work(agent)

    return run(main())


def agent_maker(given: Mapping[str, Any]) -> Callable[[Drafter], Agent]:
    """Makes agents as the options say.

    Raises:
        InvalidRequest: an address is none, or the credentials do not go together.
    """
    return functools.partial(
        Agent,
        addresses(given["server"]),
        name=given.get("name"),
        backoff=Backoff(give_up_after_s=given["connect_timeout"]),
        draft_ahead=given.get("draft_ahead", "auto"),
        patience_s=given["patience_s"],
        alone_after_s=given["offline_after_s"] if given.get("offline_fallback") else None,
        credentials=Credentials(given["token"], *(_path(given[name]) for name in ("ca", "client_cert", "client_key"))),
    )


def drafter_loader(given: Mapping[str, Any]) -> Callable[[], Drafter]:
    """Loads the drafter that the options name, or else the one that can run here."""
    return functools.partial(load_drafter, given["draft"] or default_draft(), threads=given["threads"])


def note(text: str) -> None:
    """Say something to the user, on standard error."""
    say("goodspeed-agent", text)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
