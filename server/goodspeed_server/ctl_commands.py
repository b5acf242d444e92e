"""`goodspeed-server ctl`: change a server while it runs, and see what is in force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, TypeVar

import typer
from msgspec.structs import replace

from goodspeed.control import (
    Change,
    ControlState,
    Policy,
    SetCapacity,
    SetRoundTimeout,
    SetScheduler,
    SetService,
    SetWeight,
    SteeredAgent,
    Trust,
)
from goodspeed.credentials import Credentials
from goodspeed.errors import InvalidRequest
from goodspeed.event_loop import loop_factory
from goodspeed.scheduling import SCHEDULERS
from goodspeed_server.controlling import controlling, drained
from goodspeed_server.errands import errors_named
from goodspeed_server.monitor.marks import clean
from goodspeed_server.options import DEFAULT_URL, Ca, ClientCert, ClientKey, Token

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Change a server while it runs; it starts again as it was started.")

AsJson = Annotated[bool, typer.Option("--json", help="Print all that is in force, and what was changed, as JSON.")]
AgentName = Annotated[str, typer.Argument(help="Its name, as the monitor shows it.", metavar="AGENT")]

_NUMBERS = {"ignore_unknown_options": True}
"""-3 is a number, if not a good one, and no option."""


@app.callback()
def server(
    ctx: typer.Context,
    url: Annotated[str, typer.Option(help="The server's address, ws://HOST:PORT.")] = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Change a server while it runs; it starts again as it was started."""
    with errors_named():
        ctx.obj = url, Credentials(token, ca, client_cert, client_key)


@app.command()
def show(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Say what is in force, and what the server was started with."""
    _change(ctx, None, as_json=as_json)


@app.command()
def scheduler(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help=f"auto, {', '.join(SCHEDULERS)}.")],
    fairness: Annotated[float | None, typer.Option(help="Of the utility.", show_default="as it is")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan with another scheduler; the kind of rounds goes with it, unless the server was started with one."""
    _change(ctx, SetScheduler(name, fairness), as_json=as_json)


@app.command(context_settings=_NUMBERS)
def capacity(
    ctx: typer.Context,
    tokens: Annotated[str, typer.Argument(help="Draft tokens a pass, or auto.")],
    as_json: AsJson = False,
) -> None:
    """Verify no more draft tokens a pass than so many."""
    with errors_named():
        count = None if tokens == "auto" else _number("capacity", tokens, int, "a whole number, or auto")
    _change(ctx, SetCapacity(count), as_json=as_json)


@app.command(context_settings=_NUMBERS)
def weight(
    ctx: typer.Context,
    agent: AgentName,
    weight: Annotated[str, typer.Argument(help="Of each of its streams, or default: its token's.")],
    as_json: AsJson = False,
) -> None:
    """Count the utility of an agent's streams so many times."""
    with errors_named():
        value = None if weight == "default" else _number("weight", weight, float, "a number, or default")
    _change(ctx, SetWeight(agent, value), as_json=as_json)


@app.command("round-timeout", context_settings=_NUMBERS)
def round_timeout(
    ctx: typer.Context,
    milliseconds: Annotated[str, typer.Argument(help="How long the barrier waits for drafts.")],
    as_json: AsJson = False,
) -> None:
    """Have the barrier wait for so long; rolling rounds have none."""
    with errors_named():
        timeout_ms = _number("round-timeout", milliseconds, float, "a number of milliseconds")
    _change(ctx, SetRoundTimeout(timeout_ms), as_json=as_json)


@app.command()
def drain(
    ctx: typer.Context,
    agent: AgentName,
    now: Annotated[bool, typer.Option("--now", help="Ask it for no more drafts: the server decodes alone.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when its last stream has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let an agent begin no new texts; those it has begun are finished."""
    change = SetService(agent, "drained undrafted" if now else "drained")
    _change(ctx, change, as_json=as_json, until_drained=agent if wait else None)


@app.command()
def undrain(ctx: typer.Context, agent: AgentName, as_json: AsJson = False) -> None:
    """Serve an agent again that was drained."""
    _change(ctx, SetService(agent, "served"), as_json=as_json)


@app.command()
def trust(ctx: typer.Context, agent: AgentName, as_json: AsJson = False) -> None:
    """Believe again what an agent claims of its drafts that was found out; see `docs/operating.md`."""
    _change(ctx, Trust(agent), as_json=as_json)


def _change(ctx: typer.Context, change: Change | None, *, as_json: bool, until_drained: str | None = None) -> None:
    """Make a change, or only look, and print what there is to say."""
    url, credentials = ctx.obj
    with errors_named(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        if change is not None:
            # What cannot be is said before anybody is asked.
            change.validate()
        runner.run(_changed(url, credentials, change, as_json, until_drained))


async def _changed(
    url: str, credentials: Credentials, change: Change | None, as_json: bool, until_drained: str | None
) -> None:
    async with controlling(url, credentials) as controls:
        state = await controls.ask(change)
        if not as_json:
            said = _in_force(state) if change is None else ["; ".join(clean(str(made)) for made in state.changed)]
            print("\n".join(said), flush=True)
        if until_drained is not None:
            state = replace(await drained(controls, until_drained), changed=state.changed)
            if not as_json:
                print(f"agent {clean(until_drained)}: its last stream has ended")
        if as_json:
            print(state.to_json().decode())


Number = TypeVar("Number", int, float)


def _number(what: str, text: str, kind: type[Number], wanted: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{what} is {text!r}: it must be {wanted}") from None


def _in_force(state: ControlState) -> Iterator[str]:
    if state.draining_s is not None:
        yield f"{'draining':<14} begins nothing any more, and ends in {state.draining_s:.0f} s at the latest"
    capacity = "by price" if state.capacity_now is None else f"{state.capacity_now} at present"
    now, then = (_named(policy, capacity) for policy in (state.now, state.at_start))
    for what, value in now.items():
        yield f"{what:<14} {value}{'' if value == then[what] else f'   (at the start: {then[what]})'}"
    for agent in state.agents:
        if said := _said_of(agent):
            yield f"{'agent':<14} {clean(agent.name)}: {'; '.join(said)}"


def _named(policy: Policy, auto_capacity: str) -> dict[str, str]:
    return {
        "scheduler": policy.scheduler,
        "rounds": policy.rounds,
        "fairness": f"{policy.fairness:g}",
        "capacity": f"auto, {auto_capacity}" if policy.capacity is None else str(policy.capacity),
        "round timeout": f"{policy.round_timeout_ms:g} ms",
    }


def _said_of(agent: SteeredAgent) -> list[str]:
    """What was changed of an agent."""
    said = []
    if agent.reweighted:
        own = "" if agent.own_weight is None else f", its token's is {agent.own_weight:g}"
        said.append(f"weight {agent.weight:g}{own}")
    if agent.service != "served":
        said.append(f"{agent.service}, {agent.streams} streams left")
    if agent.distrusted:
        said.append("distrusted")
    if said and not agent.links:
        said.append("not linked up")
    return said
