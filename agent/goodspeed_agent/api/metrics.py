"""What `/metrics` tells: vLLM's names, under ours."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from goodspeed_agent.report import Completion

__all__ = ["ApiMetrics", "Watch"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ApiMetrics:
    """One agent's counters.

    Args:
        linked: whether there is a link to the server now.
        alone: whether the draft answers alone now.
        clock: seconds, monotonic.
    """

    def __init__(
        self, linked: Callable[[], bool], alone: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._registry = registry = CollectorRegistry()
        self._running = Gauge("goodspeed_num_requests_running", "Choices that are being written.", registry=registry)
        self._finished = Counter(
            "goodspeed_request_success", "Choices that were written.", ["finished_reason"], registry=registry
        )
        self._failed = Counter(
            "goodspeed_request_failure", "Choices that came to nothing, or were given up.", registry=registry
        )
        self._prompt = Counter("goodspeed_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._generated = Counter("goodspeed_generation_tokens", "Tokens that were written.", registry=registry)
        self._drafts = Counter("goodspeed_spec_decode_num_drafts", "Drafts that were verified.", registry=registry)
        self._drafted = Counter(
            "goodspeed_spec_decode_num_draft_tokens", "Drafted tokens that were verified.", registry=registry
        )
        self._accepted = Counter(
            "goodspeed_spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.", registry=registry
        )
        self._first = Histogram(
            "goodspeed_time_to_first_token_seconds", "From the request on.", buckets=_SECONDS, registry=registry
        )
        self._between = Histogram(
            "goodspeed_request_time_per_output_token_seconds",
            "Of a choice: from its first text on, over its tokens.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "goodspeed_e2e_request_latency_seconds", "Of a choice, to its end.", buckets=_SECONDS, registry=registry
        )
        link = Gauge("goodspeed_agent_linked", "Whether there is a link to the server.", registry=registry)
        link.set_function(lambda: float(linked()))
        offline = Gauge(
            "goodspeed_agent_offline", "Whether the draft answers alone, and nobody verifies it.", registry=registry
        )
        offline.set_function(lambda: float(alone()))
        self._unverified = Counter(
            "goodspeed_request_unverified", "Of the choices that were written, those by the draft alone.",
            registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def watch(self, choices: int) -> Watch:
        """Follow a request of so many choices."""
        self._running.inc(choices)
        return Watch(self, choices, self._clock())


class Watch:
    """One request on its way."""

    def __init__(self, metrics: ApiMetrics, choices: int, began_s: float) -> None:
        self._metrics = metrics
        self._left = choices
        self._began_s = began_s
        self._first_s: dict[int, float] = {}

    def piece(self, index: int) -> None:
        """More of a choice's text has come."""
        if index not in self._first_s:
            self._first_s[index] = self._metrics._clock()
            self._metrics._first.observe(self._first_s[index] - self._began_s)

    def done(self, index: int, completion: Completion) -> None:
        """A choice is written."""
        metrics, now = self._metrics, self._metrics._clock()
        self._left -= 1
        metrics._running.dec()
        metrics._finished.labels(completion.finish_reason).inc()
        metrics._unverified.inc(completion.draft is not None)
        metrics._prompt.inc(completion.prompt_tokens)
        metrics._generated.inc(len(completion.tokens))
        speculation = completion.speculation
        metrics._drafts.inc(speculation.num_spec_steps)
        metrics._drafted.inc(speculation.num_draft_tokens)
        metrics._accepted.inc(speculation.num_accepted_tokens)
        metrics._whole.observe(now - self._began_s)
        if index in self._first_s and len(completion.tokens) > 1:
            metrics._between.observe((now - self._first_s[index]) / (len(completion.tokens) - 1))

    def over(self) -> None:
        """Nothing more comes; whatever is not written by now was given up."""
        self._metrics._running.dec(self._left)
        self._metrics._failed.inc(self._left)
        self._left = 0
