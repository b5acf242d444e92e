"""What a server says of itself at `/metrics`, as far as attacks are about it."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Present", "Reading", "read"]

_ANSWER_WITHIN_S = 300.0
"""Long, since a server that is swamped answers late, and what it then says is what is measured."""


@dataclass(frozen=True, slots=True)
class Present:
    """Who is there."""

    links: int
    agents: int
    """Links of agents that are served; one whose connection has gone is as long as it has messages to be read."""
    pending: int
    """Connections that are no links, that of whoever asks among them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server has counted until now."""

    at_s: float
    cpu_s: float
    busy_s: float
    passes: int
    rss_bytes: float
    throttled_s: float
    refusals: Counter[str]
    present: Present


def read(address: str, token: str | None = None) -> Reading:
    """Ask a server.

    Args:
        address: of its links.
        token: of a monitor; None for a server that asks for none.

    Raises:
        OSError: it does not answer, or not with its metrics.
    """
    url = address.replace("ws://", "http://") + "/metrics"
    request = urllib.request.Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    at_s, values, refusals = time.monotonic(), {}, Counter[str]()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "goodspeed_refusals_total":
            refusals[sample.labels["code"]] = int(sample.value)
        elif not sample.labels:
            values[sample.name] = sample.value
    return Reading(
        at_s=at_s,
        cpu_s=values["process_cpu_seconds_total"],
        busy_s=values["goodspeed_busy_seconds_total"],
        passes=int(values["goodspeed_rounds_total"]),
        rss_bytes=values["process_resident_memory_bytes"],
        throttled_s=values["goodspeed_throttled_seconds_total"],
        refusals=refusals,
        present=Present(
            links=int(values["goodspeed_links"]),
            agents=int(values["goodspeed_agents"]),
            pending=int(values["goodspeed_connections_pending"]),
        ),
    )
