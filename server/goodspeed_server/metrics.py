"""What `/metrics` tells: vLLM's names under ours, and what only this server has."""

from __future__ import annotations

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from goodspeed.messages import MAX_DRAFT_TOKENS
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed.stream import Commit
from goodspeed_server.live import LiveStream
from goodspeed_server.observer import Observer, RoundRecord

__all__ = ["ServerMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MOST_AGENTS = 100
"""How many agents have labels of their own; those with the most streams do."""
_LONGEST_LABEL = 64
_LAG_EVERY_S = 0.5


@dataclass(slots=True)
class _Verdicts:
    """Of the round that is being committed: Prometheus' counters take so long that each is told once a round."""

    generated: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: collections.Counter[int] = field(default_factory=collections.Counter)
    """Drafts by how many of their tokens were accepted."""
    prices: list[float] = field(default_factory=list)


class ServerMetrics:
    """Counts what an `Observer` is told, and reads the rest off a snapshot when it is asked.

    Args:
        then: is told the same.
    """

    def __init__(self, then: Observer | None = None) -> None:
        self._then = then
        self._last: WeakKeyDictionary[LiveStream, float] = WeakKeyDictionary()
        self._registry = registry = CollectorRegistry()
        self._now = _Now()
        registry.register(self._now)
        ProcessCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"goodspeed_{name}", what, labels, registry=registry)

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(f"goodspeed_{name}_seconds", what, labels, buckets=_SECONDS, registry=registry)

        self._prompt = counter("prompt_tokens", "Prompt tokens that went through the target.")
        self._reused = counter(
            "prefix_cache_hits", "Prompt tokens that did not, since a row held what the prompt begins with."
        )
        self._generated = counter("generation_tokens", "Committed tokens.")
        self._finished = counter("request_success", "Texts that ended.", "finished_reason")
        self._drafts = counter("spec_decode_num_drafts", "Drafts of at least one token that were verified.")
        self._drafted = counter("spec_decode_num_draft_tokens", "Drafted tokens that were verified.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Of these, accepted.")
        by_position = counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their place in a draft.", "position"
        )
        self._positions = [by_position.labels(position) for position in range(MAX_DRAFT_TOKENS)]
        self._out_of_memory = counter(
            "out_of_memory",
            "Passes, or pieces of one, for which memory did not suffice; they were run in smaller ones.",
        )
        self._rounds = counter("rounds", "Passes of the target.")
        self._first = seconds("time_to_first_token", "From asking for a text to its first token.")
        self._between = seconds("inter_token_latency", "Between two verdicts of a stream, over the tokens committed.")
        self._phases = seconds("round_phase", "Of a round.", "phase")
        self._forward = seconds("forward", "Of a forward pass.")
        self._lag = seconds("loop_lag", "How late the event loop is.")
        self._tasks = Gauge("goodspeed_server_tasks", "Of the event loop.", registry=registry)
        threads = Gauge("goodspeed_server_threads", "Python's, of the server's process.", registry=registry)
        threads.set_function(threading.active_count)
        self._refusals = counter("refusals", "What was refused: at the door, links, texts, drafts.", "code")
        self._throttled = counter("throttled_seconds", "For which links were not read, since they sent too fast.")
        self._capacity_price = Gauge(
            "goodspeed_capacity_price",
            "What one more token a pass would add to the scheduler's objective, by its last plan: the dual price "
            "of the capacity, or of the engine's time. Utility (of tokens per round, or per second for one that counts "
            "seconds) for a token; 0 where nothing holds drafts back, or the scheduler does not say.",
            registry=registry,
        )
        self._draft_price = _Optional(
            "goodspeed_draft_price",
            "From which chance of being accepted on a drafted token was worth its time, 0 to 1, whether or not agents "
            "are told: the mean over the last round's streams with a budget. Nothing where the scheduler does not say.",
        )
        registry.register(self._draft_price)
        self._verdicts = _Verdicts()

    def committed(self, live: LiveStream, drafted: int, commit: Commit, now: float) -> None:
        """A verdict was reached for one stream."""
        verdicts = self._verdicts
        verdicts.generated += commit.size
        if live.budget and live.price is not None:
            verdicts.prices.append(live.price)
        if drafted:
            verdicts.drafts += 1
            verdicts.drafted += drafted
            verdicts.accepted[commit.accepted] += 1
        last = self._last.get(live)
        if last is None:
            self._first.observe(now - live.stream.opened_at)
        else:
            self._between.observe((now - last) / max(1, commit.size))
        self._last[live] = now
        if commit.finish is not None:
            self._finished.labels(commit.finish).inc()
        if self._then is not None:
            self._then.committed(live, drafted, commit, now)

    def round_over(self, record: RoundRecord) -> None:
        """A pass has been committed."""
        self._rounds.inc()
        self._out_of_memory.inc(record.out_of_memory)
        self._capacity_price.set(record.price)
        if record.streams:
            self._count(self._verdicts)
            self._verdicts = _Verdicts()
        self._prompt.inc(record.prefilled)
        self._reused.inc(record.reused)
        self._forward.observe(record.forward_s)
        for phase in ("gather", "plan", "verify", "commit"):
            self._phases.labels(phase).observe(getattr(record, f"{phase}_s"))
        if self._then is not None:
            self._then.round_over(record)

    def _count(self, verdicts: _Verdicts) -> None:
        self._generated.inc(verdicts.generated)
        self._drafts.inc(verdicts.drafts)
        self._drafted.inc(verdicts.drafted)
        as_long = 0
        for position in range(max(verdicts.accepted, default=0), 0, -1):
            as_long += verdicts.accepted[position]
            self._positions[position - 1].inc(as_long)
            self._accepted.inc(as_long)
        self._draft_price.value = fmean(verdicts.prices) if verdicts.prices else None

    def refused(self, code: str) -> None:
        """Something that a peer asked for was refused."""
        self._refusals.labels(code).inc()

    def throttled(self, wait_s: float) -> None:
        """A link is not read for so long."""
        self._throttled.inc(wait_s)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Show one more number, which is asked for whenever somebody looks."""
        Gauge(f"goodspeed_{name}", what, registry=self._registry).set_function(value)

    async def watch_loop(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure, for ever, how late the event loop wakes who sleeps; its tasks are counted if somebody asks."""
        loop = asyncio.get_running_loop()
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        while True:
            before = clock()
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(0.0, clock() - before - _LAG_EVERY_S))

    def text(self, now: ServerSnapshot) -> bytes:
        """All of it, as Prometheus reads it, of a server that is like this now."""
        self._now.snapshot = now
        return generate_latest(self._registry)


