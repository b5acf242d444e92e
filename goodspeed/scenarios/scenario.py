"""What a scenario file may say; every key is a field here, and every field has the default that the file leaves out."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, Struct

from goodspeed.catalog import DEFAULT_DRAFT, DEFAULT_TARGET
from goodspeed.control import MAX_WEIGHT
from goodspeed.utility import MAX_FAIRNESS

__all__ = [
    "LONGEST_S",
    "Acceptance",
    "AgentGroup",
    "Arrivals",
    "Contender",
    "DatasetPrompts",
    "Scenario",
    "Server",
    "Spread",
    "Verification",
]

LARGEST = 10**9
"""No number is larger: what is infinite, or would not end, is refused."""
LONGEST_S = 10**7
LEAST_PASS_MS = 0.01

Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Duration = Annotated[float, Meta(gt=0, le=LONGEST_S)]
Whole = Annotated[int, Meta(ge=0, le=LARGEST)]


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class Spread(Table, frozen=True):
    """Numbers between two others: uniform, or uniform in their logarithms."""

    low: NonNegative
    high: NonNegative
    log: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high or (self.log and not self.low):
            raise ValueError("low must be at most high, and above 0 where log is true")


class Acceptance(Table, frozen=True):
    """How often a drafted token is accepted: spread over a group's agents, changing with time, or as was measured."""

    low: Share | None = None
    high: Share | None = None
    """Uniform, an agent each."""
    at_s: tuple[NonNegative, ...] = ()
    rate: tuple[Share, ...] = ()
    """At those times; straight lines between them, and level before the first and behind the last."""
    measured: str | None = None
    """The name of a bundled draft: what its card says for the group's temperature."""

    def __post_init__(self) -> None:
        ways = [self.low is not None and self.high is not None, bool(self.at_s), self.measured is not None]
        if sum(ways) != 1 or (self.low is None) != (self.high is None):
            raise ValueError("give low and high, or at_s and rate, or measured")
        if ways[0] and (self.low or 0) > (self.high or 0):
            raise ValueError("low must be at most high")
        if len(self.at_s) != len(self.rate) or list(self.at_s) != sorted(self.at_s):
            raise ValueError("at_s must be in order, with a rate for each time")


class Arrivals(Table, frozen=True):
    """Texts are asked for at random, whatever has become of the last ones: a Poisson process."""

    per_s: Annotated[float, Meta(ge=0, le=1000)]
    """Texts a second of each agent, on average."""
    swing: Share = 0.0
    """How far the rate goes up and down with the hours, as a share of it: a sine that begins on its way up."""
    period_s: Positive = 86_400.0

    def at(self, now: float) -> float:
        """Texts a second, at a time."""
        return self.per_s * (1.0 + self.swing * math.sin(2 * math.pi * now / self.period_s))


class DatasetPrompts(Table, frozen=True):
    """Prompts out of a Hugging Face data set, or of a folder that the `datasets` library can read."""

    dataset: str
    column: str
    """Of text, or of a conversation's messages: then what its user said first."""
    subset: str | None = None
    split: str = "train"
    limit: Count = 100
    """So many of them, the first."""


class AgentGroup(Table, frozen=True):
    """Agents of one kind."""

    name: str
    count: Annotated[int, Meta(ge=1, le=10_000)] = 1
    draft: str = DEFAULT_DRAFT
    """What they draft with, as `goodspeed-agent --draft` takes it."""
    draft_ms: Positive | Spread = 10.0
    """For a drafted token."""
    acceptance: Share | Acceptance | None = None
    """For the simulator; None: as the card of `draft` says."""
    max_draft: Count = 16
    round_trip_ms: NonNegative | Spread = 20.0
    jitter_ms: NonNegative = 0.0
    """What is added to each way on average."""
    kbytes_per_s: Positive | None = 1250.0
    """Each way, in units of 1000 bytes; for `bench`."""
    weight: Annotated[float, Meta(gt=0, le=MAX_WEIGHT)] = 1.0
    joins_at_s: NonNegative = 0.0
    leaves_at_s: Positive | None = None
    prompts: str | DatasetPrompts = "bundled"
    """For `bench`: `bundled`, a JSONL file (beside the scenario's), or a data set."""
    chat: bool = False
    """Whether each prompt is a user's message, for the model's chat template; for `bench`."""
    texts: Count = 4
    """How many different ones a user asks for in a closed loop, before it begins again; for `bench`."""
    temperature: NonNegative = 0.7
    prompt_tokens: Whole | Spread = 0
    """For the simulator; `bench` has real prompts."""
    new_tokens: Count | Spread | None = None
    """Of each text; None: `bench` asks for as many as a stream may have, and the simulator's texts have no end."""
    arrivals: Arrivals | None = None
    """None is a closed loop: the next text is asked for when the last is there."""
    think_s: NonNegative = 0.0
    """In a closed loop: the mean pause between texts."""

    def __post_init__(self) -> None:
        if isinstance(self.draft_ms, Spread) and not self.draft_ms.low:
            raise ValueError("draft_ms.low must be above 0")
        if self.leaves_at_s is not None and self.leaves_at_s <= self.joins_at_s:
            raise ValueError(f"leaves_at_s is {self.leaves_at_s:g}: it must be above joins_at_s, {self.joins_at_s:g}")
        if self.arrivals is not None and self.new_tokens is None:
            raise ValueError("texts that arrive must end: give new_tokens")
        if self.arrivals is not None and self.think_s:
            raise ValueError("think_s is a closed loop's: texts that arrive do not wait for each other")


