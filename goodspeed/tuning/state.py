"""A server's live state, as `goodspeed-server top URL --once --json` prints it: who drafts how much with what."""

from __future__ import annotations

from pathlib import Path

from goodspeed.errors import CorruptData, InvalidRequest, MalformedMessage
from goodspeed.snapshot import AgentRow, ServerSnapshot
from goodspeed.tuning.clients import Client

__all__ = ["clients_of", "read_state"]

_LEAST_GOODPUT = 1e-3


def read_state(path: Path) -> ServerSnapshot:
    """Read the last snapshot of a file.

    Raises:
        InvalidRequest: there is no such file.
        CorruptData: it holds no snapshot.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidRequest(
            f"cannot read {path} ({error.strerror}): make it by goodspeed-server top URL --once --json > {path.name}"
        ) from None
    written = [line for line in lines if line.strip()]
    if not written:
        raise CorruptData(f"{path} is empty: make it by goodspeed-server top URL --once --json > {path.name}")
    try:
        return ServerSnapshot.from_json(written[-1])
    except MalformedMessage as error:
        raise CorruptData(f"{path} holds no state of a server ({error})") from None


def clients_of(state: ServerSnapshot) -> list[Client]:
    """The agents that have streams, as clients of their drafts; links of one name are one client."""
    by_name: dict[str, list[AgentRow]] = {}
    for row in state.agents:
        if row.streams:
            by_name.setdefault(row.name, []).append(row)
    return [_client(name, rows) for name, rows in by_name.items()]


def _client(name: str, rows: list[AgentRow]) -> Client:
    streams = sum(row.streams for row in rows)
    budget = sum(row.budget * row.streams for row in rows) / streams
    tokens = sum(row.tokens_per_round * row.streams for row in rows) / streams
    per_stream = max(_LEAST_GOODPUT, sum(row.goodput for row in rows) / streams)
    weight = sum(row.weight * row.streams for row in rows)  # each of its streams counts in the utility
    return Client(name, round(budget), weight, tokens, per_stream / tokens)
