"""The server as a whole: loads the target, listens, runs the rounds, and closes in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from websockets.asyncio.server import Server

from goodspeed.addresses import is_loopback_host, url_of
from goodspeed.catalog import Files, load_model, tokenizer_files, weights_digest
from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest
from goodspeed.logs import about, announce
from goodspeed.rules import use_rule
from goodspeed.snapshot import ServerSnapshot
from goodspeed.timing import EngineMeter, PassCost
from goodspeed.utility import AlphaFair
from goodspeed_server.control import LiveControl
from goodspeed_server.doorkeeper import Doorkeeper
from goodspeed_server.draining import RESTART_S, Drain, stop_on_signals
from goodspeed_server.greeting import ServedModel
from goodspeed_server.keeping import end_keepers
from goodspeed_server.link import Link
from goodspeed_server.listener import Connection, Door
from goodspeed_server.metrics import ServerMetrics
from goodspeed_server.observer import Observer
from goodspeed_server.planner import Planner
from goodspeed_server.probes import Probes
from goodspeed_server.recording import Recorder
from goodspeed_server.round_loop import RoundLoop
from goodspeed_server.sessions import Sessions
from goodspeed_server.settings import ServerSettings, what_auto_means
from goodspeed_server.shards import ShardFolder
from goodspeed_server.showing import Showing
from goodspeed_server.target import engine_of
from goodspeed_server.telemetry import ServerFacts, Telemetry
from goodspeed_server.threads import use_quickest_threads
from goodspeed_server.tokens import TokenStore
from goodspeed_server.tracing import TraceFile, Tracer, trace_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from goodspeed_server.ranks import Ranks

__all__ = ["VerificationServer", "load_server"]

logger = logging.getLogger(__name__)

_LAST_PASS_S = 4.0
"""For how long the pass that runs is waited for when the rounds are to end: it may hang."""
_CLOSE_TIMEOUT_S = 4.0
_TOKEN_CHECK_S = 2.0
"""How soon a token that is revoked opens nothing any more."""
_GOING_AWAY = "the server is shutting down"
_CUT_OFF = 4
"""A frame so many times larger than that gets a close code, before it has cost anybody the memory to read it."""


def load_server(settings: ServerSettings, ranks: Ranks | None = None) -> VerificationServer:
    """Load the target by name and build the server around it; blocks while the model loads.

    Args:
        settings: the operator's choices.
        ranks: that are to share it; None for one alone.

    Raises:
        ModelError: the model cannot be loaded or served.
        InvalidRequest: a setting is out of range.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.record is not None:
        # Refused before a target is loaded for nothing.
        ShardFolder(settings.record, settings.record_max_bytes)
    if settings.trace is not None:
        TraceFile(settings.trace, settings.trace_max_bytes)
    settings.tls.context()
    if settings.tokens is not None and not TokenStore(settings.tokens).tokens():
        raise InvalidRequest(
            f"there are no tokens in {settings.tokens}, so nobody could link up: make one first, "
            f"goodspeed-server token create NAME --tokens {settings.tokens}"
        )
    if ranks is not None:
        model = ranks.load()
    else:
        model = load_model(settings.model, device=settings.device, dtype=settings.dtype, quantize=settings.quantize)
    if settings.threads is None and ranks is None:
        use_quickest_threads(model)
    return VerificationServer(settings, model, tokenizer_files(settings.model), ranks=ranks)