class _Optional(Collector):
    """A gauge that may have nothing to tell."""

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self.value: float | None = None

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._what, value=self.value)


class _Now(Collector):
    """Gauges of this very moment; an agent that has gone has none any more."""

    snapshot: ServerSnapshot | None = None
    """None before anybody has looked."""

    def describe(self) -> list[Metric]:
        """Nothing, so that nobody asks for a snapshot before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        now = self.snapshot
        if now is None:
            return
        for name, what, value in (
            ("num_requests_running", "Streams that have a row.", now.streams),
            ("num_requests_waiting", "Streams in the queue.", now.waiting),
            ("streams_parked", "Streams whose link has gone, and whose rows are kept for them.", now.parked),
            ("kv_cache_usage_perc", "Of the slab, 0 to 1.", now.kv_used_tokens / max(1, now.kv_tokens)),
            ("agents", "Links of agents.", len(now.agents)),
            ("goodput", "Committed tokens per second.", now.goodput),
            ("utility", "Sum over streams of the utility of their goodput.", now.utility),
            ("plain_utility", "The same, if nothing were drafted.", now.plain_utility),
            ("jain_index", "Of the streams' goodputs: 1 where all are alike.", now.jain),
        ):
            yield GaugeMetricFamily(f"goodspeed_{name}", what, value=float(value))
        yield CounterMetricFamily(
            "goodspeed_found_out",
            "Accounts whose drafts did not come of the distributions they claimed.",
            now.found_out,
        )
        yield CounterMetricFamily("goodspeed_busy_seconds", "Time that the engine has spent in passes.", now.busy_s)
        resumed = CounterMetricFamily(
            "goodspeed_streams_resumed",
            "Texts that went on on another link, by what from.",
            labels=["how"],
        )
        resumed.add_metric(["parked"], now.resumed_parked)
        resumed.add_metric(["transcript"], now.resumed_transcript)
        yield resumed
        chosen = sorted(_by_name(now.agents).items(), key=lambda entry: -entry[1]["streams"])[:_MOST_AGENTS]
        for name, what in _OF_AGENTS.items():
            family = GaugeMetricFamily(f"goodspeed_agent_{name}", what, labels=["agent"])
            for label, values in chosen:
                family.add_metric([label], values[name])
            yield family


_OF_AGENTS = {
    "goodput": "Committed tokens per second.",
    "budget": "Mean budget of its streams, tokens.",
    "alpha": "Estimated acceptance rate, the mean over its streams.",
    "streams": "Streams that have a row.",
}


def _by_name(rows: Sequence[AgentRow]) -> dict[str, dict[str, float]]:
    """Sums and means over the links of one name, which may be anything that a peer says of itself."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        values = found.setdefault(row.name[:_LONGEST_LABEL], dict.fromkeys(_OF_AGENTS, 0.0))
        streams = values["streams"] + row.streams
        share = row.streams / streams if streams else 1.0
        for mean in ("budget", "alpha"):
            values[mean] += share * (getattr(row, mean) - values[mean])
        values["goodput"] += row.goodput
        values["streams"] = streams
    return found
