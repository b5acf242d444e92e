"""`goodspeed-server`: run a server, watch one, or change it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from goodspeed.catalog import DEFAULT_TARGET
from goodspeed.credentials import Credentials
from goodspeed.environment import ENVIRONMENT, check_environment
from goodspeed.errors import InvalidRequest, ModelError
from goodspeed.event_loop import loop_factory
from goodspeed.extras import how_to_install
from goodspeed.given import CommandGroup
from goodspeed.logs import JsonLines, Readable, log_to
from goodspeed.paths import expanded
from goodspeed.rules import RULES
from goodspeed.scheduling import SCHEDULERS
from goodspeed_server import ctl_commands, token_commands
from goodspeed_server.configuration import checked, lines_in_force, use_file
from goodspeed_server.dashboard import dashboard
from goodspeed_server.errands import end_at_once, errors_named
from goodspeed_server.log_limits import FloodLimit
from goodspeed_server.monitor import run_monitor, top
from goodspeed_server.options import DEFAULT_URL, Ca, ClientCert, ClientKey, Token
from goodspeed_server.settings import (
    AUTO_MAX_LENGTH,
    AUTO_MAX_STREAMS,
    CAPACITY_PER_STREAM,
    FAILED_TOKENS_PER_MINUTE,
    HANDSHAKES_PER_MINUTE,
    LINKS_PER_ADDRESS,
    LONGEST_DRAIN_S,
    MAX_PORT,
    OVERDUE,
    DoorSettings,
    LayoutName,
    PrefixSharing,
    RoundSettings,
    RoundsName,
    ServerSettings,
    TlsSettings,
)

if TYPE_CHECKING:
    from goodspeed_server.server import VerificationServer

__all__ = ["app"]

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The verification server of GoodSpeed.",
)

app.add_typer(token_commands.app, name="token")
app.add_typer(ctl_commands.app, name="ctl")

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOPBACK_IS_FREE = "loopback free"


@app.callback()
def main() -> None:
    """The verification server of GoodSpeed."""


@app.command(context_settings={"auto_envvar_prefix": ENVIRONMENT})
def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Target: bundled, a folder, or a Hugging Face name.")] = DEFAULT_TARGET,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=MAX_PORT, help="Port; 0 picks a free one.")] = 8765,
    capacity: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draft tokens one pass verifies.",
            show_default=f"what pays; behind a barrier {CAPACITY_PER_STREAM} a stream",
        ),
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option(
            help=f"auto (seconds; goodspeed behind a barrier), {', '.join(SCHEDULERS)}, or your own: module:Class."
        ),
    ] = "auto",
    rounds: Annotated[RoundsName, typer.Option(help="auto: rolling for the scheduler `seconds`.")] = "auto",
    fairness: Annotated[float, typer.Option(help="Of the utility: 0 throughput, 1 proportional, 2 and up.")] = 1.0,
    early_stop: Annotated[
        bool, typer.Option(help="Tell agents the price of a drafted token, so that they may stop short.")
    ] = True,
    rule: Annotated[
        str, typer.Option(help=f"Of verification: auto, {', '.join(RULES)}, or your own: module:Class.")
    ] = "auto",
    layout: Annotated[LayoutName, typer.Option(help="Of the batch.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Weights: int8, a method of transformers', or its quantization_config as JSON.")
    ] = None,
    max_streams: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of the KV slab.", show_default=f"what fits, to {AUTO_MAX_STREAMS}"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens a stream, prompt included.", show_default=f"the model's, to {AUTO_MAX_LENGTH}"
        ),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="Streams that may wait for a row.")] = 64,
    max_waiting_tokens: Annotated[int, typer.Option(min=1, help="That those may hold together.")] = 2**20,
    max_streams_per_agent: Annotated[
        int | None, typer.Option(min=1, help="At a time, for each link.", show_default="no limit")
    ] = None,
    park_s: Annotated[
        float, typer.Option(min=0, help="Keep a lost link's rows so long, as far as nobody else needs them.")
    ] = 30.0,
    round_timeout_ms: Annotated[
        float, typer.Option(min=0, help=f"How long the barrier waits; drafts {OVERDUE} times as late go unused.")
    ] = 500.0,
    prefill_chunk: Annotated[int, typer.Option(min=1, help="Prompt tokens one pass may carry.")] = 512,
    prefix_sharing: Annotated[
        PrefixSharing, typer.Option(help="Run what prompts begin with once, for each token's holder or for all.")
    ] = "holder",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the forward pass, on each rank; measured if not said.")
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Processes that share the target, a GPU each where there are any.")
    ] = 1,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep every text and the target's likeliest tokens in this folder, for goodspeed tune."),
    ] = None,
    record_max_mb: Annotated[float, typer.Option(min=64, help="Of --record; the oldest is deleted.")] = 1024.0,
    trace: Annotated[
        Path | None, typer.Option(help="Write who asks for how much, every verdict and pass, for goodspeed simulate.")
    ] = None,
    trace_max_mb: Annotated[float, typer.Option(min=1, help="Of --trace, which ends there.")] = 256.0,
    tokens: Annotated[
        Path | None, typer.Option(help="Let in who shows one of these tokens: goodspeed-server token create.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Encrypt links: a certificate, and the chain behind it.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Of --tls-cert, where it is not in the same file.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Let in whose certificate this authority signed.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without tokens and TLS.")
    ] = False,
    max_links: Annotated[int, typer.Option(min=1, help="In all; then idle ones make way for others.")] = 4096,
    max_links_per_address: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of one IPv4 address or IPv6 /64.", show_default=f"{LINKS_PER_ADDRESS}, {_LOOPBACK_IS_FREE}"
        ),
    ] = None,
    handshakes_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Of one address.", show_default=f"{HANDSHAKES_PER_MINUTE}, {_LOOPBACK_IS_FREE}"),
    ] = None,
    failed_tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Of one address.", show_default=f"{FAILED_TOKENS_PER_MINUTE}, {_LOOPBACK_IS_FREE}"),
    ] = None,
    idle_s: Annotated[float, typer.Option(min=0, help="How long a link is silent before it counts as idle.")] = 300.0,
    messages_per_s: Annotated[
        float, typer.Option(min=1, help="Of a token's holder, or an address, beside those its texts call for.")
    ] = 200.0,
    drain_s: Annotated[
        float,
        typer.Option(min=0, max=LONGEST_DRAIN_S, help="How long it goes on with texts when it is told to end."),
    ] = 10.0,
    monitor: Annotated[bool, typer.Option("--monitor", help="Draw the live monitor here.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Log here rather than to stderr; wise with --monitor.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines, for log collectors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log who comes and goes, and every text.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML, for what neither flags nor GOODSPEED_... say.", is_eager=True, callback=use_file),
    ] = None,
) -> None:
    """Load the target, listen, and verify everybody's drafts."""
    with errors_named():
        check_environment("goodspeed-server")
        _log_to(log_file, log_json=log_json, verbose=verbose)
        # From the context, where `config` finds them too.
        settings = checked(ctx, _settings)
        if _run(_serve(settings, monitor=monitor, log_json=log_json), starts_tls=settings.tls.certificate is not None):
            end_at_once()


