"""What an operator chooses, with defaults that suit a first run; nothing here needs torch."""

from __future__ import annotations

import math
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from goodspeed.addresses import is_loopback_host
from goodspeed.catalog import DEFAULT_TARGET
from goodspeed.credentials import server_tls
from goodspeed.errors import InvalidRequest
from goodspeed.messages import MAX_DRAFT_TOKENS
from goodspeed.plugins import find, unknown
from goodspeed.quantisation import read_quantisation
from goodspeed.rules import RULE, use_rule
from goodspeed.scheduling import CAPACITY_PER_STREAM, SCHEDULER, Scheduler, make_scheduler, needs_no_capacity
from goodspeed.utility import AlphaFair

__all__ = [
    "AUTO_MAX_LENGTH",
    "AUTO_MAX_STREAMS",
    "CAPACITY_PER_STREAM",
    "FAILED_TOKENS_PER_MINUTE",
    "HANDSHAKES_PER_MINUTE",
    "LINKS_PER_ADDRESS",
    "LONGEST_DRAIN_S",
    "MAX_PORT",
    "OVERDUE",
    "DoorSettings",
    "LayoutName",
    "PrefixSharing",
    "RoundSettings",
    "RoundsName",
    "ServerSettings",
    "what_auto_means",
]

LayoutName: TypeAlias = Literal["auto", "packed", "padded"]
RoundsName: TypeAlias = Literal["auto", "barrier", "rolling"]
PrefixSharing: TypeAlias = Literal["off", "holder", "all"]
"""Whose prompts share what they begin with: nobody's, those of one token's holder, or everybody's."""