class Verification(Table, frozen=True):
    """How long a verification pass takes: `fixed_ms + row_ms * streams + token_ms * tokens`, or as was measured."""

    fixed_ms: NonNegative = 35.0
    row_ms: NonNegative = 0.0
    token_ms: NonNegative = 0.6
    noise: Annotated[float, Meta(ge=0, le=3)] = 0.0
    """Standard deviation of the logarithm; for the simulator."""
    passes: tuple[tuple[Count, Count, Annotated[float, Meta(ge=LEAST_PASS_MS, le=LARGEST)]], ...] = ()
    """Streams, tokens and milliseconds of passes that were measured: the three numbers above are fitted to them."""
    emulated: bool = True
    """For `bench`: whether passes are stretched to these times, or last as long as `model`'s do."""

    def __post_init__(self) -> None:
        if not self.passes and self.fixed_ms + self.row_ms + self.token_ms < LEAST_PASS_MS:
            raise ValueError(f"a pass must take time: fixed_ms, row_ms and token_ms together {LEAST_PASS_MS} or more")


class Server(Table, frozen=True):
    """The server, as far as contenders do not differ in it."""

    model: str = DEFAULT_TARGET
    """For `bench`."""
    capacity: Whole | None = None
    """Draft tokens a pass, as `goodspeed-server run --capacity`."""
    rounds: Literal["auto", "barrier", "rolling"] = "auto"
    rule: str = "coupled"
    fairness: Annotated[float, Meta(ge=0, le=MAX_FAIRNESS)] = 1.0
    prefill_chunk: Count = 512
    drafts_ahead: bool = False
    """Whether agents draft on while they wait; in the simulator's rolling rounds they always do, whatever is said."""
    early_stop: bool = False
    """Whether agents are told the price of a token; for `bench`."""
    verification: Verification = Verification()


class Contender(Table, frozen=True):
    """One way to run the server; what is None is as the scenario's server has it."""

    scheduler: str
    """A name, an entry point or a place, with options if it has any; see `goodspeed.plugins`. A file is looked for
    beside the scenario's, and then in the working directory; so is the server's rule."""
    name: str = ""
    """In tables and plots; the scheduler's by default."""
    capacity: Whole | None = None
    rounds: Literal["auto", "barrier", "rolling"] | None = None
    drafts_ahead: bool | None = None
    early_stop: bool | None = None

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.name or self.scheduler


class Scenario(Table, frozen=True):
    """All of it."""

    name: str
    agents: Annotated[tuple[AgentGroup, ...], Meta(min_length=1)]
    about: str = ""
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0, le=LARGEST)], ...], Meta(min_length=1)] = (0,)
    duration_s: Duration = 60.0
    """Virtual seconds in the simulator, real ones in a bench; for each contender and seed."""
    warm_up_s: NonNegative = 5.0
    """What comes before this does not count."""
    server: Server = Server()
    schedulers: Annotated[tuple[str | Contender, ...], Meta(min_length=1)] = ("seconds", "goodspeed", "fixed", "plain")

    def __post_init__(self) -> None:
        if self.warm_up_s >= self.duration_s:
            raise ValueError(
                f"warm_up_s is {self.warm_up_s:g}: what comes before anything counts must be less than duration_s, "
                f"{self.duration_s:g}"
            )
        for place, group in enumerate(self.agents):
            if group.joins_at_s >= self.duration_s:
                raise ValueError(
                    f"agents[{place}].joins_at_s is {group.joins_at_s:g}: it must be less than duration_s, "
                    f"{self.duration_s:g}"
                )
        repeated = next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None)
        if repeated is not None:
            raise ValueError(f"seeds has {repeated} more than once: each must be another")
        for what, names in (
            ("agents", [group.name for group in self.agents]),
            ("schedulers", [contender.label for contender in self.contenders]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two {what} are called {twice}: give each a name of its own")

    @property
    def contenders(self) -> list[Contender]:
        """The schedulers, those too that are given by name alone."""
        return [Contender(scheduler=each) if isinstance(each, str) else each for each in self.schedulers]