@app.command("config", context_settings={"auto_envvar_prefix": ENVIRONMENT}, help="Print what is in force, and why.")
@functools.wraps(run)
def show_config(ctx: typer.Context, **_: Any) -> None:
    """Takes what `run` takes, and starts nothing."""
    with errors_named():
        check_environment("goodspeed-server")
        checked(ctx, _settings)
        for line in lines_in_force(ctx):
            print(line)


_DOOR = (
    "max_links", "max_links_per_address", "handshakes_per_minute", "failed_tokens_per_minute", "idle_s",
    "messages_per_s",
)  # fmt: skip
_FILES = ("record", "trace", "tokens", "tls_cert", "tls_key", "tls_client_ca")


def _settings(given: Mapping[str, Any]) -> ServerSettings:
    """The options of `run`, checked."""
    record_max_bytes = _bytes("record-max-mb", given["record_max_mb"], 64)
    trace_max_bytes = _bytes("trace-max-mb", given["trace_max_mb"], 1)
    rounds = RoundSettings(
        rounds=given["rounds"],
        capacity=given["capacity"],
        round_timeout_s=given["round_timeout_ms"] / 1e3,
        prefill_chunk=given["prefill_chunk"],
        prefix_sharing=given["prefix_sharing"],
        max_waiting=given["max_waiting"],
        max_waiting_tokens=given["max_waiting_tokens"],
        max_streams_per_agent=given["max_streams_per_agent"],
        park_s=given["park_s"],
        early_stop=given["early_stop"],
    )
    names = (
        "model", "host", "port", "scheduler", "fairness", "rule", "layout", "device", "dtype", "quantize",
        "max_streams", "max_length", "threads", "tensor_parallel", "insecure", "drain_s",
    )  # fmt: skip
    files = {name: None if given[name] is None else expanded(Path(given[name])) for name in _FILES}
    return ServerSettings(
        **{name: given[name] for name in names},
        record=files["record"],
        trace=files["trace"],
        trace_max_bytes=trace_max_bytes,
        tokens=files["tokens"],
        door=DoorSettings(**{name: given[name] for name in _DOOR}),
        tls=TlsSettings(files["tls_cert"], files["tls_key"], files["tls_client_ca"]),
        record_max_bytes=record_max_bytes,
        rounds=rounds,
    )