MAX_PORT = 65_535
LONGEST_DRAIN_S = 86_400
LINKS_PER_ADDRESS = 256
HANDSHAKES_PER_MINUTE = 300
FAILED_TOKENS_PER_MINUTE = 10
OVERDUE = 10
"""How many round timeouts a draft may be late."""
AUTO_MAX_STREAMS = 64
LARGEST_DRAFT = 8
"""For how many drafted tokens of each row a pass has memory: the mean, of which single rows may have more."""
AUTO_MAX_LENGTH = 4096
"""The most tokens a stream gets unless the operator asks for more."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """What an operator chooses about rounds.

    Raises:
        InvalidRequest: a number is out of range.
    """

    rounds: RoundsName = "auto"
    """How rounds close; `auto`: rolling under a scheduler that counts seconds (`needs_no_capacity`), behind the paper's
    barrier under all others."""
    capacity: int | None = None
    """Draft tokens one pass may verify, `C`; None: what the engine's time is worth decides, behind a barrier
    `CAPACITY_PER_STREAM` for each stream that can draft."""
    round_timeout_s: float = 0.5
    """How long the barrier waits for drafts; a stream whose draft is `OVERDUE` times as late goes on without it."""
    prefill_chunk: int = 512
    """Prompt tokens one pass may carry beside its drafts, so that a long prompt stalls nobody."""
    prefix_sharing: PrefixSharing = "holder"
    """Prompts that begin alike are run once, and copied. Without tokens a holder is a name at an address."""
    max_waiting: int = 64
    """Streams that may wait for a row."""
    max_waiting_tokens: int = 2**20
    """Of all that wait together: each holds its prompt in memory."""
    max_streams_per_agent: int | None = None
    """At a time, those that wait included, for each link; None for no limit."""
    park_s: float = 30.0
    """How long the rows of a link that was lost are kept for it, as far as nobody else needs them; 0 keeps none."""
    early_stop: bool = True
    """Whether agents are told the price of a drafted token, so that they may stop short; see `Plan.worth_s`."""
    beta: float = 0.5
    """The step of equation (4); the paper's value."""

    def __post_init__(self) -> None:
        _choose("rounds", self.rounds, get_args(RoundsName))
        _check("capacity", self.capacity is None or self.capacity >= 0, "0 or above")
        _check("round_timeout_s", 0 <= self.round_timeout_s < math.inf, "0 or above, and finite")
        _check("prefill_chunk", self.prefill_chunk >= 1, "1 or above")
        _choose("prefix_sharing", self.prefix_sharing, get_args(PrefixSharing))
        _check("max_waiting", self.max_waiting >= 0, "0 or above")
        _check("max_waiting_tokens", self.max_waiting_tokens >= 1, "1 or above")
        _check(
            "max_streams_per_agent", self.max_streams_per_agent is None or self.max_streams_per_agent >= 1, "1 or above"
        )
        _check("park_s", 0 <= self.park_s < math.inf, "0 or above, and finite")
        _check("beta", 0 < self.beta <= 1, "above 0 and at most 1")

    def largest_pass(self, rows: int) -> int:
        """How many tokens a server of so many rows has memory for in one pass.

        A last token and a draft for each row, or all of the capacity, and a chunk of prompts. Whatever is larger is run
        in pieces.
        """
        drafts = LARGEST_DRAFT * rows if self.capacity is None else min(self.capacity, MAX_DRAFT_TOKENS * rows)
        return rows + drafts + self.prefill_chunk


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How much of the server strangers, and single links, may have.

    A limit of an address that is None is the usual one, and none for loopback: what comes from there is this machine's
    own, or a proxy's.

    Raises:
        InvalidRequest: a number is out of range.
    """

    max_links: int = 4096
    max_links_per_address: int | None = None
    handshakes_per_minute: int | None = None
    """Connections of one address."""
    failed_tokens_per_minute: int | None = None
    """Of one address; then no token of it is looked at."""
    idle_s: float = 300.0
    """How long a link without streams has to be silent to make way for another where there are `max_links`."""
    messages_per_s: float = 200.0
    """Of the holder of a token, or of an address; see `PeerPace`."""

    def __post_init__(self) -> None:
        _check("max_links", self.max_links >= 1, "1 or above")
        for name in ("max_links_per_address", "handshakes_per_minute", "failed_tokens_per_minute"):
            _check(name, getattr(self, name) is None or getattr(self, name) >= 1, "1 or above")
        _check("idle_s", 0 <= self.idle_s < math.inf, "0 or above, and finite")
        _check("messages_per_s", 1 <= self.messages_per_s < math.inf, "1 or above, and finite")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How links are encrypted.

    Raises:
        InvalidRequest: a key or a client's authority without a certificate.
    """

    certificate: Path | None = None
    """None for links in the clear."""
    key: Path | None = None
    """Where it does not stand in the same file."""
    client_ca: Path | None = None
    """Whose signature clients have to show; None asks for none."""

    def __post_init__(self) -> None:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise InvalidRequest("--tls-key and --tls-client-ca go with a certificate: give --tls-cert")

    def context(self) -> ssl.SSLContext | None:
        """What a listener wants.

        Raises:
            InvalidRequest: a file cannot be used.
        """
        return None if self.certificate is None else server_tls(self.certificate, self.key, self.client_ca)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server's configuration; `auto` and None mean: choose for me.

    Raises:
        InvalidRequest: a name that does not exist, with those that do, or a number that is out of range.
    """

    model: str = DEFAULT_TARGET
    host: str = "127.0.0.1"
    port: int = 8765
    scheduler: str = "auto"
    """A name of `SCHEDULERS`, or a class of one's own (see `goodspeed.plugins`); `auto`: `seconds`, and the paper's
    where rounds are to have its barrier."""
    fairness: float = 1.0
    rule: str = "auto"
    """A name of `RULES`, or a class of one's own; `auto` is `coupled`, which needs no trust in agents."""
    layout: LayoutName = "auto"
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    """How the target's weights are quantised while it is loaded (`read_quantisation`); None: as they are stored."""
    max_streams: int | None = None
    """Rows of the KV slab; None: as many as fit into the memory, at most `AUTO_MAX_STREAMS`."""
    max_length: int | None = None
    """Tokens a stream, prompt included; None: what the model was made for, at most `AUTO_MAX_LENGTH`."""
    threads: int | None = None
    """CPU threads of the forward pass, on each rank; None: as measured at the start, and ranks share the cores."""
    tensor_parallel: int = 1
    """How many processes share the target, a GPU each where there are any; torchrun, if it starts us, says so."""
    rounds: RoundSettings = field(default_factory=RoundSettings)
    record: Path | None = None
    """Where to keep what tuning needs of every verdict, the users' texts among it; None keeps nothing."""
    record_max_bytes: int = 2**30
    """The oldest of it is deleted for what is new."""
    trace: Path | None = None
    """Where to write what was asked for, verified and passed, when, and no texts; None writes nothing."""
    trace_max_bytes: int = 2**28
    """Of that file; it ends there."""
    door: DoorSettings = field(default_factory=DoorSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    tokens: Path | None = None
    """The file of those who may link up (`TokenStore`); None lets everybody."""
    drain_s: float = 10.0
    """For how long a server that is told to end goes on with the texts that were begun."""
    insecure: bool = False
    """Whether strangers may reach a server that asks for no token, or whose links can be listened to."""

    def __post_init__(self) -> None:
        if self.rule != "auto":
            if find(RULE, self.rule) is None:
                raise unknown(RULE, self.rule, also=("auto",))
            use_rule(self.rule)
        _choose("layout", self.layout, get_args(LayoutName))
        if self.quantize is not None:
            read_quantisation(self.quantize)
        _check("port", 0 <= self.port <= MAX_PORT, f"0 to {MAX_PORT}")
        _check("max_streams", self.max_streams is None or self.max_streams >= 1, "1 or above")
        _check(
            "max_length", self.max_length is None or self.max_length >= 2, "2 or above: a prompt token, and one more"
        )
        _check("threads", self.threads is None or self.threads >= 1, "1 or above")
        _check("tensor_parallel", self.tensor_parallel >= 1, "1 or above")
        _check("drain_s", 0 <= self.drain_s <= LONGEST_DRAIN_S, f"0 or above, and at most {LONGEST_DRAIN_S:,}")
        utility = AlphaFair(self.fairness)
        if self.scheduler != "auto":
            if find(SCHEDULER, self.scheduler) is None:
                raise unknown(SCHEDULER, self.scheduler, also=("auto",))
            make_scheduler(self.scheduler, utility)
        if not (is_loopback_host(self.host) or self.insecure or (self.tokens and self.tls.certificate)):
            raise InvalidRequest(
                f"on {self.host} others can reach this server: give it --tokens and --tls-cert, or --insecure if your "
                "network is your own"
            )


class Chosen(NamedTuple):
    """What plans, and how rounds close."""

    name: str
    scheduler: Scheduler
    rounds: RoundsName


def what_auto_means(scheduler: str, rounds: RoundsName, utility: AlphaFair) -> Chosen:
    """The scheduler and the kind of rounds that two settings, either of which may be `auto`, stand for.

    Raises:
        InvalidRequest: there is no such scheduler.
    """
    if scheduler == "auto":
        scheduler = "goodspeed" if rounds == "barrier" else "seconds"
    made = make_scheduler(scheduler, utility)
    if rounds == "auto":
        rounds = "rolling" if needs_no_capacity(made) else "barrier"
    return Chosen(scheduler, made, rounds)


def _check(what: str, good: bool, range_: str) -> None:
    if not good:
        raise InvalidRequest(f"{what} must be {range_}")


def _choose(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise InvalidRequest(f"{what} {name!r} does not exist: choose {', '.join(names)}")