class VerificationServer:
    """One target, served.

    Args:
        settings: the operator's choices.
        model: the target, loaded, or this rank's part of it.
        tokenizer: its tokenizer files.
        ranks: that share it; None where it is here as a whole.
        make_engine: what runs the target; a benchmark may put an engine there that keeps another pace.
        observer: is told about every verdict and every round.

    Raises:
        InvalidRequest: a setting is out of range.
        UnsupportedModel: the engine cannot serve this architecture.
    """

    def __init__(
        self,
        settings: ServerSettings,
        model: PreTrainedModel,
        tokenizer: Files,
        *,
        ranks: Ranks | None = None,
        make_engine: Callable[..., Engine] = Engine,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        rule = use_rule("coupled" if settings.rule == "auto" else settings.rule)
        utility = AlphaFair(settings.fairness)
        rounds = settings.rounds
        chosen = what_auto_means(settings.scheduler, rounds.rounds, utility)
        rounds = replace(rounds, rounds=chosen.rounds)
        engine, measured, pass_tokens = engine_of(settings, model, ranks, make_engine)
        now = time.monotonic()
        self._metrics = ServerMetrics(observer)
        self._tracer: Tracer | None = None
        if settings.trace is not None:
            header = trace_header(settings, chosen.name, rule, rounds, engine.rows, measured)
            self._tracer = Tracer(TraceFile(settings.trace, settings.trace_max_bytes), header)
        self._telemetry = Telemetry(
            ServerFacts(
                model=settings.model,
                scheduler=chosen.name,
                rule=rule,
                layout=engine.layout,
                rows=engine.rows,
                max_length=engine.max_length,
                utility=utility,
                measured=measured,
            ),
            now,
            self._metrics,
            self._tracer,
        )
        weights = weights_digest(model) if ranks is None else ranks.weights
        self._model = ServedModel.of(settings.model, model, weights, tokenizer, engine, rule)
        self._recorder = (
            Recorder(ShardFolder(settings.record, settings.record_max_bytes)) if settings.record is not None else None
        )
        self._rounds = RoundLoop(
            engine,
            rule=rule,
            planner=Planner(chosen.scheduler, rule, rounds, EngineMeter(PassCost(measured))),
            eos_tokens=self._model.eos_tokens,
            settings=rounds,
            telemetry=self._telemetry,
            recorder=self._recorder,
            pass_tokens=pass_tokens,
        )
        self._drain = Drain(settings.drain_s)
        self._showing = Showing(self._rounds, self._telemetry, self._drain)
        self._control = LiveControl(
            self._rounds,
            self._telemetry,
            scheduler=chosen.name,
            fairness=settings.fairness,
            kind=settings.rounds.rounds,
            announce=self._announce_rounds,
            draining_s=lambda: self._drain.left_s,
        )
        self._doorkeeper = Doorkeeper(None if settings.tokens is None else TokenStore(settings.tokens), settings.door)
        self._tls = settings.tls.context()
        self._door = Door(
            settings.door,
            self._tls,
            refused=self._metrics.refused,
            throttled=self._metrics.throttled,
        )
        gate = self._door.gate
        self._metrics.watch("links", "Links, of agents and of whoever looks or steers.", lambda: gate.links)
        self._metrics.watch("connections_pending", "Connections that are no links yet.", lambda: gate.pending)
        self._probes = Probes(self._door, self._doorkeeper, self._metrics, self._showing, self._drain)
        self._links: set[Link] = set()
        self._sessions = Sessions()
        self._running: asyncio.Task[None] | None = None
        self.stuck = False
        """Whether it has ended, and the engine's thread has not: whoever waits for that, as the interpreter does at its
        own end, may wait for ever."""

    @property
    def failure(self) -> BaseException | None:
        """What ended the rounds, or else why the scheduler that was chosen plans no more."""
        if self._running is not None and self._running.done() and not self._running.cancelled():
            return self._running.exception() or self._rounds.planner.fault
        return self._rounds.planner.fault

    def snapshot(self) -> ServerSnapshot:
        """The server as it is now."""
        return self._showing.snapshot()

    async def recent_snapshot(self) -> ServerSnapshot:
        """The server as it was a moment ago, made while links are heard."""
        return await self._showing.recent()

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Serve while the context is open; yields the address, and closes in order at its end.

        Raises:
            GoodSpeedError: the port is taken, or the address cannot be used.
            Exception: whatever made the engine fail meanwhile.
        """
        listener = await self._door.listen(
            self._settings.host,
            self._settings.port,
            self._serve_link,
            self._probes.answer,
            max_bytes=_CUT_OFF * self._model.max_frame_bytes,
        )
        rounds = self._rounds.run() if self._ranks is None else self._ranks.while_whole(self._rounds.run())
        self._running = asyncio.create_task(rounds, name="rounds")
        self._running.add_done_callback(self._rounds_ended)
        watching = [
            asyncio.create_task(self._watch_tokens(), name="tokens"),
            asyncio.create_task(self._metrics.watch_loop(), name="loop lag"),
        ]
        try:
            host, port = next(iter(listener.sockets)).getsockname()[:2]
            yield url_of(host, port, secure=self._tls is not None)
        finally:
            for task in watching:
                task.cancel()
            await self._close(listener)
        if not self.stuck:
            self._running.result()

    async def run(self, on_listening: Callable[[], None] | None = None) -> None:
        """Print the address, serve until SIGTERM, SIGINT or SIGHUP, and drain; a second SIGTERM or SIGINT ends it.

        Returns within `drain_s` and a few seconds of that, whatever the engine does: see `stuck`.

        Args:
            on_listening: called once the address is printed.

        Raises:
            GoodSpeedError: the port is taken, or the address cannot be used.
            Exception: whatever made the engine fail.
        """
        stop = asyncio.Event()
        stop_on_signals(stop, self._settings.drain_s)
        async with self.listen() as address:
            announce("goodspeed-server", f"listening on {address}")
            if on_listening is not None:
                on_listening()
            await self.until(stop)
            await self.drain()

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`.

        Raises:
            Exception: whatever made the engine fail meanwhile.
        """
        assert self._running is not None
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, self._running], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._running.done():
            self._running.result()

    async def drain(self) -> None:
        """Begin nothing any more, and send agents elsewhere.

        Those that stay are served until all they began has ended, or for as long as the operator allows.

        Raises:
            Exception: whatever made the engine fail meanwhile.
        """
        assert self._running is not None
        self._drain.begin()
        self._showing.outdate()  # what monitors are shown says so from here on
        self._rounds.turn_away(self._drain.refusal())
        ending = asyncio.create_task(self._send_away(), name="drain")
        await asyncio.wait([ending, self._running], timeout=self._drain.left_s, return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            self._running.result()
        ending.cancel()
        await asyncio.wait([ending])
        if not ending.cancelled():
            ending.result()

    async def _send_away(self) -> None:
        def tell() -> None:
            for link in self._links:
                link.send_away(_GOING_AWAY, RESTART_S)

        await self._rounds.boundary.reached(tell)
        await self._rounds.emptied()

    async def _close(self, listener: Server) -> None:
        """Stop accepting, finish the round that runs, say goodbye, and only then cut off who does not answer."""
        assert self._running is not None
        ends_at = time.monotonic() + (self._settings.drain_s if self._drain.left_s is None else self._drain.left_s)
        self._drain.begin(at_once=True)
        self._rounds.stop()
        await asyncio.wait([self._running], timeout=_LAST_PASS_S)
        self.stuck = not self._running.done()
        if self.stuck:
            logger.error("a pass has not returned in %g s: the server ends without it", _LAST_PASS_S)
            self._running.cancel()
            await asyncio.wait([self._running])
        self._door.hear_out()
        goodbyes = [asyncio.create_task(link.say_goodbye(_GOING_AWAY, RESTART_S)) for link in self._links]
        if goodbyes:
            await asyncio.wait(goodbyes, timeout=_CLOSE_TIMEOUT_S)
        for link in self._links:
            link.abort()
        self._door.close()
        listener.close()
        closing = asyncio.create_task(listener.wait_closed())
        if (await asyncio.wait([closing], timeout=_CLOSE_TIMEOUT_S))[1]:
            logger.error(
                "%d links have not ended in %g s: the server ends without them", len(self._links), _CLOSE_TIMEOUT_S
            )
            closing.cancel()
        await end_keepers([keeper for keeper in (self._recorder, self._tracer) if keeper is not None], ends_at)

    def _rounds_ended(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and running.exception() is not None:
            # Nobody will ever be answered again: agents find another server sooner if they are told so now.
            for link in self._links:
                link.abort()

    async def _serve_link(self, connection: Connection) -> None:
        token = self._doorkeeper.token_of(connection)
        connection.listen_as(self._door.pace_of(connection) if token is None else self._doorkeeper.pace(token))
        link = Link(
            connection,
            model=self._model,
            rounds=self._rounds,
            telemetry=self._telemetry,
            showing=self._showing,
            control=self._control,
            sessions=self._sessions,
            trusts_everybody=self._settings.tokens is None and is_loopback_host(self._settings.host),
            token=token,
            allowance=None if token is None else self._doorkeeper.allowance(token),
            refused=self._metrics.refused,
            drain=self._drain,
            heard=lambda: self._door.heard(connection),
            pace=connection.pace,
        )
        connection.served = link
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    def _announce_rounds(self) -> None:
        for link in self._links:
            link.announce_rounds()

    async def _watch_tokens(self) -> None:
        """Cut links whose token is revoked; who comes back is told why."""
        while True:
            await asyncio.sleep(_TOKEN_CHECK_S)
            links = {link.connection: link for link in self._links}
            for connection in self._doorkeeper.no_longer_welcome(links):
                with about(agent=links[connection].agent):
                    logger.info("a link is cut: its token was revoked")
                links[connection].expel()