def _bytes(what: str, megabytes: float, least: int) -> int:
    count = megabytes * 2**20
    if not math.isfinite(count):
        raise InvalidRequest(f"{what} is {megabytes:g}: it must be {least} or above, and finite")
    return int(count)


@app.command("top")
def watch(
    url: Annotated[str, typer.Argument(help="The server's address, ws://HOST:PORT.")] = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Draw one picture and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Snapshots as JSON lines.")] = False,
    token: Token = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
) -> None:
    """Watch a server from afar."""
    with errors_named():
        _run(top(url, once=once, as_json=as_json, credentials=Credentials(token, ca, client_cert, client_key)))


@app.command("dashboard")
def print_dashboard() -> None:
    """Print a Grafana dashboard of what /metrics tells."""
    print(json.dumps(dashboard(), indent=1, ensure_ascii=False))


def _run(main: Coroutine[None, None, T], *, starts_tls: bool = False) -> T:
    # uvloop reads as soon as a connection is accepted; what comes before TLS is begun upon it would be lost to that.
    with asyncio.Runner(loop_factory=None if starts_tls else loop_factory()) as runner:
        return runner.run(main)


async def _serve(settings: ServerSettings, *, monitor: bool, log_json: bool) -> bool:
    """Serve to the end, or be a rank other than the first; whether a pass still runs then."""
    # Imported here, so that `--help` and `top` do not wait for torch.
    try:
        from goodspeed_server.collector import sparing_collector
        from goodspeed_server.follower import be_follower
        from goodspeed_server.parts import PartSettings, place_by_torchrun
        from goodspeed_server.ranks import gathered
        from goodspeed_server.server import load_server
    except ModuleNotFoundError as error:
        raise ModelError(
            f"a server needs torch and transformers ({error.name} is missing): {how_to_install('models')}"
        ) from None

    place = place_by_torchrun(settings.tensor_parallel)
    if place is not None and place.rank:
        be_follower(PartSettings.of(settings), place)
        return False
    with gathered(settings, place, log_json=log_json) as ranks:
        server = load_server(settings, ranks)
        async with sparing_collector():
            await _serve_and_draw(server, monitor=monitor)
        return server.stuck


async def _serve_and_draw(server: VerificationServer, *, monitor: bool) -> None:
    drawings: list[asyncio.Task[None]] = []

    def draw() -> None:
        drawings.append(asyncio.create_task(run_monitor(server.recent_snapshot, keyboard=sys.stdin)))

    try:
        await server.run(draw if monitor else None)
    finally:
        for drawing in drawings:
            drawing.cancel()
        # A picture that failed is worth a message, but never a server.
        for trouble in await asyncio.gather(*drawings, return_exceptions=True):
            if isinstance(trouble, Exception):
                logger.error("the monitor failed", exc_info=trouble)


def _log_to(file: Path | None, *, log_json: bool, verbose: bool) -> None:
    file = None if file is None else expanded(file)
    try:
        handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    except OSError as error:
        raise InvalidRequest(f"cannot log to {file}: {error.strerror}") from None
    handler.addFilter(FloodLimit())
    formatter = JsonLines() if log_json else Readable("%(asctime)s %(levelname)s %(message)s")
    log_to(handler, formatter, ours=("goodspeed_server", "goodspeed.engine", "websockets.server"), verbose=verbose)
